//! From the model to the map image: what the kernel's tables have to hold for a service. Pure: no clock, no kernel, no I/O; the only
//! state is the numbers that objects have ([`Ids`]) and which Maglev table holds which backends ([`Generations`]).

mod dump;
pub mod http;
mod ids;
pub mod node;
pub mod trials;

pub use dump::dump;
pub use ids::{Ids, Key, OutOfIds, backend_key, index, service_key, version_key};

use splitter_common::{
    abi::{self, *},
    decide, maglev,
};
use splitter_policy::model::{self, BackendState, Cidr, Mode, Protocol, SplitBy};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Everything that the tables hold for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceImage {
    pub id: u32,
    /// What decides: in the kernel, or in the userspace tier.
    pub record: abi::Service,
    /// What the kernel has in its place, when the userspace tier decides: see [`node`].
    pub node: Option<Box<abi::Service>>,
    pub frontends: Vec<FrontendKey>,
    /// What it wants of the frontends' addresses: [`vip_flag`] bits.
    pub vip: u32,
    pub rules: Vec<(RuleKey, u32)>,
    /// The value of `HTTP_RULES`.
    pub http: Option<Arc<HttpRules>>,
    pub backends: Vec<(u32, abi::Backend)>,
    /// Of the versions that need one.
    pub tables: Vec<MaglevTable>,
}

/// A version's Maglev table, not yet built: it follows from its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaglevTable {
    pub version: u32,
    pub generation: u32,
    pub size: u32,
    /// Backend id and identity, sorted by identity: every node builds the same table whatever ids it gave.
    pub members: Vec<(u32, u64)>,
}

impl MaglevTable {
    /// The values of `MAGLEV`; the last is filled up with a valid id.
    pub fn chunks(&self) -> Vec<(MaglevKey, MaglevChunk)> {
        let identities: Vec<u64> = self.members.iter().map(|(_, identity)| *identity).collect();
        let slots = maglev::build(&identities, self.size);
        let id = |position: &u32| self.members[*position as usize].0;
        let parts = slots.chunks(MAGLEV_CHUNK).enumerate();
        parts
            .map(|(chunk, part)| {
                let mut backends = [self.members[0].0; MAGLEV_CHUNK];
                backends.iter_mut().zip(part).for_each(|(to, from)| *to = id(from));
                (self.key(chunk as u32), MaglevChunk { backends })
            })
            .collect()
    }

    pub fn key(&self, chunk: u32) -> MaglevKey {
        MaglevKey { version: self.version, table: self.generation, chunk }
    }

    pub fn chunk_count(size: u32) -> u32 {
        size.div_ceil(MAGLEV_CHUNK as u32)
    }

    pub fn keys(&self) -> impl Iterator<Item = MaglevKey> + '_ {
        (0..Self::chunk_count(self.size)).map(|chunk| self.key(chunk))
    }
}

/// Which table of a version is in use, so that an unchanged membership keeps its table and a new one gets a new generation.
#[derive(Clone, Debug, Default)]
pub struct Generations(HashMap<u32, Generation>);

#[derive(Clone, Debug, Default)]
struct Generation {
    latest: u32,
    /// Generation in use and its members, sorted by id.
    current: Option<(u32, Vec<u32>)>,
}

impl Generations {
    /// Notes a table that exists, in use or not.
    pub fn exists(&mut self, version: u32, generation: u32) {
        let entry = self.0.entry(version).or_default();
        entry.latest = entry.latest.max(generation);
    }

    /// Notes a complete table that a service record names.
    pub fn in_use(&mut self, version: u32, generation: u32, mut members: Vec<u32>) {
        members.sort_unstable();
        self.exists(version, generation);
        self.0.entry(version).or_default().current = Some((generation, members));
    }

    /// The generation of a table with these members.
    fn choose(&mut self, version: u32, members: &[(u32, u64)]) -> u32 {
        let mut wanted: Vec<u32> = members.iter().map(|(id, _)| *id).collect();
        wanted.sort_unstable();
        let entry = self.0.entry(version).or_default();
        match &entry.current {
            Some((generation, members)) if *members == wanted => *generation,
            _ => {
                entry.latest = entry.latest.wrapping_add(1);
                entry.current = Some((entry.latest, wanted));
                entry.latest
            }
        }
    }

    /// Forgets a version whose id is free again.
    pub fn forget(&mut self, version: u32) {
        self.0.remove(&version);
    }
}

/// The ABI's form of an address.
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Back from the ABI's form.
pub fn ip(addr: &Addr) -> IpAddr {
    std::net::Ipv6Addr::from(*addr).to_canonical()
}

pub const fn proto(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

pub const fn mode_name(mode: Mode) -> &'static str {
    mode.name()
}

/// The protocol in the path of a backend's number: a service that becomes http keeps its backends.
const fn protocol(mode: Mode) -> &'static str {
    match mode {
        Mode::Tcp | Mode::Http | Mode::Https => "tcp",
        Mode::Udp => "udp",
    }
}

