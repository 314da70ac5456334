//! The leg that a request has just left: its backend hears that its response has been received, as far as the request says so.
//!
//! Clients acknowledge the end of a response with their next request, or much later. That request goes elsewhere, so nobody would tell the backend:
//! it sends the end again, takes what was late for lost, and measures a path that is as slow as the leg is idle. When the leg is taken up again, a
//! large response starts with a small window and the pace of that path (BBR, which remembers the last samples, stands still for as long).

use super::{emit, leg, way};
use crate::{
    answer::swapped,
    bytes::Packet,
    env::{Env, Tables},
    field,
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::Stamps,
    verdict::{Action, Verdict},
};
use splitter_common::abi::*;

/// Before packets of the node's own for the leg in use: a copy of the packet in hand tells the leg that `scratch.parked` names. The translation, and
/// what the packet was, are gone then.
#[inline(always)]
pub fn before<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) {
    let Some(scratch) = Tables::<F>::scratch(env) else { return };
    if field!(scratch.parked) == 0 {
        return;
    }
    let verdict = acknowledge(packet, env, p);
    if matches!(verdict.action(), Action::Drop | Action::Neighbour(_)) {
        return;
    }
    let verdict = way::behind::<F, P, E>(packet, env, verdict);
    if !way::copy(packet, verdict) {
        env.count(Reason::WriteFailed);
    }
}

/// Behind a request that has been translated for the leg in use, and which goes by `verdict`: a copy of it does, and the packet in hand tells the leg
/// that `scratch.parked` names.
#[inline(always)]
pub fn behind<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, verdict: Verdict) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return verdict };
    if leg::find_idle::<F, E>(env, field!(scratch.parked)) == 0 {
        return verdict;
    }
    let copied = way::behind::<F, P, E>(packet, env, verdict);
    if !way::copy(packet, copied) {
        return verdict;
    }
    acknowledge(packet, env, p)
}

/// The packet in hand becomes the acknowledgement of all that the idle leg has sent. `DROP`: there is no such leg.
#[inline(never)]
fn acknowledge<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let backend = field!(scratch.parked);
    field!(scratch.parked = 0);
    if leg::find_idle::<F, E>(env, backend) == 0 {
        return Verdict::DROP;
    }
    let key = place!(scratch.partner);
    let (Some(leg), Some(flow)) = (env.leg(key), env.spliced(place!(scratch.client))) else { return Verdict::DROP };
    if !field!(leg.owner).is(leg_flag::IDLE) {
        return Verdict::DROP;
    }
    let (out, t) = (place!(scratch.out), place!(scratch.translation));
    (out.src, out.dst, out.ports) = (key.dst, key.src, swapped(key.ports));
    (out.seq, out.ack, out.flags) = (field!(leg.sent), field!(leg.next), tcp::ACK);
    out.window = leg::window(flow, leg);
    out.options = field!(flow.options) & tcp_option::STAMPS;
    out.stamps = Stamps { val: field!(flow.ts_val), ecr: field!(leg.stamp) as u32 };
    (out.offset, out.len) = (0, 0);
    leg::way_of_idle(packet, env, leg, t, key);
    if emit::emit(packet, p, out, place!(scratch.text)) == 0 {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    way::send(packet, env, t)
}
