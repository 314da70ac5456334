//! Backends that failed a client lately.

use super::select::{is_suspect, select};
use crate::{bytes::opaque, env::Env, field};
use splitter_common::{
    abi::*,
    decide::{Choice, Facts},
};

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

/// What a version's silence is measured in, by [`Config::suspect_ticks`], five seconds: after the fifth part of them it is known to whoever comes; after
/// all of them, to those who have waited all the time; it is forgotten a minute after its last witness.
const KNOWN: u32 = 5;
const FORGOTTEN: u32 = 12;

/// A backend of a version has left a SYN unanswered, for longer than the client's timer is patient. 0: that may be chance; 1: nobody of the version has
/// answered any for a second; 2: for five.
#[inline(never)]
pub fn silent<E: Env>(env: &E, version: u32) -> u32 {
    let (Some(config), Some(list)) = (env.config(), env.suspected(version)) else { return 0 };
    let (now, ticks) = (env.ticks(), field!(config.suspect_ticks));
    // 0 stands for "it answers".
    let last = if now == 0 { 1 } else { now };
    if !list.with(|list| list.is_silent(now, ticks.wrapping_mul(FORGOTTEN))) {
        field!(list.silent_since = last);
    }
    field!(list.silent_last = last);
    let age = last.wrapping_sub(field!(list.silent_since));
    (age >= ticks / KNOWN) as u32 + (age >= ticks) as u32
}

/// A backend of a version has answered a SYN.
#[inline(always)]
pub fn opened<E: Env>(env: &E, version: u32) {
    if let Some(list) = env.known_suspected(version)
        && field!(list.silent_last) != 0
    {
        field!(list.silent_last = 0);
    }
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

/// Whether as many backends have failed as the version has. `tried`: a bit for each ([`splitter_common::decide::tried_bit`]); two may share one, and then this stays 0, so
/// that nobody is passed over.
#[inline(never)]
pub fn all_tried<E: Env>(env: &E, service: u32, version: u32, tried: u32) -> u32 {
    (tried.count_ones() >= ready(env, service, version)) as u32
}

/// Whether a service would give this client another backend than the one that failed.
#[inline(always)]
pub fn another<E: Env>(env: &E, service: u32, facts: &Facts, choice: &mut Choice, failed: u32) -> bool {
    select(env, service, facts, failed, choice);
    choice.backend != 0 && choice.backend != failed && !is_suspect(env, choice.backend)
}
