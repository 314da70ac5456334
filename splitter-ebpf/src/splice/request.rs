//! A request whose head has been read: which leg it goes to.

use super::{Segment, accept, close, decide, emit, fit, gather, leg, segment::after, stash, tail, trial};
use crate::{
    bytes::{Packet, Ref, ordered},
    env::{Env, Tables},
    field, flag,
    lb::facts_of,
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::Placed,
    trace,
    verdict::Verdict,
};
use splitter_common::{
    abi::{trial::outcome, *},
    barrier,
    decide::NO_RULE,
    http::{HEAD_LIMIT, chunks::Chunks, framing, verdict},
};

/// Data behind the end of the request under way: `READ` when it is the next request, and `scratch.text` holds it; `CONNECTION` when its numbers do
/// not fit.
#[inline(never)]
pub fn next<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    let Some(current) = env.leg(key) else {
        env.count(Reason::LegLost);
        close::forget(env, p, entry, outcome::UNAVAILABLE);
        return Verdict::RESET;
    };
    if field!(scratch.fits) == fit::NOT && fit::hears(segment, entry, current) == 0 {
        return Verdict::CONNECTION;
    }
    if after(segment.seq, field!(entry.body_end)) {
        env.count(Reason::OutOfOrder);
        return Verdict::DROP;
    }
    if is_empty_line(packet, segment, entry) {
        field!(entry.body_end = segment.end());
        field!(current.sent = field!(entry.body_end).wrapping_add(field!(entry.seq_add)));
        flag!(set current.owner, leg_flag::STASHED);
        return Verdict::PLAIN;
    }
    let mut pinned = field!(entry.owner).is(splice_flag::PINNED) as u32;
    if pinned == 0 {
        pinned = why_pinned(segment.ack, entry, current);
        if pinned != 0 {
            let why = if pinned == PIPELINE { Reason::PinnedPipeline } else { Reason::PinnedResponse };
            env.count(why);
            flag!(set entry.owner, splice_flag::PINNED);
            trace::pinned(env, &p.key, entry, why);
        }
    }
    let skip = field!(entry.body_end).wrapping_sub(segment.seq);
    if pinned == 0 {
        if skip != 0 {
            return rest(packet, env, segment, entry, current);
        }
        if field!(current.owner).is(leg_flag::STASHED) {
            // Answered early, and a part of the request is still missing there: on another leg it would never come.
            env.count(Reason::OutOfOrder);
            return Verdict::DROP;
        }
        field!(entry.window = segment.window);
    }
    // Unknown to the verifier, which would otherwise go through the scanner once for each side of `fill`'s comparisons.
    let len = barrier::forget(place!(scratch.read), segment.len.wrapping_sub(skip));
    let at = segment.at.wrapping_add(skip);
    field!(scratch.read = gather::fill(packet, &Segment { len, at, ..*segment }, place!(scratch.text), 0));
    Verdict::READ
}

/// Whether what a segment brings behind the request under way is an empty line and nothing else: see `body`.
#[inline(always)]
fn is_empty_line<F: Family, P: Packet>(packet: &mut P, segment: &Segment, entry: Ref<Spliced<F>>) -> bool {
    let at = field!(entry.body_end);
    segment.end().wrapping_sub(at) == 2 && ends_line(packet, segment.at.wrapping_add(at.wrapping_sub(segment.seq))) != 0
}

/// 1: CR and LF stand at an offset.
#[inline(never)]
fn ends_line<P: Packet>(packet: &mut P, at: u32) -> u32 {
    (packet.read::<2>(at as usize) == Some(*b"\r\n")) as u32
}

