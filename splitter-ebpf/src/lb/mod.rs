//! The load balancer: from a frame to a verdict. `ipv4` and `ipv6` are the whole pipeline.

mod first;
mod flow;
mod half;
mod hit;
mod select;
mod side;
mod suspect;
mod trial;
mod unreachable;

pub use first::{facts_of, frontend_of};
pub use flow::{find_nexthop, kept_nexthop, partner_key};
pub use select::{Avoid, Choice, Facts, Search, backend_of, select, tried_bit};
pub use side::genuine;
pub use suspect::{all_tried, is_suspect, opened, silent, suspect};
pub use unreachable::unreachable;

use crate::{
    answer,
    bytes::Packet,
    env::{Env, Table, Tables},
    field, nat,
    network::Network,
    packet::{self, Ip, Parsed, parse, parse::Kind, tcp},
    place, trace,
    verdict::{Action, Verdict},
};
use splitter_common::{
    abi::*,
    barrier::forget,
    filter::{self, Role},
};

/// What a packet becomes.
#[derive(Clone, Copy)]
pub struct Translation<F: Family> {
    pub src: F::Words,
    pub dst: F::Words,
    /// Both ports as they will stand in the packet.
    pub ports: u32,
    /// Version whose counters the packet goes to.
    pub version: u32,
    /// Slot of the next hop; 0: see `neighbour`.
    pub nexthop: u32,
    /// Interface whose neighbour has to be resolved, when there is no slot; 0: the stack forwards.
    pub neighbour: u32,
    pub reverse: bool,
}

impl<F: Family> Translation<F> {
    /// None yet.
    #[inline(always)]
    fn empty(p: &Parsed<F>) -> Self {
        Self { src: p.key.src, dst: p.key.dst, ports: p.key.ports, version: 0, nexthop: 0, neighbour: 0, reverse: false }
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Ipv4,
    Ipv6,
    Other,
}

/// Reads the EtherType. The two IP versions are programs of their own: each has a stack of 512 bytes, and a tail call costs less than
/// returning from a function does where return thunks guard against speculation.
#[inline(always)]
pub fn carries<P: Packet, E: Env>(packet: &mut P, env: &E) -> Carries {
    let Some(w) = packet.window::<34>(0) else { return Carries::Other };
    match w.load::<u16, 12>() {
        packet::ETHERTYPE_IPV4 => Carries::Ipv4,
        packet::ETHERTYPE_IPV6 => Carries::Ipv6,
        packet::ETHERTYPE_VLAN | packet::ETHERTYPE_QINQ => {
            env.count(Reason::Vlan);
            Carries::Other
        }
        _ => Carries::Other,
    }
}

/// The pipeline for a frame that carries IPv4.
#[inline(always)]
pub fn ipv4<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    let mut parsed = Parsed::<V4>::empty([0]);
    match parse::ipv4(packet, env, &mut parsed) {
        Kind::Transport => {
            let verdict = transport(packet, env, &parsed);
            let elsewhere = matches!(verdict, Verdict::SPLICE_CLIENT | Verdict::SPLICE_SERVER | Verdict::READ);
            if !verdict.again() && !elsewhere {
                return verdict;
            }
            if P::XDP && !elsewhere {
                return Verdict::PASS;
            }
            // For the splice's programs, which are reached by tail call; and so that the verifier, which would walk what comes once for each
            // protocol and kind of fragment, does not know what was found.
            let Some(scratch) = Tables::<V4>::scratch(env) else { return Verdict::PASS };
            *place!(scratch.parsed) = parsed;
            settle(packet, env, place!(scratch.parsed), verdict)
        }
        Kind::Icmp(at) => {
            let verdict = nat::icmp::error(packet, env, &parsed, at);
            if verdict == Verdict::UNREACHABLE {
                let Some(scratch) = Tables::<V4>::scratch(env) else { return Verdict::PASS };
                *place!(scratch.parsed) = parsed;
            }
            verdict
        }
        Kind::Other => Verdict::PASS,
        Kind::Odd(reason) => odd(env, reason),
    }
}