/// Stable on every node: what Maglev permutes by.
fn identity(address: SocketAddr) -> u64 {
    decide::salt(&[&addr(address.ip())[..], &address.port().to_be_bytes()].concat())
}

pub fn frontend_key(frontend: &model::Frontend) -> FrontendKey {
    FrontendKey { addr: addr(frontend.address.ip()), port: frontend.address.port().to_be_bytes(), proto: proto(frontend.protocol), pad: 0 }
}

pub fn rule_key(service: u32, source: &Cidr) -> RuleKey {
    let prefix = u32::from(source.prefix) + if source.address.is_ipv4() { 96 } else { 0 };
    RuleKey { prefix_len: RULE_PREFIX_BASE + prefix, service: service.to_be_bytes(), addr: addr(source.address) }
}

const fn state(state: BackendState) -> u8 {
    match state {
        BackendState::Ready => backend_state::READY,
        BackendState::Draining => backend_state::DRAINING,
        BackendState::Down => backend_state::DOWN,
    }
}

/// Keys in `IDS` of a service and all it holds.
pub fn keys(service: &model::Service) -> Vec<(u32, Key)> {
    let protocol = protocol(service.mode);
    let mut keys = vec![(identity_kind::SERVICE, service_key(&service.name))];
    for version in &service.versions {
        keys.push((identity_kind::VERSION, version_key(&service.name, &version.name)));
        let backend = |b: &model::Backend| (identity_kind::BACKEND, backend_key(&service.name, &version.name, b.address, protocol));
        keys.extend(version.backends.iter().map(backend));
    }
    keys.extend(node::keys(service));
    keys
}

/// Sets the ends of a record's intervals from weights, in the order of its slots. With a sum of 0 no slot owns anything.
pub fn set_weights(record: &mut abi::Service, weights: &[u32]) {
    let ends = decide::intervals(weights).unwrap_or([0; MAX_VERSIONS]);
    let count = usize::from(record.version_count).min(MAX_VERSIONS);
    for (slot, end) in record.versions[..count].iter_mut().zip(ends) {
        slot.end = end;
    }
}

/// What the kernel holds under a service's number.
#[derive(Clone, Debug)]
pub struct Previous {
    pub record: abi::Service,
    pub rules: Vec<(RuleKey, u32)>,
}

impl From<&ServiceImage> for Previous {
    fn from(image: &ServiceImage) -> Self {
        Self { record: image.record, rules: image.rules.clone() }
    }
}

/// Plans one service. `mtu`: the largest packet that all paths to backends carry, bytes. `previous`: to tell whether rules can be changed
/// in place.
///
/// # Errors
/// When the maps have no number left.
pub fn plan(
    service: &model::Service,
    mtu: u32,
    ids: &mut Ids,
    generations: &mut Generations,
    previous: impl FnOnce(u32) -> Option<Previous>,
) -> Result<ServiceImage, OutOfIds> {
    let key = service_key(&service.name);
    let id = ids.id(identity_kind::SERVICE, key)?;
    let mut image = image(service, id, mtu, ids, generations)?;
    if let Some(previous) = previous(id)
        && would_mix(&previous, &image)
    {
        // Rules and record are two tables: whoever reads between the two writes would get an answer that is neither the old nor the new
        // one. Under a new number both are written before a frontend names them.
        image.id = ids.renew(identity_kind::SERVICE, key)?.0;
        image.rules.iter_mut().for_each(|(key, _)| key.service = image.id.to_be_bytes());
        image.backends.iter_mut().for_each(|(_, backend)| backend.service = image.id);
    }
    Ok(image)
}

/// Whether new rules of layer 4 could be read with the old slots, or the other way round. Intervals do not matter: rules do not read them.
/// Rules of another mode are not read at all. Services of http keep their number: their live connections know it, and decide each request
/// by it. Their rules name versions by id, so that between two writes a request gets the new rules with the old weights at worst.
fn would_mix(old: &Previous, new: &ServiceImage) -> bool {
    let without_ends = |record: &abi::Service| {
        let mut record = *record;
        record.versions.iter_mut().for_each(|slot| slot.end = 0);
        record
    };
    let both = old.record.has_rules != 0 && new.record.has_rules != 0;
    if !both || old.record.mode != new.record.mode || new.record.mode == service_mode::HTTP {
        return false;
    }
    let same_rules = old.rules.len() == new.rules.len() && new.rules.iter().all(|rule| old.rules.contains(rule));
    !same_rules && without_ends(&old.record) != without_ends(&new.record)
}

