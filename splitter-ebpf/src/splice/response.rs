//! What the splice reads of responses: when the first byte comes, the status, and where the body ends.

use super::{Rounds, Segment, gather, leg, segment::after};
use crate::{
    account,
    bytes::{Packet, Ref, opaque},
    env::{Env, Tables},
    field, flag,
    network::Network,
    place,
};
use splitter_common::{
    abi::*,
    http::{self, framing, verdict},
};

/// Interim responses (RFC 9110, 15.2) that may stand before a final one in one segment.
const INTERIM: u32 = 2;

/// Bits of a leg's owner that ask for [`read`].
pub const READ: u32 = ((leg_flag::AWAIT | leg_flag::CHUNKED) as u32) << 24;

/// Data of a backend whose response is awaited, or chunked.
#[inline(never)]
pub fn read<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, segment: &Segment, leg: Ref<Leg<F>>) -> u32 {
    let mut i = 0;
    while i <= INTERIM {
        if field!(leg.owner) >> 24 & leg_flag::AWAIT as u32 == 0 || field!(leg.state) != splice_state::ESTABLISHED {
            break;
        }
        let at = field!(leg.body_end);
        if after(segment.seq, at) || !after(segment.end(), at) {
            // Its beginning is still to come.
            return 0;
        }
        let skip = at.wrapping_sub(segment.seq);
        let rest = Segment { at: segment.at.wrapping_add(skip), len: segment.len.wrapping_sub(skip), ..*segment };
        head(packet, env, &rest, leg);
        i += 1;
    }
    0
}

/// The head of a response at the beginning of `rest`.
#[inline(never)]
fn head<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, rest: &Segment, leg: Ref<Leg<F>>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let response = place!(scratch.response);
    let len = gather::fill(packet, rest, place!(scratch.text), 0);
    let answers_head = field!(leg.owner) >> 24 & leg_flag::HEAD as u32 != 0;
    http::response::<Rounds>(place!(scratch.text), opaque(len), answers_head, place!(scratch.scan), response);
    let at = field!(leg.body_end).wrapping_add(response.head_len);
    let known = response.verdict == verdict::COMPLETE;
    if known && response.status < 200 && response.status != 101 {
        field!(leg.body_end = at);
        return 0;
    }
    flag!(clear leg.owner, leg_flag::AWAIT);
    answered(env, response.status as u32, leg);
    if response.status == 101 {
        let client = place!(scratch.client);
        leg::client_of(leg, client);
        if let Some(flow) = env.spliced(client) {
            flag!(set flow.owner, splice_flag::PINNED);
        }
    }
    if known && response.framing == framing::LENGTH && response.length < 1 << 31 {
        field!(leg.body_end = at.wrapping_add(response.length as u32));
    } else {
        field!(leg.body_end = at);
        flag!(set leg.owner, leg_flag::UNSURE);
    }
    1
}

/// Counts a response and its time.
#[inline(never)]
fn answered<F: Network, E: Env>(env: &E, status: u32, leg: Ref<Leg<F>>) -> u32 {
    let Some(backend) = env.backend(field!(leg.owner) & 0xff_ffff) else { return 0 };
    let version = field!(backend.version);
    if let Some(counters) = env.counters(version) {
        let class = status / 100;
        let class = opaque(if class > 5 { 0 } else { class }) as usize & 7;
        if class < 6 {
            // SAFETY: below the array's length; a Ref points to a live map value.
            unsafe { *(&raw mut (*counters.as_ptr()).status).cast::<u64>().add(class) += 1 };
        }
    }
    account::sample(env, version, Measure::FirstByte as u32, env.now().wrapping_sub(field!(leg.stamp)))
}
