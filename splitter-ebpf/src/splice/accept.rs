//! The client's handshake, the first segment with data, and answers that the node gives itself.

use super::{
    cookie, emit, fit, gather, guard, lock, seen,
    segment::{OPENS, Segment, options},
    stash,
};
use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field, flag,
    lb::frontend_of,
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::{Placed, Stamps},
    trace,
    verdict::Verdict,
};
use splitter_common::{
    abi::*,
    http::{HEAD_LIMIT, chunks::Chunks},
};

/// How long a segment of an unknown connection may be one that overtook the first, jiffies: below the shortest retransmission timeout
/// of common stacks (200 ms) at 250 Hz.
const OVERTAKING: u32 = 40;
/// Data and nothing else, then the end.
const LAST: u8 = tcp::FIN | tcp::ACK | tcp::PSH;

const BAD_REQUEST: [u8; 66] = *b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const FIELDS_TOO_LARGE: [u8; 86] = *b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const UNAVAILABLE: [u8; 74] = *b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The http service that a packet is addressed to; 0: none.
#[inline(never)]
fn http_service<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let frontend = place!(scratch.frontend);
    frontend_of(p, frontend);
    let Some(id) = env.frontend(frontend) else { return 0 };
    let Some(service) = env.service(id) else { return 0 };
    if field!(service.mode) == service_mode::HTTP { id } else { 0 }
}

/// Answers a SYN. Nothing is kept.
#[inline(never)]
pub fn syn<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, segment: &Segment) -> Verdict {
    let id = http_service(env, p);
    let Some(service) = (if id == 0 { None } else { env.service(id) }) else { return Verdict::AGAIN };
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let (out, stamps) = (place!(scratch.out), place!(scratch.stamps));
    let found = cookie::agreed(options(packet, segment, stamps));
    let number = cookie::make(env, &p.key, segment, id, found);
    emit::answer_to(p, out, number, segment.seq.wrapping_add(1), tcp::SYN | tcp::ACK, HEAD_LIMIT as u16);
    out.mss = field!(service.mss);
    let agreed = if field!(service.flags) & service_flag::STAMPS != 0 { u8::MAX } else { !tcp_option::STAMPS };
    out.options = (found >> 24) as u8 & agreed;
    out.stamps = Stamps { val: env.ticks(), ecr: stamps.val };
    out.scale = LOCAL_SCALE;
    Verdict::ANSWER
}

/// A segment of no spliced flow.
#[inline(never)]
pub fn stranger<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, segment: &Segment) -> Verdict {
    let service = http_service(env, p);
    if service == 0 {
        return Verdict::AGAIN;
    }
    if segment.is(tcp::RST) {
        return Verdict::DROP;
    }
    let found = cookie::open(env, &p.key, segment, service);
    if found == cookie::SPENT {
        env.count(if segment.len == 0 { Reason::UnknownConnection } else { Reason::Replayed });
        return Verdict::RESET;
    }
    if found == 0 {
        return if probes(packet, env, p, segment, service) { Verdict::ANSWER } else { unknown(env, p, segment, service) };
    }
    if segment.len == 0 {
        if segment.is(tcp::FIN) {
            return Verdict::RESET;
        }
        env.count(Reason::Handshake);
        return Verdict::DROP;
    }
    let found = found | stamped::<F, P, E>(packet, env, segment);
    let entry = begin(env, p, segment, service, found);
    match entry {
        Some(entry) => gather::more(packet, env, p, segment, entry),
        None => Verdict::DROP,
    }
}

/// Timestamps of a segment, into `scratch.stamps`; their bit, as [`options`] has it. Who sends them has agreed on them.
#[inline(never)]
fn stamped<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, segment: &Segment) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let Some(stamps) = Stamps::read(packet, segment) else { return 0 };
    *place!(scratch.stamps) = stamps;
    (tcp_option::STAMPS as u32) << 24
}

/// A keep-alive probe (RFC 9293, 3.8.4) of a connection without any request yet, whose number is one too low; prepares the answer.
#[inline(always)]
fn probes<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, segment: &Segment, service: u32) -> bool {
    let Some(scratch) = Tables::<F>::scratch(env) else { return false };
    let next = Segment { seq: segment.seq.wrapping_add(1), ..*segment };
    let found = if segment.len > 1 || segment.is(tcp::FIN) { 0 } else { cookie::open(env, &p.key, &next, service) };
    if found & OPENS == 0 {
        return false;
    }
    emit::acknowledge(packet, p, segment, place!(scratch.out), segment.ack, next.seq, stash::window(0, (found >> 24) as u8));
    true
}

/// A connection that the node does not know: reset, but for data that may have overtaken its beginning, which gets a moment.
#[inline(always)]
fn unknown<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, segment: &Segment, service: u32) -> Verdict {
    if segment.len != 0 {
        guard::wrong(env, service);
        let name = lock::flow_hash(&p.key);
        let now = env.ticks();
        match env.stray(name) {
            Some(since) if now.wrapping_sub(since) > OVERTAKING => {}
            Some(_) => {
                env.count(Reason::OutOfOrder);
                return Verdict::DROP;
            }
            None => {
                env.set_stray(name, now);
                env.count(Reason::OutOfOrder);
                return Verdict::DROP;
            }
        }
    }
    env.count(Reason::UnknownConnection);
    Verdict::RESET
}

