//! ICMP errors that say that a backend cannot be reached: they answer a SYN, or a datagram, like a RST.

use super::{
    flow::{forget, partner_key},
    half,
    side::genuine,
    trial,
};
use crate::{
    bytes::Packet,
    env::{Env, Table, Tables},
    field,
    network::Network,
    place,
    state::Translation,
    verdict::Verdict,
};
use splitter_common::abi::{trial::outcome, *};

/// An error about a packet of a client to a backend. `key`: that packet, turned round; `t`: the translation of one that the backend would have
/// sent. 1: the client is not told, since another backend can serve; 0: it is.
#[inline(never)]
pub fn unreachable<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, key: &FlowKey<F>, t: &Translation<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let client = place!(scratch.client);
    partner_key(key.proto, t, client);
    // The node's own routing is at its wit's end, or somebody behind it.
    let outcome = if packet.came_by() == 0 { outcome::UNAVAILABLE } else { outcome::REFUSED };
    if key.proto == TCP as u32 {
        const OPEN: u8 = flow_flag::REPLIED | flow_flag::ESTABLISHED | flow_flag::REFUSED | flow_flag::REVERSE;
        let Some(half) = env.half(client) else { return 0 };
        // With an open connection it is a hint that may pass (RFC 1122, 4.2.3.9).
        if field!(half.flow.owner).is(OPEN) || genuine(packet, env, field!(half.flow.nexthop), key) == 0 {
            return 0;
        }
        return (half::refused(env, key, client, outcome, 1) == Verdict::DROP) as u32;
    }
    datagram(packet, env, key, client, outcome)
}

/// A datagram was refused: its flow is forgotten, so that the next one is decided anew.
#[inline(never)]
fn datagram<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    key: &FlowKey<F>,
    client: &FlowKey<F>,
    outcome: u32,
) -> u32 {
    let Some(back) = env.flow(Table::Udp, key) else { return 0 };
    let flow = back.get();
    let Some(record) = env.backend(flow.backend()) else { return 0 };
    let way = env.flow(Table::Udp, client).map_or(0, |flow| field!(flow.nexthop));
    if !flow.is(flow_flag::REVERSE) || genuine(packet, env, way, key) == 0 {
        return 0;
    }
    let outcome = if flow.is(flow_flag::YOUNG) { outcome } else { outcome::CUT };
    if outcome != outcome::CUT || flow.is(flow_flag::REPLIED) {
        trial::count(env, field!(record.version), &flow, outcome);
    }
    forget(env, Table::Udp, key, &flow);
    env.drop_half(client);
    half::failed(env, record, client, flow.backend()) as u32
}
