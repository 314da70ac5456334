//! Which version and which backend a request gets: the parts of `splitter_common::decide::select`, each in a frame of its own.

use crate::{env::Env, lb::Look};
use splitter_common::{
    decide::{Choice, Facts, Request, select},
    http::RequestHead,
};

/// Chooses a version; 0: there is none. `at_ruled`: sequence number of the request's first byte, and above it [`Request::ruled`]. `out.backend`: the one
/// in use, or 0; stays when it is of the version that is chosen, and ready.
#[inline(never)]
pub fn choose<E: Env>(env: &E, service: u32, facts: &Facts, head: &RequestHead, at_ruled: u64, out: &mut Choice) -> u32 {
    let key = if head.keyed != 0 { Some(head.key) } else { None };
    let request = Request { at: at_ruled as u32, key, ruled: (at_ruled >> 32) as u32 };
    *out = Choice::nobody(service, out.backend);
    let Some(service) = env.service(service) else { return 0 };
    if service.with(|service| select::version(Look(env), service, facts, Some(&request), out)).is_none() {
        return 0;
    }
    select::stays(Look(env), out);
    1
}

/// A backend of `out.version`: see [`select::backend`].
#[inline(never)]
pub fn backend<E: Env>(env: &E, service: u32, facts: &Facts, out: &mut Choice) -> u32 {
    out.backend = 0;
    let Some(service) = env.service(service) else { return 0 };
    service.with(|service| select::backend(Look(env), service, facts, out))
}

/// See [`select::drained`].
#[inline(never)]
pub fn drained<E: Env>(env: &E, out: &mut Choice) -> u32 {
    select::drained(Look(env), out);
    0
}
