//! TCP until the client's handshake ends. Half-open flows live in a table of their own, so that a SYN flood cannot evict established
//! ones; only an ACK of the backend's own sequence number promotes a flow.
//!
//! ```text
//! SYN ----------------> HALF both ways
//! SYN-ACK ------------> connect time, expected acknowledgement
//! ACK that matches ---> TCP both ways; HALF forward stays for the first response
//! RST to the SYN -----> backend suspect; held back when another can serve: the client's next SYN goes there
//! SYN again, no answer> backend suspect; another one. What comes before it could be sent again is a copy
//! ```

use super::{
    first::{facts_of, frontend_of},
    flow::{elsewhere, find_nexthop, kept_nexthop, partner_flow, partner_key, translate},
    hit::has_payload,
    side::genuine,
    suspect::{another, suspect},
    trial::SENT_AGAIN,
};
use crate::{
    account,
    bytes::{Packet, Ref},
    env::{Env, Table, Tables},
    field, flag, nat,
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::Translation,
    verdict::Verdict,
};
use splitter_common::abi::{
    trial::{flag, outcome},
    *,
};

/// A packet that a `HALF` entry matches: what holds for both directions. `CONTINUE`: on with [`from_client`] or [`from_backend`].
#[inline(never)]
pub fn begin<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<HalfOpen<F>>,
    t: &mut Translation<F>,
) -> Verdict {
    let flow = field!(entry.flow);
    let Some(backend) = env.backend(flow.backend()).filter(|_| !elsewhere::<F, P>(&flow)) else { return Verdict::PASS };
    let (version, state) = (field!(backend.version), field!(backend.state));
    if flow.is(flow_flag::REFUSED) {
        if p.flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
            env.count(Reason::RefusedHeldBack);
            return Verdict::DROP;
        }
        go_on::<F, E>(env, entry);
        env.drop_half(&p.key);
        return Verdict::again_avoiding(flow.backend());
    }
    if !translate(env, &p.key, &flow, version, t) {
        go_on::<F, E>(env, entry);
        env.drop_half(&p.key);
        return Verdict::AGAIN;
    }
    if p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN && !t.reverse && one_way(env, p, t, flow.owner) != 0 {
        go_on::<F, E>(env, entry);
        forget_half(env, &p.key, t, flow.owner);
        return Verdict::AGAIN;
    }
    if state != backend_state::READY && state != backend_state::DRAINING {
        if t.reverse {
            env.count(Reason::BackendSilenced);
            forget_half(env, &p.key, t, flow.owner);
            return Verdict::DROP;
        }
        go_on::<F, E>(env, entry);
        forget_half(env, &p.key, t, flow.owner);
        return Verdict::AGAIN;
    }
    if flow.nexthop == 0 && !(P::EGRESS && t.reverse) {
        find_nexthop(packet, env, p.key.proto, t);
        field!(entry.flow.nexthop = kept_nexthop(t));
    }
    field!(entry.flow.last = env.ticks());
    Verdict::CONTINUE
}

/// Whether nothing is left of the way back of a flow that nobody has answered: each entry is evicted by itself, and without this one no answer
/// reaches the client.
#[inline(never)]
fn one_way<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, owner: Owner) -> u32 {
    if owner.is(flow_flag::REPLIED | flow_flag::ESTABLISHED) {
        return 0;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let partner = place!(scratch.partner);
    partner_key(p.key.proto, t, partner);
    (env.half(partner).is_none() || owner.is(flow_flag::SNAT) && env.snat(partner).is_none()) as u32
}

/// The connection goes on with another backend: its trial does too.
#[inline(always)]
fn go_on<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<HalfOpen<F>>) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    field!(scratch.trial = field!(entry.trial));
    field!(scratch.tried = field!(entry.flow.owner).backend());
}

/// Forgets both directions, and their SNAT entries.
#[inline(never)]
fn forget_half<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, t: &Translation<F>, owner: Owner) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    let partner = place!(scratch.partner);
    partner_key(key.proto, t, partner);
    env.drop_half(key);
    env.drop_half(partner);
    if owner.is(flow_flag::SNAT) {
        env.drop_snat(key);
        env.drop_snat(partner);
    }
    1
}

