//! From a service and what is known of a client to a version and one of its backends: the one decision. The kernel's path for layer 4, its path for http
//! and `splitter explain` call it, each with its own look-ups, so that they cannot differ.
//!
//! [`select`] is the whole. The kernel's http path takes its parts in programs and functions of its own, since its stack has no room for the whole:
//! [`version`], [`stays`], [`backend`], [`drained`], in this order.

use super::{BACKEND_TRIES, backend_hash, baseline, bucket, client_key, connection_key, pick, request_key};
use crate::{
    abi::{Addr, BASELINE_RULED, MAGLEV_CHUNK, MAX_VERSIONS, MaglevKey, Reason, Service, VersionSlot, backend_state, split_by},
    barrier::{forget, opaque, recall},
    http::Loop,
    maglev,
};

/// What a decision reads of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub client: Addr,
    pub vip: Addr,
    /// Host order.
    pub client_port: u16,
    pub vip_port: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// What a decision reads of a request of `mode: http`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Sequence number of its first byte.
    pub at: u32,
    /// Key of the value that `splitBy` names, when the request has one: see [`super::value_key`].
    pub key: Option<u64>,
    /// Id of the version that a rule names, [`NO_RULE`] or [`BASELINE_RULED`].
    pub ruled: u32,
}

/// [`Request::ruled`] when no rule matches.
pub const NO_RULE: u32 = u32::MAX;

/// What a decision looks up.
pub trait Lookups: Copy {
    /// How loops of many rounds run.
    type Loop: Loop;

    /// Index in [`Service::versions`] that the rules of a service of layer 4 name for a client. Asked only when [`Service::has_rules`] is set.
    fn rule(self, service: u32, client: &Addr) -> Option<u32>;
    /// Version id and state of a backend.
    fn backend(self, id: u32) -> Option<(u32, u8)>;
    /// Backend id at a place, below [`MAGLEV_CHUNK`], of a chunk of a version's table.
    fn maglev(self, chunk: &MaglevKey, at: u32) -> Option<u32>;
    /// Whether a backend gets no new flow while others can.
    fn is_suspect(self, backend: u32) -> bool;
    /// Lends memory to a search among many backends. In the kernel it is the CPU's: under IPv6 the stack has no room for it.
    fn with_search<R>(self, run: impl FnOnce(&mut Search) -> R) -> Option<R>;
}

/// Whom a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Backend id; 0: nobody.
    pub backend: u32,
    /// Version id; 0: none.
    pub version: u32,
    /// Service id.
    pub service: u32,
    /// Who failed already; of http besides: the backend in use.
    pub avoid: Avoid,
    /// Why nobody: means something while `backend` is 0.
    pub none: Reason,
    /// 1: a rule chose the version, or it is the baseline's for want of one; 0: the weights did.
    pub ruled: u32,
}

impl Choice {
    /// Nobody yet. `last`: [`Avoid::last`].
    #[inline(always)]
    pub const fn nobody(service: u32, last: u32) -> Self {
        Self { backend: 0, version: 0, service, avoid: Avoid { last, tried: 0 }, none: Reason::ServiceUnknown, ruled: 0 }
    }
}

/// Backends that failed this client or request already, and get it again only when there is nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avoid {
    /// The last one; 0: none.
    pub last: u32,
    /// [`tried_bit`] of those before.
    pub tried: u32,
}

impl Avoid {
    /// Whether a backend is among them, or has the bit of one.
    #[inline(always)]
    pub const fn has(self, backend: u32) -> bool {
        backend == self.last || self.tried & tried_bit(backend) != 0
    }
}

/// A backend's bit among 32.
#[inline(always)]
pub const fn tried_bit(backend: u32) -> u32 {
    1 << (backend & 31)
}

/// What the rounds of a search share: see [`Lookups::with_search`].
#[derive(Clone, Copy, Debug)]
pub struct Search {
    salt: u64,
    key: u64,
    slot: VersionSlot,
    avoid: Avoid,
    found: u32,
    suspect: u32,
    again: u32,
}

impl Search {
    /// Memory that nobody has used.
    pub const fn new() -> Self {
        let slot = VersionSlot { end: 0, version: 0, size: 0, table: 0, ready: 0 };
        Self { salt: 0, key: 0, slot, avoid: Avoid { last: 0, tried: 0 }, found: 0, suspect: 0, again: 0 }
    }
}

