//! Spliced flows with a leg: the next request, and whatever is not a plain packet.

use super::{
    Segment, again, close, emit, fit, leg,
    segment::{after, is_near, options},
    stash, trial,
};
use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field, flag,
    lb::{find_nexthop, kept_nexthop},
    nat::{self, Renumber},
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::Stamps,
    verdict::Verdict,
};
use splitter_common::abi::{trial::outcome, *};

/// A client's packet that is not plain.
#[inline(never)]
pub fn client<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, segment: &Segment, entry: Ref<Spliced<F>>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let flags = field!(entry.owner).flags();
    if flags & splice_flag::RESET != 0 {
        env.count(Reason::WeightChangeReset);
        close::part(env, p, entry);
        return Verdict::RESET;
    }
    if flags & splice_flag::STASHED != 0 && segment.len != 0 {
        let stash = stash::at(env, entry);
        let end = stash.map_or(field!(entry.body_end), |stash| field!(stash.len).wrapping_add(field!(entry.request_at)));
        if after(end, segment.seq) && stash.is_none() {
            // A part of the request is nowhere any more.
            stash::lost(env, field!(entry.service), Reason::HeadLate);
            close::forget(env, p, entry, outcome::CLOSED);
            return Verdict::RESET;
        }
        if after(end, segment.seq) {
            // It sends again what the node has acknowledged in part: the leg gets all of it once more.
            *place!(scratch.client) = p.key;
            return Verdict::DELIVER;
        }
    }
    if again::repeats(segment, entry) && again::asks_again(env, entry) != 0 {
        return Verdict::UNHEARD;
    }
    let request = segment.len != 0 && flags & splice_flag::BLIND == 0 && after(segment.end(), field!(entry.body_end));
    if request && !segment.is(tcp::RST) { Verdict::READ } else { Verdict::PLAIN }
}

/// A client's packet for the leg in use, translated.
#[inline(never)]
pub fn plain<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::DROP };
    let segment = &segment;
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(entry) = env.spliced(&p.key) else { return Verdict::DROP };
    let Some(backend) = env.backend(field!(entry.owner).backend()) else { return Verdict::DROP };
    if !backend_state::finishes(field!(backend.state)) {
        env.count(Reason::BackendDown);
        close::forget(env, p, entry, outcome::UNAVAILABLE);
        return Verdict::RESET;
    }
    let t = place!(scratch.translation);
    (t.src, t.dst, t.ports) = (field!(entry.src), field!(entry.dst), field!(entry.ports));
    (t.version, t.reverse, t.neighbour) = (field!(backend.version), false, 0);
    let kept = field!(entry.nexthop);
    t.nexthop = if kept == STACK { 0 } else { kept as u32 };
    let now = env.ticks();
    if kept == 0 || now.wrapping_sub(field!(entry.last)) >= REFRESH_TICKS {
        if kept != VIA_STACK {
            find_nexthop(packet, env, TCP as u32, t);
            field!(entry.nexthop = kept_nexthop(t));
        }
        field!(entry.last = now);
    }
    if segment.len != 0 && after(segment.end(), field!(entry.next)) {
        field!(entry.next = segment.end());
    }
    let numbers = leg::numbers_of_client(&entry.get());
    *place!(scratch.client) = p.key;
    let owner = field!(entry.owner);
    let mut over = segment.is(tcp::RST) && fit::resets(segment.seq, field!(entry.next), owner.is(splice_flag::FIN));
    if segment.is(tcp::RST) && !over {
        // The backend knows what it expects, and asks when it is not this (RFC 5961, 3.2).
        env.count(Reason::ResetDoubted);
    } else if segment.is(tcp::FIN | tcp::RST) || owner.is(EITHER) {
        over = close::noted_by_client(env, segment, entry) != 0;
    }
    let verdict = forward(packet, env, p, &numbers);
    if over { close::over(env, entry, verdict) } else { verdict }
}

const EITHER: u8 = splice_flag::FIN | splice_flag::PEER_FIN;

/// Forwards by `scratch.translation`. Apart, so that its registers do not lie on the stack under everything else.
#[inline(never)]
fn forward<F: Network, P: Packet, E: Env + Tables<F>, N: Renumber>(packet: &mut P, env: &E, p: &Parsed<F>, numbers: &N) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    nat::forward::forward(packet, env, p, place!(scratch.translation), numbers)
}