/// The pipeline for a frame that carries IPv6.
#[inline(always)]
pub fn ipv6<P: Packet, E: Env>(packet: &mut P, env: &E) -> Verdict {
    // Not on the stack, which IPv6's keys fill.
    let Some(scratch) = Tables::<V6>::scratch(env) else { return Verdict::PASS };
    let parsed = place!(scratch.parsed);
    match parse::ipv6(packet, env, parsed) {
        Kind::Transport => finish(packet, env, parsed),
        Kind::Icmp(at) => nat::icmp::error(packet, env, parsed, at),
        Kind::Other => Verdict::PASS,
        Kind::Odd(reason) => odd(env, reason),
    }
}

#[inline(always)]
fn odd<E: Env>(env: &E, reason: Reason) -> Verdict {
    env.count(reason);
    Verdict::PASS
}

/// What the filter says of an endpoint: not ours, of layer 4, of an http service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    No,
    Yes,
    Http,
}

#[inline(always)]
fn known<E: Env>(env: &E, role: Role, words: &[u32], port: u16, proto: u32) -> Known {
    let (word, bits) = filter::bits(role, words, port, proto as u8);
    let word = env.filter_word(word);
    if word & bits != bits {
        return Known::No;
    }
    let http = filter::http(bits);
    if word & http == http { Known::Http } else { Known::Yes }
}

#[inline(always)]
fn finish<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let verdict = transport(packet, env, p);
    settle(packet, env, p, verdict)
}

/// The pipeline for a packet that the filter knows, whatever it says of http.
#[inline(always)]
pub fn layer4<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let verdict = of_flow_apart(packet, env, p);
    settle(packet, env, p, verdict)
}

/// Apart, so that its registers do not lie on the stack under the rest.
#[inline(never)]
fn of_flow_apart<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    of_flow(packet, env, p)
}

#[inline(always)]
fn settle<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, verdict: Verdict) -> Verdict {
    if !verdict.again() {
        return verdict;
    }
    if P::XDP {
        return Verdict::PASS;
    }
    let verdict = unusual(packet, env, p, verdict);
    match verdict.action() {
        Action::Reset => answer::reset(packet, env, p),
        Action::TooBig(mtu) => answer::too_big(packet, env, p, mtu),
        _ => verdict,
    }
}

/// The common case; `AGAIN` or `MISSED` when it is not one.
#[inline(always)]
fn transport<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let key = &p.key;
    let mut splice = Verdict::SPLICE_CLIENT;
    let mut known_as = known(env, Role::Frontend, key.dst.as_ref(), p.dport(), key.proto);
    if known_as == Known::No {
        splice = Verdict::SPLICE_SERVER;
        known_as = known(env, Role::Backend, key.src.as_ref(), p.sport(), key.proto);
    }
    if known_as == Known::No {
        return Verdict::PASS;
    }
    if packet.tagged() {
        return odd(env, Reason::Vlan);
    }
    if P::XDP && !env.xdp_port(packet.ifindex()) {
        return Verdict::PASS;
    }
    if known_as == Known::Http && p.is_tcp() && !p.fragment {
        // What a client pushes most likely is a request.
        let asks = !P::XDP && splice == Verdict::SPLICE_CLIENT && p.flags & tcp::PSH != 0;
        return if asks { Verdict::READ } else { splice };
    }
    // IPv6's keys need the stack for what comes after.
    if F::IPV6 { of_flow_apart(packet, env, p) } else { of_flow(packet, env, p) }
}

#[inline(always)]
fn of_flow<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let key = &p.key;
    if p.fragment {
        if P::XDP {
            return Verdict::PASS;
        }
        if let Some(id) = p.first_fragment {
            env.put_fragment(&FragmentKey::<F> { src: key.src, dst: key.dst, id, proto: key.proto }, key.ports);
        }
    }
    let table = if p.is_tcp() { Table::Tcp } else { Table::Udp };
    let Some(entry) = env.flow(table, key) else { return Verdict::MISSED };
    if let Some(t) = hit::usual(env, p, entry) {
        let verdict = nat::forward::forward(packet, env, p, &t, &());
        if P::XDP || !matches!(verdict.action(), Action::TooBig(_)) {
            return verdict;
        }
    }
    Verdict::AGAIN
}

