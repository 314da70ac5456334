//! What becomes of requests: http's trials, see `splitter_common::abi::trial`. While a leg is being opened, the word is the client's connection's;
//! then the leg's.
//!
//! ```text
//! head read, version chosen ----> begins, pending when all of the request is here
//! head of the response ---------> answered
//! RST or ICMP to all SYNs ------> refused
//! client gives up --------------> unopened, abandoned
//! backend ends it before -------> closed
//! backend ends it in the body --> cut, besides
//! nobody serves ----------------> unavailable
//! ```

use super::{Segment, segment::after};
use crate::{
    account,
    bytes::{Ref, fetch_clear, opaque},
    env::{Env, Tables},
    field,
    network::Network,
    packet::tcp,
    place,
};
use splitter_common::abi::{
    trial::{age, flag, outcome, timing},
    *,
};

/// A client that sends its FIN within this after its request has said all that it wants to say, and waits for the answer; later, it has given
/// up. Nanoseconds.
const HALF_CLOSE: u64 = 100_000_000;
/// The same where only jiffies are known: as much at 250 Hz.
const HALF_CLOSE_TICKS: u32 = 25;

/// A request is given to a backend's version. `scratch.choice` says whether a rule chose it, `scratch.whole` whether its end is here: whoever still
/// sends is not kept waiting.
#[inline(never)]
pub fn given<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, backend: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let Some(backend) = env.backend(backend) else { return 0 };
    let mut trial = account::begun(env, backend, field!(scratch.choice).ruled);
    if field!(scratch.whole) == 0 {
        trial = account::rests(env, backend, trial);
    }
    field!(entry.trial = trial);
    0
}

/// The version in `scratch.choice` has nobody for a request. `reset`: 1 when its client gets no 503.
#[inline(never)]
pub fn unserved<F: Network, E: Env + Tables<F>>(env: &E, reset: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let choice = place!(scratch.choice);
    account::unserved(env, choice.version, choice.ruled);
    said(env, choice.version, reset)
}

/// Nobody of the version took a request: the client gets a 503, or a reset. `backend`: one that was to have it.
#[inline(never)]
pub fn failed<F: Network, E: Env>(env: &E, entry: Ref<Spliced<F>>, backend: u32, outcome: u32) -> u32 {
    let Some(backend) = env.backend(backend) else { return 0 };
    let trial = field!(entry.trial);
    field!(entry.trial = 0);
    account::ended(env, backend, trial, outcome);
    let reset = env.service(field!(entry.service)).is_some_and(|service| field!(service.flags) & service_flag::RESET != 0);
    said(env, field!(backend.version), reset as u32)
}

/// The node's own 503 is an answer that the version's clients see.
#[inline(always)]
fn said<E: Env>(env: &E, version: u32, reset: u32) -> u32 {
    if reset == 0
        && let Some(counters) = env.counters(version)
    {
        let at = opaque(5) as usize & 7;
        // SAFETY: below the array's length; a Ref points to a live map value.
        unsafe { *(&raw mut (*counters.as_ptr()).status).cast::<u64>().add(at) += 1 };
    }
    0
}

/// Takes the word of the leg's trial; [`flag::UNDER_WAY`] in it: it is this CPU's to end it.
#[inline(always)]
pub fn take<F: Family>(leg: Ref<Leg<F>>) -> u32 {
    // SAFETY: a Ref points to a live map value.
    unsafe { fetch_clear(&raw mut (*leg.as_ptr()).trial, flag::UNDER_WAY) }
}

/// The head of a response came. `trial`: as [`take`] gave it.
#[inline(always)]
pub fn answered<E: Env>(env: &E, backend: Ref<Backend>, trial: u32, status: u32) -> u32 {
    if account::ended(env, backend, trial, outcome::ANSWERED) == 0 {
        return 0;
    }
    let Some(counters) = env.counters(field!(backend.version)) else { return 0 };
    let class = if status / 100 > 5 { 0 } else { status / 100 };
    account::add(counters, trial, outcome::STATUS + class);
    if fails(env, backend, status) {
        account::add(counters, trial, outcome::FAILED);
    }
    0
}

/// Whether the service counts a status as a failure.
#[inline(always)]
fn fails<E: Env>(env: &E, backend: Ref<Backend>, status: u32) -> bool {
    if field!(backend.timing) & timing::CODES == 0 {
        return status / 100 == 5;
    }
    let Some(service) = env.service(field!(backend.service)) else { return false };
    let bit = opaque(status.wrapping_sub(100));
    let word = opaque(bit >> 6) as usize & (CODE_WORDS - 1);
    // SAFETY: masked to the array's length; a Ref points to a live map value.
    let word = unsafe { *(&raw const (*service.as_ptr()).failing).cast::<u64>().add(word) };
    bit < 64 * CODE_WORDS as u32 && word >> (bit & 63) & 1 != 0
}

