//! Where a packet comes from. Anybody can write a backend's address into a packet; who is not on the way between node and backend cannot
//! have it come in by the interface behind which the backend is.

use crate::{
    bytes::{Packet, Route, RouteQuery},
    env::{Env, Tables},
    field,
    packet::Ip,
};
use splitter_common::abi::*;

/// 1: the packet came in by the interface behind which the backend is. `kept`: [`Flow::nexthop`] of the flow's way to the backend; `key`: of
/// the backend's packets to the client. Where routing leaves the way to the stack, any interface is right.
#[inline(always)]
pub fn genuine<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, kept: u16, key: &FlowKey<F>) -> u32 {
    match by_kept(packet, env, kept) {
        UNKNOWN => by_route(packet, env, key, 1),
        ELSEWHERE => by_route(packet, env, key, 0),
        _ => 1,
    }
}

/// [`by_kept`]: the flow has no next hop.
const UNKNOWN: u32 = 2;
/// It has one, by another interface.
const ELSEWHERE: u32 = 0;

/// By the next hop that the flow has kept.
#[inline(never)]
fn by_kept<P: Packet, E: Env>(packet: &P, env: &E, kept: u16) -> u32 {
    let came_by = packet.came_by();
    // A process of this node needs no disguise.
    if came_by == 0 || kept == STACK {
        return 1;
    }
    let behind = if kept != 0 { env.nexthop(kept as u32).map_or(0, |hop| field!(hop.ifindex)) } else { 0 };
    if behind == 0 { UNKNOWN } else { is_behind(env, came_by, behind) as u32 }
}

/// By the route to the backend: what a flow keeps is as old as its last look. `stack`: 1 when any interface is right where the stack routes.
#[inline(never)]
fn by_route<F: Ip, P: Packet, E: Env>(packet: &mut P, env: &E, key: &FlowKey<F>, stack: u32) -> u32 {
    let query = RouteQuery { ipv6: F::IPV6, proto: key.proto as u8, src: F::query(&key.dst), dst: F::query(&key.src) };
    let behind = match packet.route(&query) {
        Route::Found { ifindex, .. } | Route::NoNeighbour { ifindex } => ifindex,
        Route::Stack => 0,
    };
    let genuine = if behind == 0 { stack != 0 } else { is_behind(env, packet.came_by(), behind) };
    if !genuine {
        env.count(Reason::WrongSide);
    }
    genuine as u32
}

/// Routes name a bridge or bond, and the program sees the packet at its port.
#[inline(always)]
fn is_behind<E: Env>(env: &E, came_by: u32, behind: u32) -> bool {
    behind == came_by || env.iface(came_by).is_some_and(|iface| field!(iface.upper) == behind)
}
