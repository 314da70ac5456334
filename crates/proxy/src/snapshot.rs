//! The services at one moment, and the kernel's decision over them.

use crate::tally::{Account, Terms};
use rustls::ServerConfig;
use splitter_common::{
    abi::{self, Addr, HttpRules, MaglevChunk, MaglevKey},
    decide::{Avoid, Choice, Facts, Lookups, Request, Search, select, tried_bit},
    http::Plain,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Everything that is served, by the address that clients connect to.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub services: HashMap<SocketAddr, Arc<Service>>,
}

/// How a service's clients are met.
pub type Tls = Arc<ServerConfig>;

/// One service: what the kernel would decide by, and what the decision leads to.
#[derive(Debug)]
pub struct Service {
    pub id: u32,
    /// As the kernel has it of a service of `mode: http`.
    pub record: abi::Service,
    pub rules: Option<Arc<HttpRules>>,
    pub backends: HashMap<u32, Backend>,
    pub tables: Arc<HashMap<MaglevKey, MaglevChunk>>,
    /// By version id.
    pub accounts: HashMap<u32, Arc<Account>>,
    pub terms: Terms,
    /// `None`: its certificates could never be read, so that nobody is served.
    pub tls: Option<Tls>,
}

/// A server of one version.
#[derive(Clone, Debug)]
pub struct Backend {
    pub address: SocketAddr,
    /// Id.
    pub version: u32,
    /// [`abi::backend_state`].
    pub state: u8,
    pub health: Arc<Health>,
}

/// Whether a backend gets no request while others can: for some seconds after it took no connection.
#[derive(Debug)]
pub struct Health {
    base: Instant,
    /// Milliseconds since `base`.
    until: AtomicU64,
}

/// As long as the kernel's.
const SUSPECT: Duration = Duration::from_secs(5);

impl Default for Health {
    fn default() -> Self {
        Self { base: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Health {
    fn now(&self) -> u64 {
        self.base.elapsed().as_millis() as u64
    }

    pub(crate) fn suspect(&self) {
        self.until.store(self.now() + SUSPECT.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn well(&self) {
        if self.until.load(Ordering::Relaxed) != 0 {
            self.until.store(0, Ordering::Relaxed);
        }
    }

    pub fn is_suspect(&self) -> bool {
        self.now() < self.until.load(Ordering::Relaxed)
    }
}

impl Service {
    /// The kernel's choice for a request. `used`: the backend that the connection's last request went to, or 0.
    pub fn decide(&self, facts: &Facts, request: &Request, used: u32) -> Choice {
        let mut choice = Choice::nobody(self.id, used);
        select(self, &self.record, facts, Some(request), &mut choice);
        choice
    }

    /// Another backend of the same version, after `failed` did not take the request; `choice.backend` is it, or 0. Never one that was tried.
    pub fn decide_again(&self, facts: &Facts, failed: u32, choice: &mut Choice) {
        // The backend in use before is as good as any other, unless it has failed.
        let tried = if choice.avoid.tried == 0 { 0 } else { choice.avoid.tried | tried_bit(choice.avoid.last) };
        choice.avoid = Avoid { last: failed, tried: tried | tried_bit(failed) };
        let found = select::backend(self, &self.record, facts, choice);
        if choice.avoid.has(found) {
            choice.backend = 0;
        }
    }
}

impl Lookups for &Service {
    type Loop = Plain;

    /// Rules of layer 4 are of other services.
    fn rule(self, _: u32, _: &Addr) -> Option<u32> {
        None
    }
    fn backend(self, id: u32) -> Option<(u32, u8)> {
        self.backends.get(&id).map(|backend| (backend.version, backend.state))
    }
    fn maglev(self, chunk: &MaglevKey, at: u32) -> Option<u32> {
        self.tables.get(chunk)?.backends.get(at as usize).copied()
    }
    fn is_suspect(self, backend: u32) -> bool {
        self.backends.get(&backend).is_some_and(|backend| backend.health.is_suspect())
    }
    fn with_search<R>(self, run: impl FnOnce(&mut Search) -> R) -> Option<R> {
        Some(run(&mut Search::new()))
    }
}

/// The ABI's form of an address.
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