/// The rest of a request that was answered early and the beginning of the next one, in one segment, as a client sends them again when the
/// rest was lost: the leg in use gets its part, and the client sends the other one once more.
#[inline(never)]
fn rest<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
    current: Ref<Leg<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    leg::way(packet, env, entry);
    let (out, t) = (place!(scratch.out), place!(scratch.translation));
    (out.src, out.dst, out.ports) = (t.src, t.dst, t.ports);
    out.seq = segment.seq.wrapping_add(field!(entry.seq_add));
    out.ack = segment.ack.wrapping_add(field!(entry.ack_add));
    out.window = segment.window;
    out.flags = tcp::ACK | tcp::PSH;
    let (len, most) = (field!(entry.body_end).wrapping_sub(segment.seq), field!(current.mss) as u32);
    let most = if most > 1460 { 1460 } else { most };
    let most = leg::stamped(entry, out, most);
    (out.offset, out.len) = (0, if len > most { most } else { len });
    let end = segment.seq.wrapping_add(out.len);
    if after(end, field!(entry.next)) {
        field!(entry.next = end);
    }
    gather::fill(packet, segment, place!(scratch.text), 0);
    Verdict::SEND
}

/// [`why_pinned`]: a request came too early.
const PIPELINE: u32 = 1;
/// [`why_pinned`]: the end of the response is not known.
const RESPONSE: u32 = 2;

/// Whether the request before is over on both sides, so that the next one may go anywhere. 0: it is.
#[inline(always)]
fn why_pinned<F: Network>(ack: u32, entry: Ref<Spliced<F>>, current: Ref<Leg<F>>) -> u32 {
    // What the flags vouch for is read behind them: see `response`. SAFETY: a Ref points to a live map value.
    let flags = Owner::from_word(unsafe { ordered((&raw mut (*current.as_ptr()).owner).cast()) }).flags();
    if flags & (leg_flag::UNSURE | leg_flag::CHUNKED) != 0 {
        return RESPONSE;
    }
    let (next, end) = (field!(current.next), field!(current.body_end));
    let heard = ack.wrapping_add(field!(entry.ack_add)) == next;
    let closing = flags & (leg_flag::FIN | leg_flag::PEER_FIN) != 0;
    if flags & leg_flag::AWAIT != 0 || next != end || !heard || closing {
        return PIPELINE;
    }
    0
}

/// Acts on the head in the scratch text, which `scratch.request` describes.
#[inline(never)]
pub fn read<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    *place!(scratch.client) = p.key;
    field!(scratch.parked = 0);
    let gathered = field!(entry.state) == splice_state::GATHERING;
    if !gathered && field!(entry.owner).is(splice_flag::PINNED) {
        return counted(env, segment, entry);
    }
    if place!(scratch.request).verdict == verdict::INCOMPLETE && field!(scratch.read) < HEAD_LIMIT {
        if !gathered && hold(packet, env, segment, entry) == 0 {
            return Verdict::DROP;
        }
        return incomplete(env, p, entry);
    }
    let (at, ack) = if gathered { (field!(entry.request_at), field!(entry.ack_base)) } else { (segment.seq, segment.ack) };
    let mut placed = place_request(env, p, entry, at);
    if placed == Placed::Ask {
        // Not from there: its frame would lie under that of the choice.
        let (facts, choice) = (place!(scratch.facts), place!(scratch.choice));
        decide::backend(env, field!(entry.service), facts, choice);
        decide::drained(env, choice);
        placed = go(env, p, entry, at as u64 | (ack as u64) << 32);
    }
    trace::asked(env, entry, placed);
    match placed {
        Placed::Stay if gathered => {
            tail::keep(packet, env, segment, entry);
            or_body::<F, E>(env, entry, field!(entry.next), Verdict::DELIVER)
        }
        Placed::Stay => {
            field!(entry.request_at = segment.seq);
            // Data behind the packet would overtake a copy of it.
            let told = field!(scratch.parked) != 0 && field!(scratch.whole) != 0;
            or_body::<F, E>(env, entry, segment.end(), if told { Verdict::SWITCHED } else { Verdict::PLAIN })
        }
        Placed::Open => {
            if !gathered && hold(packet, env, segment, entry) == 0 {
                // It is a new request when it comes again.
                field!(entry.body_end = segment.seq);
                flag!(clear entry.owner, splice_flag::CHUNKED | splice_flag::PINNED | splice_flag::BLIND);
                return Verdict::DROP;
            }
            park(env, entry, field!(entry.request_at), 0);
            trial::given(env, entry, chosen::<F, E>(env));
            tail::keep(packet, env, segment, entry);
            or_body::<F, E>(env, entry, field!(entry.next), Verdict::CONNECT)
        }
        status => {
            if !gathered {
                field!(entry.request_at = segment.seq);
                field!(entry.ack_base = segment.ack);
                field!(entry.next = segment.end());
            }
            leg::park(env, entry, field!(entry.request_at), 0);
            accept::answer_with(env, entry, status);
            Verdict::ANSWER
        }
    }
}