impl Default for Search {
    fn default() -> Self {
        Self::new()
    }
}

/// Candidates that are looked at for a request that some backends have failed: the only one that serves must not be missed by chance. One of three is
/// with 24 candidates in one of 17,000 cases, with so many one of ten in 700,000.
const LAST_TRIES: u32 = 128;

/// Decides: fills `out`, which is [`Choice::nobody`] with who failed this client already, or with the backend that a connection of http uses. `request`:
/// what is asked, with `mode: http`. `false`: no version has weight, and no rule names one.
#[inline(always)]
pub fn select<L: Lookups>(look: L, service: &Service, facts: &Facts, request: Option<&Request>, out: &mut Choice) -> bool {
    // Made once for both where it is both: the hash is long.
    let steady = steady_key(service.split_by, facts);
    let key = if request.is_some() { key(service.split_by, facts, request) } else { steady };
    let Some(index) = version_by(look, service, facts, request, key, out) else { return false };
    if request.is_some() && stays(look, out) {
        return true;
    }
    out.backend = among(look, service, &service.versions[index], steady, &out.avoid);
    if request.is_some() {
        drained(look, out);
    }
    true
}

/// Chooses the version: the rules, then the weights. Its index in [`Service::versions`]; `None`: there is none.
#[inline(always)]
pub fn version<L: Lookups>(look: L, service: &Service, facts: &Facts, request: Option<&Request>, out: &mut Choice) -> Option<usize> {
    version_by(look, service, facts, request, key(service.split_by, facts, request), out)
}

/// [`version`] with the key of the bucket.
#[inline(always)]
fn version_by<L: Lookups>(
    look: L,
    service: &Service,
    facts: &Facts,
    request: Option<&Request>,
    key: u64,
    out: &mut Choice,
) -> Option<usize> {
    let named = match request {
        Some(request) if request.ruled < BASELINE_RULED => slot_of(service, request.ruled),
        Some(_) => NO_SLOT,
        None if service.has_rules != 0 => look.rule(out.service, &facts.client).unwrap_or(NO_SLOT),
        None => NO_SLOT,
    };
    let unread = request.is_some_and(|request| request.ruled == BASELINE_RULED);
    out.ruled = (named < NO_SLOT || unread) as u32;
    let mut index = named;
    if named >= NO_SLOT {
        let mut at = bucket(service.salt, key);
        if unread {
            at = baseline(service);
        }
        match pick(service, at) {
            Some(picked) => index = picked as u32,
            None => {
                out.none = Reason::NoVersion;
                return None;
            }
        }
    }
    // Unknown to the verifier, which would go on for each slot.
    let index = opaque(forget(&mut out.version, index)) as usize & (MAX_VERSIONS - 1);
    out.version = service.versions[index].version;
    out.none = Reason::NoBackend;
    Some(index)
}

/// Behind [`version`]: a connection stays with the backend that it uses, when that is of the version and takes new requests.
#[inline(always)]
pub fn stays<L: Lookups>(look: L, out: &mut Choice) -> bool {
    if state_of(look, out.avoid.last, out.version) != backend_state::READY {
        return false;
    }
    out.backend = out.avoid.last;
    true
}

/// A backend of `out.version` for a client; 0: none can serve. With `mode: http` all requests of a connection for the version go there. `out.avoid`: who
/// failed already, or the backend in use.
#[inline(always)]
pub fn backend<L: Lookups>(look: L, service: &Service, facts: &Facts, out: &mut Choice) -> u32 {
    out.backend = 0;
    let index = slot_of(service, out.version);
    if index >= NO_SLOT {
        return 0;
    }
    let index = opaque(forget(&mut out.backend, index)) as usize & (MAX_VERSIONS - 1);
    out.backend = among(look, service, &service.versions[index], steady_key(service.split_by, facts), &out.avoid);
    out.backend
}

/// Behind [`backend`]: the backend in use, when it drains and nobody else is known to serve: who is with it stays.
#[inline(always)]
pub fn drained<L: Lookups>(look: L, out: &mut Choice) {
    if (out.backend == 0 || look.is_suspect(out.backend)) && state_of(look, out.avoid.last, out.version) == backend_state::DRAINING {
        out.backend = out.avoid.last;
    }
}