/// The client resets a connection that it has not opened.
#[inline(never)]
fn given_up<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, entry: Ref<HalfOpen<F>>) -> u32 {
    let (owner, trial) = (field!(entry.flow.owner), field!(entry.trial));
    let replied = owner.is(flow_flag::REPLIED);
    if replied && field!(entry.expect) == 0 && trial != 0 {
        // It resets what the backend still has of an older connection (RFC 9293, 3.10.7.4); its SYN comes again.
        flag!(clear entry.flow.owner, flow_flag::REPLIED);
        return 0;
    }
    if let Some(backend) = env.backend(owner.backend()) {
        // A backend that had no time to answer is not to blame.
        if !replied && env.now().wrapping_sub(field!(entry.stamp)) >= SENT_AGAIN {
            account::ended(env, backend, trial, outcome::UNOPENED);
        } else {
            account::rests(env, backend, trial);
        }
    }
    forget_half(env, &p.key, t, owner)
}

/// Result of [`from_client`]: the packet is a SYN that the backend has not answered.
pub const SYN_AGAIN: u32 = 1;
/// The client's handshake is over: on with [`opened`] and [`promote`], with a packet that carries no data, or some.
pub const OPENED: u32 = 2;
pub const OPENED_ASKING: u32 = 3;

/// A packet of the client.
#[inline(never)]
pub fn from_client<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    t: &Translation<F>,
    entry: Ref<HalfOpen<F>>,
) -> u32 {
    let (owner, expect) = (field!(entry.flow.owner), field!(entry.expect));
    let is = |flag: u8| owner.is(flag);
    if p.flags & tcp::RST != 0 {
        given_up(env, p, t, entry);
        return 0;
    }
    if p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        let copy = env.now().wrapping_sub(field!(entry.stamp)) < SENT_AGAIN;
        return if is(flow_flag::REPLIED) || copy { 0 } else { SYN_AGAIN };
    }
    let confirmed = is(flow_flag::REPLIED) && (expect == 0 || expect == packet_ack(packet, p));
    if p.flags & tcp::ACK != 0 && (confirmed || is(flow_flag::ESTABLISHED)) {
        return if has_payload(packet, p) { OPENED_ASKING } else { OPENED };
    }
    0
}

/// 1: the packet ends the handshake of a flow that is half open, or is of its backend.
#[inline(never)]
pub fn opens<F: Network, P: Packet>(packet: &mut P, p: &Parsed<F>, entry: Ref<HalfOpen<F>>) -> u32 {
    let owner = field!(entry.flow.owner);
    let is = |flag: u8| owner.is(flag);
    if is(flow_flag::REVERSE) {
        return 1;
    }
    let ack = packet_ack(packet, p);
    (p.flags & (tcp::ACK | tcp::RST) == tcp::ACK && is(flow_flag::REPLIED) && field!(entry.expect) == ack && !is(flow_flag::REFUSED)) as u32
}

/// The backend left a SYN unanswered: another one gets it.
#[inline(never)]
pub fn syn_again<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, entry: Ref<HalfOpen<F>>) -> Verdict {
    let owner = field!(entry.flow.owner);
    let backend = owner.backend();
    if let Some(counters) = env.counters(t.version) {
        field!(counters.timeouts += 1);
    }
    suspect(env, backend);
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::CONTINUE };
    let (frontend, facts) = (place!(scratch.frontend), place!(scratch.facts));
    frontend_of(p, frontend);
    let Some(service) = env.frontend(frontend) else { return Verdict::CONTINUE };
    facts_of(&p.key, facts);
    if !another(env, service, facts, place!(scratch.choice), backend) {
        return Verdict::CONTINUE;
    }
    go_on::<F, E>(env, entry);
    forget_half(env, &p.key, t, owner);
    Verdict::again_avoiding(backend)
}

