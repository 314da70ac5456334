//! What becomes of layer 4's trials: see `splitter_common::abi::trial`. What a TCP connection remembers of its trial lies in its forward entry of
//! `HALF`, from the SYN to the first response byte; a UDP flow's follows from its flags.
//!
//! ```text
//! SYN ------------------------> begins, pending
//! SYN-ACK --------------------> rests: the client may be nobody
//! client's first payload -----> pending
//! backend's first payload ----> answered
//! RST, ICMP, nobody left -----> refused, unavailable
//! client gives up ------------> unopened, abandoned
//! backend ends it ------------> closed, cut
//! ```

use crate::{
    account,
    bytes::Ref,
    env::{Env, Tables},
    field,
    network::Network,
    packet::{Parsed, tcp},
};
use splitter_common::abi::{
    trial::{flag, outcome, timing, word},
    *,
};

/// Who ends a flow: the packet's flags, or the node, which resets both ends: for want of the backend, or because the policy says so.
pub const BY_PACKET: u32 = 0;
pub const BY_NODE: u32 = 1;
pub const BY_POLICY: u32 = 2;

/// A SYN is sent again when this has passed since it was sent first, nanoseconds: the first retransmission timer is 1 s (RFC 6298, 2), and clocks
/// and queues on the way may shorten what the node sees of it. One that comes sooner is a copy, made by the network or by somebody who wants
/// backends suspected.
pub const SENT_AGAIN: u64 = 800_000_000;
/// A client that sends its FIN within this after its first payload has said all that it wants to say, and waits for the answer; later, it has
/// given up. Nanoseconds.
const HALF_CLOSE: u64 = 100_000_000;
/// A backend that ends a connection this long after its handshake, on which its client has not said anything, tidies up. Nanoseconds.
const TIDY: u64 = 5_000_000_000;

/// The word of a UDP flow's trial, or of an answered one.
#[inline(always)]
pub fn of_flow<F: Family>(flow: &Flow<F>) -> u32 {
    flag::UNDER_WAY | if flow.is(flow_flag::RULED) { flag::RULED } else { 0 }
}

/// Counts an outcome of a trial that nothing remembers.
#[inline(always)]
pub fn count<F: Family, E: Env>(env: &E, version: u32, flow: &Flow<F>, outcome: u32) {
    if let Some(counters) = account::trials(env, version) {
        account::add(counters, of_flow(flow), outcome);
    }
}

/// The word of a trial whose note was evicted, from the backend's direction of its flow: it was not pending for long when that was last seen.
/// `asked`: 1 when the client has sent something.
#[inline(always)]
fn guess<F: Family>(backend: Ref<Backend>, back: &Flow<F>, asked: u32) -> u32 {
    let wanted = if back.is(flow_flag::RULED) { timing::RULED } else { timing::DRAWN };
    let pending = if asked != 0 && field!(backend.timing) & wanted != 0 { flag::PENDING } else { 0 };
    word(back.last, of_flow(back) | pending)
}

/// The trial of a TCP flow ends before the first response byte, or with it. `forward`: key of the client's packets; `back`: the other direction's
/// entry as it was; `outcome`: as in [`outcome`], or `TRIALS` for none. 1: it counts as that.
#[inline(never)]
pub fn over<F: Network, E: Env + Tables<F>>(env: &E, forward: &FlowKey<F>, back: Ref<Flow<F>>, outcome: u32, asked: u32) -> u32 {
    let flow = back.get();
    let Some(backend) = env.backend(flow.backend()) else { return 0 };
    let trial = match env.half(forward) {
        Some(half) => field!(half.trial),
        None => guess(backend, &flow, asked),
    };
    if outcome == outcome::TRIALS {
        account::rests(env, backend, trial);
        return 0;
    }
    account::ended(env, backend, trial, outcome)
}

/// What the FIN or RST in hand, or the node's reset, makes of a flow's trial. `forward`, `back`: the entries of the two directions, if they are
/// there. An [`outcome`]; `TRIALS`: it ends as none; `COUNT`: it goes on.
#[inline(always)]
pub fn outcome_of<F: Network, E: Env + Tables<F>>(
    env: &E,
    p: &Parsed<F>,
    by: u32,
    reverse: bool,
    forward: Option<Flow<F>>,
    back: &Flow<F>,
    key: &FlowKey<F>,
) -> u32 {
    let reset = p.flags & tcp::RST != 0;
    let asked = forward.is_none_or(|flow| !flow.is(flow_flag::YOUNG));
    let left = back.is(flow_flag::PEER_FIN);
    if !back.is(flow_flag::YOUNG) {
        let cut = back.is(flow_flag::REPLIED) && (by == BY_PACKET && reverse && reset && !left || by == BY_NODE);
        return if cut { outcome::CUT } else { outcome::COUNT };
    }
    if by != BY_PACKET {
        return if by == BY_NODE { outcome::UNAVAILABLE } else { outcome::TRIALS };
    }
    // Since the handshake, or since the client asked.
    let since = env.half(key).map_or(u64::MAX, |half| env.now().wrapping_sub(field!(half.stamp)));
    if reverse {
        return if !asked && (left || since >= TIDY) { outcome::TRIALS } else { outcome::CLOSED };
    }
    if reset {
        return if asked { outcome::ABANDONED } else { outcome::TRIALS };
    }
    let at_once = since < HALF_CLOSE;
    if asked && !at_once { outcome::ABANDONED } else { outcome::COUNT }
}
