//! Source translation: a port of its own for a flow, and the node's address where the backend's reply would otherwise bypass the node.
//!
//! A port is claimed in `CLAIMS`, and moves to `SNAT` with the first answer, so that a flood of what nobody answers displaces no flow that lives. It is free when its
//! flow has ended, and it may be taken from a flow that has ended, that nobody has answered, or that has been idle for a while, when nothing else is
//! found.

use crate::{
    account,
    bytes::opaque,
    env::{Env, KernelLoop, Table, Tables},
    field,
    lb::partner_key,
    packet::{Ip, Parsed, destination_port, ports, source_port},
    place,
    state::Translation,
};
use splitter_common::{abi::*, http::Loop};

/// Results of [`allocate`].
pub const NO_ADDRESS: u32 = 0;
pub const TRANSLATED: u32 = 1;
pub const EXHAUSTED: u32 = 2;

/// For [`allocate`]: the address stays.
pub const SAME_ADDRESS: u32 = 0;

/// Ports that are tried for one flow; the first ones must be nobody's.
const PROBES: u32 = 32;
const FREE_PROBES: u32 = 16;

/// How long a port is its flow's for sure, jiffies: after the end of a connection, for its last segments; after a SYN that nobody has answered; after the
/// last datagram of a flow of UDP, and after one that was not answered.
const ENDED: u32 = REFRESH_TICKS;
const HALF_OPEN: u32 = 50;
const IDLE: u32 = 20 * REFRESH_TICKS;
const UNANSWERED: u32 = 4 * REFRESH_TICKS;

/// Whether a new flow of the service, out of `out` and in by `came_by`, needs the node's address: a backend behind the interface that the client is behind
/// too answers past the node, and one that is the client itself (`same`: their addresses) does not leave its host. Routes name a bond, and the program may
/// see the packet at its port.
#[inline(always)]
pub fn needed<E: Env>(env: &E, service: u32, out: u32, came_by: u32, same: bool) -> bool {
    match env.service(service).map(|service| field!(service.snat)) {
        Some(snat::ALWAYS) => true,
        Some(snat::AUTO) => out != 0 && (same || out == came_by || env.iface(came_by).is_some_and(|iface| field!(iface.upper) == out)),
        _ => false,
    }
}

/// Takes a free port of the node's address on the interface `out`, or of the source that `t` has, for the flow that `scratch.client` names. The
/// reverse `SNAT` entry is the claim. The result lies in `scratch.probe`, too.
#[inline(never)]
pub fn allocate<F: Ip, E: Env + Tables<F>>(env: &E, t: &mut Translation<F>, out: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return NO_ADDRESS };
    let (client, probe) = (place!(scratch.client), place!(scratch.probe));
    probe.result = NO_ADDRESS;
    if out != SAME_ADDRESS {
        let Some(iface) = env.iface(out) else { return NO_ADDRESS };
        let node = if F::IPV6 { F::words(&field!(iface.addr6)) } else { F::words(&mapped(field!(iface.addr4))) };
        if node.as_ref().iter().all(|word| *word == 0) {
            return NO_ADDRESS;
        }
        t.src = node;
    }
    probe.result = EXHAUSTED;
    let Some(config) = env.config() else { return EXHAUSTED };
    (probe.first, probe.count) = (field!(config.snat_port_first) as u32, field!(config.snat_port_count) as u32);
    if probe.count == 0 {
        return EXHAUSTED;
    }
    probe.seed = client.ports ^ source_word(&client.src) ^ (env.now() as u32).rotate_left(16);
    KernelLoop::repeat(PROBES, move |i| claim::<F, E>(env, i));
    field!(scratch.probe).result
}

/// A number for each value, all of them as likely.
#[inline(always)]
const fn mixed(value: u32) -> u32 {
    let mut value = value.wrapping_mul(0x9e37_79b1);
    value = (value ^ value >> 15).wrapping_mul(0x85eb_ca6b);
    value ^ value >> 13
}

#[inline(always)]
fn source_word<W: AsRef<[u32]>>(words: &W) -> u32 {
    words.as_ref().iter().fold(0, |sum: u32, word| sum.rotate_left(7) ^ *word)
}

/// Claims a port for the flow `scratch.client`, whose source becomes that of `scratch.translation`; `i`: how many were tried before. `true`: done.
#[inline(always)]
fn claim<F: Ip, E: Env + Tables<F>>(env: &E, i: u32) -> bool {
    let Some(scratch) = Tables::<F>::scratch(env) else { return true };
    let (client, reverse, snat) = (place!(scratch.client), place!(scratch.partner), place!(scratch.snat));
    let (probe, t) = (place!(scratch.probe), place!(scratch.translation));
    // A share of the range, without a division (Lemire, 2016).
    let share = (mixed(probe.seed.wrapping_add(i)) as u64 * probe.count as u64) >> 32;
    let port = (probe.first.wrapping_add(share as u32) as u16).to_be();
    t.ports = ports(port, destination_port(t.ports));
    partner_key(client.proto, t, reverse);
    let free_only = i < FREE_PROBES;
    if in_use::<F, E>(env) != 0 && (free_only || take_over::<F, E>(env) == 0) {
        return false;
    }
    if env.snat(reverse).is_some() {
        // Its flow was evicted, and may be put back.
        if free_only {
            return false;
        }
        env.drop_snat(reverse);
    }
    *snat = Snat { addr: client.src, port: source_port(client.ports), pad: 0 };
    if !env.new_claim(reverse, snat) {
        return false;
    }
    // What is left of an older flow of this client would go before the claim.
    env.drop_snat(client);
    *snat = Snat { addr: t.src, port: source_port(t.ports), pad: 0 };
    if env.put_claim(client, snat) {
        probe.result = TRANSLATED;
    } else {
        env.drop_snat(reverse);
    }
    true
}

