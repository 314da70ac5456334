//! Where a request's head waits until a backend has it: a bounded number of slots, taken and given back.
//!
//! Slots lie in sets. A keyed hash of the connection names a few sets; in each of them a service may hold no more than it leaves free, and one of
//! its client networks two thirds of that. So however many hold slots for ever, somebody else finds one (dynamic thresholds, after Choudhury and
//! Hahne, 1998), and nothing has to be counted. A slot is its owner's for [`stash_word::LIMIT`] from the head's first byte, whatever else the
//! owner sends; then it counts as free, and is taken from the owner where nothing else is. No agent is needed for that.
//!
//! A slot is only touched by who holds the lock of its owner's connection, so whoever takes it from another holds both locks for that moment.
//! The owner finds out when it looks: see [`at`].

use super::{cookie, lock};
use crate::{
    bytes::{Ref, compare_exchange, opaque},
    env::{Env, Tables},
    field,
    packet::Ip,
    place,
    state::Claim,
};
use splitter_common::{
    abi::{stash_word::*, *},
    barrier::{forget, masked},
    http::HEAD_LIMIT,
};

/// Sets that are tried.
const CHOICES: u32 = 4;
const WAYS: usize = STASH_WAYS as usize;

/// Takes a slot for a flow of `key` and puts it down in the flow's entry. 0: there is none, which is counted.
#[inline(never)]
pub fn take<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let claim = place!(scratch.claim);
    let service = field!(entry.service);
    let now = clock(env.now());
    let mut hash = cookie::name(env, key);
    claim.word = TAKEN | now as u64 | (service as u64) << SERVICE & OF_SERVICE | network(env, key);
    let mut i = 0;
    while i < CHOICES {
        let found = find::<F, E>(env, hash as u32 & (STASH_SETS - 1));
        // One call each, so that their frames do not lie on each other.
        let taken = match found & (FREE | LATE) {
            FREE => seize::<F, E>(env, found & !FREE, 0),
            LATE => take_from::<F, E>(env, found & !LATE),
            _ => 0,
        };
        if taken != 0 {
            field!(entry.stash = taken as u16);
            field!(entry.stashed = now);
            return 1;
        }
        hash >>= 16;
        i += 1;
    }
    lost(env, service, claim.refused);
    0
}

/// [`find`]: the slot is free.
const FREE: u32 = 1 << 30;
/// [`find`]: the slot is somebody's still.
const LATE: u32 = 1 << 31;

/// The client's network, keyed: 24 bits of an IPv4 address, 64 of an IPv6 one.
#[inline(always)]
fn network<F: Ip, E: Env>(env: &E, key: &FlowKey<F>) -> u64 {
    let Some(config) = env.config() else { return 0 };
    let [a, b] = field!(config.secret);
    let words = key.src.as_ref();
    let name = if F::IPV6 { words[0] as u64 | (words[1] as u64) << 32 } else { (words[0] & u32::from_ne_bytes([255, 255, 255, 0])) as u64 };
    let mixed = (name ^ a).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 32 ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) << NETWORK
}

/// A slot of a set that the connection may take, with [`FREE`] or [`LATE`]; 0: there is none.
#[inline(never)]
fn find<F: Ip, E: Env + Tables<F>>(env: &E, set: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let claim = place!(scratch.claim);
    let set = opaque(set) & (STASH_SETS - 1);
    let Some(words) = env.stash_set(set) else { return 0 };
    (claim.kept, claim.of_service, claim.of_network) = (0, 0, 0);
    (claim.free, claim.late) = (STASH_WAYS, STASH_WAYS);
    let mut way = 0;
    while way < WAYS {
        look(claim, words, way);
        way += 1;
    }
    // Out of memory, so that the verifier does not go on for each count.
    let left = STASH_WAYS.wrapping_sub(claim.kept);
    if claim.of_service >= left || claim.of_network * 3 >= left * 2 {
        claim.refused = if left == 0 { Reason::StashesExhausted } else { Reason::HeadShare };
        return 0;
    }
    let (free, late) = (claim.free, claim.late);
    let way = if free < STASH_WAYS { free } else { late };
    let way = masked::<STASH_WAYS>(way) as u32;
    let slot = set * STASH_WAYS + way;
    if free >= STASH_WAYS { slot | LATE } else { slot | FREE }
}

/// Notes one slot. All counts lie in memory: see [`find`].
#[inline(always)]
fn look(claim: &mut Claim, words: Ref<StashSet>, way: usize) {
    // SAFETY: below the array's length; a Ref points to a live map value.
    let word = unsafe { (&raw const (*words.as_ptr()).words).cast::<u64>().add(way).read_volatile() };
    let mine = claim.word;
    if is_kept(word, mine as u32) {
        let before = claim.kept;
        forget(&mut claim.kept, before + 1);
        if (word ^ mine) & OF_SERVICE == 0 {
            let before = claim.of_service;
            forget(&mut claim.of_service, before + 1);
        }
        if (word ^ mine) & OF_NETWORK == 0 {
            let before = claim.of_network;
            forget(&mut claim.of_network, before + 1);
        }
    } else if word == 0 {
        forget(&mut claim.free, way as u32);
    } else {
        forget(&mut claim.late, way as u32);
    }
}

