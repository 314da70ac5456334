//! Connections to backends: their keys, turning one idle and taking it up again.

use super::{
    Numbers, Segment, emit,
    segment::{after, is_near},
    trial,
};
use crate::{
    answer::swapped,
    bytes::{Packet, Ref, add_to},
    env::{Env, Tables},
    field, flag,
    lb::find_nexthop,
    network::Network,
    packet::{Ip, Parsed, ports, source_port, tcp},
    place,
    state::{Out, Stamps, Translation},
    verdict::Verdict,
};
use splitter_common::{abi::*, http::lines::Lines};

/// What a backend's packet becomes.
#[inline(always)]
pub fn translation<F: Family>(leg: &Leg<F>, version: u32) -> Translation<F> {
    let nexthop = if leg.nexthop == STACK { 0 } else { leg.nexthop as u32 };
    Translation { src: leg.src, dst: leg.dst, ports: leg.ports, version, nexthop, neighbour: 0, reverse: true }
}

#[inline(always)]
pub fn numbers<F: Family>(leg: &Leg<F>) -> Numbers<false> {
    let shift = if leg.shift < -NOT_SCALED { leg.shift + NOT_SCALED } else { leg.shift };
    Numbers { seq: leg.seq_add, ack: leg.ack_add, shift: shift as i32, stamp: leg.ts_val_add }
}

/// Numbers of a client's packets.
#[inline(always)]
pub fn numbers_of_client<F: Family>(s: &Spliced<F>) -> Numbers<true> {
    let shift = if s.options & tcp_option::UNSCALED != 0 { s.scale as i32 & 15 } else { 0 };
    Numbers { seq: s.seq_add, ack: s.ack_add, shift, stamp: s.ts_ecr_add }
}

/// Puts another backend into a flow's owner word, whose flags other CPUs may set at the same time.
#[inline(always)]
pub fn own<F: Family>(entry: Ref<Spliced<F>>, backend: u32) {
    let old = field!(entry.owner).backend();
    // SAFETY: a Ref points to a live map value. Only the backend's bits change: they are the difference.
    unsafe { add_to((&raw mut (*entry.as_ptr()).owner).cast(), backend.wrapping_sub(old)) };
}

/// Notes whether the leg that comes into use scales windows.
#[inline(always)]
pub fn take_scale<F: Family>(flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>) {
    let options = field!(flow.options) & !tcp_option::UNSCALED;
    let unscaled = field!(leg.shift) < -NOT_SCALED;
    field!(flow.options = if unscaled { options | tcp_option::UNSCALED } else { options });
}

/// The client's last window as the backend of an idle leg takes it.
#[inline(always)]
pub fn window<F: Family>(flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>) -> u16 {
    let window = field!(flow.window) as u32;
    let window = if field!(leg.shift) < -NOT_SCALED { window << (field!(flow.scale) & 15) } else { window };
    if window > 0xffff { 0xffff } else { window as u16 }
}

/// Key of the leg that a spliced flow uses.
#[inline(always)]
pub fn key_in_use<F: Family>(s: Ref<Spliced<F>>, out: &mut FlowKey<F>) {
    out.src = field!(s.dst);
    out.dst = field!(s.src);
    out.ports = swapped(field!(s.ports));
    out.proto = TCP as u32;
}

/// Key of a leg to a backend that sees the client's own address.
#[inline(always)]
pub fn key_to<F: Ip>(client: &FlowKey<F>, backend: Ref<Backend>, out: &mut FlowKey<F>) {
    out.src = F::words(&field!(backend.addr));
    out.dst = client.src;
    out.ports = ports(u16::from_ne_bytes(field!(backend.port)), source_port(client.ports));
    out.proto = TCP as u32;
}

/// Key of the client's side of a leg.
#[inline(always)]
pub fn client_of<F: Family>(leg: Ref<Leg<F>>, out: &mut FlowKey<F>) {
    out.src = field!(leg.dst);
    out.dst = field!(leg.src);
    out.ports = swapped(field!(leg.ports));
    out.proto = TCP as u32;
}

/// Whether a leg is of the client's connection `client`. A client may use a port for several frontends.
#[inline(always)]
pub fn belongs<F: Family>(leg: Ref<Leg<F>>, client: &FlowKey<F>) -> bool {
    field!(leg.src) == client.dst && field!(leg.dst) == client.src && field!(leg.ports) == swapped(client.ports)
}