/// Sequence number that a segment acknowledges, host order.
#[inline(always)]
fn packet_ack<F: Network, P: Packet>(packet: &mut P, p: &Parsed<F>) -> u32 {
    let Some(l4) = crate::bytes::within::<1024>(p.l4) else { return 0 };
    packet.window::<20>(l4 as usize).map_or(0, |w| u32::from_be(w.load::<u32, 8>()))
}

/// The handshake is over: both directions move to `TCP`.
#[inline(never)]
pub fn promote<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, entry: Ref<HalfOpen<F>>, payload: u32) -> u32 {
    let half = entry.get();
    let Some(scratch) = env.scratch() else { return 0 };
    let partner = place!(scratch.partner);
    partner_key(p.key.proto, t, partner);
    let back = env.half(partner).map_or(0, |entry| field!(entry.flow.nexthop));
    let ruled = if half.trial & flag::RULED != 0 { flow_flag::RULED } else { 0 };
    let kept = half.flow.flags() & flow_flag::SNAT | ruled;
    let unheard = if half.flow.is(flow_flag::PROVEN) { flow_flag::YOUNG } else { 0 };
    let young = if payload == 0 { flow_flag::YOUNG } else { 0 };
    let flow = Flow { owner: owner(half.flow.backend(), kept | young), ..half.flow };
    let other = partner_flow(&p.key, &flow, kept | unheard);
    let other = Flow { nexthop: if back == 0 { other.nexthop } else { back }, ..other };
    if payload == 0 && !env.new_flow(Table::Tcp, &p.key, &flow) && env.flow(Table::Tcp, &p.key).is_some() {
        // Another CPU was faster with the data behind this packet, and knows more.
        return 1;
    }
    if payload != 0 && !env.put_flow(Table::Tcp, &p.key, &flow) || !env.put_flow(Table::Tcp, partner, &other) {
        env.count(Reason::FlowInsertFailed);
        return 0;
    }
    if half.flow.is(flow_flag::SNAT) {
        nat::snat::settle(env, &p.key, partner);
    }
    if half.trial != 0
        && !half.flow.is(flow_flag::ESTABLISHED)
        && let Some(counters) = env.counters(t.version)
    {
        field!(counters.opened += 1);
    }
    env.drop_half(partner);
    flag!(set entry.flow.owner, flow_flag::ESTABLISHED);
    field!(entry.stamp = env.now());
    1
}

/// What the connection remembers of its trial when the handshake ends. `asks`: the client asks with the same packet.
#[inline(always)]
pub fn opened<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<HalfOpen<F>>, asks: bool) {
    let (owner, trial) = (field!(entry.flow.owner), field!(entry.trial));
    let Some(backend) = env.backend(owner.backend()) else { return };
    if trial == 0 {
        return;
    }
    if !owner.is(flow_flag::PROVEN) {
        // Who answered for the backend is not known: no evidence.
        account::rests(env, backend, trial);
        field!(entry.trial = trial & flag::RULED | 1 << flag::BITS);
    } else if asks && trial & flag::UNDER_WAY != 0 {
        field!(entry.trial = account::waits(env, backend, trial));
    }
}

/// A packet of the backend.
#[inline(never)]
pub fn from_backend<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, t: &Translation<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::CONTINUE };
    let client = place!(scratch.partner);
    partner_key(p.key.proto, t, client);
    let Some(forward) = env.half(client) else { return Verdict::CONTINUE };
    let owner = field!(forward.flow.owner);
    let proven = owner.is(flow_flag::PROVEN);
    if p.flags & tcp::RST == 0 && proven {
        return Verdict::CONTINUE;
    }
    let genuine = genuine(packet, env, field!(forward.flow.nexthop), &p.key) != 0;
    if p.flags & tcp::RST != 0 {
        return if genuine { refused(env, &p.key, client, outcome::REFUSED, 0) } else { Verdict::CONTINUE };
    }
    // What comes by another interface opens the connection, where routes are not the same both ways; the backend's own word goes before it.
    if !genuine && owner.is(flow_flag::REPLIED) {
        return Verdict::CONTINUE;
    }
    let mut flags = flow_flag::REPLIED;
    if p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK {
        let expect = packet_seq(packet, p).wrapping_add(1);
        field!(forward.expect = if expect == 0 { 1 } else { expect });
        if genuine {
            flags |= flow_flag::PROVEN;
            answered(env, t.version, forward);
        }
    } else if genuine && field!(forward.trial) == 0 {
        flags |= flow_flag::PROVEN;
    }
    flag!(set forward.flow.owner, flags);
    Verdict::CONTINUE
}

