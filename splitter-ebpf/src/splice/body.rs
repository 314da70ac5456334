//! Request bodies in chunks (RFC 9112, 7.1), followed as those of responses are: behind the last one begins the next request. And what stands
//! behind a request before its answer.
//!
//! A chunk whose size has been read is as good as a body with a length: its data is translated unread, in any order. Only segments that
//! carry a byte between the data of two chunks come here.

use super::{Segment, leg, request, segment::after, stash};
use crate::{
    bytes::{Packet, Ref, opaque},
    env::{Env, KernelLoop, Tables},
    field, flag,
    network::Network,
    packet::Parsed,
    place, trace,
    verdict::Verdict,
};
use splitter_common::{
    abi::*,
    http::{HEAD_LIMIT, Loop, chunks::WINDOW},
};

/// Rounds for one packet: two a chunk. So many, and one for each sixteen bytes: outsiders choose how small chunks are.
const ROUNDS: u32 = 64;
const BYTES_PER_ROUND: u32 = 16;
/// Most data of a chunk that is passed over at once: a number so far ahead still compares rightly with one of a segment that was sent long ago.
const AHEAD: u32 = 1 << 30;

/// Where the bytes are that have not been read yet: in the flow's stash while its request waits there, else in the packet.
#[derive(Clone, Copy)]
struct Source {
    /// Number of the first and behind the last one.
    from: u32,
    end: u32,
    /// 1: in the stash.
    stashed: u32,
}

/// A client's data behind the end of the request under way, as far as that is known. `scratch.step` says what becomes of the packet.
#[inline(always)]
pub fn body<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::DROP };
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(entry) = env.spliced(&p.key) else { return Verdict::DROP };
    let mut source = Source { from: segment.seq, end: segment.end(), stashed: 0 };
    if field!(entry.state) != splice_state::ESTABLISHED {
        let Some(stash) = stash::at(env, entry) else { return Verdict::DROP };
        source.from = field!(entry.request_at);
        source.end = source.from.wrapping_add(field!(stash.len));
        source.stashed = 1;
    }
    if field!(entry.owner).is(splice_flag::CHUNKED) {
        if after(source.from, field!(entry.body_end)) {
            // It has overtaken a size line.
            env.count(Reason::OutOfOrder);
            return Verdict::DROP;
        }
        follow(packet, env, (&segment, &p.key), entry, source.end as u64 | (source.stashed as u64) << 32);
    }
    behind(packet, env, (&segment, &p.key), entry, source.end as u64 | (source.stashed as u64) << 32);
    let flags = field!(entry.owner).flags();
    if after(source.end, field!(entry.body_end))
        && flags & (splice_flag::PINNED | splice_flag::CHUNKED | splice_flag::BLIND) == splice_flag::PINNED
    {
        return request::or_more::<F, E>(env, entry, field!(scratch.step));
    }
    field!(scratch.step)
}

/// The `len` bytes that come next, a window at most: from the packet by way of the scratch text. `None`: they cannot be read.
#[inline(always)]
fn fetch<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
    stashed: bool,
    len: u32,
) -> Option<*const [u8; WINDOW as usize]> {
    let scratch = Tables::<F>::scratch(env)?;
    let (text, at) = (place!(scratch.text), field!(entry.body_end));
    if !stashed {
        let got = packet.copy_in(segment.at.wrapping_add(at.wrapping_sub(segment.seq)), text, 0, len);
        return got.then(|| text.as_ptr().cast());
    }
    let stash = stash::at(env, entry)?;
    let from = opaque(at.wrapping_sub(field!(entry.request_at))) & (HEAD_LIMIT - 1);
    // SAFETY: the stash is this flow's; a text is longer than its limit by more than a window.
    Some(unsafe { (&raw const (*stash.as_ptr()).text).cast::<u8>().add(from as usize).cast() })
}

