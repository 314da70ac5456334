//! From a service and a key to a version and a backend: the decision of `splitter_common::decide` over the maps.

use crate::{bytes::Ref, bytes::opaque, env::Env, field, splice::Rounds};
use splitter_common::{abi::*, barrier::recall, decide, http::Loop, maglev};

/// Whom a key gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub backend: u32,
    pub version: u32,
    /// Of layer 4: whose frontend it is.
    pub service: u32,
    /// Who failed already; of http besides: the backend in use.
    pub avoid: Avoid,
    /// Why nobody: set when `backend` is 0.
    pub none: Reason,
    /// 1: a rule chose the version; 0: the weights did.
    pub ruled: u32,
}

/// The facts that the decision reads.
#[derive(Clone, Copy)]
pub struct Facts {
    pub client: Addr,
    pub vip: Addr,
    /// Host order.
    pub client_port: u16,
    pub vip_port: u16,
    pub proto: u8,
}

/// Decides. `avoid`: a backend that just failed this client, or 0.
#[inline(never)]
pub fn select<E: Env>(env: &E, service_id: u32, facts: &Facts, avoid: u32, out: &mut Choice) -> u32 {
    *out = Choice { backend: 0, version: 0, service: 0, avoid: Avoid { last: avoid, tried: 0 }, none: Reason::ServiceUnknown, ruled: 0 };
    let Some(service) = env.service(service_id) else { return 0 };
    let (salt, split_by) = (field!(service.salt), field!(service.split_by));
    let key = if split_by == split_by::CLIENT_IP {
        decide::client_key(&facts.client)
    } else {
        decide::connection_key(&facts.client, facts.client_port, &facts.vip, facts.vip_port, facts.proto)
    };
    let ruled = if field!(service.has_rules) != 0 { env.rule(service_id, &facts.client) } else { None };
    out.ruled = ruled.is_some() as u32;
    let index = match ruled {
        Some(index) => Some(index as usize),
        None => service.with(|service| decide::pick(service, decide::bucket(salt, key))),
    };
    let Some(index) = index else {
        out.none = Reason::NoVersion;
        return 0;
    };
    let index = opaque(index as u32) as usize & (MAX_VERSIONS - 1);
    // SAFETY: masked to the array's length; a Ref points to a live map value.
    let slot = unsafe { Ref::new((&raw mut (*service.as_ptr()).versions).cast::<VersionSlot>().add(index)) };
    out.version = field!(slot.version);
    out.none = Reason::NoBackend;
    out.backend = backend_of(env, slot, salt, key, &out.avoid);
    1
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

/// The backend of a version that a key gets; 0: none can serve.
#[inline(always)]
pub fn backend_of<E: Env>(env: &E, slot: Ref<VersionSlot>, salt: u64, key: u64, avoid: &Avoid) -> u32 {
    let backend = match field!(slot.size) {
        0 => 0,
        1 => field!(slot.table),
        _ => from_table(env, slot, salt, key, avoid),
    };
    if backend != 0 && ready(env, backend) { backend } else { 0 }
}

#[inline(always)]
fn ready<E: Env>(env: &E, id: u32) -> bool {
    env.backend(id).is_some_and(|backend: Ref<Backend>| {
        let state = field!(backend.state);
        state == backend_state::READY || state == backend_state::DRAINING
    })
}

/// Candidates that are looked at for a request that some backends have failed: the only one that serves must not be missed by chance. One of three is
/// with 24 candidates in one of 17,000 cases, with so many one of ten in 700,000.
const LAST_TRIES: u32 = 128;

/// What the rounds of [`from_table`] share, in memory of the CPU: the stack has no room for it under IPv6.
#[derive(Clone, Copy)]
pub struct Search {
    salt: u64,
    key: u64,
    slot: VersionSlot,
    avoid: Avoid,
    now: u32,
    found: u32,
    suspect: u32,
    again: u32,
}

/// The first of a few candidates that is ready and not suspect; else the first that is suspect, which may serve all the same; else one that is to be
/// avoided, the last to fail last of all.
#[inline(always)]
fn from_table<E: Env>(env: &E, slot: Ref<VersionSlot>, salt: u64, key: u64, avoid: &Avoid) -> u32 {
    let Some(search) = env.search() else { return 0 };
    // Taken out here: the stack of http's programs has no room for one word more.
    let avoid = recall(avoid);
    search.set(Search { salt, key, slot: slot.get(), avoid, now: env.ticks(), found: 0, suspect: 0, again: 0 });
    let tries = if avoid.tried == 0 { decide::BACKEND_TRIES } else { LAST_TRIES };
    Rounds::repeat(tries, move |attempt| attempted(env, search, attempt));
    let (found, suspect, again) = (field!(search.found), field!(search.suspect), field!(search.again));
    if found != 0 {
        found
    } else if suspect != 0 {
        suspect
    } else {
        again
    }
}

/// Looks at one candidate; whether it is the one.
#[inline(always)]
fn attempted<E: Env>(env: &E, search: Ref<Search>, attempt: u32) -> bool {
    let slot = field!(search.slot);
    let at = maglev::slot(decide::backend_hash(field!(search.salt), field!(search.key), attempt), slot.size);
    let chunk = MaglevKey { version: slot.version, table: slot.table, chunk: at / MAGLEV_CHUNK as u32 };
    let Some(chunk) = env.maglev(&chunk) else { return false };
    let at = opaque(at) as usize & (MAGLEV_CHUNK - 1);
    let id = chunk.with(|chunk| chunk.backends[at]);
    if !ready(env, id) {
        return false;
    }
    let avoid = field!(search.avoid);
    if avoid.has(id) {
        let again = field!(search.again);
        if again == 0 || again == avoid.last {
            field!(search.again = id);
        }
        return false;
    }
    let now = field!(search.now);
    let suspect = env.suspect(id).is_some_and(|until| is_suspected(until, now));
    if suspect && field!(search.suspect) == 0 {
        field!(search.suspect = id);
    }
    if !suspect {
        field!(search.found = id);
    }
    !suspect
}
