//! The end of a spliced flow.

use super::{Segment, emit, leg, segment::after, stash, trial, way};
use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field, flag,
    lb::find_nexthop,
    network::Network,
    packet::{Parsed, tcp},
    place,
    verdict::{Action, Verdict},
};
use splitter_common::abi::{trial::outcome, *};

const BOTH: u8 = splice_flag::FIN | splice_flag::PEER_FIN;

/// Forgets a flow and the leg in use; nobody is told. Idle legs are reset when they speak. `outcome`: of a request that is under way.
#[inline(never)]
pub fn forget<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>, outcome: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    trial::lost(env, entry, key, outcome);
    release(env, entry, &p.key, key);
    0
}

/// As [`forget`], because a change of weights wants it so: what becomes of a request that is under way says nothing of its version.
#[inline(never)]
pub fn part<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    if let Some(leg) = env.leg(key) {
        trial::unproven(env, leg);
    }
    release(env, entry, &p.key, key);
    0
}

/// Drops the flow of `client`, the leg in use, whose key is `leg`, and what they hold.
#[inline(always)]
fn release<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, client: &FlowKey<F>, leg: &FlowKey<F>) {
    stash::give_back(env, entry);
    if leg::source_translated(entry, client) {
        env.drop_snat(client);
        env.drop_snat(leg);
    }
    env.drop_leg(leg);
    env.drop_spliced(client);
}

/// The backend of the flow `scratch.client` is down, or the agent asks for the connection's end, and the backend's packet in hand comes before any of
/// the client, which may wait for its answer without a word: both ends are reset, the client by what the packet becomes. Idle legs are reset when they speak.
#[inline(never)]
pub fn cut<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let (client, t, out) = (place!(scratch.client), place!(scratch.translation), place!(scratch.out));
    let Some(segment) = Segment::read(packet, p) else { return Verdict::DROP };
    let (Some(leg), Some(flow)) = (env.leg(&p.key), env.spliced(client)) else { return Verdict::DROP };
    let told = field!(flow.owner).is(splice_flag::RESET);
    env.count(if told { Reason::WeightChangeReset } else { Reason::BackendDown });
    (t.src, t.dst, t.ports) = (field!(leg.src), field!(leg.dst), field!(leg.ports));
    // What the client expects next: all that was forwarded to it, a FIN included.
    let end = field!(leg.next).wrapping_add((field!(leg.owner).is(leg_flag::FIN)) as u32);
    let (seq, ack) = (end.wrapping_add(field!(leg.seq_add)), segment.ack.wrapping_add(field!(leg.ack_add)));
    if told {
        trial::unproven(env, leg);
    } else {
        trial::lost(env, flow, &p.key, outcome::UNAVAILABLE);
    }
    release(env, flow, client, &p.key);
    find_nexthop(packet, env, TCP as u32, t);
    emit::answer_to(p, out, segment.ack, 0, tcp::RST, 0);
    if emit::emit(packet, p, out, place!(scratch.text)) == 0 {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    way::copy_back(packet);
    (out.src, out.dst, out.ports) = (t.src, t.dst, t.ports);
    (out.seq, out.ack, out.window, out.flags) = (seq, ack, 0, tcp::RST | tcp::ACK);
    (out.options, out.offset, out.len) = (0, 0, 0);
    Verdict::SEND
}

/// Notes a FIN or RST of the client. 1: with this packet the flow is over.
#[inline(never)]
pub fn noted_by_client<F: Network, E: Env + Tables<F>>(env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    let leg = env.leg(key);
    if segment.is(tcp::FIN | tcp::RST)
        && let Some(leg) = leg
    {
        trial::left(env, segment, entry, leg);
    }
    if segment.is(tcp::FIN) {
        flag!(set entry.owner, splice_flag::FIN);
        if let Some(leg) = leg {
            flag!(set leg.owner, leg_flag::PEER_FIN);
        }
    }
    let heard = leg.is_none_or(|leg| after(segment.ack.wrapping_add(field!(entry.ack_add)), field!(leg.next)));
    ends(env, segment, field!(entry.owner), heard as u32)
}

