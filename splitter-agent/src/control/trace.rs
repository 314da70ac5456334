//! Decisions live: who looks, what the kernel is to tell, and handing what it tells to everybody who looks.
//!
//! The kernel's filter is the narrowest that holds for all readers; each reader filters for itself. A reader that does not keep up loses
//! lines, and holds up nobody.

mod join;
mod names;

use super::{ControlError, actor::Actor};
use join::{Join, Told};
use names::Names;
use splitter_api::{TraceEvent, TraceLost, TraceRequest};
use splitter_common::abi::Trace;
use splitter_datapath::{TraceEvents, plan, reconcile::Applied};
use splitter_policy::{model::Cidr, source};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

/// Readers at the same time.
const READERS: usize = 8;
/// Lines that a reader may be behind.
const BEHIND: usize = 4096;
/// Events a second and CPU, when the reader does not say.
const RATE: u32 = 2_000;
pub const MOST: u32 = 100_000;
/// How long the kernel goes on without the agent.
const LEASE: u64 = 5_000_000_000;
/// Events that are read before others get their turn, and how long that is.
const TURN: usize = 2048;
const PAUSE: Duration = Duration::from_millis(5);
/// How soon waiting decisions are looked through.
const STEP: Duration = Duration::from_millis(250);

/// What a reader wants, understood.
#[derive(Clone, Debug, PartialEq)]
struct Filter {
    service: Option<String>,
    version: Option<String>,
    client: Option<Cidr>,
    rate: u32,
}

impl Filter {
    fn wants(&self, event: &TraceEvent) -> bool {
        let client = || event.client.parse::<SocketAddr>().map(|client| client.ip());
        self.service.as_ref().is_none_or(|name| *name == event.service)
            && self.version.as_ref().is_none_or(|name| Some(name) == event.version.as_ref())
            && self.client.is_none_or(|network| client().is_ok_and(|ip| network.contains(ip)))
    }
}

/// What readers and the actor share.
#[derive(Debug)]
struct Shared {
    readers: Mutex<(u64, BTreeMap<u64, Filter>)>,
    changed: Notify,
    /// As the kernel counts them.
    lost: [AtomicU64; 2],
}

impl Shared {
    fn readers(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Filter>)> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn lost(&self) -> [u64; 2] {
        [self.lost[0].load(Relaxed), self.lost[1].load(Relaxed)]
    }
}

/// Somebody who looks; not any more when it is dropped.
#[derive(Debug)]
pub struct Reader {
    number: u64,
    filter: Filter,
    events: broadcast::Receiver<Arc<TraceEvent>>,
    shared: Arc<Shared>,
    before: [u64; 2],
    missed: u64,
}