/// Flags of a leg whose backend has more to say, or nothing any more.
const BUSY: u8 = leg_flag::AWAIT | leg_flag::CHUNKED | leg_flag::FIN | leg_flag::PEER_FIN;

/// The next request of a pinned connection: counted, and followed to its end. Where it cannot be read, nothing behind it is.
#[inline(never)]
fn counted<F: Network, E: Env + Tables<F>>(env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let head = place!(scratch.request);
    if head.verdict != verdict::COMPLETE {
        flag!(set entry.owner, splice_flag::BLIND);
        return Verdict::PLAIN;
    }
    begins(env, entry, field!(entry.body_end));
    place!(scratch.choice).ruled = 0;
    let (current, key) = (field!(entry.owner).backend(), place!(scratch.partner));
    leg::key_in_use(entry, key);
    if let Some(leg) = env.leg(key)
        && !field!(leg.owner).is(BUSY)
        && !after(field!(leg.body_end), field!(leg.next))
        && segment.ack.wrapping_add(field!(entry.ack_add)) == field!(leg.next)
    {
        // Its client has heard all that its backend has said: what comes next is the response.
        stay(env, entry, current);
    } else if let Some(backend) = env.backend(current) {
        count(env, current, field!(backend.version));
    }
    or_body::<F, E>(env, entry, segment.end(), Verdict::PLAIN)
}

/// Notes what the head in `scratch.request`, whose first byte has the number `at`, says of its request and its response.
#[inline(always)]
fn begins<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, at: u32) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    let head = place!(scratch.request);
    let options = field!(entry.options) & !(tcp_option::HEAD | tcp_option::CONNECT);
    let method = if head.head_method != 0 { tcp_option::HEAD } else { 0 } | if head.connect_method != 0 { tcp_option::CONNECT } else { 0 };
    field!(entry.options = options | method);
    field!(entry.body_end = at.wrapping_add(head.head_len).wrapping_add(head.length as u32));
    let here = at.wrapping_add(field!(scratch.read));
    let chunked = head.verdict == verdict::COMPLETE && head.framing == framing::CHUNKED;
    field!(scratch.whole = (head.verdict == verdict::COMPLETE && !chunked && !after(field!(entry.body_end), here)) as u32);
    if chunked {
        field!(entry.chunks = Chunks::default());
        flag!(set entry.owner, splice_flag::CHUNKED);
    }
}

/// Most requests of a pinned connection that are read in one packet.
const MORE: u32 = 8;

/// `step`; by way of `splice::body` when the client's data goes on, up to `end`, behind what is known of the request.
#[inline(always)]
pub fn or_body<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, end: u32, step: Verdict) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let flags = field!(entry.owner).flags();
    if !after(end, field!(entry.body_end)) || flags & splice_flag::BLIND != 0 {
        return step;
    }
    if flags & (splice_flag::PINNED | splice_flag::CHUNKED) == splice_flag::PINNED {
        return or_more::<F, E>(env, entry, step);
    }
    field!(scratch.step = step);
    Verdict::BODY
}