/// Whether the backend sees another address or port than the client's.
#[inline(always)]
pub fn source_translated<F: Family>(s: Ref<Spliced<F>>, client: &FlowKey<F>) -> bool {
    field!(s.src) != client.src || source_port(field!(s.ports)) != source_port(client.ports)
}

/// A request goes out on a leg: its response is awaited.
#[inline(always)]
pub fn expect_response<F: Network, E: Env>(env: &E, leg: Ref<Leg<F>>, flow: Ref<Spliced<F>>) {
    field!(leg.sent = field!(flow.body_end).wrapping_add(field!(flow.seq_add)));
    field!(leg.body_end = field!(leg.next));
    field!(leg.lines = Lines::default());
    field!(leg.stamp = env.now());
    trial::moves(flow, leg);
    if field!(leg.side) & UNPROVEN != 0 {
        trial::unproven(env, leg);
    }
    flag!(clear leg.owner, leg_flag::CHUNKED | leg_flag::UNSURE | leg_flag::HEAD);
    let options = field!(flow.options);
    let head = if options & tcp_option::HEAD != 0 { leg_flag::HEAD } else { 0 };
    let tunnel = if options & tcp_option::CONNECT != 0 { leg_flag::UNSURE } else { 0 };
    flag!(set leg.owner, leg_flag::AWAIT | head | tunnel);
}

/// Turns the leg in use idle. `at`: end of what the client sent on it, client number. `replaced`: backend of the idle leg that is taken
/// up instead, or 0. `scratch.client` names the flow.
#[inline(never)]
pub fn park<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, at: u32, replaced: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let owner = field!(entry.owner).backend();
    if owner == 0 {
        return 0;
    }
    let (key, client) = (place!(scratch.partner), place!(scratch.client));
    key_in_use(entry, key);
    let Some(leg) = env.leg(key) else { return 0 };
    if source_translated(entry, client) {
        // Nobody could find it again. Its backend is reset when it speaks.
        env.drop_snat(client);
        env.drop_snat(key);
        env.drop_leg(key);
        return 0;
    }
    let mut idle = field!(entry.idle);
    let (mut i, mut put) = (0, 0);
    while i < IDLE_LEGS {
        if put == 0 && idle[i] == replaced {
            idle[i] = owner;
            put = 1;
        }
        i += 1;
    }
    field!(entry.idle = idle);
    if put == 0 {
        // No room to remember it. As above.
        env.drop_leg(key);
        return 0;
    }
    field!(leg.sent = at.wrapping_add(field!(entry.seq_add)));
    field!(leg.stamp = field!(entry.ts_ecr).wrapping_add(field!(entry.ts_ecr_add)) as u64);
    flag!(clear leg.owner, leg_flag::AWAIT | leg_flag::CHUNKED);
    flag!(set leg.owner, leg_flag::IDLE);
    1
}

/// Takes an idle leg up again for the request at `at`, of a client that expects `ack` next. `key`: the leg's.
#[inline(never)]
pub fn take_up<F: Network, E: Env + Tables<F>>(entry: Ref<Spliced<F>>, env: &E, key: &FlowKey<F>, leg: Ref<Leg<F>>, at_ack: u64) -> u32 {
    let (at, ack) = (at_ack as u32, (at_ack >> 32) as u32);
    let (sent, next) = (field!(leg.sent), field!(leg.next));
    field!(entry.seq_add = sent.wrapping_sub(at));
    field!(entry.ack_add = next.wrapping_sub(ack));
    field!(leg.seq_add = ack.wrapping_sub(next));
    field!(leg.ack_add = at.wrapping_sub(sent));
    stamp(entry, leg, field!(leg.stamp) as u32);
    field!(entry.src = key.dst);
    field!(entry.dst = key.src);
    field!(entry.ports = swapped(key.ports));
    field!(entry.nexthop = field!(leg.forward));
    take_scale(entry, leg);
    own(entry, field!(leg.owner).backend());
    flag!(clear leg.owner, leg_flag::IDLE);
    let _ = env;
    1
}

/// Notes the timestamps of a client's segment.
#[inline(never)]
pub fn heard<F: Family, P: Packet>(packet: &mut P, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    if field!(entry.options) & tcp_option::STAMPS != 0
        && let Some(stamps) = Stamps::read(packet, segment)
        && !after(field!(entry.ts_val), stamps.val)
    {
        field!(entry.ts_val = stamps.val);
        field!(entry.ts_ecr = stamps.ecr);
    }
    0
}