fn image(service: &model::Service, id: u32, mtu: u32, ids: &mut Ids, generations: &mut Generations) -> Result<ServiceImage, OutOfIds> {
    let mut record = abi::Service {
        salt: decide::salt(service.name.as_bytes()),
        split_by: match service.split_by {
            SplitBy::Connection => split_by::CONNECTION,
            SplitBy::ClientIp => split_by::CLIENT_IP,
            SplitBy::Request => split_by::REQUEST,
            SplitBy::Header(_) | SplitBy::Cookie(_) => split_by::VALUE,
        },
        snat: match service.snat {
            model::Snat::Auto => snat::AUTO,
            model::Snat::Always => snat::ALWAYS,
            model::Snat::Never => snat::NEVER,
        },
        version_count: service.versions.len().min(MAX_VERSIONS) as u8,
        mode: if service.mode.reads_requests() { service_mode::HTTP } else { service_mode::L4 },
        ..abi::Service::default()
    };
    let weights: Vec<u32> = service.versions.iter().map(|version| version.weight).collect();
    set_weights(&mut record, &weights);
    let (mut backends, mut tables) = (Vec::new(), Vec::new());
    for (slot, version) in record.versions.iter_mut().zip(&service.versions) {
        slot.version = ids.id(identity_kind::VERSION, version_key(&service.name, &version.name))?;
        let mut ready = Vec::new();
        for backend in &version.backends {
            let key = backend_key(&service.name, &version.name, backend.address, protocol(service.mode));
            let backend_id = ids.id(identity_kind::BACKEND, key)?;
            backends.push((backend_id, row(backend, slot.version, id)));
            if backend.state == BackendState::Ready {
                ready.push((backend_id, identity(backend.address)));
            }
        }
        ready.sort_unstable_by_key(|(id, identity)| (*identity, *id));
        ready.dedup();
        slot.ready = ready.len() as u32;
        slot.size = maglev::table_size(ready.len());
        slot.table = match ready[..] {
            [] => 0,
            [(only, _)] => only,
            _ => {
                let generation = generations.choose(slot.version, &ready);
                tables.push(MaglevTable { version: slot.version, generation, size: slot.size, members: ready });
                generation
            }
        };
    }
    // They live as long as the service.
    backends.shrink_to_fit();
    tables.shrink_to_fit();
    let mut rules: Vec<(RuleKey, u32)> = Vec::new();
    // A rule of the other family can match no client; as a mapped prefix `::/0` would match all.
    let possible = |rule: &&model::Rule| service.frontends.iter().any(|f| f.address.is_ipv4() == rule.source.address.is_ipv4());
    for rule in service.rules.iter().filter(possible) {
        let key = rule_key(id, &rule.source);
        if !rules.iter().any(|(known, _)| *known == key) {
            rules.push((key, rule.version as u32));
        }
    }
    let mut compiled = None;
    if service.mode.reads_requests() {
        let versions: Vec<u32> = record.versions.iter().take(service.versions.len()).map(|slot| slot.version).collect();
        compiled = http::rules(service, &versions);
        record.mss = http::mss(service, mtu);
        record.flags = http::flags(service);
    }
    record.has_rules = u8::from(!rules.is_empty() || compiled.is_some());
    let node = if service.mode == Mode::Https { Some(Box::new(node::record(service, id, ids, &mut backends)?)) } else { None };
    let frontends = service.frontends.iter().map(frontend_key).collect();
    let vip = vip_flags(service.vip);
    Ok(ServiceImage { id, record, node, frontends, vip, rules, http: compiled, backends, tables })
}

/// [`service_flag::STACK`], when new flows of the service go through the stack. `stack`: what holds where it does not say.
pub fn path(service: &model::Service, stack: bool) -> u8 {
    let stack = match service.path {
        model::Way::Auto => stack,
        model::Way::Redirect => false,
        model::Way::Stack => true,
    };
    // The node itself connects to the backends of https, and is not forwarded to.
    if stack && service.mode != model::Mode::Https { service_flag::STACK } else { 0 }
}

const fn vip_flags(vip: model::Vip) -> u32 {
    let ping = if vip.ping { vip_flag::PING } else { 0 };
    match vip.unserved {
        model::Unserved::Refuse => ping,
        model::Unserved::Pass => ping | vip_flag::PASS,
    }
}

fn row(backend: &model::Backend, version: u32, service: u32) -> abi::Backend {
    abi::Backend {
        addr: addr(backend.address.ip()),
        port: backend.address.port().to_be_bytes(),
        state: state(backend.state),
        version,
        service,
        ..abi::Backend::default()
    }
}

impl ServiceImage {
    /// What `SERVICES` has.
    pub fn kernel(&self) -> &abi::Service {
        self.node.as_deref().unwrap_or(&self.record)
    }

    /// Whether a backend's row is of the version that stands for this node.
    pub fn is_node(&self, row: &abi::Backend) -> bool {
        self.node.as_ref().is_some_and(|node| node.versions[0].version == row.version)
    }

    /// Protocols of the frontends, each once.
    pub fn protocols(&self) -> impl Iterator<Item = u8> + '_ {
        [TCP, UDP].into_iter().filter(|proto| self.frontends.iter().any(|frontend| frontend.proto == *proto))
    }
}

#[cfg(test)]
mod tests;
