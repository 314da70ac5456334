//! Whether a packet's checksums hold (RFC 1071; RFC 9293, 3.1; RFC 768; RFC 8200, 8.1). Asked before a packet is read, decided about, kept, answered, or
//! written anew, never of one that is only translated: there a difference is applied, and what was wrong stays wrong.
//!
//! What the kernel has seen to be right is trusted, so that nothing is summed where the network card, GRO or a local sender vouches.

use super::{ETHERNET, Ip, Parsed, checksum};
use crate::{
    bytes::{Packet, Vouched, within},
    env::{Env, Tables},
    network::Network,
    place,
};
use splitter_common::abi::*;

/// 1: they hold, or nobody can tell here (a fragment, a packet of the node's own processes). Else the packet is counted, and to be dropped.
/// Uses `scratch.text`.
#[inline(always)]
pub fn holds<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> u32 {
    if P::XDP || P::EGRESS && packet.came_by() == 0 {
        return 1;
    }
    let known = look(packet, env, p);
    if known == UNKNOWN { sum(packet, env, p) } else { known }
}

/// [`look`]: it has to be summed.
const UNKNOWN: u32 = 2;

/// What can be told without a look at all of the packet.
#[inline(never)]
fn look<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> u32 {
    let Some(l4) = within::<1024>(p.l4).filter(|_| !p.fragment) else { return 1 };
    if !F::header_holds(packet) {
        env.count(Reason::Checksum);
        return 0;
    }
    if packet.segment() != 0 {
        return 1;
    }
    let at = l4 as usize + if p.is_tcp() { 16 } else { 6 };
    let Some(found) = packet.window::<2>(at).map(|w| w.load::<u16, 0>()) else { return 1 };
    if found == 0 && !p.is_tcp() && !F::IPV6 {
        // None was made.
        return 1;
    }
    let end = p.ip_len.wrapping_add(ETHERNET as u32);
    let pseudo = pseudo_header(p, end.wrapping_sub(l4));
    // So looks one that the sender's device is still to make: `CHECKSUM_PARTIAL`.
    let unmade = checksum::fold(!found as u64 + pseudo) == 0xffff;
    let vouched = packet.vouched(at, unmade);
    if vouched == Vouched::Right {
        return 1;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return 1 };
    let rest = place!(scratch.rest);
    (rest.from, rest.len, rest.sum, rest.less) = (l4, end.wrapping_sub(l4), pseudo, 0);
    // What follows the packet, as padding, is in the kernel's sum.
    if let Vouched::Sum(sum) = vouched
        && packet.len() == end
    {
        // The network header is no part of it.
        (rest.from, rest.len, rest.sum, rest.less) = (ETHERNET as u32, l4.wrapping_sub(ETHERNET as u32), pseudo + sum as u64, 1);
    }
    UNKNOWN
}

/// Sums `scratch.rest`.
#[inline(never)]
fn sum<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, _: &Parsed<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 1 };
    let part = checksum::fold(packet.sum_frame(place!(scratch.text), place!(scratch.rest).from, place!(scratch.rest).len));
    let rest = place!(scratch.rest);
    let part = if rest.less != 0 { !part & 0xffff } else { part };
    if checksum::fold(rest.sum + part as u64) == 0xffff {
        return 1;
    }
    env.count(Reason::Checksum);
    0
}

#[inline(always)]
fn pseudo_header<F: Ip>(p: &Parsed<F>, len: u32) -> u64 {
    let words = |words: &F::Words| words.as_ref().iter().map(|word| *word as u64).sum::<u64>();
    words(&p.key.src) + words(&p.key.dst) + (p.key.proto as u16).to_be() as u64 + len.to_be() as u64
}
