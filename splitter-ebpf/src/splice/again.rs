//! A request that its backend has not received, on a connection that was open: the leg had died without a word, or was closed while the request was on
//! its way.

use super::{Segment, decide, emit, leg, open, request, segment::after, stash, way};
use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field, flag,
    lb::facts_of,
    network::Network,
    packet::{Parsed, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::{abi::*, decide::Avoid};

/// Flags of a client's connection whose request cannot be given to somebody else.
const BOUND: u8 =
    splice_flag::FIN | splice_flag::PEER_FIN | splice_flag::PINNED | splice_flag::BLIND | splice_flag::RESET | splice_flag::STASHED;
/// Flags of a leg whose backend has said that it got the request, or closes.
const HEARD: u8 = leg_flag::FIN | leg_flag::PEER_FIN | leg_flag::CHUNKED | leg_flag::UNSURE | leg_flag::IDLE;

/// Whether a client's segment is its whole request once more.
#[inline(always)]
pub fn repeats<F: Family>(segment: &Segment, entry: Ref<Spliced<F>>) -> bool {
    let end = segment.end();
    !field!(entry.owner).is(BOUND | splice_flag::CHUNKED)
        && segment.flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
        && segment.seq == field!(entry.request_at)
        && end == field!(entry.body_end)
        && segment.len != 0
        && !after(end, field!(entry.next))
}

/// Whether a response is awaited of which the backend has not said a word.
#[inline(always)]
fn is_silent<F: Family>(leg: Ref<Leg<F>>) -> bool {
    let flags = field!(leg.owner).flags();
    flags & leg_flag::AWAIT != 0 && flags & HEARD == 0 && !field!(leg.lines).is_begun() && field!(leg.next) == field!(leg.body_end)
}

/// The client sends its whole request again. 1: the leg in use has left unacknowledged what it was sent once more before; else it is watched
/// from now on: as long as [`leg_flag::STASHED`] stands, its backend has not acknowledged the request.
#[inline(never)]
pub fn asks_again<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    let Some(leg) = env.leg(key) else { return 0 };
    let age = env.now().wrapping_sub(field!(leg.stamp));
    if !is_silent(leg) || age < open::AGAIN {
        return 0;
    }
    if !field!(leg.owner).is(leg_flag::STASHED) {
        flag!(set leg.owner, leg_flag::STASHED);
        return 0;
    }
    (age >= open::ANOTHER) as u32
}

/// The backend in use is silent: its request goes to another one of the version, from the packet in hand. Only methods that may be carried out
/// twice (RFC 9110, 9.2.2), since the backend may have got it, and its acknowledgements lost.
#[inline(never)]
pub fn unheard<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(segment) = Segment::read(packet, p) else { return Verdict::DROP };
    let Some(entry) = env.spliced(&p.key) else { return Verdict::DROP };
    *place!(scratch.client) = p.key;
    if !matches!(
        packet.read::<4>(segment.at as usize),
        Some([b'G', b'E', b'T', b' '] | [b'H', b'E', b'A', b'D'] | [b'O', b'P', b'T', b'I'])
    ) {
        return Verdict::PLAIN;
    }
    field!(entry.window = segment.window);
    if request::hold(packet, env, &segment, entry) == 0 {
        field!(entry.state = splice_state::ESTABLISHED);
        return Verdict::PLAIN;
    }
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    env.count(Reason::LegSilent);
    takes_back(env, entry, key);
    field!(entry.tries = 1);
    open::gives_up(env, entry)
}

/// The request's trial is the client's connection's again, and its leg is forgotten.
#[inline(always)]
fn takes_back<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, key: &FlowKey<F>) {
    if let Some(leg) = env.leg(key) {
        field!(entry.trial = field!(leg.trial));
    }
    env.drop_leg(key);
}

/// Whether a FIN of the backend proves that it has not read the request: it has not even acknowledged its first byte, and its process does not read any
/// more what comes later (RFC 9293, 3.6).
#[inline(always)]
pub fn is_unread<F: Network>(segment: &Segment, entry: Ref<Spliced<F>>, leg: Ref<Leg<F>>, client: &FlowKey<F>) -> bool {
    is_silent(leg)
        && !field!(entry.owner).is(BOUND)
        && field!(entry.state) == splice_state::ESTABLISHED
        && segment.len == 0
        && segment.seq == field!(leg.next)
        && segment.ack == field!(entry.request_at).wrapping_add(field!(entry.seq_add))
        && !leg::source_translated(entry, client)
}

/// The backend's FIN in hand proves that it has not read the request: it is reset, and the request gets a new leg, to whoever of the version serves. The
/// client has all of the request, and sends it again when its timer says so.
#[inline(never)]
pub fn unread<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let (client, facts, choice) = (place!(scratch.client), place!(scratch.facts), place!(scratch.choice));
    let Some(segment) = Segment::read(packet, p) else { return Verdict::DROP };
    let (Some(leg), Some(entry)) = (env.leg(&p.key), env.spliced(client)) else { return Verdict::DROP };
    env.count(Reason::RequestUnread);
    field!(entry.ack_base = field!(leg.next).wrapping_add(field!(leg.seq_add)));
    field!(entry.tries = 0);
    let failed = field!(entry.owner).backend();
    facts_of(client, facts);
    choice.version = env.backend(failed).map_or(0, |backend| field!(backend.version));
    choice.avoid = Avoid { last: failed, tried: 0 };
    decide::backend(env, field!(entry.service), facts, choice);
    if choice.backend == 0 {
        choice.backend = failed;
    }
    let out = place!(scratch.out);
    emit::answer_to(p, out, segment.ack, 0, tcp::RST, 0);
    takes_back(env, entry, &p.key);
    stash::give_back(env, entry);
    if emit::emit(packet, p, out, place!(scratch.text)) == 0 || !way::copy_back(packet) {
        env.count(Reason::WriteFailed);
    }
    field!(scratch.parked = 0);
    Verdict::CONNECT
}
