//! Whether a segment fits what the node has seen of its connection (RFC 9293, 3.10.7.4; RFC 5961, 3 to 5), and whether it comes from where its
//! sender is. What does not fit moves nothing.
//!
//! The node does not know the ends' windows to the byte: it knows how much they can be at most. So what fits here may still be refused by the end
//! that it is for. A RST is the other way round: the node believes it only at the very number that it expects, and the end decides about
//! others.

use super::{
    Segment, emit, leg,
    segment::{REACH, is_near},
    stash,
};
use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field,
    lb::genuine,
    network::Network,
    packet::{Parsed, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::{abi::*, http::HEAD_LIMIT};

/// Whether the end of a backend's data lies farther ahead than any that can have been lost on the way.
#[inline(always)]
pub const fn is_far(end: u32, next: u32) -> bool {
    let ahead = end.wrapping_sub(next);
    ahead > REACH && ahead < 1 << 31
}

/// Whether a RST has the number that its sender's next segment has (RFC 5961, 3.2). `fin`: the sender's FIN was seen, which takes one; some
/// hosts send a RST before it all the same.
#[inline(always)]
pub const fn resets(seq: u32, next: u32, fin: bool) -> bool {
    seq == next || fin && seq == next.wrapping_add(1)
}

/// Whether a segment acknowledges what the other side may have sent: all of it, its FIN too, or at most `window` less.
#[inline(always)]
const fn acknowledges(ack: u32, sent: u32, window: u32) -> bool {
    sent.wrapping_sub(ack).wrapping_add(1) <= window.wrapping_add(1)
}

/// Largest window of a client.
#[inline(always)]
fn window<F: Family>(entry: Ref<Spliced<F>>) -> u32 {
    0xffff << (field!(entry.scale) & 15)
}

/// Whether a client's segment acknowledges what the leg in use has sent.
#[inline(never)]
pub fn hears<F: Family>(segment: &Segment, entry: Ref<Spliced<F>>, leg: Ref<Leg<F>>) -> u32 {
    (segment.is(tcp::ACK) && acknowledges(segment.ack.wrapping_add(field!(entry.ack_add)), field!(leg.next), window(entry))) as u32
}

/// [`of_client`]: it does not fit.
pub const NOT: u32 = 0;
/// It does.
pub const FITS: u32 = 1;
/// It is what comes next, and acknowledges all: this is the client's own.
pub const EXACT: u32 = 2;

/// Whether a client's segment, without SYN, fits. A RST: its number alone counts.
#[inline(never)]
pub fn of_client<F: Network, E: Env + Tables<F>>(env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return NOT };
    let next = field!(entry.next);
    if !is_near(segment.seq, next) || !is_near(segment.end(), next) {
        return NOT;
    }
    if segment.is(tcp::RST) {
        return FITS;
    }
    if !segment.is(tcp::ACK) {
        return NOT;
    }
    let (mut ack, mut sent) = (segment.ack, field!(entry.ack_base));
    let mut most = window(entry);
    if field!(entry.state) == splice_state::ANSWERED {
        // The node's answer, at most.
        return is_near(ack, sent) as u32;
    }
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    if field!(entry.owner).backend() != 0
        && let Some(leg) = env.leg(key)
        && field!(leg.state) == splice_state::ESTABLISHED
    {
        ack = ack.wrapping_add(field!(entry.ack_add));
        sent = field!(leg.next);
    } else if field!(entry.state) == splice_state::ESTABLISHED {
        // Its leg was evicted: nobody knows.
        most = u32::MAX - 1;
    }
    let fin = (field!(entry.owner).is(splice_flag::FIN)) as u32;
    if ack.wrapping_sub(sent) <= 1 && segment.seq == next.wrapping_add(fin) {
        return EXACT;
    }
    acknowledges(ack, sent, most) as u32
}

/// Whether a segment of the backend in use, without SYN and RST, acknowledges what the client may have sent.
#[inline(always)]
pub fn of_backend<F: Network>(segment: &Segment, flow: Ref<Spliced<F>>) -> bool {
    segment.is(tcp::ACK) && acknowledges(segment.ack, field!(flow.next).wrapping_add(field!(flow.seq_add)), REACH)
}

/// [`Leg::side`] of a backend's packet.
#[inline(always)]
pub fn side<P: Packet>(packet: &P) -> u32 {
    packet.came_by() & !(UNPROVEN | AT_EGRESS) | if P::EGRESS { AT_EGRESS } else { 0 }
}

/// Whether a backend's data may move anything without a closer look: it comes from the backend's side, and not from too far ahead.
#[inline(always)]
pub fn is_plain<F: Family, P: Packet>(packet: &P, segment: &Segment, leg: Ref<Leg<F>>) -> bool {
    field!(leg.side) & !UNPROVEN == side(packet) && !is_far(segment.end(), field!(leg.next))
}

/// The closer look, at any packet of an open leg. `CONTINUE`: it counts, and nothing of it was read that should have been; `SPLICE_SERVER`: it
/// counts, and its data is to be read.
#[inline(always)]
pub fn look<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    leg: Ref<Leg<F>>,
) -> Verdict {
    if segment.len != 0 && is_far(segment.end(), field!(leg.next)) {
        env.count(Reason::OutOfWindow);
        return Verdict::DROP;
    }
    let (before, now) = (field!(leg.side), side(packet));
    if before & !UNPROVEN == now {
        return Verdict::CONTINUE;
    }
    if genuine(packet, env, field!(leg.forward), &p.key) == 0 {
        return Verdict::DROP;
    }
    // The way has changed.
    field!(leg.side = now | before & UNPROVEN);
    if segment.len != 0 { Verdict::SPLICE_SERVER } else { Verdict::CONTINUE }
}

/// A client's RST in the window whose number is not the expected one: the client is asked (RFC 5961, 3.2), since the node speaks for a backend that
/// does not have the connection yet. A client that means it answers with the right number. `ack`: what the node has acknowledged.
#[inline(never)]
pub fn challenge<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Spliced<F>>, ack: u32) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    env.count(Reason::ResetDoubted);
    let out = place!(scratch.out);
    let used = stash::at(env, entry).map_or(HEAD_LIMIT, |stash| field!(stash.len));
    emit::answer_to(p, out, field!(entry.ack_base), ack, tcp::ACK, stash::window(used, field!(entry.options)));
    emit::stamp_from(out, entry);
    Verdict::ANSWER
}