/// Whatever is not a plain packet of a known flow: TC only. Decides first, then acts, so that the calls stay shallow: the kernel allows
/// eight frames and 512 bytes of stack in all.
#[inline(never)]
fn unusual<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, so_far: Verdict) -> Verdict {
    let Some(scratch) = env.scratch() else { return Verdict::PASS };
    let t = place!(scratch.translation);
    *t = Translation::empty(p);
    // By way of the map: the verifier need not walk the rest once for each answer.
    let missed = forget(place!(scratch.trial), (so_far == Verdict::MISSED) as u32) != 0;
    field!(scratch.trial = 0);
    let mut verdict = find(packet, env, p, t, missed);
    let avoid = match verdict.action() {
        Action::Again => Some(0),
        Action::AgainAvoiding(backend) => Some(backend),
        _ => None,
    };
    if let Some(avoid) = avoid {
        verdict = first::choose(env, p, avoid);
        if verdict == Verdict::CONTINUE {
            verdict = first::start(packet, env, p, t);
        }
        if verdict != Verdict::PASS {
            trace::decided::<F, E>(env, p.flags);
        }
    }
    if verdict == Verdict::RESET_RECEIVER {
        verdict = if answer::become_reset(packet, p) != 0 { Verdict::CONTINUE } else { Verdict::DROP };
    }
    if verdict == Verdict::CONTINUE { forward(packet, env, p, t) } else { verdict }
}

/// Apart, so that its registers do not lie on the stack under everything else.
#[inline(never)]
fn forward<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, t: &Translation<F>) -> Verdict {
    nat::forward::forward(packet, env, p, t, &())
}

/// The flow of a packet, in the tables that can hold it. `missed`: the first of them did not, a moment ago.
#[inline(always)]
fn find<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    t: &mut Translation<F>,
    missed: bool,
) -> Verdict {
    let table = if p.is_tcp() { Table::Tcp } else { Table::Udp };
    if !missed && let Some(entry) = env.flow(table, &p.key) {
        let verdict = hit::hit(packet, env, p, entry, t);
        return hit::after(packet, env, p, entry, t, verdict);
    }
    if p.is_tcp() {
        if let Some(entry) = env.half(&p.key) {
            let verdict = half::begin(packet, env, p, entry, t);
            return match verdict.action() {
                Action::Continue if t.reverse => half::from_backend(packet, env, p, t),
                Action::Continue => match half::from_client(packet, env, p, t, entry) {
                    half::SYN_AGAIN => half::syn_again(env, p, t, entry),
                    opened @ (half::OPENED | half::OPENED_ASKING) => {
                        half::opened(env, entry, opened == half::OPENED_ASKING);
                        half::promote(env, p, t, entry, (opened == half::OPENED_ASKING) as u32);
                        Verdict::CONTINUE
                    }
                    _ => Verdict::CONTINUE,
                },
                _ => verdict,
            };
        }
        if let Some(entry) = env.flow(Table::Closing, &p.key) {
            return hit::closing(packet, env, p, entry, t);
        }
        // The end of a handshake on another CPU may have moved it there meanwhile.
        if missed
            && p.flags & (tcp::SYN | tcp::ACK) != tcp::SYN
            && let Some(entry) = env.flow(table, &p.key)
        {
            let verdict = hit::hit(packet, env, p, entry, t);
            return hit::after(packet, env, p, entry, t, verdict);
        }
    }
    Verdict::AGAIN
}

/// Fills the translation that an entry of any flow table asks for; `false` when its SNAT half is gone.
#[inline(always)]
pub fn translation_of<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, flow: &Flow<F>, t: &mut Translation<F>) -> bool {
    flow::translate(env, key, flow, 0, t)
}
