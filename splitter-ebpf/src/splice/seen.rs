//! What the node remembers of cookies.
//!
//! Which of them have begun a connection (`SPENT`). A cookie is good for one: whoever has seen the first segment of a connection that is over, and
//! sends it again while the cookie is young, begins nothing.
//!
//! And what clients said in their SYN (`HANDSHAKES`), where somebody guesses cookies: then the cookie has no room for it.
//!
//! A cookie's hash, of which clients see no more than half, names a set of words and a word in it. A full set forgets its oldest: what was opened long ago
//! is refused no more, and no honest connection ever is. The sets are chosen by bits that nobody sees, so that nobody can fill that of another.
//! Two CPUs that write the same word at the same time lose one of them.

use super::segment::OPENS;
use crate::{
    bytes::{Ref, opaque},
    env::{Env, Tables},
    packet::Ip,
    place,
    state::Seen,
};
use splitter_common::{
    abi::*,
    barrier::{forget, masked, recall},
};

/// Bits of a word that tell the time, those that are of the hash, and in `HANDSHAKES` those that are what the client said.
const TIME: u64 = 0xffff;
const HASH: u64 = !TIME;
const SAID: u64 = 0xff_ffff << SAID_AT;
const SAID_AT: u32 = 16;
/// What the client said, as [`super::segment::options`] has it: options above, then scale, then segment size.
const OPTIONS_AT: u32 = 20;

/// The clock of words, 67 ms. It wraps after 73 minutes: what is older may seem younger, and is forgotten later.
#[inline(always)]
const fn clock(nanoseconds: u64) -> u16 {
    (nanoseconds >> 26) as u16
}

/// The bits of a hash that words keep: the upper 16 of those that no client sees, and above them those that go into the sequence number.
#[inline(always)]
const fn tag(hash: u64) -> u64 {
    hash.rotate_left(16) << 16
}

/// The lower 16 of the bits that no client sees: they choose the set.
#[inline(always)]
fn choice(hash: u64) -> u32 {
    opaque((hash >> 32) as u32)
}

/// 1: the cookie `scratch.seen.hash` has begun a connection. Notes where the next one of its set goes.
#[inline(never)]
pub fn is_spent<F: Ip, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let seen = place!(scratch.seen);
    let Some(set) = env.spent(choice(seen.hash) & (SPENT_SETS - 1)) else { return 0 };
    look(seen, set, HASH, clock(env.now()));
    (recall(&seen.found) != 0) as u32
}

/// The cookie `scratch.seen.hash` has begun a connection.
#[inline(never)]
pub fn spend<F: Ip, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let seen = place!(scratch.seen);
    let Some(set) = env.spent(choice(seen.hash) & (SPENT_SETS - 1)) else { return 0 };
    let now = clock(env.now());
    look(seen, set, HASH, now);
    put(seen, set, tag(seen.hash) | now as u64);
    1
}

/// Remembers what the client of the cookie `scratch.seen.hash` said.
#[inline(never)]
pub fn keep<F: Ip, E: Env + Tables<F>>(env: &E, options: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let seen = place!(scratch.seen);
    let Some(set) = env.handshakes(choice(seen.hash) & (HANDSHAKE_SETS - 1)) else { return 0 };
    let now = clock(env.now());
    look(seen, set, HASH & !SAID, now);
    let said = (options & 0xffff | (options >> 16 & 15) << 16 | (options >> 24 & AGREED) << OPTIONS_AT) as u64;
    put(seen, set, tag(seen.hash) & HASH & !SAID | said << SAID_AT | now as u64);
    1
}

/// Options that are remembered: timestamps show by themselves.
const AGREED: u32 = (tcp_option::SCALE | tcp_option::SACK) as u32;

/// What the client of the cookie `scratch.seen.hash` said, as [`super::cookie::open`]; 0: that is not known.
#[inline(never)]
pub fn kept<F: Ip, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let seen = place!(scratch.seen);
    let Some(set) = env.handshakes(choice(seen.hash) & (HANDSHAKE_SETS - 1)) else { return 0 };
    look(seen, set, HASH & !SAID, clock(env.now()));
    let word = recall(&seen.found);
    if word == 0 {
        return 0;
    }
    let said = (word >> SAID_AT) as u32;
    OPENS | (said >> OPTIONS_AT & AGREED) << 24 | said & 0xf_ffff
}

/// Puts a word where [`look`] has found the oldest.
#[inline(always)]
fn put(seen: &Seen, set: Ref<CookieSet>, word: u64) {
    let way = masked::<{ COOKIE_WAYS as u32 }>(recall(&seen.oldest));
    // SAFETY: below the array's length; a Ref points to a live map value.
    unsafe { (&raw mut (*set.as_ptr()).words).cast::<u64>().add(way).write_volatile(word) };
}

/// Goes through a set for the hash `seen.hash`, of which words have the bits `of`.
#[inline(always)]
fn look(seen: &mut Seen, set: Ref<CookieSet>, of: u64, now: u16) {
    (seen.found, seen.oldest, seen.age) = (0, 0, 0);
    let wanted = tag(seen.hash) & of;
    let found = &raw mut seen.found;
    let mut way = 0;
    while way < COOKIE_WAYS {
        // SAFETY: below the array's length; a Ref points to a live map value.
        let word = unsafe { (&raw const (*set.as_ptr()).words).cast::<u64>().add(way).read_volatile() };
        // All in memory, so that the verifier does not go on for each of them.
        if word & of == wanted && word != 0 {
            // SAFETY: made of a reference.
            unsafe { found.write_volatile(word) };
        }
        // A word that is free is older than any.
        let age = if word == 0 { 0x1_0000 } else { now.wrapping_sub(word as u16) as u32 };
        if age >= recall(&seen.age) {
            forget(&mut seen.age, age);
            forget(&mut seen.oldest, way as u32);
        }
        way += 1;
    }
}