/// The client of a leg that is being opened gives up.
#[inline(never)]
pub fn unopened<F: Network, E: Env>(env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    let trial = field!(entry.trial);
    if !segment.is(tcp::RST) && age(trial, env.ticks()) < HALF_CLOSE_TICKS {
        return 0;
    }
    field!(entry.trial = 0);
    env.backend(field!(entry.owner).backend()).map_or(0, |backend| account::ended(env, backend, trial, outcome::UNOPENED))
}

/// The client ends its connection by a FIN or RST: before the response, it has given up.
#[inline(never)]
pub fn left<F: Network, E: Env>(env: &E, segment: &Segment, entry: Ref<Spliced<F>>, leg: Ref<Leg<F>>) -> u32 {
    if !segment.is(tcp::RST) && env.now().wrapping_sub(field!(leg.stamp)) < HALF_CLOSE {
        return 0;
    }
    let trial = take(leg);
    // Nothing of the response is missed by who is gone.
    field!(leg.trial = 0);
    let Some(backend) = env.backend(field!(leg.owner).backend()) else { return 0 };
    let flags = field!(entry.owner).flags();
    let (pinned, chunked) = (flags & splice_flag::PINNED != 0, flags & splice_flag::CHUNKED != 0);
    if chunked || after(field!(entry.body_end), field!(entry.next)) || pinned && trial & flag::PENDING == 0 {
        // It has not asked yet, or nobody knows.
        return account::rests(env, backend, trial);
    }
    account::ended(env, backend, trial, outcome::ABANDONED)
}

/// The backend ends its connection by a FIN or RST: before the response, or in the middle of it.
#[inline(never)]
pub fn closed<F: Network, E: Env>(env: &E, segment: &Segment, leg: Ref<Leg<F>>) -> u32 {
    let trial = take(leg);
    let Some(backend) = env.backend(field!(leg.owner).backend()) else { return 0 };
    if trial & flag::UNDER_WAY != 0 {
        field!(leg.trial = 0);
        return account::ended(env, backend, trial, outcome::CLOSED);
    }
    if trial == 0 || !is_cut(segment, leg) {
        return 0;
    }
    field!(leg.trial = 0);
    let Some(counters) = account::trials(env, field!(backend.version)) else { return 0 };
    account::add(counters, trial, outcome::CUT);
    1
}

/// The connection ends, and nobody knows by whom: its trial has no outcome.
#[inline(never)]
pub fn unproven<F: Network, E: Env>(env: &E, leg: Ref<Leg<F>>) -> u32 {
    let trial = take(leg);
    field!(leg.trial = 0);
    env.backend(field!(leg.owner).backend()).map_or(0, |backend| account::rests(env, backend, trial))
}

/// Whether a FIN or RST of the backend comes before the end of the response's body. A FIN that has overtaken data says nothing.
#[inline(always)]
fn is_cut<F: Family>(segment: &Segment, leg: Ref<Leg<F>>) -> bool {
    let flags = field!(leg.owner).flags();
    let (reset, end) = (segment.is(tcp::RST), field!(leg.body_end));
    if flags & (leg_flag::PEER_FIN | leg_flag::AWAIT) != 0 {
        return false;
    }
    if flags & leg_flag::CHUNKED != 0 {
        return reset || !after(segment.end(), end);
    }
    if flags & leg_flag::UNSURE != 0 {
        // The end of the connection ends the body, but a RST.
        return reset && flags & leg_flag::FIN == 0;
    }
    after(end, if reset { field!(leg.next) } else { segment.end() })
}

/// A connection is forgotten whose request may be under way. `key`: of the leg in use.
#[inline(never)]
pub fn lost<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, key: &FlowKey<F>, outcome: u32) -> u32 {
    let mut trial = field!(entry.trial);
    field!(entry.trial = 0);
    if trial & flag::UNDER_WAY == 0
        && let Some(leg) = env.leg(key)
    {
        trial = take(leg);
    }
    env.backend(field!(entry.owner).backend()).map_or(0, |backend| account::ended(env, backend, trial, outcome))
}

/// The leg takes over the trial of the request that goes out on it.
#[inline(always)]
pub fn moves<F: Family>(entry: Ref<Spliced<F>>, leg: Ref<Leg<F>>) {
    field!(leg.trial = field!(entry.trial));
    field!(entry.trial = 0);
}
