//! What the splice reads of responses: when the first byte comes, the status, and where the body ends.

use super::{Segment, gather, leg, segment::after, trial};
use crate::{
    account,
    bytes::{Packet, Ref, opaque},
    env::{Env, KernelLoop, Scratch, Tables},
    field, flag,
    network::Network,
    place, trace,
};
use splitter_common::{
    abi::*,
    http::{
        self, Loop, ResponseHead,
        chunks::{Chunks, WINDOW},
        framing,
        lines::{self, Lines},
        verdict,
    },
};

/// [`read`]: it was the head of an interim response (RFC 9110, 15.2), and another one follows.
pub const INTERIM: u32 = 1;
/// [`read`]: the segment has overtaken a head or a size line, without which the end of the response cannot be told, and the backend has to
/// send it again.
pub const OVERTAKEN: u32 = 2;
/// [`read`], [`pieces`]: the head is [`known`] now. Its caller goes on from its own frame: the stack below a reader is full.
pub const KNOWN: u32 = 3;
/// Rounds of the follower for one packet: two a chunk, 64 KB of chunks of 32 bytes.
const CHUNK_ROUNDS: u32 = 4096;
/// The same of the reader of heads in pieces: one for 64 bytes and for each head.
const LINE_ROUNDS: u32 = 4096;

/// Bits of a leg's owner that ask for [`read`].
pub const READ: u8 = leg_flag::AWAIT | leg_flag::CHUNKED;

#[inline(always)]
fn is<F: Family>(leg: Ref<Leg<F>>, flag: u8) -> bool {
    field!(leg.owner).is(flag)
}

/// Data of a backend whose response is awaited: reads one head, when it lies in the packet. Answers 0, [`INTERIM`], [`OVERTAKEN`] or [`KNOWN`].
#[inline(never)]
pub fn read<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, segment: &Segment, leg: Ref<Leg<F>>) -> u32 {
    if !is(leg, leg_flag::AWAIT) || field!(leg.lines).is_begun() || field!(leg.state) != splice_state::ESTABLISHED {
        return 0;
    }
    let at = field!(leg.body_end);
    if after(segment.end(), at) {
        if after(segment.seq, at) {
            return OVERTAKEN;
        }
        let skip = at.wrapping_sub(segment.seq);
        let rest = Segment { at: segment.at.wrapping_add(skip), len: segment.len.wrapping_sub(skip), ..*segment };
        return head(packet, env, &rest, leg);
    }
    0
}

/// The head that comes next is read by [`pieces`]: it does not lie in the packet, or stands behind many interim responses.
#[inline(always)]
pub fn begin<F: Family>(leg: Ref<Leg<F>>) {
    field!(leg.lines = Lines::BEGIN);
}

/// Reads what the segment holds of a head that comes in several, byte by byte. What was read before, and is sent again, passes. Answers 0, [`OVERTAKEN`] or
/// [`KNOWN`].
#[inline(never)]
pub fn pieces<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, segment: &Segment, leg: Ref<Leg<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    if !is(leg, leg_flag::AWAIT) || field!(leg.state) != splice_state::ESTABLISHED {
        return 0;
    }
    let (text, response) = (place!(scratch.text), place!(scratch.response));
    // SAFETY: a Ref points to a live map value; the leg's packets come one after the other.
    let lines = unsafe { &mut (*leg.as_ptr()).lines };
    if !lines.is_begun() {
        return 0;
    }
    if after(segment.seq, field!(leg.body_end)) {
        return OVERTAKEN;
    }
    KernelLoop::repeat(LINE_ROUNDS, |_| {
        let at = field!(leg.body_end);
        let left = segment.end().wrapping_sub(at);
        if left as i32 <= 0 {
            return true;
        }
        if lines.is_fresh() {
            field!(leg.waited = (env.now().wrapping_sub(field!(leg.stamp)) >> WAITED) as u32);
        }
        let len = if left < lines::WINDOW { left } else { lines::WINDOW };
        if !packet.copy_in(segment.at.wrapping_add(at.wrapping_sub(segment.seq)), text, 0, len) {
            return true;
        }
        // SAFETY: a text is longer than a window.
        let used = lines.feed::<KernelLoop>(unsafe { &*text.as_ptr().cast() }, len);
        field!(leg.body_end = at.wrapping_add(used));
        if !lines.is_over() {
            return false;
        }
        lines.head(is(leg, leg_flag::HEAD), response);
        let interim = is_interim(response);
        if interim {
            *lines = Lines::BEGIN;
        }
        !interim
    });
    if !lines.is_over() {
        if !after(segment.end(), field!(leg.body_end)) {
            return 0;
        }
        // More interim responses than a packet has rounds for.
        lines.give_up();
        lines.head(is(leg, leg_flag::HEAD), response);
    }
    KNOWN
}

/// Units of [`Leg::waited`]: nanoseconds, shifted by this.
const WAITED: u32 = 10;

