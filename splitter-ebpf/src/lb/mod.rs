//! The load balancer: from a frame to a verdict. `ipv4` and `ipv6` are the whole pipeline.

mod aside;
mod classify;
mod first;
mod flow;
mod half;
mod hit;
mod select;
mod side;
mod suspect;
mod trial;
mod unreachable;

pub use aside::aside;
pub use first::{facts_of, frontend_of};
pub use flow::{find_nexthop, kept_nexthop, partner_key, translation_of};
pub use select::{Look, select};
pub use side::genuine;
pub use suspect::{all_tried, opened, silent, suspect};
pub use unreachable::unreachable;

use crate::{
    answer,
    bytes::Packet,
    env::{Env, Table, Tables},
    field, nat,
    network::Network,
    packet::{self, Parsed, parse, parse::Kind, tcp},
    place,
    state::Translation,
    trace,
    verdict::{Action, Verdict},
};
use classify::{Known, classify};
use splitter_common::{
    abi::*,
    barrier::forget,
    filter::{self, Role},
};

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
        Kind::Icmp if !P::XDP => {
            let Some(scratch) = Tables::<V4>::scratch(env) else { return Verdict::PASS };
            *place!(scratch.parsed) = parsed;
            Verdict::ASIDE
        }
        Kind::Icmp => Verdict::PASS,
        other => {
            let verdict = unnamed::<V4, P, E>(env, &parsed, other);
            if verdict == Verdict::ASIDE {
                let Some(scratch) = Tables::<V4>::scratch(env) else { return Verdict::PASS };
                *place!(scratch.parsed) = parsed;
            }
            verdict
        }
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
        Kind::Icmp if !P::XDP => Verdict::ASIDE,
        Kind::Icmp => Verdict::PASS,
        other => unnamed::<V6, P, E>(env, parsed, other),
    }
}

/// A packet without ports that are known.
#[inline(always)]
fn unnamed<F: Network, P: Packet, E: Env>(env: &E, p: &Parsed<F>, kind: Kind) -> Verdict {
    let Kind::Odd(reason) = kind else { return stray::<F, P, E>(env, p) };
    let verdict = odd(env, reason);
    if reason == Reason::FragmentUnknown { stray::<F, P, E>(env, p) } else { verdict }
}

/// A packet that no service has: one to an address of ours is put aside, or it would go round between the node and its gateway.
#[inline(always)]
fn stray<F: Network, P: Packet, E: Env>(env: &E, p: &Parsed<F>) -> Verdict {
    if P::XDP || P::EGRESS {
        return Verdict::PASS;
    }
    let (word, bits) = filter::bits(Role::Vip, p.key.dst.as_ref(), 0, 0);
    if env.filter_word(word) & bits == bits { Verdict::ASIDE } else { Verdict::PASS }
}

#[inline(always)]
fn odd<E: Env>(env: &E, reason: Reason) -> Verdict {
    env.count(reason);
    Verdict::PASS
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
    if verdict == Verdict::ASIDE {
        return verdict;
    }
    let verdict = unusual(packet, env, p, verdict);
    match verdict.action() {
        Action::Reset => answer::reset(packet, env, p),
        Action::Error(what) => answer::error(packet, env, p, what),
        _ => verdict,
    }
}

/// The common case; `AGAIN` or `MISSED` when it is not one.
#[inline(always)]
fn transport<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let key = &p.key;
    let mut splice = Verdict::SPLICE_CLIENT;
    let mut known_as = classify(env, Role::Frontend, key.dst.as_ref(), p.dport(), key.proto);
    if known_as == Known::No {
        splice = Verdict::SPLICE_SERVER;
        known_as = classify(env, Role::Backend, key.src.as_ref(), p.sport(), key.proto);
    }
    if known_as == Known::No {
        return stray::<F, P, E>(env, p);
    }
    if packet.tagged() {
        return odd(env, Reason::Vlan);
    }
    if packet.foreign() {
        return odd(env, Reason::OtherHost);
    }
    if P::XDP && !finishes(packet, env) {
        return Verdict::PASS;
    }
    if known_as == Known::Http && p.is_tcp() {
        if p.fragment {
            return if P::XDP { Verdict::PASS } else { Verdict::ASIDE };
        }
        // What a client pushes most likely is a request.
        let asks = !P::XDP && splice == Verdict::SPLICE_CLIENT && p.flags & tcp::PSH != 0;
        return if asks { Verdict::READ } else { splice };
    }
    // IPv6's keys need the stack for what comes after.
    if F::IPV6 { of_flow_apart(packet, env, p) } else { of_flow(packet, env, p) }
}

/// Whether XDP may finish a frame: by where it came in, and for whom it is.
#[inline(always)]
fn finishes<P: Packet, E: Env>(packet: &mut P, env: &E) -> bool {
    let ifindex = packet.ifindex();
    let Some(w) = packet.window::<6>(0) else { return false };
    env.xdp_port(ifindex) == xdp_port(ifindex, w.load::<u32, 0>(), w.load::<u16, 4>())
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
        if P::XDP || !matches!(verdict.action(), Action::Error(_)) {
            return verdict;
        }
    } else if field!(entry.nexthop) == VIA_STACK && field!(entry.owner).is(flow_flag::REVERSE) != P::EGRESS {
        return Verdict::PASS;
    }
    Verdict::AGAIN
}

/// Whatever is not a plain packet of a known flow: TC only. Decides first, then acts, so that the calls stay shallow: the kernel allows
/// eight frames and 512 bytes of stack in all.
#[inline(never)]
fn unusual<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, so_far: Verdict) -> Verdict {
    let Some(scratch) = env.scratch() else { return Verdict::PASS };
    if packet::verify::holds(packet, env, p) == 0 {
        return Verdict::DROP;
    }
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
        if verdict != Verdict::PASS && verdict != Verdict::ASIDE {
            trace::decided::<F, E>(env, p.flags);
        }
    }
    if verdict == Verdict::RESET_RECEIVER {
        verdict = if answer::become_reset(packet, env, p) != 0 { Verdict::CONTINUE } else { Verdict::DROP };
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
        let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
        // A SYN of anybody's may have begun a flow in the place of one that a RST of anybody's has ended: the old one goes first, until the new one's
        // handshake is over.
        let old = p.flags & tcp::SYN == 0 && env.flow(Table::Closing, &p.key).is_some_and(|flow| !hit::ended(field!(flow.owner)));
        let old = forget(place!(scratch.old), old as u32) != 0;
        if let Some(entry) = env.half(&p.key)
            && (!old || half::opens(packet, p, entry) != 0)
        {
            let verdict = half::begin(packet, env, p, entry, t);
            return match verdict.action() {
                Action::Continue if t.reverse => half::from_backend(packet, env, p, t),
                Action::Continue => match half::from_client(packet, env, p, t, entry) {
                    half::SYN_AGAIN => half::syn_again(env, p, t, entry),
                    opened @ (half::OPENED | half::OPENED_ASKING) => {
                        half::opened(env, entry, opened == half::OPENED_ASKING);
                        half::promote(env, p, t, entry, (opened == half::OPENED_ASKING) as u32);
                        if old {
                            env.drop_flow(Table::Closing, &p.key);
                        }
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
