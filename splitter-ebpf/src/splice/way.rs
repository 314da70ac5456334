//! The way of packets that the node writes: out of an interface, or to the node's stack, which delivers them to a process of its own or routes them.
//!
//! What is for the stack goes in where the client's packets come in: routing, reverse path filters and netfilter then see what the client would have
//! sent. The client's packet in hand passes there by itself. A backend's is seen where it leaves towards the client (its backend is a process of the
//! node, or the leg goes through the stack), and has to be turned round; or where it has come in, and has to change sides.
//!
//! Whatever comes in by an interface is judged by its link header anew, and is nobody's here: it is for a backend.

use crate::{
    answer::turn_link,
    bytes::{Packet, Route, RouteQuery},
    env::{Env, Tables},
    field,
    network::Network,
    place,
    state::Translation,
    verdict::{Action, Verdict},
};
use splitter_common::abi::*;

/// Keeps the link header of the packet in hand, before anything else is written there.
#[inline(always)]
pub fn note<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    if let Some(w) = packet.window::<12>(0) {
        let link =
            [w.load::<u16, 0>(), w.load::<u16, 2>(), w.load::<u16, 4>(), w.load::<u16, 6>(), w.load::<u16, 8>(), w.load::<u16, 10>()];
        *place!(scratch.link) = link;
    }
}

/// The noted link header, as it was or turned round.
#[inline(always)]
fn put_link<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, turned: bool) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    let [a, b, c, d, e, f] = *place!(scratch.link);
    let [a, b, c, d, e, f] = if turned { [d, e, f, a, b, c] } else { [a, b, c, d, e, f] };
    if let Some(mut w) = packet.window::<12>(0) {
        w.store::<u16, 0>(a);
        w.store::<u16, 2>(b);
        w.store::<u16, 4>(c);
        w.store::<u16, 6>(d);
        w.store::<u16, 8>(e);
        w.store::<u16, 10>(f);
    }
}

/// Sends a packet that was written, by the way of the translation.
#[inline(never)]
pub fn send<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, t: &Translation<F>) -> Verdict {
    if t.nexthop == 0 && t.neighbour != 0 {
        return Verdict::neighbour(t.neighbour);
    }
    let Some(hop) = env.nexthop(t.nexthop) else { return by_stack::<F, P, E>(packet, env) };
    let ifindex = field!(hop.ifindex);
    if ifindex == 0 {
        return by_stack::<F, P, E>(packet, env);
    }
    if let Some(mut w) = packet.window::<14>(0) {
        let macs = field!(hop.macs);
        w.store::<u32, 0>(macs[0]);
        w.store::<u32, 4>(macs[1]);
        w.store::<u32, 8>(macs[2]);
    }
    let peer = !P::EGRESS && field!(hop.flags) as u32 & iface_flag::PEER != 0;
    if peer { Verdict::redirect_peer(ifindex) } else { Verdict::redirect(ifindex) }
}

/// To the stack, by the interface that the client is behind.
#[inline(never)]
fn by_stack<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E) -> Verdict {
    if P::EGRESS {
        put_link::<F, P, E>(packet, env, true);
        return Verdict::inwards(packet.ifindex());
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let (key, client) = (&place!(scratch.parsed).key, place!(scratch.client));
    if key.src == client.src && key.dst == client.dst {
        return Verdict::PASS;
    }
    let query = RouteQuery { ipv6: F::IPV6, proto: TCP, src: F::query(&client.dst), dst: F::query(&client.src) };
    let Route::Found { ifindex, macs, .. } = packet.route(&query) else { return Verdict::PASS };
    let Some(mut w) = packet.window::<14>(0) else { return Verdict::DROP };
    w.store::<u32, 0>(macs[0]);
    w.store::<u32, 4>(macs[1]);
    w.store::<u32, 8>(macs[2]);
    if turn_link(packet) { Verdict::inwards(ifindex) } else { Verdict::DROP }
}

/// At egress: goes on to the client, in the place of the backend's packet that was in hand.
#[inline(always)]
pub fn on<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E) -> Verdict {
    put_link::<F, P, E>(packet, env, false);
    Verdict::PASS
}

/// The way that copies take ([`copy`]), out of an interface or into one and through a queue: what is delivered at once, to the other end of a veth or to
/// the stack, would overtake them.
#[inline(always)]
pub fn behind<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, verdict: Verdict) -> Verdict {
    match verdict.action() {
        Action::RedirectPeer(ifindex) => Verdict::redirect(ifindex),
        Action::Pass if !P::EGRESS => {
            put_link::<F, P, E>(packet, env, false);
            Verdict::inwards(packet.ifindex())
        }
        _ => verdict,
    }
}

/// Sends a copy of the packet in hand by a way of [`behind`]. `false`: it was not sent.
#[inline(always)]
pub fn copy<P: Packet>(packet: &mut P, verdict: Verdict) -> bool {
    match verdict.action() {
        Action::Redirect(ifindex) => packet.clone_to(ifindex),
        Action::Inwards(ifindex) => packet.clone_in(ifindex),
        _ => false,
    }
}

/// Sends a copy of the packet in hand, which was written as an answer, back to its sender.
#[inline(always)]
pub fn copy_back<P: Packet>(packet: &mut P) -> bool {
    let ifindex = packet.ifindex();
    if P::EGRESS { packet.clone_in(ifindex) } else { packet.clone_to(ifindex) }
}
