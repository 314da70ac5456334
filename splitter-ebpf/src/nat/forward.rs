//! The last step of every translated packet: does it fit, may it hop, count it, write it, send it on.

use super::Renumber;
use crate::{
    account, answer,
    bytes::{Packet, within},
    env::Env,
    network::Network,
    packet::{ETHERNET, Parsed, Rewrite, checksum},
    state::Translation,
    verdict::Verdict,
};
use splitter_common::abi::*;

/// Offsets of the checksums in TCP and UDP headers.
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;

/// Translates and sends a packet.
#[inline(always)]
pub fn forward<F: Network, P: Packet, E: Env, N: Renumber>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    t: &Translation<F>,
    numbers: &N,
) -> Verdict {
    let (macs, verdict);
    if t.nexthop != 0 {
        // Of a flow that goes through the stack.
        let Some(hop) = env.nexthop(t.nexthop) else { return to_stack(packet, env, p, t, numbers) };
        let hop = hop.get();
        if hop.ifindex == 0 {
            // The agent freed the slot under the flow: the stack forwards until the flow looks again.
            return to_stack(packet, env, p, t, numbers);
        }
        if p.ip_len > hop.mtu as u32 && hop.mtu != 0 && longest(packet, p) > hop.mtu as u32 {
            // The sender is told, or the stack cuts it where that is allowed.
            return if F::dont_fragment(packet) { Verdict::error(hop.mtu as u32) } else { to_stack(packet, env, p, t, numbers) };
        }
        if P::XDP && hop.flags as u32 & iface_flag::XDP_TRANSMIT == 0 {
            return Verdict::PASS;
        }
        macs = Some(hop.macs);
        // The kernel allows it at ingress only.
        let peer = !P::XDP && !P::EGRESS && hop.flags as u32 & iface_flag::PEER != 0;
        verdict = if peer { Verdict::redirect_peer(hop.ifindex) } else { Verdict::redirect(hop.ifindex) };
    } else if P::XDP {
        return Verdict::PASS;
    } else if t.neighbour != 0 {
        // The link header is written by the stack; the hop limit is ours.
        macs = Some([0; 3]);
        verdict = Verdict::neighbour(t.neighbour);
    } else {
        return to_stack(packet, env, p, t, numbers);
    }
    if F::hop_limit(packet) <= 1 {
        // The stack would not say so where it has no route to the VIP.
        return if P::XDP || P::EGRESS { Verdict::PASS } else { Verdict::error(answer::error::EXPIRED) };
    }
    if !write(packet, p, t, macs, numbers) {
        return Verdict::PASS;
    }
    account::packet(env, t.version, p.ip_len, t.reverse);
    verdict
}

/// Length of the longest IP packet that this one becomes: a packet with segmentation offload is cut later (compare the kernel's
/// `skb_gso_validate_network_len`).
#[inline(never)]
fn longest<F: Network, P: Packet>(packet: &mut P, p: &Parsed<F>) -> u32 {
    let segment = packet.segment();
    let Some(l4) = within::<1024>(p.l4).filter(|_| segment != 0) else { return p.ip_len };
    let header = match packet.window::<20>(l4 as usize) {
        Some(w) if p.is_tcp() => (w.load::<u8, 12>() >> 4) as u32 * 4,
        _ => 8,
    };
    l4 - ETHERNET as u32 + header + segment
}

/// Addresses, ports, checksums.
#[inline(always)]
fn write<F: Network, P: Packet, N: Renumber>(
    packet: &mut P,
    p: &Parsed<F>,
    t: &Translation<F>,
    macs: Option<[u32; 3]>,
    numbers: &N,
) -> bool {
    let rewrite = Rewrite { old_src: &p.key.src, old_dst: &p.key.dst, src: &t.src, dst: &t.dst, macs };
    if !F::rewrite(packet, &rewrite) {
        return false;
    }
    // A later fragment has no transport header.
    let Some(l4) = within::<1024>(p.l4) else { return true };
    if let Some(mut w) = packet.window::<8>(l4 as usize) {
        w.store::<u32, 0>(t.ports);
    }
    let addresses = checksum::fold(F::difference(&p.key.src, &t.src) + F::difference(&p.key.dst, &t.dst));
    let numbered = numbers.apply(packet, l4);
    let ports = checksum::fold(checksum::difference(p.key.ports, t.ports) + numbered);
    let at = l4 + if p.is_tcp() { TCP_CHECKSUM } else { UDP_CHECKSUM };
    packet.update_transport_checksum(at as usize, addresses, ports, F::IPV6, !p.is_tcp());
    if F::IPV6 && macs.is_some() {
        packet.hop_limit_changed();
    }
    true
}

/// No next hop that we can use, or none wanted: translated, and left to the stack, which forwards or delivers it.
#[inline(never)]
fn to_stack<F: Network, P: Packet, E: Env, N: Renumber>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    t: &Translation<F>,
    numbers: &N,
) -> Verdict {
    let via = t.nexthop == VIA_STACK as u32;
    if via && t.reverse != P::EGRESS {
        return Verdict::PASS;
    }
    if !P::XDP && write(packet, p, t, None, numbers) {
        if !P::EGRESS && !via {
            env.count(Reason::NoNextHop);
        }
        account::packet(env, t.version, p.ip_len, t.reverse);
    }
    Verdict::PASS
}