/// Follows the chunks of the request under way up to `end` (low half; high half: 1 in the stash).
#[inline(never)]
fn follow<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    (segment, key): (&Segment, &FlowKey<F>),
    entry: Ref<Spliced<F>>,
    source: u64,
) -> u32 {
    let (end, stashed) = (source as u32, source >> 32 != 0);
    // SAFETY: a Ref points to a live map value; the client's packets come one after the other.
    let chunks = unsafe { &mut (*entry.as_ptr()).chunks };
    KernelLoop::repeat(ROUNDS + segment.len / BYTES_PER_ROUND, |_| {
        let at = field!(entry.body_end);
        let left = end.wrapping_sub(at);
        if left as i32 <= 0 {
            return true;
        }
        let skip = chunks.skip();
        if skip != 0 {
            let passed = if skip < AHEAD { skip } else { AHEAD };
            chunks.pass(passed);
            field!(entry.body_end = at.wrapping_add(passed));
            return false;
        }
        let len = if left < WINDOW { left } else { WINDOW };
        let Some(window) = fetch(packet, env, segment, entry, stashed, len) else { return true };
        // SAFETY: as `fetch` says.
        let used = chunks.feed::<KernelLoop>(unsafe { &*window }, len);
        field!(entry.body_end = at.wrapping_add(used));
        chunks.is_end() || chunks.is_odd()
    });
    if chunks.is_end() {
        flag!(clear entry.owner, splice_flag::CHUNKED);
        settle(env, entry, leg_flag::STASHED);
    } else if after(end, field!(entry.body_end)) || chunks.is_odd() {
        // Its end is its backend's to find: odd, or more chunks than a packet has rounds for.
        flag!(clear entry.owner, splice_flag::CHUNKED);
        if !field!(entry.owner).is(splice_flag::PINNED) {
            env.count(Reason::PinnedRequest);
            trace::pinned(env, key, entry, Reason::PinnedRequest);
        }
        flag!(set entry.owner, splice_flag::PINNED | splice_flag::BLIND);
    } else {
        settle(env, entry, 0);
    }
    0
}

/// Tells the leg in use where the request ends. `flag`: [`leg_flag::STASHED`] when it does, and the answer may have come already: the next request
/// waits until the backend has all of this one.
#[inline(always)]
fn settle<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, flag: u8) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    // None yet, or one that has just turned idle: who opens another tells it.
    if let Some(leg) = env.leg(key)
        && field!(leg.state) == splice_state::ESTABLISHED
        && !field!(leg.owner).is(leg_flag::IDLE)
    {
        field!(leg.sent = field!(entry.body_end).wrapping_add(field!(entry.seq_add)));
        flag!(set leg.owner, flag);
    }
}

/// Data behind a request, before its answer. An empty line belongs to the request: some clients send one behind a body (RFC 9112, 2.2). With
/// anything else it cannot be told apart what comes next from its response's time: the connection is pinned.
#[inline(never)]
fn behind<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    (segment, key): (&Segment, &FlowKey<F>),
    entry: Ref<Spliced<F>>,
    source: u64,
) -> u32 {
    let (end, stashed) = (source as u32, source >> 32 != 0);
    let more = end.wrapping_sub(field!(entry.body_end));
    if more as i32 <= 0 || field!(entry.owner).is(splice_flag::PINNED | splice_flag::CHUNKED) {
        return 0;
    }
    if more == 2
        && let Some(window) = fetch(packet, env, segment, entry, stashed, 2)
    {
        // SAFETY: as `fetch` says.
        let [cr, lf, ..] = unsafe { &*window };
        if *cr == b'\r' && *lf == b'\n' {
            field!(entry.body_end = end);
            settle(env, entry, leg_flag::STASHED);
            return 1;
        }
    }
    flag!(set entry.owner, splice_flag::PINNED);
    env.count(Reason::PinnedPipeline);
    trace::pinned(env, key, entry, Reason::PinnedPipeline);
    0
}
