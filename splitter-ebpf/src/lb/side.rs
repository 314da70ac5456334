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
#[inline(never)]
pub fn genuine<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, kept: u16, key: &FlowKey<F>) -> u32 {
    let came_by = packet.came_by();
    // A process of this node needs no disguise.
    if came_by == 0 || kept == STACK {
        return 1;
    }
    let mut behind = if kept != 0 { env.nexthop(kept as u32).map_or(0, |hop| field!(hop.ifindex)) } else { 0 };
    if behind == 0 {
        let query = RouteQuery { ipv6: F::IPV6, proto: key.proto as u8, src: F::query(&key.dst), dst: F::query(&key.src) };
        match packet.route(&query) {
            Route::Found { ifindex, .. } | Route::NoNeighbour { ifindex } => behind = ifindex,
            Route::Stack => return 1,
        }
    }
    // Routes name a bridge or bond, and the program sees the packet at its port.
    if behind == came_by || env.iface(came_by).is_some_and(|iface| field!(iface.upper) == behind) {
        return 1;
    }
    env.count(Reason::WrongSide);
    0
}
