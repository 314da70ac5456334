//! The first packet of a flow: decide, pick a backend, find the way, remember both directions.

use super::{
    Translation,
    flow::{find_nexthop, kept_nexthop, partner_flow, partner_key},
    known,
    select::{Facts, select},
};
use crate::{
    account,
    bytes::Packet,
    env::{Env, Table, Tables},
    field, nat,
    network::Network,
    packet::{Parsed, destination_port, ports, source_port, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::{
    abi::{
        trial::{flag, outcome},
        *,
    },
    filter::Role,
};

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
    choice.service = service;
    if choice.backend != 0 {
        return Verdict::CONTINUE;
    }
    env.count(choice.none);
    if !p.is_tcp() || p.flags & tcp::SYN != 0 {
        unserved::<F, E>(env);
    }
    if p.is_tcp() && choice.none != Reason::ServiceUnknown { Verdict::RESET } else { Verdict::DROP }
}

/// The node refuses what the client wants of the version in `scratch.choice`.
#[inline(never)]
fn unserved<F: Network, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (trial, choice) = (field!(scratch.trial), place!(scratch.choice));
    if trial != 0 {
        return env.backend(field!(scratch.tried)).map_or(0, |backend| account::ended(env, backend, trial, outcome::UNAVAILABLE));
    }
    let Some(counters) = env.counters(choice.version).filter(|_| choice.version != 0) else { return 0 };
    field!(counters.connections += 1);
    account::unserved(env, choice.version, choice.ruled)
}

/// What a new connection remembers of its trial: it begins, or goes on with another backend. 0: the packet begins none.
#[inline(never)]
fn begin<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (choice, trial) = (place!(scratch.choice), field!(scratch.trial));
    if p.is_tcp() && p.flags & tcp::SYN == 0 {
        return 0;
    }
    if trial != 0
        && let Some(tried) = env.backend(field!(scratch.tried))
    {
        if field!(tried.version) == choice.version {
            return trial;
        }
        account::rests(env, tried, trial);
    }
    let Some(counters) = env.counters(choice.version) else { return 0 };
    field!(counters.connections += 1);
    if !p.is_tcp() {
        // Many that speak UDP never answer: nobody waits.
        field!(counters.opened += 1);
        let kind = if choice.ruled != 0 { flag::RULED } else { 0 };
        account::add(counters, kind, outcome::TRIALS);
        return flag::UNDER_WAY | kind;
    }
    env.backend(choice.backend).map_or(0, |backend| account::begun(env, backend, choice.ruled))
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
    let mut source = nat::snat::NO_ADDRESS;
    if p.is_tcp() && p.flags & tcp::SYN == 0 && nat::snat::resume(env, p, t) != 0 {
        source = nat::snat::TRANSLATED;
    } else if !P::EGRESS && nat::snat::needed(env, field!(backend.service), out, packet.ifindex()) {
        // Not at egress: a process of this node gets its replies anyway.
        *place!(scratch.client) = p.key;
        source = nat::snat::allocate(env, t, out);
    }
    let trial = begin(env, p);
    place!(scratch.half).trial = trial;
    let mut stored = store(env, p, t, choice.backend, source);
    if stored == COLLIDES {
        *place!(scratch.client) = p.key;
        source = nat::snat::allocate(env, t, nat::snat::SAME_ADDRESS);
        stored = store(env, p, t, choice.backend, source);
    }
    if stored == 0 {
        let why = if source == nat::snat::EXHAUSTED { Reason::SnatPortsExhausted } else { Reason::FlowInsertFailed };
        env.count(why);
        (choice.backend, choice.none) = (0, why);
        account::ended(env, backend, trial, outcome::UNAVAILABLE);
        return Verdict::DROP;
    }
    Verdict::CONTINUE
}

/// Result of [`store`]: the backend already has a connection, or a peer, of this address and port.
const COLLIDES: u32 = 2;

/// [`remember`] with what `allocate` said.
#[inline(always)]
fn store<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, backend: u32, source: u32) -> u32 {
    match source {
        nat::snat::EXHAUSTED => 0,
        nat::snat::TRANSLATED => remember(env, p, t, owner(backend, flow_flag::SNAT)),
        _ => remember(env, p, t, owner(backend, 0)),
    }
}

/// Both entries of a new flow, unless the reverse one [`COLLIDES`].
#[inline(never)]
fn remember<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, owner: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (partner, half) = (place!(scratch.partner), place!(scratch.half));
    partner_key(p.key.proto, t, partner);
    half.flow = Flow { peer: t.dst, peer_port: destination_port(t.ports), nexthop: kept_nexthop(t), owner, last: env.ticks() };
    half.expect = 0;
    half.stamp = env.now();
    let forward = half.flow;
    let translated = forward.is(flow_flag::SNAT);
    if p.is_tcp() {
        half.flow = partner_flow(&p.key, &forward, forward.flags());
        // A translated source is claimed already.
        let stored = if translated { env.put_half(partner, half) as u32 } else { claim(env, p) };
        if stored == 1 && half.trial == 0 {
            env.count(Reason::RecoveredFlow);
        }
        half.flow = forward;
        return if stored == 1 { env.put_half(&p.key, half) as u32 } else { stored };
    }
    let ruled = if half.trial & flag::RULED != 0 { flow_flag::RULED } else { 0 };
    half.flow = partner_flow(&p.key, &forward, forward.flags() | flow_flag::YOUNG | ruled);
    if translated || !env.new_flow(Table::Udp, partner, &half.flow) {
        if !translated && env.flow(Table::Udp, partner).is_some_and(|other| foreign(p, &other.get())) {
            return COLLIDES;
        }
        if !env.put_flow(Table::Udp, partner, &half.flow) {
            return 0;
        }
    }
    // The half-open entry only times the first answer.
    half.flow = Flow { owner: owner | (flow_flag::ESTABLISHED as u32) << 24, ..forward };
    env.put_half(&p.key, half);
    env.put_flow(Table::Udp, &p.key, &forward) as u32
}

/// Puts the reverse entry `scratch.half` of a TCP flow in its place `scratch.partner`, unless another flow comes back that way.
#[inline(never)]
fn claim<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (key, half) = (place!(scratch.partner), place!(scratch.half));
    if !env.new_half(key, half) {
        if env.half(key).is_some_and(|other| foreign(p, &field!(other.flow))) {
            return COLLIDES;
        }
        if !env.put_half(key, half) {
            return 0;
        }
    }
    // Behind the claim, so that of two flows that begin at once, or move on meanwhile, one sees the other.
    let taken = env.flow(Table::Tcp, key).is_some_and(|other| foreign(p, &other.get()))
        || env.flow(Table::Closing, key).is_some_and(|other| foreign(p, &other.get()))
        || known(env, Role::Backend, key.src.as_ref(), source_port(key.ports), TCP as u32) == super::Known::Http && env.leg(key).is_some();
    if taken {
        env.drop_half(key);
        return COLLIDES;
    }
    1
}

/// Whether a reverse entry belongs to another flow than the packet's.
#[inline(always)]
fn foreign<F: Network>(p: &Parsed<F>, reverse: &Flow<F>) -> bool {
    reverse.is(flow_flag::SNAT) || reverse.peer != p.key.dst || reverse.peer_port != p.dport()
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
