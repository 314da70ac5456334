//! Which version and which backend a request gets: rules over its head, then weights.

use super::gather::NO_RULE;
use crate::{
    bytes::{Ref, opaque},
    env::Env,
    field,
    lb::{Avoid, Choice, Facts, backend_of, is_suspect},
};
use splitter_common::{abi::*, barrier, decide, http::RequestHead};

/// Chooses a version; 0: there is none. `at_ruled`: sequence number of the request's first byte, and above it the version that a rule
/// names, or [`NO_RULE`]. `out.backend`: the one in use, or 0; stays when it is of the version that is chosen, and ready.
#[inline(never)]
pub fn choose<E: Env>(env: &E, service_id: u32, facts: &Facts, head: &RequestHead, at_ruled: u64, out: &mut Choice) -> u32 {
    let (at, ruled) = (at_ruled as u32, (at_ruled >> 32) as u32);
    let avoid = Avoid { last: out.backend, tried: 0 };
    *out = Choice { backend: 0, version: 0, service: 0, avoid, none: Reason::ServiceUnknown, ruled: 0 };
    let Some(service) = env.service(service_id) else { return 0 };
    let (salt, split_by) = (field!(service.salt), field!(service.split_by));
    let connection = decide::connection_key(&facts.client, facts.client_port, &facts.vip, facts.vip_port, facts.proto);
    let key = match split_by {
        split_by::CLIENT_IP => decide::client_key(&facts.client),
        split_by::REQUEST => decide::request_key(connection, at),
        split_by::VALUE if head.keyed != 0 => head.key,
        _ => connection,
    };
    let mut index = MAX_VERSIONS as u32;
    if ruled != NO_RULE {
        index = service.with(|service| slot_of(service, ruled));
    }
    out.ruled = (index < MAX_VERSIONS as u32) as u32;
    if index >= MAX_VERSIONS as u32 {
        match service.with(|service| decide::pick(service, decide::bucket(salt, key))) {
            Some(picked) => index = picked as u32,
            None => {
                out.none = Reason::NoVersion;
                return 0;
            }
        }
    }
    // Unknown to the verifier, which would go on for each slot.
    let index = opaque(barrier::forget(&mut out.version, index)) as usize & (MAX_VERSIONS - 1);
    out.version = service.with(|service| service.versions[index].version);
    out.none = Reason::NoBackend;
    if state_of(env, out.avoid.last, out.version) == backend_state::READY {
        out.backend = out.avoid.last;
    }
    1
}

/// A backend of `out.version` that a connection gets: all its requests for the version go there. 0: none can serve. `out.avoid`: who failed already, or
/// the backend in use.
#[inline(never)]
pub fn backend<E: Env>(env: &E, service_id: u32, facts: &Facts, out: &mut Choice) -> u32 {
    out.backend = 0;
    let Some(service) = env.service(service_id) else { return 0 };
    let (salt, split_by) = (field!(service.salt), field!(service.split_by));
    let key = if split_by == split_by::CLIENT_IP {
        decide::client_key(&facts.client)
    } else {
        decide::connection_key(&facts.client, facts.client_port, &facts.vip, facts.vip_port, facts.proto)
    };
    let index = service.with(|service| slot_of(service, out.version));
    if index >= MAX_VERSIONS as u32 {
        return 0;
    }
    let index = opaque(barrier::forget(&mut out.backend, index)) as usize & (MAX_VERSIONS - 1);
    // SAFETY: as in `lb::select`.
    let slot = unsafe { Ref::new((&raw mut (*service.as_ptr()).versions).cast::<VersionSlot>().add(index)) };
    out.backend = backend_of(env, slot, salt, key, &out.avoid);
    out.backend
}

/// Behind [`backend`]: the backend in use, when it drains and nobody else is known to serve: who is with it stays.
#[inline(never)]
pub fn drained<E: Env>(env: &E, out: &mut Choice) -> u32 {
    if (out.backend == 0 || is_suspect(env, out.backend)) && state_of(env, out.avoid.last, out.version) == backend_state::DRAINING {
        out.backend = out.avoid.last;
    }
    0
}

/// State of a backend of a version; `NONE`: it is of another one.
#[inline(always)]
fn state_of<E: Env>(env: &E, backend: u32, version: u32) -> u8 {
    let Some(row) = (if backend == 0 { None } else { env.backend(backend) }) else { return backend_state::NONE };
    if field!(row.version) == version { field!(row.state) } else { backend_state::NONE }
}

/// Index of a version's slot; `MAX_VERSIONS`: the service does not have it.
#[inline(always)]
fn slot_of(service: &Service, version: u32) -> u32 {
    let mut i = 0;
    while i < MAX_VERSIONS {
        if i < service.version_count as usize && service.versions[i].version == version {
            return i as u32;
        }
        i += 1;
    }
    MAX_VERSIONS as u32
}
