//! Next hops, kept once and named by 16 bits in the flows. A slot belongs to the (interface, addresses) that claimed it first; the agent
//! frees slots that no flow names any more.

use crate::{bytes::opaque, env::Env, field};
use splitter_common::abi::*;

/// Slots that are tried before the packet pays for its lookup.
const PROBES: u32 = 4;

/// The slot of a next hop; 0 when there is no room.
#[inline(never)]
pub fn slot<E: Env>(env: &E, ifindex: u32, macs: &[u32; 3], mtu: u16) -> u32 {
    let now = env.ticks();
    let (mut flags, mut known_mtu) = (0, mtu);
    if let Some(iface) = env.iface(ifindex) {
        flags = field!(iface.flags) as u16;
        if known_mtu == 0 {
            known_mtu = field!(iface.mtu) as u16;
        }
    }
    let hop = NextHop { ifindex, macs: *macs, mtu: known_mtu, flags, checked: now };
    let hash = (macs[0] ^ macs[1].rotate_left(11) ^ macs[2].rotate_left(21) ^ ifindex).wrapping_mul(0x9e37_79b1);
    let mut i = 0;
    while i < PROBES {
        let slot = opaque((hash >> 16).wrapping_add(i)) & (NEXTHOP_SLOTS - 1);
        // A refused claim costs more than a look.
        if slot != 0 && (owned(env, slot, &hop) || env.claim_nexthop(slot, &hop) || owned(env, slot, &hop)) {
            refresh(env, slot, &hop);
            return slot;
        }
        i += 1;
    }
    env.count(Reason::NextHopsExhausted);
    0
}

#[inline(always)]
fn owned<E: Env>(env: &E, slot: u32, hop: &NextHop) -> bool {
    env.nexthop_owner(slot).is_some_and(|owner| {
        let same = field!(owner.ifindex) == hop.ifindex && field!(owner.macs) == hop.macs;
        if same {
            field!(owner.checked = hop.checked);
        }
        same
    })
}

/// Writes the slot: whoever claims it and whoever finds it claimed write the same interface and addresses.
#[inline(always)]
fn refresh<E: Env>(env: &E, slot: u32, hop: &NextHop) {
    if let Some(value) = env.nexthop(slot) {
        let old = value.get();
        if old != *hop {
            value.set(*hop);
        }
    }
}
