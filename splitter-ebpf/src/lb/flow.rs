//! Entries of the flow tables: keys of the other direction, moving between tables, next hops of a flow.

use crate::{
    bytes::{Packet, Route, RouteQuery},
    env::{Env, Table, Tables},
    nat,
    packet::{Ip, destination_port, ports, source_port},
    place,
    state::Translation,
};
use splitter_common::abi::*;

/// Fills the translation that a flow entry asks for; `false` when its SNAT half was evicted.
#[inline(always)]
pub fn translate<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, flow: &Flow<F>, version: u32, t: &mut Translation<F>) -> bool {
    t.version = version;
    t.nexthop = if flow.nexthop == STACK { 0 } else { flow.nexthop as u32 };
    t.neighbour = 0;
    t.reverse = flow.is(flow_flag::REVERSE);
    if t.reverse {
        t.src = flow.peer;
        t.dst = key.dst;
        t.ports = ports(flow.peer_port, destination_port(key.ports));
    } else {
        t.src = key.src;
        t.dst = flow.peer;
        t.ports = ports(source_port(key.ports), flow.peer_port);
    }
    if flow.is(flow_flag::SNAT) {
        let Some(snat) = env.snat(key) else { return false };
        let snat = snat.get();
        if t.reverse {
            t.dst = snat.addr;
            t.ports = ports(source_port(t.ports), snat.port);
        } else {
            t.src = snat.addr;
            t.ports = ports(snat.port, destination_port(t.ports));
        }
    }
    true
}

/// Fills the key under which the other direction of a flow is kept: the translated packet, turned round.
#[inline(always)]
pub fn partner_key<F: Family>(proto: u32, t: &Translation<F>, out: &mut FlowKey<F>) {
    out.src = t.dst;
    out.dst = t.src;
    out.ports = ports(destination_port(t.ports), source_port(t.ports));
    out.proto = proto;
}

/// The entry of the other direction, made from this one.
#[inline(always)]
pub fn partner_flow<F: Ip>(key: &FlowKey<F>, flow: &Flow<F>, flags: u8) -> Flow<F> {
    let reverse = flow.is(flow_flag::REVERSE);
    // The other side sees this packet's addressee: the VIP (seen from behind), or the backend.
    let (peer, peer_port) = if reverse { (key.src, source_port(key.ports)) } else { (key.dst, destination_port(key.ports)) };
    let direction = if reverse { 0 } else { flow_flag::REVERSE };
    // A path is of both directions, a next hop of one.
    let nexthop = VIA_STACK * (flow.nexthop == VIA_STACK) as u16;
    Flow { peer, peer_port, nexthop, owner: owner(flow.backend(), flags & !flow_flag::REVERSE | direction), last: flow.last }
}

/// Whether a packet of the flow is left alone here: what goes through the node's stack is translated on the client's side alone, behind the stack or
/// before it.
#[inline(always)]
pub fn elsewhere<F: Family, P: Packet>(flow: &Flow<F>) -> bool {
    flow.nexthop == VIA_STACK && flow.is(flow_flag::REVERSE) != P::EGRESS
}

/// Forgets both directions of a flow, with their SNAT entries. Uses the translation's scratch memory.
#[inline(never)]
pub fn forget<F: Ip, E: Env + Tables<F>>(env: &E, table: Table, key: &FlowKey<F>, flow: &Flow<F>) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    let (t, partner) = (place!(scratch.translation), place!(scratch.partner));
    if translate(env, key, flow, 0, t) {
        partner_key(key.proto, t, partner);
        env.drop_flow(table, partner);
        if flow.is(flow_flag::SNAT) {
            env.drop_snat(partner);
        }
    }
    env.drop_flow(table, key);
    if flow.is(flow_flag::SNAT) {
        env.drop_snat(key);
    }
    0
}

/// Finds the next hop of a translated packet and keeps it in a slot. Fills `nexthop` or `neighbour`.
#[inline(never)]
pub fn find_nexthop<F: Ip, P: Packet, E: Env>(packet: &mut P, env: &E, proto: u32, t: &mut Translation<F>) -> u32 {
    t.nexthop = 0;
    t.neighbour = 0;
    let query = RouteQuery { ipv6: F::IPV6, proto: proto as u8, src: F::query(&t.src), dst: F::query(&t.dst) };
    match packet.route(&query) {
        Route::Found { ifindex, macs, mtu } => {
            t.nexthop = nat::nexthop::slot(env, ifindex, &macs, mtu);
            if t.nexthop == 0 {
                t.neighbour = ifindex;
            }
            ifindex
        }
        Route::NoNeighbour { ifindex } => {
            t.neighbour = ifindex;
            ifindex
        }
        Route::Stack => 0,
    }
}

/// What an entry of a flow table keeps of a next hop that was just looked up.
#[inline(always)]
pub fn kept_nexthop<F: Ip>(t: &Translation<F>) -> u16 {
    if t.nexthop == 0 && t.neighbour == 0 { STACK } else { t.nexthop as u16 }
}

/// Fills the translation that an entry of any flow table asks for; `false` when its SNAT half is gone.
#[inline(always)]
pub fn translation_of<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, flow: &Flow<F>, t: &mut Translation<F>) -> bool {
    translate(env, key, flow, 0, t)
}