/// A packet of the leg in use that is not plain.
#[inline(never)]
pub fn server<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    leg: Ref<Leg<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let client = place!(scratch.client);
    leg::client_of(leg, client);
    let Some(flow) = env.spliced(client) else {
        env.drop_leg(&p.key);
        return Verdict::RESET;
    };
    if segment.is(tcp::SYN) {
        return greeted_again(packet, env, p, segment, flow);
    }
    let far = if segment.is(tcp::RST) { !is_near(segment.seq, field!(leg.next)) } else { !fit::of_backend(segment, flow) };
    if far {
        env.count(Reason::OutOfWindow);
        return Verdict::DROP;
    }
    let Some(backend) = env.backend(field!(leg.owner).backend()) else { return Verdict::DROP };
    let told = field!(flow.owner).is(splice_flag::RESET);
    if (told || !backend_state::finishes(field!(backend.state))) && !segment.is(tcp::RST) {
        return Verdict::CUT;
    }
    let flags = field!(leg.owner).flags();
    if flags & leg_flag::STASHED != 0 {
        delivered(env, segment, flow, leg);
    }
    if segment.is(tcp::FIN) && again::is_unread(segment, flow, leg, client) {
        return Verdict::UNREAD;
    }
    let t = place!(scratch.translation);
    (t.src, t.dst, t.ports) = (field!(leg.src), field!(leg.dst), field!(leg.ports));
    (t.version, t.reverse, t.neighbour) = (field!(backend.version), true, 0);
    let kept = field!(leg.nexthop);
    t.nexthop = if kept == STACK { 0 } else { kept as u32 };
    let now = env.ticks();
    if kept == 0 || now.wrapping_sub(field!(leg.last)) >= REFRESH_TICKS {
        if !P::EGRESS {
            find_nexthop(packet, env, TCP as u32, t);
            field!(leg.nexthop = kept_nexthop(t));
        }
        field!(leg.last = now);
    }
    if segment.len != 0 && after(segment.end(), field!(leg.next)) {
        field!(leg.next = segment.end());
    }
    let numbers = leg::numbers(&leg.get());
    let mut over = segment.is(tcp::RST) && fit::resets(segment.seq, field!(leg.next), flags & leg_flag::FIN != 0);
    let doubted = segment.is(tcp::RST) && !over;
    if doubted {
        // The client asks the backend, as the backend does with a client's.
        env.count(Reason::ResetDoubted);
    } else if segment.is(tcp::FIN | tcp::RST) {
        trial::closed(env, segment, leg);
    }
    if !doubted && (segment.is(tcp::FIN | tcp::RST) || flags & (leg_flag::FIN | leg_flag::PEER_FIN) != 0) {
        over = close::noted_by_server(env, segment, flow, leg) != 0;
    }
    let verdict = forward(packet, env, p, &numbers);
    if over { close::over(env, flow, verdict) } else { verdict }
}

/// The backend has not heard the end of its handshake.
#[inline(never)]
fn greeted_again<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    flow: Ref<Spliced<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    if field!(flow.owner).is(splice_flag::STASHED) {
        return Verdict::DELIVER;
    }
    let out = place!(scratch.out);
    emit::answer_to(p, out, segment.ack, segment.seq.wrapping_add(1), tcp::ACK, field!(flow.window));
    let stamps = place!(scratch.stamps);
    if options(packet, segment, stamps) >> 24 & tcp_option::STAMPS as u32 != 0 {
        out.options = tcp_option::STAMPS;
        out.stamps = Stamps { val: stamps.ecr, ecr: stamps.val };
    }
    Verdict::ANSWER
}

/// The backend has acknowledged the stash: it is not needed any more. Or all of a request that it has answered before it was there.
#[inline(never)]
fn delivered<F: Network, E: Env>(env: &E, segment: &Segment, flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>) -> u32 {
    let missing = after(field!(leg.sent), segment.ack);
    let Some(stash) = stash::at(env, flow) else {
        if !missing {
            flag!(clear flow.owner, splice_flag::STASHED);
            flag!(clear leg.owner, leg_flag::STASHED);
        }
        return 0;
    };
    let end = field!(flow.request_at).wrapping_add(field!(flow.seq_add)).wrapping_add(field!(stash.len));
    if !after(end, segment.ack) {
        flag!(clear flow.owner, splice_flag::STASHED);
        if !missing {
            flag!(clear leg.owner, leg_flag::STASHED);
        }
        stash::give_back(env, flow);
    }
    0
}
