//! One packet of a connection at a time: its two ends are received on different CPUs, and so are two segments of one end when its process
//! moves. Whatever reads a flow's state in order to change it holds the lock of the client's connection, from the program that finds that
//! out to the last one that the packet goes through. Plain packets do without.
//!
//! Locks are slots of a table, not words of the entries: a connection has one before its entry is there and after it was evicted, and two
//! connections that share a slot only wait for each other. Nobody waits for long: see [`acquire`].

use crate::{
    bytes::{compare_exchange, opaque},
    env::{Env, KernelLoop, Tables},
    field,
    network::Network,
};
use splitter_common::{
    abi::{Family, FlowKey, Reason, SPLICE_LOCKS},
    http::Loop,
};

/// How often a lock is asked for before the packet is given up.
const TRIES: u32 = 1024;
/// Age of a lock that its holder has forgotten, jiffies: there is no such holder, but a lock must not outlive one.
const FORGOTTEN: u32 = 50;
/// Tells a lock that is held from one that is not: jiffies may be 0.
const HELD: u64 = 1 << 32;

/// Takes the lock of the client's connection `key`. `false`: another CPU keeps it, and the packet is dropped, which its sender makes good.
/// Held until [`release`] (Linux 5.17).
#[inline(never)]
pub fn acquire<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>) -> bool {
    let Some(scratch) = Tables::<F>::scratch(env) else { return false };
    let slot = opaque(flow_hash(key).wrapping_mul(0x9e37_79b1) >> 16) & (SPLICE_LOCKS - 1);
    let Some(lock) = env.splice_lock(slot) else { return false };
    let now = env.ticks();
    let mine = HELD | now as u64;
    let mut mine_now = false;
    KernelLoop::repeat(TRIES, |_| {
        // SAFETY: a Ref points to a live map value.
        let mut found = unsafe { compare_exchange(lock.as_ptr(), 0, mine) };
        mine_now = found == 0;
        if !mine_now && now.wrapping_sub(found as u32) > FORGOTTEN {
            let old = found;
            // SAFETY: as above.
            found = unsafe { compare_exchange(lock.as_ptr(), old, mine) };
            mine_now = found == old;
        }
        mine_now
    });
    if !mine_now {
        env.count(Reason::Contended);
        return false;
    }
    field!(scratch.locked = slot + 1);
    field!(scratch.lock = mine);
    true
}

/// Gives back the lock that this packet holds, if any.
#[inline(always)]
pub fn release<F: Network, E: Env + Tables<F>>(env: &E) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    let locked = field!(scratch.locked);
    if locked == 0 {
        return;
    }
    field!(scratch.locked = 0);
    if let Some(lock) = env.splice_lock(opaque(locked - 1) & (SPLICE_LOCKS - 1)) {
        let mine = field!(scratch.lock);
        // Not when it was taken away. SAFETY: a Ref points to a live map value.
        unsafe { compare_exchange(lock.as_ptr(), mine, 0) };
    }
}

/// Takes a lock besides the one that this packet holds, for a moment: it is asked for once. `locked`: its slot plus 1. 0: somebody has it.
#[inline(always)]
pub fn seize<E: Env>(env: &E, locked: u32, now: u32) -> u32 {
    let Some(lock) = env.splice_lock(opaque(locked.wrapping_sub(1)) & (SPLICE_LOCKS - 1)) else { return 0 };
    // SAFETY: a Ref points to a live map value.
    (unsafe { compare_exchange(lock.as_ptr(), 0, HELD | now as u64) } == 0) as u32
}

/// Gives back what [`seize`] took.
#[inline(always)]
pub fn give_up<E: Env>(env: &E, locked: u32) {
    if let Some(lock) = env.splice_lock(opaque(locked.wrapping_sub(1)) & (SPLICE_LOCKS - 1)) {
        lock.set(0);
    }
}

/// A hash of a connection, for choosing slots.
#[inline(always)]
pub fn flow_hash<F: Family>(key: &FlowKey<F>) -> u32 {
    let (mut hash, mut i) = (key.ports, 0);
    let words = if F::IPV6 { 4 } else { 1 };
    while i < words {
        hash = (hash ^ key.src.as_ref()[i]).wrapping_mul(0x9e37_79b1) ^ key.dst.as_ref()[i];
        hash ^= hash >> 15;
        i += 1;
    }
    hash
}
