//! The entry of a new leg: its way to the backend, its source, its path.

use super::leg;
use crate::{
    answer::swapped,
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field,
    lb::{find_nexthop, kept_nexthop, partner_key},
    nat,
    network::Network,
    packet::{destination_port, ports, source_port},
    place,
    state::Translation,
};
use splitter_common::{
    abi::*,
    http::{chunks::Chunks, lines::Lines},
};

/// Finds the way to the backend and makes the leg's entry.
#[inline(never)]
pub fn route<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, entry: Ref<Spliced<F>>, from_client: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (choice, t, client) = (place!(scratch.choice), place!(scratch.translation), place!(scratch.client));
    let Some(backend) = env.backend(choice.backend) else { return 0 };
    t.src = client.src;
    t.dst = F::words(&field!(backend.addr));
    t.ports = ports(source_port(client.ports), u16::from_ne_bytes(field!(backend.port)));
    t.version = field!(backend.version);
    let out = find_nexthop(packet, env, TCP as u32, t);
    let mut source = nat::snat::NO_ADDRESS;
    if from_client != 0 && !P::EGRESS && nat::snat::needed(env, field!(entry.service), out, packet.ifindex(), t.src == t.dst) {
        source = nat::snat::allocate(env, t, out);
    } else if leg::source_translated(entry, client) && field!(entry.tries) != 0 {
        t.src = field!(entry.src);
        t.ports = ports(source_port(field!(entry.ports)), destination_port(t.ports));
    }
    let l = place!(scratch.leg);
    l.src = client.dst;
    l.dst = client.src;
    l.ports = swapped(client.ports);
    if by_stack::<F, P, E>(env, entry, t, from_client) != 0 {
        (t.nexthop, t.neighbour) = (VIA_STACK as u32, 0);
    }
    // A path is of both directions, a next hop of one.
    (l.nexthop, l.mss) = (VIA_STACK * (t.nexthop == VIA_STACK as u32) as u16, 536);
    l.owner = owner(choice.backend, 0);
    l.last = env.ticks();
    (l.seq_add, l.ack_add, l.ts_val_add, l.next, l.sent, l.body_end) = (0, 0, 0, 0, 0, 0);
    (l.state, l.shift) = (splice_state::OPENING, 0);
    (l.side, l.pad) = (0, 0);
    l.chunks = Chunks::default();
    (l.lines, l.waited) = (Lines::default(), 0);
    l.trial = 0;
    l.forward = kept_nexthop(t);
    l.stamp = env.now();
    let mut stored = enter(env, t, source);
    if stored == COLLIDES {
        source = nat::snat::allocate(env, t, nat::snat::SAME_ADDRESS);
        stored = enter(env, t, source);
    }
    if stored == 0 {
        env.count(if source == nat::snat::EXHAUSTED { Reason::SnatPortsExhausted } else { Reason::FlowInsertFailed });
        return 0;
    }
    field!(entry.src = t.src);
    field!(entry.dst = t.dst);
    field!(entry.ports = t.ports);
    field!(entry.nexthop = l.forward);
    leg::own(entry, choice.backend & 0xff_ffff);
    field!(entry.seq_add = 0);
    field!(entry.ack_add = 0);
    field!(entry.ts_ecr_add = 0);
    field!(entry.state = splice_state::OPENING);
    field!(entry.tries = field!(entry.tries).wrapping_add(1));
    if let Some(counters) = env.counters(t.version) {
        field!(counters.connections += 1);
    }
    1
}

/// 1: the leg goes through the stack, since its backend is a process of the node, or its service asks for it; not where the backend sees another address
/// than the client's, nor for a client on the node: see `lb::first`. What its service asks for needs a packet that is seen on the client's side: a leg in
/// the place of one that was redirected is redirected.
#[inline(always)]
fn by_stack<F: Network, P: Packet, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, t: &Translation<F>, from_client: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    if t.src != place!(scratch.client).src || P::EGRESS && from_client != 0 {
        return 0;
    }
    if t.nexthop == 0 && t.neighbour == 0 {
        return 1;
    }
    let Some(service) = env.service(field!(entry.service)) else { return 0 };
    ((P::EGRESS || from_client != 0) && field!(service.flags) & service_flag::STACK != 0) as u32
}

/// Result of [`enter`]: the backend already has a connection of this address and port.
const COLLIDES: u32 = 2;

/// Puts `scratch.leg` into its table. `source`: what `allocate` said of `t`'s.
#[inline(never)]
fn enter<F: Network, E: Env + Tables<F>>(env: &E, t: &Translation<F>, source: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (key, l) = (place!(scratch.partner), place!(scratch.leg));
    partner_key(TCP as u32, t, key);
    if source == nat::snat::EXHAUSTED {
        return 0;
    }
    if source == nat::snat::TRANSLATED {
        return env.put_leg(key, l) as u32;
    }
    if !env.new_leg(key, l) {
        // One of this connection's that is of no use any more, or another's.
        return if env.leg(key).is_some_and(|leg| !leg::belongs(leg, place!(scratch.client))) {
            COLLIDES
        } else {
            env.put_leg(key, l) as u32
        };
    }
    // As in `lb::first`.
    if nat::snat::of_layer4::<F, E>(env) {
        env.drop_leg(key);
        return COLLIDES;
    }
    1
}