impl Reader {
    /// The next event that the reader wants; `None` when the agent ends. Gives up waiting without losing anything when it is dropped.
    pub async fn next(&mut self) -> Option<Arc<TraceEvent>> {
        loop {
            match self.events.recv().await {
                Ok(event) if self.filter.wants(&event) => return Some(event),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => self.missed += missed,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// What it has not been shown so far.
    pub fn lost(&self) -> TraceLost {
        let [over, full] = self.shared.lost();
        let [over_before, full_before] = self.before;
        TraceLost { over_limit: over.saturating_sub(over_before), ring_full: full.saturating_sub(full_before), reader_slow: self.missed }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.readers().1.remove(&self.number);
        self.shared.changed.notify_one();
    }
}

/// A reader of events that a test says.
#[cfg(test)]
pub fn rehearsal(request: TraceRequest) -> (Reader, broadcast::Sender<Arc<TraceEvent>>) {
    let mut tracing = Tracing::default();
    let filter = Filter { service: request.service, version: request.version, client: None, rate: RATE };
    let reader = tracing.admit(filter).expect("there is room");
    (reader, tracing.sender.take().expect("made with the first reader"))
}

/// The actor's part.
pub struct Tracing {
    shared: Arc<Shared>,
    sender: Option<broadcast::Sender<Arc<TraceEvent>>>,
    events: Option<TraceEvents>,
    on: bool,
    names: Names,
    join: Join,
    /// There may be more events than the last turn has taken.
    more: bool,
    /// When the next turn may be.
    next: Instant,
}

impl Default for Tracing {
    fn default() -> Self {
        let shared = Shared { readers: Mutex::default(), changed: Notify::new(), lost: [AtomicU64::new(0), AtomicU64::new(0)] };
        Self {
            shared: Arc::new(shared),
            sender: None,
            events: None,
            on: false,
            names: Names::default(),
            join: Join::default(),
            more: false,
            next: Instant::now(),
        }
    }
}

impl Tracing {
    fn admit(&mut self, filter: Filter) -> Result<Reader, ControlError> {
        let mut readers = self.shared.readers();
        if readers.1.len() >= READERS {
            return Err(ControlError::Busy(format!("{READERS} readers look already: end one of them first")));
        }
        readers.0 += 1;
        let number = readers.0;
        readers.1.insert(number, filter.clone());
        drop(readers);
        let events = self.sender.get_or_insert_with(|| broadcast::channel(BEHIND).0).subscribe();
        self.shared.changed.notify_one();
        Ok(Reader { number, filter, events, before: self.shared.lost(), shared: self.shared.clone(), missed: 0 })
    }

    /// Waits for something to do: readers came or went, the kernel has told something, or a decision has waited for long.
    pub async fn due(&mut self) {
        let Self { shared, events, on, join, more, next, .. } = self;
        let events = async {
            match events {
                Some(_) if *more => tokio::time::sleep_until(*next).await,
                Some(events) if *on => {
                    tokio::time::sleep_until(*next).await;
                    if let Err(error) = events.readable().await {
                        tracing::error!(%error, "no events of decisions");
                        std::future::pending::<()>().await;
                    }
                }
                _ => std::future::pending().await,
            }
        };
        let step = async { if join.is_empty() { std::future::pending().await } else { tokio::time::sleep(STEP).await } };
        tokio::select! {
            () = events => {}
            () = step => {}
            () = shared.changed.notified() => {}
        }
    }
}

/// The narrowest filter that holds for all.
fn union<'a>(filters: impl Iterator<Item = &'a Filter>, applied: &Applied, now: u64) -> Trace {
    let mut all: Option<(u32, u32, u128, u32, u32)> = None;
    for filter in filters {
        let planned = filter.service.as_deref().map(|name| applied.service(name));
        // A service that is gone has no number; it may come back.
        let service = planned.map_or(0, |planned| planned.map_or(u32::MAX, |planned| planned.image.id));
        let version = match (planned.flatten(), &filter.version) {
            (Some(planned), Some(name)) => version_id(planned, name).unwrap_or(u32::MAX),
            _ => 0,
        };
        let (network, len) = filter.client.map_or((0, 0), |network| {
            let len = u32::from(network.prefix) + if network.address.is_ipv4() { 96 } else { 0 };
            (u128::from_be_bytes(plan::addr(network.address)), len)
        });
        all = Some(match all {
            None => (service, version, network, len, filter.rate),
            Some((s, v, n, l, rate)) => {
                let same = |a: u32, b: u32| if a == b { a } else { 0 };
                let common = (n ^ network).leading_zeros().min(l).min(len);
                (same(s, service), same(v, version), n, common, rate.max(filter.rate))
            }
        });
    }
    let Some((service, version, network, len, rate)) = all else { return Trace::default() };
    let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
    let words = |bits: u128| {
        let bytes = bits.to_be_bytes();
        std::array::from_fn(|i| u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    };
    Trace {
        until: now + LEASE,
        interval: 1_000_000_000 / u64::from(rate.max(1)),
        burst: 1_000_000_000,
        service,
        version,
        mask: words(mask),
        client: words(network & mask),
    }
}

fn version_id(planned: &splitter_datapath::reconcile::Planned, name: &str) -> Option<u32> {
    let index = planned.model.versions.iter().position(|version| version.name == name)?;
    planned.image.record.versions.get(index).map(|slot| slot.version)
}

impl Actor {
    /// Lets somebody look.
    pub(super) fn trace(&mut self, request: TraceRequest) -> Result<Reader, ControlError> {
        let filter = self.trace_filter(request)?;
        self.datapath()?;
        self.count_lost();
        let reader = self.tracing.admit(filter)?;
        self.switch_tracing();
        Ok(reader)
    }

    /// Decisions that readers have not been told, because their answers may still come.
    pub(super) fn waiting_decisions(&mut self, request: TraceRequest) -> Result<Vec<TraceEvent>, ControlError> {
        let filter = self.trace_filter(request)?;
        self.hand_on_events();
        let Tracing { join, names, .. } = &mut self.tracing;
        let applied = self.reconciler.applied();
        names.follow(applied, self.layout);
        let clock = names::Clock { now: splitter_datapath::monotonic(), unix: super::actor::unix_now() };
        let line = |told: &Told| TraceEvent { waiting: true, ..names.line(applied, told, &clock) };
        Ok(join.waiting().iter().map(line).filter(|event| filter.wants(event)).collect())
    }

    fn trace_filter(&mut self, request: TraceRequest) -> Result<Filter, ControlError> {
        let TraceRequest { service, version, client, rate } = request;
        if let Some(name) = &service {
            self.bring_forward(name)?;
            let planned = self.planned(name)?;
            if let Some(version) = &version
                && version_id(planned, version).is_none()
            {
                let known: Vec<_> = planned.model.versions.iter().map(|version| version.name.as_str()).collect();
                return Err(ControlError::NotFound(format!("service {name} has no version {version}; it has {}", known.join(", "))));
            }
        } else if let Some(version) = &version {
            let known = |planned: &splitter_datapath::reconcile::Planned| version_id(planned, version).is_some();
            if !self.reconciler.services().any(known) {
                return Err(ControlError::NotFound(format!("no service has a version {version}")));
            }
        }
        let client = client.as_deref().map(source::cidr).transpose().map_err(ControlError::Invalid)?;
        let rate = rate.unwrap_or(RATE);
        if !(1..=MOST).contains(&rate) {
            return Err(ControlError::Invalid(format!("the rate must be from 1 to {MOST} events a second")));
        }
        Ok(Filter { service, version, client, rate })
    }

    /// The programs were loaded anew, with a ring of their own.
    pub(super) fn forget_ring(&mut self) {
        self.tracing.events = None;
        self.tracing.more = false;
    }

    /// Tells the kernel what is looked at, or that nobody does.
    pub(super) fn switch_tracing(&mut self) {
        let readers = self.tracing.shared.readers();
        let trace = union(readers.1.values(), self.reconciler.applied(), splitter_datapath::monotonic());
        let wanted = !readers.1.is_empty();
        drop(readers);
        if !wanted && !self.tracing.on {
            return;
        }
        let Some(datapath) = &mut self.datapath else { return };
        if self.tracing.events.is_none() {
            match datapath.trace_events() {
                Ok(events) => self.tracing.events = events,
                Err(error) => tracing::error!(%error, "decisions cannot be watched"),
            }
        }
        if self.tracing.on != wanted {
            // What nobody has read is not for who comes next; an agent that was killed may have left it on, too.
            if let Some(events) = &mut self.tracing.events {
                while events.take(TURN, drop) {}
            }
            self.tracing.join = Join::default();
            self.tracing.more = false;
        }
        match datapath.look_at(trace) {
            Ok(()) => self.tracing.on = wanted,
            Err(error) => tracing::error!(%error, "decisions cannot be watched"),
        }
        if !wanted {
            self.tracing.sender = None;
        }
    }

    /// Once a second: goes on while somebody looks.
    pub(super) fn keep_tracing(&mut self) {
        if self.tracing.on {
            self.count_lost();
            self.switch_tracing();
        }
    }

    fn count_lost(&mut self) {
        match self.datapath.as_ref().map(splitter_datapath::Datapath::trace_lost).transpose() {
            Ok(lost) => {
                for (to, value) in self.tracing.shared.lost.iter().zip(lost.unwrap_or_default()) {
                    to.store(value, Relaxed);
                }
            }
            Err(error) => tracing::error!(%error, "events that were lost cannot be counted"),
        }
    }

    /// Hands on what the kernel has told, for a turn.
    pub(super) fn hand_on_events(&mut self) {
        let wanted = !self.tracing.shared.readers().1.is_empty();
        if wanted != self.tracing.on {
            self.switch_tracing();
        }
        let now = splitter_datapath::monotonic();
        let Tracing { events, join, names, sender, more, next, .. } = &mut self.tracing;
        let (Some(events), Some(sender)) = (events, sender) else { return };
        let mut told = Vec::new();
        *more = events.take(TURN, |event| join.take(event, &mut told));
        *next = Instant::now() + PAUSE;
        join.expire(now, &mut told);
        if told.is_empty() {
            return;
        }
        let applied = self.reconciler.applied();
        names.follow(applied, self.layout);
        let clock = names::Clock { now, unix: super::actor::unix_now() };
        for told in &told {
            // Nobody looks any more.
            let _ = sender.send(Arc::new(names.line(applied, told, &clock)));
        }
    }
}

#[cfg(test)]
mod tests;
