//! Services at which somebody guesses cookies. 24 bits can be guessed by who sends enough; so wrong ones are counted, and a service that gets too many of them
//! is guarded for a while: its cookies have 32 bits then, which takes memory for each handshake (see [`super::seen`]). So no handshake is remembered in quiet times and
//! no guess at 24 bits counts when they are many.
//!
//! Times are in units of 2^30 ns. Two CPUs that count at the same time may lose a count.

use crate::{
    bytes::{Ref, opaque},
    env::Env,
    field,
};
use splitter_common::abi::*;

/// Wrong cookies that a service may get in a unit of time. Honest ones are rare: late segments of connections that were forgotten.
const LIMIT: u32 = 256;
/// How long a service is guarded behind the last excess: about as long as a cookie is good.
const HOLD: u32 = 128;

#[inline(always)]
fn of<E: Env>(env: &E, service: u32) -> Option<Ref<Guesses>> {
    env.guesses(opaque(service) & (GUESS_SLOTS - 1))
}

#[inline(always)]
fn clock<E: Env>(env: &E) -> u32 {
    (env.now() >> 30) as u32
}

/// 1: cookies of the service need a handshake that is remembered.
#[inline(never)]
pub fn is_up<E: Env>(env: &E, service: u32) -> u32 {
    let Some(guesses) = of(env, service) else { return 0 };
    (field!(guesses.until).wrapping_sub(clock(env)) as i32 > 0) as u32
}

/// A segment with data has come to the service with a wrong cookie.
#[inline(never)]
pub fn wrong<E: Env>(env: &E, service: u32) -> u32 {
    env.count(Reason::CookieWrong);
    let Some(guesses) = of(env, service) else { return 0 };
    let now = clock(env);
    if field!(guesses.second) != now {
        field!(guesses.second = now);
        field!(guesses.count = 0);
    }
    let count = field!(guesses.count).wrapping_add(1);
    field!(guesses.count = count);
    if count > LIMIT {
        field!(guesses.until = now.wrapping_add(HOLD));
    }
    0
}
