//! The first packet of a flow: decide, pick a backend, find the way, remember both directions.

use super::{
    classify::{Known, classify},
    flow::{find_nexthop, kept_nexthop, partner_flow, partner_key},
    select::select,
};
use crate::{
    account, answer,
    bytes::Packet,
    env::{Env, Table, Tables},
    field, nat,
    network::Network,
    packet::{Parsed, destination_port, ports, source_port, tcp},
    place,
    state::Translation,
    verdict::Verdict,
};
use splitter_common::{
    abi::{
        trial::{flag, outcome},
        *,
    },
    decide::Facts,
    filter::Role,
};

/// A packet of no flow: if it is for a frontend, chooses version and backend; [`start`] goes on. `avoid`: the backend that did not answer
/// this client, or 0.
#[inline(never)]
pub fn choose<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, avoid: u32) -> Verdict {
    if classify(env, Role::Frontend, p.key.dst.as_ref(), p.dport(), p.key.proto) == Known::No {
        // It came this far for its source: direct traffic of a backend.
        return Verdict::PASS;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let (frontend, facts, choice) = (place!(scratch.frontend), place!(scratch.facts), place!(scratch.choice));
    frontend_of(p, frontend);
    // The filter has known it by chance.
    let Some(service) = env.frontend(frontend) else { return if p.fragment { Verdict::PASS } else { Verdict::ASIDE } };
    if p.is_tcp() && p.flags & tcp::RST != 0 {
        if p.fragment {
            env.count(Reason::Unanswerable);
            return Verdict::DROP;
        }
        return Verdict::ASIDE;
    }
    facts_of(&p.key, facts);
    select(env, service, facts, avoid, choice);
    if choice.backend != 0 {
        return Verdict::CONTINUE;
    }
    env.count(choice.none);
    if !p.is_tcp() || p.flags & tcp::SYN != 0 {
        unserved::<F, E>(env);
    }
    match choice.none {
        Reason::ServiceUnknown => Verdict::DROP,
        _ if p.is_tcp() => Verdict::RESET,
        _ => Verdict::error(answer::error::PORT),
    }
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
    let Some(counters) = account::trials(env, choice.version) else { return 0 };
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

/// Finds the way to the chosen backend and remembers the flow. Thin, with its steps in functions of their own: the way to a free port is deep, and the
/// kernel counts each frame by 32 bytes.
#[inline(never)]
pub fn start<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let out = lead(packet, env, p, t);
    if out != nat::snat::SAME_ADDRESS {
        nat::snat::allocate(env, t, out);
    }
    if !P::EGRESS {
        by_stack(env, p, t);
    }
    let mut stored = store(env, p, t);
    if stored == Stored::Collides {
        *place!(scratch.client) = p.key;
        nat::snat::allocate(env, t, nat::snat::SAME_ADDRESS);
        stored = store(env, p, t);
    }
    if stored == Stored::Yes { Verdict::CONTINUE } else { forsaken::<F, E>(env) }
}

/// Begins the trial and fills the translation towards the chosen backend: the interface whose address the flow needs as its source, or
/// [`nat::snat::SAME_ADDRESS`]. What has become of its source so far lies in `scratch.probe`.
#[inline(never)]
fn lead<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return nat::snat::SAME_ADDRESS };
    let (choice, half) = (place!(scratch.choice), place!(scratch.half));
    place!(scratch.probe).result = nat::snat::NO_ADDRESS;
    half.trial = begin(env, p);
    let Some(backend) = env.backend(choice.backend) else {
        place!(scratch.probe).result = GONE;
        return nat::snat::SAME_ADDRESS;
    };
    t.dst = F::words(&field!(backend.addr));
    t.ports = ports(p.sport(), u16::from_ne_bytes(field!(backend.port)));
    t.version = choice.version;
    let out = find_nexthop(packet, env, p.key.proto, t);
    if p.is_tcp() && p.flags & tcp::SYN == 0 && nat::snat::resume(env, p, t) != 0 {
        place!(scratch.probe).result = nat::snat::TRANSLATED;
    } else if !P::EGRESS && nat::snat::needed(env, choice.service, out, packet.ifindex(), t.src == t.dst) {
        // Not at egress: a process of this node gets its replies anyway.
        *place!(scratch.client) = p.key;
        return out;
    }
    nat::snat::SAME_ADDRESS
}

