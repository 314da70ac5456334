//! Backends that failed a client lately.

use super::select::{Choice, Facts, select};
use crate::{bytes::opaque, env::Env, field};
use splitter_common::abi::*;

/// Keeps new flows from a backend for a while, unless half of its version's backends are suspected already.
#[inline(never)]
pub fn suspect<E: Env>(env: &E, backend: u32) -> u32 {
    let Some(record) = env.backend(backend) else { return 0 };
    let Some(config) = env.config() else { return 0 };
    let version = field!(record.version);
    let most = ready(env, field!(record.service), version) / 2;
    let Some(list) = (if most == 0 { None } else { env.suspected(version) }) else { return 0 };
    let now = env.ticks();
    let until = now.wrapping_add(field!(config.suspect_ticks));
    let (mut count, mut free, mut i) = (0, SUSPECTS_MOST as u32, 0);
    while i < SUSPECTS_MOST as u32 {
        let at = opaque(i) as usize & (SUSPECTS_MOST - 1);
        let (who, end) = list.with(|list| (list.backends[at], list.until[at]));
        if who == backend || !is_suspected(end, now) {
            free = i;
        } else {
            count += 1;
        }
        i += 1;
    }
    if count >= most || free >= SUSPECTS_MOST as u32 {
        return 0;
    }
    let at = opaque(free) as usize & (SUSPECTS_MOST - 1);
    // SAFETY: masked to the arrays' length; a Ref points to a live map value.
    unsafe {
        *(&raw mut (*list.as_ptr()).backends).cast::<u32>().add(at) = backend;
        *(&raw mut (*list.as_ptr()).until).cast::<u32>().add(at) = until;
    }
    env.set_suspect(backend, until);
    1
}

/// Backends of a version that take new flows.
#[inline(always)]
fn ready<E: Env>(env: &E, service: u32, version: u32) -> u32 {
    let Some(service) = env.service(service) else { return 0 };
    let (mut found, mut i) = (0, 0);
    while i < MAX_VERSIONS {
        let slot = service.with(|service| service.versions[i]);
        if slot.version == version && i < field!(service.version_count) as usize {
            found = slot.ready;
        }
        i += 1;
    }
    found
}

/// Whether a service would give this client another backend than the one that failed.
#[inline(always)]
pub fn another<E: Env>(env: &E, service: u32, facts: &Facts, choice: &mut Choice, failed: u32) -> bool {
    select(env, service, facts, failed, choice);
    choice.backend != 0 && choice.backend != failed && {
        let now = env.ticks();
        env.suspect(choice.backend).is_none_or(|until| !is_suspected(until, now))
    }
}
