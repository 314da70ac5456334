//! The end of a packet that does not fit into a slot: a request with a body, while its leg is being opened.
//!
//! The client has all of it, and has to send again what is missing between. It would only do so at its timer: nothing comes behind what it has sent,
//! since that was as much as it may. So the end of the packet goes to the backend along with the beginning. The backend says that it has it (SACK, RFC
//! 2018; without, it repeats its acknowledgement for each segment), and its client knows at once what is missing: three segments are what it takes
//! (RFC 5681, 3.2; RFC 8985, 6.2).

use super::{Segment, segment::after, stash};
use crate::{
    bytes::{COPY, Packet, Ref},
    env::Env,
    field,
    network::Network,
};
use splitter_common::{abi::*, http::HEAD_LIMIT};

/// Three segments of an Ethernet with timestamps, bytes.
const LEN: u32 = 3 * 1448;
/// Where they lie in a text.
pub const AT: u32 = HEAD_LIMIT - LEN;

/// Behind the decision: keeps the end of the client's packet in the slot, whose text was cut off. Only what surely belongs to the request, and when the
/// client has not been told that what lies in its place is here.
#[inline(never)]
pub fn keep<F: Network, P: Packet, E: Env>(packet: &mut P, env: &E, segment: &Segment, entry: Ref<Spliced<F>>) -> u32 {
    let Some(stash) = stash::at(env, entry) else { return 0 };
    let end = segment.end();
    if !after(end, field!(entry.next)) {
        return 0;
    }
    env.count(Reason::RequestCut);
    let begin = end.wrapping_sub(LEN);
    let beginning = field!(entry.request_at).wrapping_add(AT);
    let known = !field!(entry.owner).is(splice_flag::CHUNKED | splice_flag::PINNED) && !after(end, field!(entry.body_end));
    if !known || segment.len < LEN || after(beginning, begin) || field!(stash.acknowledged) > AT || field!(stash.len) < AT {
        return 0;
    }
    let at = segment.at.wrapping_add(segment.len).wrapping_sub(LEN);
    // SAFETY: the stash is this flow's.
    let text = unsafe { &mut (*stash.as_ptr()).text };
    let copied = packet.copy_in(at, text, AT, COPY)
        && packet.copy_in(at.wrapping_add(COPY), text, AT + COPY, COPY)
        && packet.copy_in(at.wrapping_add(2 * COPY), text, AT + 2 * COPY, LEN - 2 * COPY);
    field!(stash.len = AT);
    field!(entry.next = beginning);
    if copied {
        field!(stash.tail = begin);
        field!(stash.tail_len = LEN);
    }
    1
}

/// A backend takes no more than `window` bytes at first (RFC 9293, 3.8.6): what lies behind that is the client's to send again, unless it has been
/// told that it is here.
#[inline(never)]
pub fn fit<F: Family, E: Env>(env: &E, flow: Ref<Spliced<F>>, window: u16) -> u32 {
    let Some(stash) = stash::at(env, flow) else { return 0 };
    let window = if window == 0 { 1 } else { window as u32 };
    let begin = field!(flow.request_at);
    let end = field!(stash.tail).wrapping_add(field!(stash.tail_len)).wrapping_sub(begin);
    if field!(stash.tail_len) != 0 && end > window {
        field!(stash.tail_len = 0);
    }
    if field!(stash.acknowledged) == 0 && field!(stash.len) > window {
        env.count(Reason::RequestCut);
        field!(stash.len = window);
        field!(stash.tail_len = 0);
        field!(flow.next = begin.wrapping_add(window));
    }
    0
}

/// The slot's text has gone to the backend: its end goes once.
#[inline(always)]
pub fn sent<F: Family>(flow: Ref<Spliced<F>>, stash: Ref<Stash>) {
    let len = field!(stash.tail_len);
    if len == 0 {
        return;
    }
    field!(stash.tail_len = 0);
    let end = field!(stash.tail).wrapping_add(len);
    if after(end, field!(flow.next)) {
        field!(flow.next = end);
    }
}