/// There is no room for the flow: what it began ends.
#[inline(never)]
fn forsaken<F: Network, E: Env + Tables<F>>(env: &E) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let choice = place!(scratch.choice);
    let why = match field!(scratch.probe).result {
        nat::snat::EXHAUSTED => Reason::SnatPortsExhausted,
        GONE => Reason::NoBackend,
        _ => Reason::FlowInsertFailed,
    };
    env.count(why);
    let tried = choice.backend;
    (choice.backend, choice.none) = (0, why);
    if let Some(backend) = env.backend(tried) {
        account::ended(env, backend, place!(scratch.half).trial, outcome::UNAVAILABLE);
    }
    Verdict::DROP
}

/// Notes the path through the stack where the service asks for it. Not for a source that is translated: the stack drops what comes in with an address
/// of the node's own. A function of its own for want of stack.
#[inline(never)]
fn by_stack<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    if t.src != p.key.src {
        return 0;
    }
    let Some(service) = env.service(place!(scratch.choice).service) else { return 0 };
    if field!(service.flags) & service_flag::STACK == 0 {
        return 0;
    }
    (t.nexthop, t.neighbour) = (VIA_STACK as u32, 0);
    1
}

/// Beside the results of [`nat::snat::allocate`]: the agent took the chosen backend away meanwhile.
const GONE: u32 = 3;

/// Whether a flow is in the tables.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// There is no room.
    No = 0,
    Yes = 1,
    /// The backend already has a connection, or a peer, of this address and port.
    Collides = 2,
}

impl Stored {
    #[inline(always)]
    const fn from(put: bool) -> Self {
        if put { Self::Yes } else { Self::No }
    }
}

/// Both entries of a new flow, unless the reverse one [collides](Stored::Collides).
#[inline(never)]
fn store<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>) -> Stored {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Stored::No };
    let source = field!(scratch.probe).result;
    if matches!(source, nat::snat::EXHAUSTED | GONE) {
        return Stored::No;
    }
    let owner = owner(place!(scratch.choice).backend, if source == nat::snat::TRANSLATED { flow_flag::SNAT } else { 0 });
    let (partner, half) = (place!(scratch.partner), place!(scratch.half));
    partner_key(p.key.proto, t, partner);
    let last = env.ticks();
    // Made anew where it is needed: the stack has no room for it under IPv6.
    let forward = |owner| Flow { peer: t.dst, peer_port: destination_port(t.ports), nexthop: kept_nexthop(t), owner, last };
    half.expect = 0;
    half.stamp = env.now();
    let translated = owner.is(flow_flag::SNAT);
    if p.is_tcp() {
        half.flow = partner_flow(&p.key, &forward(owner), owner.flags());
        // A translated source is claimed already.
        let stored = if translated { Stored::from(env.put_half(partner, half)) } else { claim(env, p) };
        if stored == Stored::Yes && half.trial == 0 {
            env.count(Reason::RecoveredFlow);
        }
        half.flow = forward(owner);
        return if stored == Stored::Yes { Stored::from(env.put_half(&p.key, half)) } else { stored };
    }
    let ruled = if half.trial & flag::RULED != 0 { flow_flag::RULED } else { 0 };
    half.flow = partner_flow(&p.key, &forward(owner), owner.flags() | flow_flag::YOUNG | ruled);
    if translated || !env.new_flow(Table::Udp, partner, &half.flow) {
        if !translated && env.flow(Table::Udp, partner).is_some_and(|other| foreign(p, &other.get())) {
            return Stored::Collides;
        }
        if !env.put_flow(Table::Udp, partner, &half.flow) {
            return Stored::No;
        }
    }
    // The half-open entry only times the first answer.
    half.flow = forward(owner.with(flow_flag::ESTABLISHED));
    env.put_half(&p.key, half);
    half.flow.owner = owner;
    Stored::from(env.put_flow(Table::Udp, &p.key, &half.flow))
}

/// Puts the reverse entry `scratch.half` of a TCP flow in its place `scratch.partner`, unless another flow comes back that way.
#[inline(never)]
fn claim<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>) -> Stored {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Stored::No };
    let (key, half) = (place!(scratch.partner), place!(scratch.half));
    if !env.new_half(key, half) {
        if env.half(key).is_some_and(|other| foreign(p, &field!(other.flow))) {
            return Stored::Collides;
        }
        if !env.put_half(key, half) {
            return Stored::No;
        }
    }
    // Behind the claim, so that of two flows that begin at once, or move on meanwhile, one sees the other.
    let taken = env.flow(Table::Tcp, key).is_some_and(|other| foreign(p, &other.get()))
        || env.flow(Table::Closing, key).is_some_and(|other| foreign(p, &other.get()))
        || classify(env, Role::Backend, key.src.as_ref(), source_port(key.ports), TCP as u32) == Known::Http && env.leg(key).is_some();
    if taken {
        env.drop_half(key);
        return Stored::Collides;
    }
    Stored::Yes
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