/// As [`noted_by_client`], of the backend.
#[inline(never)]
pub fn noted_by_server<F: Network, E: Env + Tables<F>>(env: &E, segment: &Segment, flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>) -> u32 {
    if segment.is(tcp::FIN) {
        flag!(set leg.owner, leg_flag::FIN);
        flag!(set flow.owner, splice_flag::PEER_FIN);
    }
    let heard = after(segment.ack, field!(flow.next).wrapping_add(field!(flow.seq_add)));
    ends(env, segment, field!(flow.owner), heard as u32 | BY_SERVER)
}

/// [`ends`]: the packet acknowledges all data of the other side, and its FIN.
const HEARD: u32 = 1;
/// [`ends`]: the packet is the backend's.
const BY_SERVER: u32 = 2;

/// Whether a packet is a flow's last: a reset, or the acknowledgement of the other side's FIN after both.
#[inline(always)]
fn ends<E: Env>(env: &E, segment: &Segment, owner: Owner, how: u32) -> u32 {
    let (reset, by_server) = (segment.is(tcp::RST), how & BY_SERVER != 0);
    let last = owner.flags() & BOTH == BOTH && segment.len == 0 && !segment.is(tcp::FIN) && how & HEARD != 0;
    if !reset && !last {
        return 0;
    }
    if let Some(backend) = env.backend(owner.backend())
        && let Some(counters) = env.counters(field!(backend.version))
    {
        field!(counters.closed += 1);
        if reset && by_server {
            field!(counters.resets_backend += 1);
        } else if reset {
            field!(counters.resets_client += 1);
        }
    }
    1
}

/// The last packet of the flow `scratch.client` has been translated: forgets the flow. `verdict`: where the packet goes.
#[inline(never)]
pub fn over<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, verdict: Verdict) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return verdict };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    let idle = field!(entry.idle);
    place!(scratch.spliced).idle = idle;
    release(env, entry, place!(scratch.client), key);
    match verdict.action() {
        Action::Redirect(ifindex) | Action::RedirectPeer(ifindex) if idle != [0; IDLE_LEGS] => Verdict::over(ifindex),
        Action::Pass if idle != [0; IDLE_LEGS] => Verdict::over(0),
        _ => verdict,
    }
}

/// Sends the packet in hand out of an interface, or on to where it is going (0), and resets the idle legs that `scratch.spliced` names.
#[inline(never)]
pub fn reset_idle_legs<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, ifindex: u32) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let mut verdict = if ifindex == 0 { Verdict::PASS } else { Verdict::redirect(ifindex) };
    let mut i = 0;
    while i < IDLE_LEGS {
        let idle = field!(scratch.spliced.idle)[i];
        if idle != 0 && leg::find_idle::<F, E>(env, idle) != 0 {
            // A copy does not go on by itself: at egress it goes out again.
            let on = P::EGRESS && verdict == Verdict::PASS;
            verdict = if on { Verdict::redirect(packet.ifindex()) } else { way::behind::<F, P, E>(packet, env, verdict) };
            if !way::copy(packet, verdict) {
                return verdict;
            }
            verdict = reset_idle(packet, env, p);
        }
        i += 1;
    }
    verdict
}

/// The packet in hand becomes the reset of the idle leg that `scratch.partner` names.
#[inline(never)]
fn reset_idle<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let key = place!(scratch.partner);
    let Some(leg) = env.leg(key) else { return Verdict::DROP };
    let (out, t) = (place!(scratch.out), place!(scratch.translation));
    (out.src, out.dst, out.ports) = (key.dst, key.src, crate::answer::swapped(key.ports));
    (out.seq, out.ack, out.window, out.flags) = (field!(leg.sent), 0, 0, tcp::RST);
    (out.options, out.offset, out.len) = (0, 0, 0);
    leg::way_of_idle(packet, env, leg, t, key);
    env.drop_leg(key);
    if emit::emit(packet, p, out, place!(scratch.text)) == 0 {
        return Verdict::DROP;
    }
    way::send(packet, env, t)
}