/// The entry of a new spliced flow.
#[inline(never)]
fn begin<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, segment: &Segment, service: u32, found: u32) -> Option<Ref<Spliced<F>>> {
    let scratch = Tables::<F>::scratch(env)?;
    let s = place!(scratch.spliced);
    s.src = p.key.src;
    s.dst = p.key.dst;
    s.ports = p.key.ports;
    s.nexthop = 0;
    s.mss = found as u16;
    s.owner = Owner::NONE;
    s.last = env.ticks();
    (s.seq_add, s.ack_add, s.ts_ecr_add) = (0, 0, 0);
    (s.ts_val, s.ts_ecr) = (field!(scratch.stamps).val, field!(scratch.stamps).ecr);
    (s.next, s.body_end, s.request_at) = (segment.seq, segment.seq, segment.seq);
    s.ack_base = segment.ack;
    s.idle = [0; IDLE_LEGS];
    s.service = service;
    s.window = segment.window;
    (s.stash, s.stashed) = (0, 0);
    s.state = splice_state::GATHERING;
    s.options = (found >> 24) as u8 & (tcp_option::SCALE | tcp_option::SACK | tcp_option::STAMPS);
    s.scale = (found >> 16 & 15) as u8;
    s.tries = 0;
    s.chunks = Chunks::default();
    s.trial = 0;
    // SAFETY: memory of this CPU, nobody else's.
    let new = unsafe { Ref::new(&raw mut *s) };
    if stash::take(env, &p.key, new) == 0 {
        return None;
    }
    if !env.put_spliced(&p.key, s) {
        env.count(Reason::FlowInsertFailed);
        stash::give_back(env, new);
        return None;
    }
    seen::spend::<F, E>(env);
    env.spliced(&p.key)
}

/// Prepares the node's own answer to a request, in `scratch.out`: `status` with an empty body and the end of the connection, or a reset.
/// `scratch.client` names the connection.
#[inline(never)]
pub fn answer_with<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, status: Placed) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    stash::give_back(env, entry);
    field!(entry.last = env.ticks());
    env.count(if status == Placed::Nobody { Reason::Unavailable } else { Reason::HeadRefused });
    let (out, client) = (place!(scratch.out), place!(scratch.client));
    (out.src, out.dst, out.ports) = (client.dst, client.src, crate::answer::swapped(client.ports));
    (out.seq, out.ack, out.window) = (field!(entry.ack_base), field!(entry.next), 0);
    (out.options, out.offset, out.len) = (field!(entry.options) & tcp_option::STAMPS, 0, 0);
    out.stamps = Stamps { val: field!(entry.ts_ecr), ecr: field!(entry.ts_val) };
    let reset = status == Placed::Nobody && env.service(field!(entry.service)).is_some_and(|s| field!(s.flags) & service_flag::RESET != 0);
    if field!(entry.state) != splice_state::ANSWERED {
        trace::refused(env, entry, if reset { 0 } else { status as u32 });
    }
    if reset {
        out.flags = tcp::RST | tcp::ACK;
        env.drop_spliced(client);
        env.drop_answered(client);
        return 1;
    }
    out.flags = LAST;
    let text = place!(scratch.text);
    if status == Placed::Refused {
        text[..BAD_REQUEST.len()].copy_from_slice(&BAD_REQUEST);
        out.len = BAD_REQUEST.len() as u32;
    } else if status == Placed::TooLarge {
        text[..FIELDS_TOO_LARGE.len()].copy_from_slice(&FIELDS_TOO_LARGE);
        out.len = FIELDS_TOO_LARGE.len() as u32;
    } else {
        text[..UNAVAILABLE.len()].copy_from_slice(&UNAVAILABLE);
        out.len = UNAVAILABLE.len() as u32;
    }
    field!(entry.tries = said(status));
    if field!(entry.state) != splice_state::ANSWERED {
        field!(entry.state = splice_state::ANSWERED);
        // SAFETY: a Ref points to a live map value; the kernel copies it.
        env.put_answered(client, unsafe { &*entry.as_ptr() });
        env.drop_spliced(client);
    }
    1
}

/// What [`Spliced::tries`] of an answered client says, and what it means: the answer's status and length.
#[inline(always)]
const fn said(status: Placed) -> u8 {
    match status {
        Placed::Refused => 1,
        Placed::TooLarge => 2,
        _ => 0,
    }
}

#[inline(always)]
const fn answer_of(said: u8) -> (Placed, u32) {
    match said {
        1 => (Placed::Refused, BAD_REQUEST.len() as u32),
        2 => (Placed::TooLarge, FIELDS_TOO_LARGE.len() as u32),
        _ => (Placed::Nobody, UNAVAILABLE.len() as u32),
    }
}

/// A client that was answered by the node: it acknowledges, sends its request again, closes.
#[inline(never)]
pub fn answered<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    if segment.is(tcp::RST) {
        if !fit::resets(segment.seq, field!(entry.next), true) {
            return fit::challenge(env, p, entry, field!(entry.next));
        }
        env.drop_answered(&p.key);
        return Verdict::DROP;
    }
    let (status, len) = answer_of(field!(entry.tries));
    let end = field!(entry.ack_base).wrapping_add(len).wrapping_add(1);
    let out = place!(scratch.out);
    if segment.is(tcp::FIN) {
        emit::acknowledge(packet, p, segment, out, end, segment.end().wrapping_add(1), 0);
        if segment.ack == end {
            env.drop_answered(&p.key);
        } else {
            flag!(set entry.owner, splice_flag::FIN);
        }
        return Verdict::ANSWER;
    }
    if segment.len == 0 {
        if segment.ack == end && field!(entry.owner).is(splice_flag::FIN) {
            env.drop_answered(&p.key);
        }
        return Verdict::DROP;
    }
    // It has not heard the answer, or sends more than was asked for.
    *place!(scratch.client) = p.key;
    field!(entry.next = segment.end());
    answer_with(env, entry, status);
    Verdict::ANSWER
}