/// The backend's clock stands at `val` when the client has last heard `ts_ecr`: what the client hears must never go back (RFC 7323, 5). An idle
/// leg's clock has gone on, so the client's runs fast by the time that legs are idle: four times as fast at most.
#[inline(always)]
pub fn stamp<F: Family>(flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>, val: u32) {
    if field!(flow.options) & tcp_option::STAMPS != 0 {
        let add = field!(flow.ts_ecr).wrapping_sub(val);
        field!(leg.ts_val_add = add);
        field!(flow.ts_ecr_add = add.wrapping_neg());
    }
}

/// Takes an idle leg off its flow's list.
#[inline(always)]
fn unlist<F: Network>(flow: Ref<Spliced<F>>, backend: u32) {
    let mut idle = field!(flow.idle);
    let mut i = 0;
    while i < IDLE_LEGS {
        if idle[i] == backend {
            idle[i] = 0;
        }
        i += 1;
    }
    field!(flow.idle = idle);
}

/// A packet of a leg that is not in use: the node speaks for the client.
#[inline(never)]
pub fn idle<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Leg<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let client = place!(scratch.client);
    client_of(entry, client);
    let (flow, next) = (env.spliced(client), field!(entry.next));
    let last = segment.is(tcp::RST) && segment.seq == next || segment.is(tcp::FIN) && segment.end() == next;
    if last || flow.is_none() {
        // Its backend has closed, or its client is gone. The next request opens another one.
        if let Some(flow) = flow {
            unlist(flow, field!(entry.owner).backend());
        }
        env.drop_leg(&p.key);
        if segment.is(tcp::RST) {
            return Verdict::DROP;
        }
        env.count(Reason::IdleLeg);
        return Verdict::RESET;
    }
    if segment.is(tcp::RST) {
        if !is_near(segment.seq, next) {
            env.count(Reason::OutOfWindow);
            return Verdict::DROP;
        }
        env.count(Reason::ResetDoubted);
    } else if segment.len == 0 && !segment.is(tcp::FIN) && !after(next, segment.seq) {
        return Verdict::DROP;
    }
    // Sent again because its acknowledgement went to another leg, or a probe.
    env.count(Reason::IdleLeg);
    let out = place!(scratch.out);
    emit::acknowledge(packet, p, segment, out, field!(entry.sent), next, 512);
    Verdict::ANSWER
}

/// Key of the idle leg of `scratch.client` to a backend, into `scratch.partner`. 0: it was evicted, and may be another's by now.
#[inline(never)]
pub fn find_idle<F: Network, E: Env + Tables<F>>(env: &E, backend: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (key, client) = (place!(scratch.partner), place!(scratch.client));
    let Some(backend) = env.backend(backend) else { return 0 };
    key_to(client, backend, key);
    env.leg(key).is_some_and(|leg| belongs(leg, client)) as u32
}

/// Way of an idle leg, whose key is `key`.
#[inline(always)]
pub fn way_of_idle<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    leg: Ref<Leg<F>>,
    t: &mut Translation<F>,
    key: &FlowKey<F>,
) {
    (t.src, t.dst, t.ports, t.neighbour) = (key.dst, key.src, swapped(key.ports), 0);
    let forward = field!(leg.forward);
    t.nexthop = if forward == STACK { 0 } else { forward as u32 };
    if forward == 0 {
        find_nexthop(packet, env, TCP as u32, t);
    }
}

/// Way of the leg in use, into `scratch.translation`.
#[inline(always)]
pub fn way<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, entry: Ref<Spliced<F>>) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    let t = place!(scratch.translation);
    (t.src, t.dst, t.ports) = (field!(entry.src), field!(entry.dst), field!(entry.ports));
    (t.version, t.reverse, t.neighbour) = (0, false, 0);
    let kept = field!(entry.nexthop);
    t.nexthop = if kept == STACK { 0 } else { kept as u32 };
    if kept == 0 {
        find_nexthop(packet, env, TCP as u32, t);
    }
}

/// Timestamps of a client's data for the leg in use; payload of a segment that has room for `most`.
#[inline(always)]
pub fn stamped<F: Family>(flow: Ref<Spliced<F>>, out: &mut Out<F>, most: u32) -> u32 {
    out.options = field!(flow.options) & tcp_option::STAMPS;
    out.stamps = Stamps { val: field!(flow.ts_val), ecr: field!(flow.ts_ecr).wrapping_add(field!(flow.ts_ecr_add)) };
    if out.options != 0 && most > 2 * emit::STAMPS { most - emit::STAMPS } else { most }
}
