//! TCP until the client's handshake ends. Half-open flows live in a table of their own, so that a SYN flood cannot evict established
//! ones; only an ACK of the backend's own sequence number promotes a flow.
//!
//! ```text
//! SYN ----------------> HALF both ways
//! SYN-ACK ------------> connect time, expected acknowledgement
//! ACK that matches ---> TCP both ways; HALF forward stays for the first response
//! RST to the SYN -----> backend suspect; held back when another can serve: the client's next SYN goes there
//! SYN again, no answer> backend suspect; another one
//! ```

use super::{
    Translation,
    first::{facts_of, frontend_of},
    flow::{find_nexthop, kept_nexthop, partner_flow, partner_key, translate},
    hit::has_payload,
    select::{Choice, Facts, select},
};
use crate::{
    account,
    bytes::{Packet, Ref},
    env::{Env, Table, Tables},
    field, flag,
    network::Network,
    packet::{Parsed, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::abi::*;

/// In [`HalfOpen::attempts`]: begun by a packet in the middle of a connection.
pub const RECOVERED: u32 = 1 << 31;

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
    let Some(backend) = env.backend(flow.backend()) else { return Verdict::PASS };
    let (version, state) = (field!(backend.version), field!(backend.state));
    if !translate(env, &p.key, &flow, version, t) {
        env.drop_half(&p.key);
        return Verdict::AGAIN;
    }
    if state != backend_state::READY && state != backend_state::DRAINING {
        forget_half(env, &p.key, t, flow.owner);
        return if t.reverse { Verdict::DROP } else { Verdict::AGAIN };
    }
    if flow.nexthop == 0 && !(P::EGRESS && t.reverse) {
        find_nexthop(packet, env, p.key.proto, t);
        field!(entry.flow.nexthop = kept_nexthop(t));
    }
    field!(entry.flow.last = env.ticks());
    Verdict::CONTINUE
}

/// Forgets both directions, and their SNAT entries.
#[inline(never)]
fn forget_half<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, t: &Translation<F>, owner: u32) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    let partner = place!(scratch.partner);
    partner_key(key.proto, t, partner);
    env.drop_half(key);
    env.drop_half(partner);
    if owner >> 24 & flow_flag::SNAT as u32 != 0 {
        env.drop_snat(key);
        env.drop_snat(partner);
    }
    1
}

/// Result of [`from_client`]: the packet is a SYN that the backend has not answered.
pub const SYN_AGAIN: u32 = 1;

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
    let is = |flag: u8| owner >> 24 & flag as u32 != 0;
    if p.flags & tcp::RST != 0 {
        forget_half(env, &p.key, t, owner);
        return 0;
    }
    if p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        return if is(flow_flag::REPLIED) { 0 } else { SYN_AGAIN };
    }
    let confirmed = is(flow_flag::REPLIED) && (expect == 0 || expect == packet_ack(packet, p));
    if p.flags & tcp::ACK != 0 && (confirmed || is(flow_flag::ESTABLISHED)) {
        promote(env, p, t, entry, has_payload(packet, p) as u32);
    }
    0
}

/// The backend left a SYN unanswered: another one gets it.
#[inline(never)]
pub fn syn_again<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, entry: Ref<HalfOpen<F>>) -> Verdict {
    let owner = field!(entry.flow.owner);
    let backend = owner & 0xff_ffff;
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
        field!(entry.attempts += 1);
        return Verdict::CONTINUE;
    }
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
fn promote<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, entry: Ref<HalfOpen<F>>, payload: u32) -> u32 {
    let half = entry.get();
    let Some(scratch) = env.scratch() else { return 0 };
    let partner = place!(scratch.partner);
    partner_key(p.key.proto, t, partner);
    let back = env.half(partner).map_or(0, |entry| field!(entry.flow.nexthop));
    let kept = half.flow.flags() & flow_flag::SNAT;
    let young = if payload == 0 { flow_flag::YOUNG } else { 0 };
    let flow = Flow { owner: owner(half.flow.backend(), kept | young), ..half.flow };
    let other = Flow { nexthop: back, ..partner_flow(&p.key, &flow, kept | flow_flag::YOUNG) };
    if !env.put_flow(Table::Tcp, &p.key, &flow) || !env.put_flow(Table::Tcp, partner, &other) {
        env.count(Reason::FlowInsertFailed);
        return 0;
    }
    if !half.flow.is(flow_flag::ESTABLISHED)
        && let Some(counters) = env.counters(t.version)
    {
        field!(counters.opened += 1);
    }
    env.drop_half(partner);
    flag!(set entry.flow.owner, flow_flag::ESTABLISHED);
    field!(entry.stamp = env.now());
    1
}