/// The backend has answered the SYN. Nothing is counted of the trial until the client shows that it is there.
#[inline(never)]
fn answered<F: Network, E: Env + Tables<F>>(env: &E, version: u32, entry: Ref<HalfOpen<F>>) -> u32 {
    let trial = field!(entry.trial);
    account::sample(env, version, Measure::Connect as u32, trial, env.now().wrapping_sub(field!(entry.stamp)));
    let Some(backend) = env.backend(field!(entry.flow.owner).backend()) else { return 0 };
    let unanswered = field!(backend.unanswered);
    let overdue = unanswered != 0 && trial & flag::PENDING != 0 && trial::age(trial, env.ticks()) >= unanswered;
    field!(
        entry.trial = if overdue {
            // The client was made to wait too long already.
            account::ended(env, backend, trial, outcome::UNOPENED);
            trial & flag::RULED | 1 << flag::BITS
        } else {
            account::rests(env, backend, trial)
        }
    );
    0
}

/// Sequence number of a segment, host order.
#[inline(always)]
fn packet_seq<F: Network, P: Packet>(packet: &mut P, p: &Parsed<F>) -> u32 {
    let Some(l4) = crate::bytes::within::<1024>(p.l4) else { return 0 };
    packet.window::<20>(l4 as usize).map_or(0, |w| u32::from_be(w.load::<u32, 4>()))
}

/// RST by the backend before the handshake's end. In answer to a SYN it makes the backend suspect, and is held back when another backend
/// can serve: the client's SYN goes there when it is sent again.
///
/// `key`, `client`: of the backend's packets, and of the client's. `outcome`: what becomes of the trial when nobody else can serve. `hint`: 1 when the
/// client is only told by ICMP, and may well send its SYN again: that one is of the same connection.
#[inline(never)]
pub fn refused<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, client: &FlowKey<F>, outcome: u32, hint: u32) -> Verdict {
    let Some(half) = env.half(client) else { return Verdict::CONTINUE };
    let (owner, trial) = (field!(half.flow.owner), field!(half.trial));
    let backend = owner.backend();
    env.drop_half(key);
    if owner.is(flow_flag::SNAT) {
        env.drop_snat(client);
        env.drop_snat(key);
    }
    let Some(record) = env.backend(backend) else { return Verdict::CONTINUE };
    if owner.is(flow_flag::REPLIED) || trial == 0 {
        account::rests(env, record, trial);
        env.drop_half(client);
        return Verdict::CONTINUE;
    }
    if !failed(env, record, client, backend) {
        account::ended(env, record, trial, outcome);
        if hint == 0 {
            env.drop_half(client);
        } else {
            field!(half.trial = trial & flag::RULED | 1 << flag::BITS);
            field!(half.flow.owner = Owner::new(backend, flow_flag::REFUSED));
        }
        return Verdict::CONTINUE;
    }
    // The client is the same, and so is its trial: what its next SYN has to know stays.
    field!(half.flow.owner = Owner::new(backend, flow_flag::REFUSED));
    Verdict::DROP
}

/// Notes that a backend has refused a client; whether the client goes to another one, and is not told.
#[inline(always)]
pub fn failed<F: Network, E: Env + Tables<F>>(env: &E, record: Ref<Backend>, client: &FlowKey<F>, backend: u32) -> bool {
    if let Some(counters) = env.counters(field!(record.version)) {
        field!(counters.refused += 1);
    }
    suspect(env, backend);
    let Some(scratch) = Tables::<F>::scratch(env) else { return false };
    let facts = place!(scratch.facts);
    facts_of(client, facts);
    let other = another(env, field!(record.service), facts, place!(scratch.choice), backend);
    if other {
        env.count(Reason::RefusedHeldBack);
    }
    other
}
