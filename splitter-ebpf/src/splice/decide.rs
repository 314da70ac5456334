//! Which version and which backend a request gets: rules over its head, then weights.

use super::gather::NO_RULE;
use crate::{
    bytes::{Ref, opaque},
    env::Env,
    field,
    lb::{Choice, Facts, backend_of},
};
use splitter_common::{abi::*, barrier, decide, http::RequestHead};

/// Chooses a version; 0: there is none. `at_ruled`: sequence number of the request's first byte, and above it the version that a rule
/// names, or [`NO_RULE`].
#[inline(never)]
pub fn choose<E: Env>(env: &E, service_id: u32, facts: &Facts, head: &RequestHead, at_ruled: u64, out: &mut Choice) -> u32 {
    let (at, ruled) = (at_ruled as u32, (at_ruled >> 32) as u32);
    *out = Choice { backend: 0, version: 0, service: 0, avoid: 0, none: Reason::ServiceUnknown, ruled: 0 };
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
    1
}

/// A backend of `out.version` that a connection gets: all its requests for the version go there. 0: none can serve. `avoid`: a backend
/// that just failed, or 0.
#[inline(never)]
pub fn backend<E: Env>(env: &E, service_id: u32, facts: &Facts, out: &mut Choice, avoid: u32) -> u32 {
    out.backend = 0;
    out.avoid = avoid;
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
