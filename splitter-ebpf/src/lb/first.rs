//! The first packet of a flow: decide, pick a backend, find the way, remember both directions.

use super::{
    Translation,
    flow::{find_nexthop, kept_nexthop, partner_flow, partner_key},
    half::RECOVERED,
    known,
    select::{Facts, select},
};
use crate::{
    bytes::Packet,
    env::{Env, Table, Tables},
    field, nat,
    network::Network,
    packet::{Parsed, destination_port, ports, source_port, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::{abi::*, filter::Role};

/// A packet of no flow: if it is for a frontend, chooses version and backend; [`start`] goes on. `avoid`: the backend that did not answer
/// this client, or 0.
#[inline(never)]
pub fn choose<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, avoid: u32) -> Verdict {
    if known(env, Role::Frontend, p.key.dst.as_ref(), p.dport(), p.key.proto) == super::Known::No {
        // It came this far for its source: direct traffic of a backend.
        return Verdict::PASS;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let (frontend, facts, choice) = (place!(scratch.frontend), place!(scratch.facts), place!(scratch.choice));
    frontend_of(p, frontend);
    let Some(service) = env.frontend(frontend) else { return Verdict::PASS };
    if p.is_tcp() && p.flags & tcp::RST != 0 {
        return Verdict::PASS;
    }
    facts_of(&p.key, facts);
    select(env, service, facts, avoid, choice);
    if choice.backend != 0 {
        return Verdict::CONTINUE;
    }
    env.count(choice.none);
    if p.is_tcp() && choice.none != Reason::ServiceUnknown { Verdict::RESET } else { Verdict::DROP }
}

/// Finds the way to the chosen backend and remembers the flow.
#[inline(never)]
pub fn start<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let choice = place!(scratch.choice);
    let Some(backend) = env.backend(choice.backend) else { return Verdict::DROP };
    t.dst = F::words(&field!(backend.addr));
    t.ports = ports(p.sport(), u16::from_ne_bytes(field!(backend.port)));
    t.version = choice.version;
    let out = find_nexthop(packet, env, p.key.proto, t);
    let mut flags = 0;
    // A process of this node gets its replies anyway.
    if !P::EGRESS && nat::snat::needed(env, field!(backend.service), out, packet.ifindex()) {
        match nat::snat::allocate(env, p, t, out) {
            nat::snat::TRANSLATED => flags = flow_flag::SNAT,
            nat::snat::EXHAUSTED => {
                env.count(Reason::SnatPortsExhausted);
                return Verdict::DROP;
            }
            _ => {}
        }
    }
    if remember(env, p, t, owner(choice.backend, flags)) == 0 {
        env.count(Reason::FlowInsertFailed);
        return Verdict::DROP;
    }
    Verdict::CONTINUE
}

/// Both entries of a new flow.
#[inline(never)]
fn remember<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, owner: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (partner, half) = (place!(scratch.partner), place!(scratch.half));
    partner_key(p.key.proto, t, partner);
    half.flow = Flow { peer: t.dst, peer_port: destination_port(t.ports), nexthop: kept_nexthop(t), owner, last: env.ticks() };
    half.expect = 0;
    half.attempts = 0;
    half.stamp = env.now();
    if let Some(counters) = env.counters(t.version) {
        field!(counters.connections += 1);
        if !p.is_tcp() {
            field!(counters.opened += 1);
        }
    }
    if p.is_tcp() {
        if p.flags & tcp::SYN == 0 {
            half.attempts = RECOVERED;
            env.count(Reason::RecoveredFlow);
        }
        let stored = env.put_half(&p.key, half);
        half.flow = partner_flow(&p.key, &half.flow, half.flow.flags());
        return (stored && env.put_half(partner, half)) as u32;
    }
    // UDP: the half-open entry only times the first answer.
    let stored = env.put_flow(Table::Udp, &p.key, &half.flow);
    half.flow.owner = owner | (flow_flag::ESTABLISHED as u32) << 24;
    env.put_half(&p.key, half);
    half.flow.owner = owner;
    half.flow = partner_flow(&p.key, &half.flow, half.flow.flags() | flow_flag::YOUNG);
    (stored && env.put_flow(Table::Udp, partner, &half.flow)) as u32
}

/// The frontend that a packet is addressed to.
#[inline(always)]
pub fn frontend_of<F: Network>(p: &Parsed<F>, out: &mut FrontendKey) {
    out.addr = F::mapped(&p.key.dst);
    out.port = p.dport().to_ne_bytes();
    out.proto = p.key.proto as u8;
    out.pad = 0;
}

/// What the decision reads from a client's packet.
#[inline(always)]
pub fn facts_of<F: Network>(key: &FlowKey<F>, out: &mut Facts) {
    out.client = F::mapped(&key.src);
    out.vip = F::mapped(&key.dst);
    out.client_port = u16::from_be(source_port(key.ports));
    out.vip_port = u16::from_be(destination_port(key.ports));
    out.proto = key.proto as u8;
}