/// Puts `scratch.claim` into a slot whose word is `old`; the slot plus 1, or 0 when another was faster.
#[inline(never)]
fn seize<F: Ip, E: Env + Tables<F>>(env: &E, slot: u32, old: u64) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let claim = place!(scratch.claim);
    let (Some(word), Some(stash)) = (word(env, slot), env.stash(slot)) else { return 0 };
    // SAFETY: a Ref points to a live map value.
    if unsafe { compare_exchange(word.as_ptr(), old, claim.word) } != old {
        claim.refused = Reason::StashesExhausted;
        return 0;
    }
    field!(stash.len = 0);
    field!(stash.acknowledged = 0);
    field!(stash.tried = 0);
    field!(stash.tail_len = 0);
    place!(stash.scan).forget();
    field!(stash.lock = field!(scratch.locked));
    slot + 1
}

/// Takes a slot from its owner, who has had it for long. The owner's lock is asked for once: who works with the slot at this moment keeps it.
#[inline(never)]
fn take_from<F: Ip, E: Env + Tables<F>>(env: &E, slot: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let claim = place!(scratch.claim);
    let (Some(word), Some(stash)) = (word(env, slot), env.stash(slot)) else { return 0 };
    claim.refused = Reason::StashesExhausted;
    let old = word.get();
    if is_kept(old, claim.word as u32) {
        return 0;
    }
    let owners = field!(stash.lock);
    let ours = owners == field!(scratch.locked);
    if !ours && lock::seize(env, owners, env.ticks()) == 0 {
        return 0;
    }
    let taken = seize::<F, E>(env, slot, old);
    if !ours {
        lock::give_up(env, owners);
    }
    taken
}

/// The word of a slot.
#[inline(always)]
fn word<E: Env>(env: &E, slot: u32) -> Option<Ref<u64>> {
    let set = env.stash_set(opaque(slot / STASH_WAYS) & (STASH_SETS - 1))?;
    let way = masked::<STASH_WAYS>(slot);
    // SAFETY: masked to the array's length; a Ref points to a live map value.
    Some(unsafe { Ref::new((&raw mut (*set.as_ptr()).words).cast::<u64>().add(way)) })
}

/// Whether the slot, plus 1, is still that of who took it at `since`.
#[inline(never)]
fn owned<E: Env>(env: &E, slot: u32, since: u32) -> u32 {
    if slot == 0 {
        return 0;
    }
    let Some(word) = word(env, slot.wrapping_sub(1)) else { return 0 };
    let word = word.get();
    (word & TAKEN != 0 && word as u32 == since) as u32
}

/// The stash of a flow; `None`: it has none, or somebody else has it by now.
#[inline(always)]
pub fn at<F: Family, E: Env>(env: &E, entry: Ref<Spliced<F>>) -> Option<Ref<Stash>> {
    let slot = field!(entry.stash) as u32;
    if owned(env, slot, field!(entry.stashed)) == 0 { None } else { env.stash(opaque(slot.wrapping_sub(1)) & (STASH_SLOTS - 1)) }
}

/// The flow's client is told that bytes of its head are here: the slot is kept for longer.
#[inline(always)]
pub fn acknowledge<F: Family, E: Env>(env: &E, entry: Ref<Spliced<F>>) {
    if let Some(word) = word(env, (field!(entry.stash) as u32).wrapping_sub(1)) {
        word.set(word.get() | ACKNOWLEDGED);
    }
}

/// Gives a flow's slot back.
#[inline(never)]
pub fn give_back<F: Family, E: Env>(env: &E, entry: Ref<Spliced<F>>) -> u32 {
    let slot = field!(entry.stash) as u32;
    if owned(env, slot, field!(entry.stashed)) != 0
        && let Some(word) = word(env, slot.wrapping_sub(1))
    {
        word.set(0);
    }
    field!(entry.stash = 0);
    0
}

/// Counts what a service's clients suffer for want of a slot.
#[inline(never)]
pub fn lost<E: Env>(env: &E, service: u32, reason: Reason) -> u32 {
    env.count(reason);
    env.count_loss(&LossKey { service, reason: reason as u32 });
    0
}

/// Room that is left for a head, as the client's scale says it. Rounded up: a window must not shrink, nor close before the last byte.
#[inline(always)]
pub fn window(used: u32, options: u8) -> u16 {
    let left = HEAD_LIMIT.saturating_sub(opaque(used));
    if options & tcp_option::SCALE != 0 { (left.div_ceil(1 << LOCAL_SCALE)) as u16 } else { left as u16 }
}