/// Ends the flow that comes back by the key `scratch.partner`, when that is one with a claim which it needs no more; 0: it stays.
#[inline(never)]
fn take_over<F: Ip, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (reverse, forward) = (place!(scratch.partner), place!(scratch.quoted));
    let now = env.ticks();
    if env.leg(reverse).is_some() {
        return 0;
    }
    let udp = reverse.proto == UDP as u32;
    let table = if udp { Table::Udp } else { Table::Closing };
    let (flow, half) = match env.flow(table, reverse) {
        Some(flow) => (flow.get(), false),
        None => match env.half(reverse) {
            Some(half) if !udp => (field!(half.flow), true),
            _ => return 0,
        },
    };
    let Some(snat) = env.snat(reverse) else { return 0 };
    if !flow.is(flow_flag::SNAT) {
        return 0;
    }
    forward.src = field!(snat.addr);
    forward.dst = flow.peer;
    forward.ports = ports(field!(snat.port), flow.peer_port);
    forward.proto = reverse.proto;
    let limit = match (udp, half) {
        (true, _) if flow.is(flow_flag::REPLIED) => IDLE,
        (true, _) => UNANSWERED,
        (false, true) => HALF_OPEN,
        (false, false) => ENDED,
    };
    let mut last = flow.last;
    let other =
        if half { env.half(forward).map(|half| field!(half.flow.last)) } else { env.flow(table, forward).map(|flow| field!(flow.last)) };
    if let Some(other) = other
        && now.wrapping_sub(other) < now.wrapping_sub(last)
    {
        last = other;
    }
    if now.wrapping_sub(opaque(last)) < limit {
        return 0;
    }
    if let Some(half) = env.half(forward) {
        if let Some(backend) = env.backend(flow.backend()) {
            account::rests(env, backend, field!(half.trial));
        }
        env.drop_half(forward);
    }
    if half {
        env.drop_half(reverse);
    } else {
        env.drop_flow(table, forward);
        env.drop_flow(table, reverse);
    }
    env.drop_snat(forward);
    env.drop_snat(reverse);
    1
}

/// The flow of these two keys was answered: its claim is safe from what was not.
#[inline(never)]
pub fn settle<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, partner: &FlowKey<F>) -> u32 {
    settle_one(env, key);
    settle_one(env, partner);
    0
}

#[inline(always)]
fn settle_one<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>) {
    if let Some(claim) = env.claim(key) {
        // The kernel takes a map's value as the value of another.
        if claim.with(|claim| env.put_snat(key, claim)) {
            env.drop_claim(key);
        }
    }
}

/// Whether a flow comes back by the key `scratch.partner`: with the client's own address a port may also be one that the client uses.
#[inline(never)]
fn in_use<F: Ip, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 1 };
    let key = place!(scratch.partner);
    if key.proto == UDP as u32 {
        return env.flow(Table::Udp, key).is_some() as u32;
    }
    (env.leg(key).is_some() || of_layer4::<F, E>(env)) as u32
}

/// Whether a TCP flow of layer 4 comes back by the key `scratch.partner`. Read in the order in which flows move on, so that none slips by.
#[inline(always)]
pub fn of_layer4<F: Ip, E: Env + Tables<F>>(env: &E) -> bool {
    let Some(scratch) = Tables::<F>::scratch(env) else { return true };
    let key = place!(scratch.partner);
    env.half(key).is_some() || env.flow(Table::Tcp, key).is_some() || env.flow(Table::Closing, key).is_some()
}

/// Takes up the translation of a connection that goes on without its entries; 0: it had none, or not towards this backend.
#[inline(never)]
pub fn resume<F: Ip, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> u32 {
    let Some(forward) = env.snat(&p.key) else { return 0 };
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let reverse = place!(scratch.partner);
    let (src, before) = (t.src, t.ports);
    t.src = field!(forward.addr);
    t.ports = ports(field!(forward.port), destination_port(before));
    partner_key(p.key.proto, t, reverse);
    if env.snat(reverse).is_some_and(|back| field!(back.addr) == p.key.src && field!(back.port) == p.sport()) {
        return 1;
    }
    (t.src, t.ports) = (src, before);
    0
}
