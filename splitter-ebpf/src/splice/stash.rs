//! Where a request's head waits until a backend has it: a bounded number of slots, taken and given back.

use crate::{
    bytes::{Ref, compare_exchange, opaque},
    env::Env,
    field,
};
use splitter_common::abi::{STASH_SLOTS, Stash};

/// Slots that are tried.
const PROBES: u32 = 8;

/// Takes a slot; 0: there is none. A slot is its owner's until it is given back, however long that takes: another's text would be sent
/// in the name of its client. What an evicted entry had taken is freed by the agent.
#[inline(never)]
pub fn take<E: Env>(env: &E, hash: u32) -> u32 {
    let now = env.ticks();
    let mut i = 0;
    while i < PROBES {
        let slot = opaque((hash.wrapping_mul(0x9e37_79b1) >> 8).wrapping_add(i)) & (STASH_SLOTS - 1);
        if slot != 0
            && let Some(stash) = env.stash(slot)
        {
            // SAFETY: a Ref points to a live map value.
            if unsafe { compare_exchange(&raw mut (*stash.as_ptr()).taken, 0, 1) } == 0 {
                field!(stash.since = now);
                field!(stash.len = 0);
                field!(stash.acknowledged = 0);
                return slot;
            }
        }
        i += 1;
    }
    0
}

/// Gives a slot back.
#[inline(always)]
pub fn give_back<E: Env>(env: &E, slot: u16) {
    if slot != 0
        && let Some(stash) = env.stash(slot as u32)
    {
        field!(stash.taken = 0);
    }
}

/// The stash of a slot.
#[inline(always)]
pub fn at<E: Env>(env: &E, slot: u16) -> Option<Ref<Stash>> {
    if slot == 0 { None } else { env.stash(slot as u32) }
}