/// The packet of a pinned connection holds another request: reads it, unless there are too many.
#[inline(always)]
pub fn or_more<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, step: Verdict) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let more = field!(scratch.more);
    field!(scratch.more = more.wrapping_add(1));
    if more < MORE && field!(entry.state) == splice_state::ESTABLISHED {
        return Verdict::READ;
    }
    flag!(set entry.owner, splice_flag::BLIND);
    step
}

/// Acknowledges the part of a head that is here, so that the client sends the rest even when it waits for that (RFC 896).
#[inline(never)]
fn incomplete<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(stash) = stash::at(env, entry) else { return Verdict::DROP };
    let len = field!(stash.len);
    field!(entry.state = splice_state::GATHERING);
    field!(stash.acknowledged = len);
    gather::keep::<F, E>(env, stash);
    stash::acknowledge(env, entry);
    flag!(set entry.owner, splice_flag::STASHED);
    let window = stash::window(len, field!(entry.options));
    let out = place!(scratch.out);
    emit::answer_to(p, out, field!(entry.ack_base), field!(entry.next), tcp::ACK, window);
    emit::stamp_from(out, entry);
    Verdict::ANSWER
}

/// Takes a slot for a request of `scratch.client` that does not go on at once, and puts the packet's payload there.
#[inline(never)]
pub fn hold<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    stash::give_back(env, entry);
    if stash::take(env, place!(scratch.client), entry) == 0 {
        return 0;
    }
    flag!(clear entry.owner, splice_flag::STASHED);
    field!(entry.state = splice_state::OPENING);
    field!(entry.request_at = segment.seq);
    field!(entry.ack_base = segment.ack);
    field!(entry.next = segment.seq);
    field!(entry.tries = 0);
    field!(entry.last = env.ticks());
    stow(packet, env, segment, entry)
}

/// Puts the packet's payload into the flow's stash.
#[inline(always)]
pub fn stow<F: Network, P: Packet, E: Env>(packet: &mut P, env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    let Some(stash) = stash::at(env, entry) else { return 0 };
    // SAFETY: the stash is this flow's.
    let got = gather::fill(packet, segment, unsafe { &mut (*stash.as_ptr()).text }, 0);
    field!(stash.len = got);
    field!(entry.next = segment.seq.wrapping_add(got));
    got
}

/// Decides for the request whose head `scratch.request` describes, and gives it to the leg in use when that is of the version. `at`: number of its first byte.
#[inline(never)]
fn place_request<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>, at: u32) -> Placed {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Placed::Nobody };
    let (head, facts, choice) = (place!(scratch.request), place!(scratch.facts), place!(scratch.choice));
    let current = field!(entry.owner).backend();
    let unread = head.verdict == verdict::REFUSE || head.verdict == verdict::TOO_LONG || head.verdict == verdict::INCOMPLETE;
    if head.verdict == verdict::REFUSE && current == 0 {
        return Placed::Refused;
    }
    let long = if head.verdict == verdict::TOO_LONG { when_too_long(env, entry) } else { service_flag::LONG_BY_WEIGHT };
    if long & service_flag::LONG_REFUSED != 0 {
        env.count(Reason::HeadTooLong);
        return Placed::TooLarge;
    }
    begins(env, entry, at);
    let apart = long & service_flag::LONG_BY_WEIGHT == 0;
    if head.verdict != verdict::COMPLETE {
        flag!(set entry.owner, splice_flag::PINNED | splice_flag::BLIND);
        env.count(match head.verdict {
            verdict::PIN => Reason::PinnedRequest,
            _ if current != 0 && !apart => Reason::PinnedHead,
            _ => Reason::HeadTooLong,
        });
    }
    if unread {
        head.keyed = 0;
        field!(scratch.ruled = if apart { BASELINE_RULED } else { NO_RULE });
        if current != 0 && !apart {
            choice.ruled = 0;
            return stay(env, entry, current);
        }
    }
    facts_of(&p.key, facts);
    choice.backend = current;
    if decide::choose(env, field!(entry.service), facts, head, at as u64 | (field!(scratch.ruled) as u64) << 32, choice) == 0 {
        return if current != 0 && choice.none == Reason::ServiceUnknown { stay(env, entry, current) } else { Placed::Nobody };
    }
    if choice.backend == 0 { Placed::Ask } else { stay(env, entry, current) }
}