/// Follows a chunked body through the segment. Data that is late, or lost and sent again, is not missed. Answers 0 or [`OVERTAKEN`].
#[inline(never)]
pub fn follow<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, segment: &Segment, leg: Ref<Leg<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    if !is(leg, leg_flag::CHUNKED) || field!(leg.state) != splice_state::ESTABLISHED {
        return 0;
    }
    let text = place!(scratch.text);
    // SAFETY: a Ref points to a live map value; the leg's packets come one after the other.
    let chunks = unsafe { &mut (*leg.as_ptr()).chunks };
    let mut overtaken = 0;
    KernelLoop::repeat(CHUNK_ROUNDS, |_| {
        let at = field!(leg.body_end);
        let left = segment.end().wrapping_sub(at);
        if left as i32 <= 0 {
            return true;
        }
        let skip = chunks.skip();
        if after(segment.seq, at) && segment.seq.wrapping_sub(at) > skip {
            overtaken = OVERTAKEN;
            return true;
        }
        if skip != 0 {
            let passed = if skip < left { skip } else { left };
            chunks.pass(passed);
            field!(leg.body_end = at.wrapping_add(passed));
            return false;
        }
        let len = if left < WINDOW { left } else { WINDOW };
        if !packet.copy_in(segment.at.wrapping_add(at.wrapping_sub(segment.seq)), text, 0, len) {
            return true;
        }
        // SAFETY: a text is longer than a window.
        let used = chunks.feed::<KernelLoop>(unsafe { &*text.as_ptr().cast() }, len);
        field!(leg.body_end = at.wrapping_add(used));
        if !chunks.is_end() && !chunks.is_odd() {
            return false;
        }
        if chunks.is_odd() {
            flag!(set leg.owner, leg_flag::UNSURE);
        }
        flag!(clear leg.owner, leg_flag::CHUNKED);
        true
    });
    if overtaken == 0 && is(leg, leg_flag::CHUNKED) && after(segment.end(), field!(leg.body_end)) {
        // More chunks than a packet has rounds: as above.
        flag!(set leg.owner, leg_flag::UNSURE);
        flag!(clear leg.owner, leg_flag::CHUNKED);
    }
    overtaken
}

/// The head of a response at the beginning of `rest`. Answers as [`read`].
#[inline(always)]
fn head<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, rest: &Segment, leg: Ref<Leg<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let response = place!(scratch.response);
    let len = gather::fill_here(packet, rest, place!(scratch.text), 0);
    let answers_head = field!(leg.owner).is(leg_flag::HEAD);
    http::response::<KernelLoop>(place!(scratch.text), opaque(len), answers_head, place!(scratch.scan), response);
    if response.verdict == verdict::INCOMPLETE || response.verdict == verdict::TOO_LONG {
        begin(leg);
        return 0;
    }
    field!(leg.body_end = field!(leg.body_end).wrapping_add(response.head_len));
    if is_interim(response) { INTERIM } else { KNOWN }
}

/// Another head follows this one (RFC 9110, 15.2).
#[inline(always)]
fn is_interim(response: &ResponseHead) -> bool {
    response.verdict == verdict::COMPLETE && response.status < 200 && response.status != 101
}

/// The head of the response is known, as far as it ever will be: `scratch.response`. It ends at `body_end`. `ack`: what its backend has of the request. Answers 0 or
/// [`OVERTAKEN`].
#[inline(never)]
pub fn known<F: Network, E: Env + Tables<F>>(env: &E, ack: u32, leg: Ref<Leg<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let response = place!(scratch.response);
    let known = response.verdict == verdict::COMPLETE;
    if after(field!(leg.sent), ack) {
        flag!(set leg.owner, leg_flag::STASHED);
    }
    let connects = is(leg, leg_flag::UNSURE);
    let tunnel = response.status == 101 || connects && response.status / 100 == 2;
    if tunnel {
        pin(env, scratch, leg);
    } else if connects {
        flag!(clear leg.owner, leg_flag::UNSURE);
    }
    if known && !tunnel && response.framing == framing::LENGTH && response.length < 1 << 31 {
        field!(leg.body_end = field!(leg.body_end).wrapping_add(response.length as u32));
    } else {
        let chunked = known && !tunnel && response.framing == framing::CHUNKED;
        field!(leg.chunks = Chunks::default());
        flag!(set leg.owner, if chunked { leg_flag::CHUNKED } else { leg_flag::UNSURE });
    }
    // Before the next request may come.
    let trial = trial::take(leg);
    if tunnel {
        field!(leg.trial = 0);
    }
    // Behind all that says where the response ends: the CPU that has the client's next request reads it without waiting for this one.
    flag!(clear leg.owner, leg_flag::AWAIT);
    answered(env, response.status as u32, leg, trial);
    0
}

/// The connection has become a tunnel: bytes of the client are no requests any more.
#[inline(never)]
fn pin<F: Network, E: Env + Tables<F>>(env: &E, scratch: Ref<Scratch<F>>, leg: Ref<Leg<F>>) -> u32 {
    let client = place!(scratch.client);
    leg::client_of(leg, client);
    if let Some(flow) = env.spliced(client)
        && !field!(flow.owner).is(splice_flag::BLIND)
    {
        if !field!(flow.owner).is(splice_flag::PINNED) {
            env.count(Reason::PinnedRequest);
        }
        flag!(set flow.owner, splice_flag::PINNED | splice_flag::BLIND);
    }
    0
}

/// Counts a response and its time.
#[inline(never)]
fn answered<F: Network, E: Env>(env: &E, status: u32, leg: Ref<Leg<F>>, trial: u32) -> u32 {
    let Some(backend) = env.backend(field!(leg.owner).backend()) else { return 0 };
    let version = field!(backend.version);
    if let Some(counters) = env.counters(version) {
        let class = status / 100;
        let class = opaque(if class > 5 { 0 } else { class }) as usize & 7;
        if class < 6 {
            // SAFETY: below the array's length; a Ref points to a live map value.
            unsafe { *(&raw mut (*counters.as_ptr()).status).cast::<u64>().add(class) += 1 };
        }
    }
    trial::answered(env, backend, trial, status);
    let begun = field!(leg.lines).is_begun();
    let spent = if begun { (field!(leg.waited) as u64) << WAITED } else { env.now().wrapping_sub(field!(leg.stamp)) };
    trace::answered(env, leg, status, spent);
    account::sample(env, version, Measure::FirstByte as u32, trial, spent)
}
