//! From the first byte of a request to its complete head.

use super::{close, emit, fit, segment::Segment, stash};
use crate::{
    bytes::{COPY, Packet, Ref, opaque},
    env::{Env, KernelLoop, Tables},
    field,
    network::Network,
    packet::{Parsed, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::{
    abi::*,
    decide::NO_RULE,
    http::{self, HEAD_LIMIT, HeadText, Loop, RequestHead, verdict},
};

/// Copies what a segment carries into a text, as far as it has room from `offset` on; the number of bytes.
#[inline(never)]
pub fn fill<P: Packet>(packet: &mut P, segment: &Segment, text: &mut HeadText, offset: u32) -> u32 {
    fill_here(packet, segment, text, offset)
}

/// [`fill`] without a frame of its own.
#[inline(always)]
pub fn fill_here<P: Packet>(packet: &mut P, segment: &Segment, text: &mut HeadText, offset: u32) -> u32 {
    let room = HEAD_LIMIT.saturating_sub(offset);
    let len = if segment.len < room { segment.len } else { room };
    let mut done = 0;
    KernelLoop::repeat(HEAD_LIMIT / COPY, |_| {
        let left = len.wrapping_sub(done);
        let piece = if left > COPY { COPY } else { left };
        if !packet.copy_in(segment.at.wrapping_add(done), text, offset.wrapping_add(done), piece) {
            return true;
        }
        done += piece;
        done >= len
    });
    done
}

/// Reads the head in the scratch text. Fills `scratch.request`.
#[inline(never)]
pub fn scan<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (facts, text, scan) = (place!(scratch.facts), place!(scratch.text), place!(scratch.scan));
    crate::lb::facts_of(key, facts);
    let (head, len) = (place!(scratch.request), opaque(field!(scratch.read)));
    // A service without rules has an empty value: another state here would be verified with the whole scanner once more.
    let Some(rules) = env.http_rules(field!(entry.service)) else {
        *head = RequestHead { verdict: verdict::TOO_LONG, ..RequestHead::default() };
        return 0;
    };
    resume::<F, E>(env, entry, rules);
    rules.with(|rules| http::go_on::<KernelLoop>(text, len, Some(rules), &facts.client, scan, head));
    field!(scratch.ruled = rules.with(|rules| http::rule(rules, head.facts)).unwrap_or(NO_RULE));
    1
}

/// Makes `scratch.scan` ready: for the rest of a head of which a part has been read, or for the first byte of one.
#[inline(never)]
fn resume<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, rules: Ref<HttpRules>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let id = field!(rules.id);
    field!(scratch.rules = id);
    if field!(entry.state) == splice_state::GATHERING
        && let Some(stash) = stash::at(env, entry)
        && !place!(stash.scan).is_fresh()
        && field!(stash.rules) == id
    {
        // SAFETY: two values of maps; not by way of the stack.
        unsafe { core::ptr::copy_nonoverlapping(&raw const (*stash.as_ptr()).scan, &raw mut (*scratch.as_ptr()).scan, 1) };
        return 1;
    }
    rules.with(|rules| http::begin(Some(rules), place!(scratch.scan)));
    0
}

/// Keeps how far the head in a stash has been read.
#[inline(never)]
pub fn keep<F: Network, E: Env + Tables<F>>(env: &E, stash: Ref<Stash>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    // SAFETY: as in `resume`.
    unsafe { core::ptr::copy_nonoverlapping(&raw const (*scratch.as_ptr()).scan, &raw mut (*stash.as_ptr()).scan, 1) };
    field!(stash.rules = field!(scratch.rules));
    1
}

/// A segment of a client whose head is not complete.
#[inline(never)]
pub fn more<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    if segment.is(tcp::RST) {
        if segment.seq != field!(entry.next) {
            return fit::challenge(env, p, entry, field!(entry.next));
        }
        stash::give_back(env, entry);
        env.drop_spliced(&p.key);
        return Verdict::DROP;
    }
    let Some(stash) = stash::at(env, entry) else {
        // What is missing has been acknowledged: nobody has it any more.
        stash::lost(env, field!(entry.service), Reason::HeadLate);
        close::forget(env, p, entry, trial::outcome::ABANDONED);
        return Verdict::RESET;
    };
    if segment.is(tcp::FIN) && segment.len == 0 && segment.seq == field!(entry.next) {
        // The rest of the head will not come.
        close::forget(env, p, entry, trial::outcome::ABANDONED);
        return Verdict::RESET;
    }
    field!(entry.window = segment.window);
    let next = field!(entry.next);
    // A keep-alive probe (RFC 9293, 3.8.4): its number is one that the node has acknowledged, and no backend may answer for that.
    let probes = segment.seq == next.wrapping_sub(1);
    if segment.len == 0 && !probes && field!(entry.owner).backend() != 0 {
        // Acknowledges what the leg in use still sends.
        return Verdict::PLAIN;
    }
    let out = place!(scratch.out);
    if segment.len == 0 || segment.seq != next {
        // Sent again, out of order, or a probe: what the node has is said once more.
        let window = stash::window(field!(stash.len), field!(entry.options));
        emit::acknowledge(packet, p, segment, out, field!(entry.ack_base), next, window);
        // A pure acknowledgement needs no answer; a probe (RFC 9293, 3.8.6.1) does.
        return if segment.len == 0 && segment.seq == next { Verdict::DROP } else { Verdict::ANSWER };
    }
    let used = field!(stash.len);
    // SAFETY: the stash is this flow's.
    let text = unsafe { &mut (*stash.as_ptr()).text };
    let got = fill(packet, segment, text, used);
    let len = used.wrapping_add(got);
    field!(stash.len = len);
    field!(entry.next = next.wrapping_add(got));
    env.copy_text(place!(scratch.text), text, len);
    field!(scratch.read = len);
    Verdict::READ
}