/// What becomes of a head that is too long: the bits of [`service_flag`] that say so.
#[inline(always)]
fn when_too_long<F: Family, E: Env>(env: &E, entry: Ref<Spliced<F>>) -> u8 {
    env.service(field!(entry.service)).map_or(service_flag::LONG_BY_WEIGHT, |service| field!(service.flags))
}

/// The request goes to the backend in `scratch.choice`. `at_ack`: number of its first byte, and above it what the client expects next.
#[inline(never)]
fn go<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>, at_ack: u64) -> Placed {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Placed::Nobody };
    let (choice, current) = (place!(scratch.choice), field!(entry.owner).backend());
    if current != 0 && choice.backend == current {
        return stay(env, entry, current);
    }
    count(env, current, choice.version);
    if choice.backend == 0 {
        let reset = env.service(field!(entry.service)).is_some_and(|service| field!(service.flags) & service_flag::RESET != 0);
        trial::unserved::<F, E>(env, reset as u32);
        return Placed::Nobody;
    }
    if current == 0 { Placed::Open } else { switch(env, p, entry, at_ack) }
}

/// Backend that was chosen.
#[inline(always)]
fn chosen<F: Network, E: Env + Tables<F>>(env: &E) -> u32 {
    Tables::<F>::scratch(env).map_or(0, |scratch| place!(scratch.choice).backend)
}

/// Counts a request for a version. `current`: backend in use, or 0.
#[inline(never)]
fn count<E: Env>(env: &E, current: u32, version: u32) -> u32 {
    let Some(counters) = env.counters(version) else { return 0 };
    field!(counters.requests += 1);
    if current != 0 && env.backend(current).is_none_or(|backend| field!(backend.version) != version) {
        field!(counters.switches += 1);
    }
    0
}

/// The request goes to the leg in use.
#[inline(always)]
fn stay<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, current: u32) -> Placed {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Placed::Stay };
    if let Some(backend) = env.backend(current)
        && let Some(counters) = env.counters(field!(backend.version))
    {
        field!(counters.requests += 1);
    }
    trial::given(env, entry, current);
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    if let Some(leg) = env.leg(key) {
        leg::expect_response(env, leg, entry);
    }
    Placed::Stay
}

/// The request goes to another leg: one that is idle, or one that has to be opened.
#[inline(always)]
fn switch<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>, at_ack: u64) -> Placed {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Placed::Open };
    let (key, wanted) = (place!(scratch.quoted), place!(scratch.choice).backend);
    let Some(backend) = env.backend(wanted) else { return Placed::Open };
    leg::key_to(&p.key, backend, key);
    let Some(leg) = env.leg(key) else { return Placed::Open };
    let usable = field!(leg.state) == splice_state::ESTABLISHED
        && field!(leg.owner).backend() == wanted
        && field!(leg.owner).is(leg_flag::IDLE)
        && leg::belongs(leg, &p.key);
    if !usable {
        return Placed::Open;
    }
    park(env, entry, at_ack as u32, wanted);
    leg::take_up(entry, env, key, leg, at_ack);
    trial::given(env, entry, wanted);
    leg::expect_response(env, leg, entry);
    Placed::Stay
}

/// As [`leg::park`], and remembers whose leg it was.
#[inline(always)]
fn park<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, at: u32, replaced: u32) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    let owner = field!(entry.owner).backend();
    field!(scratch.parked = if leg::park(env, entry, at, replaced) != 0 { owner } else { 0 });
}