/// A packet of the backend.
#[inline(never)]
pub fn from_backend<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, t: &Translation<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::CONTINUE };
    let client = place!(scratch.partner);
    partner_key(p.key.proto, t, client);
    let Some(forward) = env.half(client) else { return Verdict::CONTINUE };
    let (owner, stamp) = (field!(forward.flow.owner), field!(forward.stamp));
    if p.flags & tcp::RST != 0 {
        return refused(env, p, t, client);
    }
    if owner >> 24 & flow_flag::REPLIED as u32 != 0 {
        return Verdict::CONTINUE;
    }
    flag!(set forward.flow.owner, flow_flag::REPLIED);
    if p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK {
        let expect = packet_seq(packet, p).wrapping_add(1);
        field!(forward.expect = if expect == 0 { 1 } else { expect });
        account::sample(env, t.version, Measure::Connect as u32, env.now().wrapping_sub(stamp));
    }
    Verdict::CONTINUE
}

/// Sequence number of a segment, host order.
#[inline(always)]
fn packet_seq<F: Network, P: Packet>(packet: &mut P, p: &Parsed<F>) -> u32 {
    let Some(l4) = crate::bytes::within::<1024>(p.l4) else { return 0 };
    packet.window::<20>(l4 as usize).map_or(0, |w| u32::from_be(w.load::<u32, 4>()))
}

/// RST by the backend before the handshake's end. In answer to a SYN it makes the backend suspect, and is held back when another backend
/// can serve: the client's SYN goes there when it is sent again.
#[inline(never)]
fn refused<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &Translation<F>, client: &FlowKey<F>) -> Verdict {
    let Some(half) = env.half(client) else { return Verdict::CONTINUE };
    let (owner, attempts) = (field!(half.flow.owner), field!(half.attempts));
    let backend = owner & 0xff_ffff;
    let answers_syn = owner >> 24 & flow_flag::REPLIED as u32 == 0 && attempts & RECOVERED == 0;
    env.drop_half(client);
    env.drop_half(&p.key);
    if owner >> 24 & flow_flag::SNAT as u32 != 0 {
        env.drop_snat(client);
        env.drop_snat(&p.key);
    }
    if !answers_syn {
        return Verdict::CONTINUE;
    }
    if let Some(counters) = env.counters(t.version) {
        field!(counters.refused += 1);
    }
    suspect(env, backend);
    let Some(record) = env.backend(backend) else { return Verdict::CONTINUE };
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::CONTINUE };
    let facts = place!(scratch.facts);
    facts_of(client, facts);
    if !another(env, field!(record.service), facts, place!(scratch.choice), backend) {
        return Verdict::CONTINUE;
    }
    env.count(Reason::RefusedHeldBack);
    Verdict::DROP
}

/// Keeps new flows from a backend for a while.
#[inline(always)]
pub fn suspect<E: Env>(env: &E, backend: u32) {
    let Some(config) = env.config() else { return };
    let ticks = field!(config.suspect_ticks);
    env.set_suspect(backend, env.ticks().wrapping_add(ticks));
}

/// Whether a service would give this client another backend than the one that failed.
#[inline(always)]
fn another<E: Env>(env: &E, service: u32, facts: &Facts, choice: &mut Choice, failed: u32) -> bool {
    select(env, service, facts, failed, choice);
    choice.backend != 0 && choice.backend != failed && {
        let now = env.ticks();
        env.suspect(choice.backend).is_none_or(|until| (until.wrapping_sub(now) as i32) <= 0)
    }
}