/// The key of the bucket: what `splitBy` names, or the connection while it is not known.
#[inline(always)]
pub fn key(split_by: u8, facts: &Facts, request: Option<&Request>) -> u64 {
    let Some(request) = request else { return steady_key(split_by, facts) };
    let connection = connection_of(facts);
    match (split_by, request.key) {
        (split_by::CLIENT_IP, _) => client_key(&facts.client),
        (split_by::REQUEST, _) => request_key(connection, request.at),
        (split_by::VALUE, Some(key)) => key,
        _ => connection,
    }
}

/// The key of the backend, which is the same for all requests of a connection.
#[inline(always)]
pub fn steady_key(split_by: u8, facts: &Facts) -> u64 {
    if split_by == split_by::CLIENT_IP { client_key(&facts.client) } else { connection_of(facts) }
}

#[inline(always)]
fn connection_of(facts: &Facts) -> u64 {
    connection_key(&facts.client, facts.client_port, &facts.vip, facts.vip_port, facts.proto)
}

/// What [`slot_of`] says of a version that the service does not have.
const NO_SLOT: u32 = MAX_VERSIONS as u32;

/// Index of a version's slot.
#[inline(always)]
fn slot_of(service: &Service, version: u32) -> u32 {
    let mut i = 0;
    while i < MAX_VERSIONS {
        if i < service.version_count as usize && service.versions[i].version == version {
            return i as u32;
        }
        i += 1;
    }
    NO_SLOT
}

/// State of a backend of a version; `NONE`: it is of another one.
#[inline(always)]
fn state_of<L: Lookups>(look: L, backend: u32, version: u32) -> u8 {
    let Some((of, state)) = (if backend == 0 { None } else { look.backend(backend) }) else { return backend_state::NONE };
    if of == version { state } else { backend_state::NONE }
}

/// A version's backend for a client.
#[inline(always)]
fn among<L: Lookups>(look: L, service: &Service, slot: &VersionSlot, key: u64, avoid: &Avoid) -> u32 {
    let backend = match slot.size {
        0 => 0,
        1 => slot.table,
        _ => from_table(look, slot, service.salt, key, avoid),
    };
    if backend != 0 && serves(look, backend) { backend } else { 0 }
}

/// Whether a backend serves whoever is given to it.
#[inline(always)]
fn serves<L: Lookups>(look: L, id: u32) -> bool {
    look.backend(id).is_some_and(|(_, state)| state == backend_state::READY || state == backend_state::DRAINING)
}

/// The first of a few candidates that is ready and not suspect; else the first that is suspect, which may serve all the same; else one that is to be
/// avoided, the last to fail last of all.
#[inline(always)]
fn from_table<L: Lookups>(look: L, slot: &VersionSlot, salt: u64, key: u64, avoid: &Avoid) -> u32 {
    let found = look.with_search(|search| {
        // Taken out here: the stack of http's programs has no room for one word more.
        let avoid = recall(avoid);
        *search = Search { salt, key, slot: *slot, avoid, found: 0, suspect: 0, again: 0 };
        let tries = if avoid.tried == 0 { BACKEND_TRIES } else { LAST_TRIES };
        let shared = &mut *search;
        L::Loop::repeat(tries, move |attempt| attempted(look, shared, attempt));
        if search.found != 0 {
            search.found
        } else if search.suspect != 0 {
            search.suspect
        } else {
            search.again
        }
    });
    found.unwrap_or(0)
}

/// Looks at one candidate; whether it is the one.
#[inline(always)]
fn attempted<L: Lookups>(look: L, search: &mut Search, attempt: u32) -> bool {
    let slot = search.slot;
    let at = maglev::slot(backend_hash(search.salt, search.key, attempt), slot.size);
    let chunk = MaglevKey { version: slot.version, table: slot.table, chunk: at / MAGLEV_CHUNK as u32 };
    let Some(id) = look.maglev(&chunk, at & (MAGLEV_CHUNK as u32 - 1)) else { return false };
    if !serves(look, id) {
        return false;
    }
    if search.avoid.has(id) {
        if search.again == 0 || search.again == search.avoid.last {
            search.again = id;
        }
        return false;
    }
    let suspect = look.is_suspect(id);
    if suspect && search.suspect == 0 {
        search.suspect = id;
    }
    if !suspect {
        search.found = id;
    }
    !suspect
}

#[cfg(test)]
mod tests;
