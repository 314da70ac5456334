//! Opening a leg: the client's packet becomes a SYN, the backend's SYN-ACK becomes the request. What a backend does not answer, another
//! one gets.

use super::{
    Segment, accept, close, decide, emit, enter, fit, gather, leg, lock, parked, request,
    segment::{after, options},
    stash, tail, trial, way,
};
use crate::{
    account,
    bytes::{Packet, Ref},
    env::{Env, KernelLoop, Scratch, Tables},
    field, flag,
    lb::{all_tried, facts_of, find_nexthop, genuine, opened, silent, suspect},
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::{Pieces, Placed, Stamps},
    verdict::Verdict,
};
use splitter_common::{
    abi::{trial::outcome, *},
    decide::{Avoid, tried_bit},
    http::{HEAD_LIMIT, Loop},
};

/// Age of a SYN after which it is sent again, and after which another backend is tried, nanoseconds. The client's own retransmissions
/// are the clock: at 200 ms and 400 to 600 ms.
pub const AGAIN: u64 = 150_000_000;
pub const ANOTHER: u64 = 350_000_000;
/// Backends that are tried for one request.
const TRIES: u8 = 6;

/// Opens a leg from `scratch.client` to `scratch.choice.backend`: the packet in hand, whoever's it is, becomes the SYN.
#[inline(never)]
pub fn connect<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(entry) = env.spliced(place!(scratch.client)) else { return Verdict::DROP };
    // Source translation goes by the client's packet: a backend's refusal in hand has come by another interface.
    let client = place!(scratch.client);
    let from_client = p.key.src == client.src && p.key.dst == client.dst;
    if enter::route(packet, env, entry, from_client as u32) == 0 {
        // No port for it, or no room in a table: said at once, since nothing tells when there will be.
        trial::failed(env, entry, place!(scratch.choice).backend, outcome::UNAVAILABLE);
        accept::answer_with(env, entry, Placed::Nobody);
        return Verdict::TO_CLIENT;
    }
    if field!(scratch.parked) != 0 {
        parked::before(packet, env, p);
        leg::way(packet, env, entry);
    }
    syn(env, entry)
}

/// The SYN of the leg in use. `scratch.translation` says by which way.
#[inline(always)]
fn syn<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let out = place!(scratch.out);
    (out.src, out.dst, out.ports) = (field!(entry.src), field!(entry.dst), field!(entry.ports));
    out.seq = field!(entry.request_at).wrapping_sub(1);
    out.ack = 0;
    let window = (field!(entry.window) as u32) << (field!(entry.scale) & 15);
    out.window = if window > 0xffff { 0xffff } else { window as u16 };
    out.mss = field!(entry.mss);
    out.flags = tcp::SYN;
    out.options = field!(entry.options) & (tcp_option::SCALE | tcp_option::SACK | tcp_option::STAMPS);
    out.stamps = Stamps { val: field!(entry.ts_val), ecr: 0 };
    out.scale = field!(entry.scale);
    (out.offset, out.len) = (0, 0);
    Verdict::SEND
}

/// A client's packet while its leg is being opened.
#[inline(never)]
pub fn waiting<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    if segment.is(tcp::RST) {
        let told = stash::at(env, entry).map_or(0, |stash| field!(stash.acknowledged)).wrapping_add(field!(entry.request_at));
        if segment.seq != told && segment.seq != field!(entry.next) {
            return fit::challenge(env, p, entry, told);
        }
    }
    if segment.is(tcp::FIN | tcp::RST) {
        trial::unopened(env, segment, entry);
    }
    if segment.is(tcp::RST) {
        close::forget(env, p, entry, outcome::UNOPENED);
        return Verdict::DROP;
    }
    if segment.len == 0 {
        return Verdict::DROP;
    }
    field!(entry.window = segment.window);
    let mut stash = stash::at(env, entry);
    let displaced = stash.is_none();
    if displaced {
        if field!(entry.owner).is(splice_flag::STASHED) {
            // A part of the head is nowhere any more.
            stash::lost(env, field!(entry.service), Reason::HeadLate);
            close::forget(env, p, entry, outcome::UNOPENED);
            return Verdict::RESET;
        }
        if segment.seq != field!(entry.request_at) || stash::take(env, &p.key, entry) == 0 {
            env.count(Reason::NotYetOpen);
            return Verdict::DROP;
        }
        request::stow(packet, env, segment, entry);
        stash = stash::at(env, entry);
    }
    if segment.seq == field!(entry.next) {
        // More of the request: as much as there is room for goes along.
        if let Some(stash) = stash
            && field!(stash.len) < HEAD_LIMIT
        {
            // SAFETY: the stash is this flow's.
            let text = unsafe { &mut (*stash.as_ptr()).text };
            let got = gather::fill(packet, segment, text, field!(stash.len));
            field!(stash.tail_len = 0);
            if got < segment.len {
                env.count(Reason::RequestCut);
            }
            field!(stash.len = field!(stash.len).wrapping_add(got));
            field!(entry.next = segment.seq.wrapping_add(got));
            return request::or_body::<F, E>(env, entry, segment.seq.wrapping_add(got), Verdict::DROP);
        } else {
            env.count(Reason::NotYetOpen);
        }
        return Verdict::DROP;
    }
    let key = place!(scratch.partner);
    leg::key_in_use(entry, key);
    let Some(leg) = env.leg(key) else {
        env.count(Reason::LegLost);
        close::forget(env, p, entry, outcome::UNAVAILABLE);
        return Verdict::RESET;
    };
    let mut age = env.now().wrapping_sub(field!(leg.stamp));
    if displaced && field!(leg.next) != 0 {
        // It has answered, and what it was to get was not here.
        field!(leg.next = 0);
        field!(leg.stamp = env.now());
        age = AGAIN;
    }
    if age < AGAIN || !after(field!(entry.next), segment.seq) {
        env.count(Reason::NotYetOpen);
        return Verdict::DROP;
    }
    if !displaced {
        env.count(Reason::LegSilent);
    }
    *place!(scratch.client) = p.key;
    if age < ANOTHER {
        leg::way(packet, env, entry);
        return syn(env, entry);
    }
    env.drop_leg(key);
    gives_up(env, entry)
}

/// The backend in use, which has not answered, is left for another one. `scratch.client` names the flow.
#[inline(always)]
pub fn gives_up<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let failed = field!(entry.owner).backend();
    let mut how = SILENT;
    if let Some(backend) = env.backend(failed) {
        let version = field!(backend.version);
        if let Some(counters) = env.counters(version) {
            field!(counters.timeouts += 1);
        }
        let known = silent(env, version);
        // Its own first SYN may have been lost by chance; what was known before it came was not.
        if known == 2 || known == 1 && field!(entry.tries) == 1 {
            how = DARK;
        }
    }
    place!(scratch.choice).backend = failed;
    elsewhere(env, entry, how)
}

/// How a backend failed a request: see [`elsewhere`].
const REFUSED: u32 = 0;
/// It may only be that the SYN was lost.
const SILENT: u32 = 1;
/// As `SILENT`, and nobody of its version has answered for a while.
const DARK: u32 = 2;

/// Tries another backend of the version than `scratch.choice` names, which has failed the request: one that it has not tried yet. When there is none,
/// the request is answered, unless that one has only been silent: a SYN may be lost more than once.
#[inline(always)]
fn elsewhere<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, how: u32) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let (client, facts, choice) = (place!(scratch.client), place!(scratch.facts), place!(scratch.choice));
    let failed = choice.backend;
    suspect(env, failed);
    facts_of(client, facts);
    choice.version = env.backend(failed).map_or(0, |backend| field!(backend.version));
    choice.avoid = Avoid { last: failed, tried: 0 };
    if let Some(stash) = stash::at(env, entry) {
        choice.avoid.tried = field!(stash.tried) | tried_bit(failed);
        field!(stash.tried = choice.avoid.tried);
    }
    decide::backend(env, field!(entry.service), facts, choice);
    let untried = !choice.avoid.has(choice.backend)
        || choice.backend != failed && all_tried(env, field!(entry.service), choice.version, choice.avoid.tried) == 0;
    if choice.backend != 0 && (untried && how != DARK || how == SILENT) && field!(entry.tries) < TRIES {
        return Verdict::CONNECT;
    }
    trial::failed(env, entry, failed, if how == REFUSED { outcome::REFUSED } else { outcome::UNOPENED });
    accept::answer_with(env, entry, Placed::Nobody);
    Verdict::TO_CLIENT
}

/// The way of `scratch.out`, which is for the client, whoever's packet is in hand.
#[inline(never)]
pub fn towards_client<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let (out, t) = (place!(scratch.out), place!(scratch.translation));
    if p.key.src == out.dst {
        return Verdict::ANSWER;
    }
    (t.src, t.dst, t.ports) = (out.src, out.dst, out.ports);
    find_nexthop(packet, env, TCP as u32, t);
    Verdict::SEND
}

/// An answer to a leg's SYN that is no SYN-ACK.
#[inline(never)]
pub fn refused<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Leg<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let client = place!(scratch.client);
    leg::client_of(entry, client);
    let Some(flow) = env.spliced(client) else {
        env.drop_leg(&p.key);
        return Verdict::DROP;
    };
    let expected = field!(flow.request_at);
    if segment.is(tcp::RST) {
        // Who is not behind the backend's interface has no say.
        let genuine = segment.ack == expected && genuine(packet, env, field!(entry.forward), &p.key) != 0;
        return if genuine { refuses(env, &p.key, flow, entry) } else { Verdict::DROP };
    }
    if segment.ack == expected || !segment.is(tcp::ACK) || genuine(packet, env, field!(entry.forward), &p.key) == 0 {
        return Verdict::DROP;
    }
    // A challenge (RFC 9293, 3.10.7.4): the backend still has a connection of this client's port, or has it in TIME-WAIT.
    env.count(Reason::StaleLeg);
    emit::answer_to(p, place!(scratch.out), segment.ack, 0, tcp::RST, 0);
    Verdict::STALE
}

/// The backend of a leg, whose key is `key`, refuses it.
#[inline(always)]
fn refuses<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    env.count(Reason::LegRefused);
    let failed = field!(leg.owner).backend();
    if let Some(backend) = env.backend(failed)
        && let Some(counters) = env.counters(field!(backend.version))
    {
        field!(counters.refused += 1);
    }
    env.drop_leg(key);
    place!(scratch.choice).backend = failed;
    elsewhere(env, flow, REFUSED)
}

/// An ICMP error says that the SYN of the leg `scratch.quoted` cannot be delivered: that is a refusal, as a RST is (RFC 9293, 3.9.2.2). It must quote
/// the SYN's own number (RFC 5927, 4.1), at `scratch.read`, and come from where the backend is. The packet in hand is used up in any case.
#[inline(never)]
pub fn unreachable<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let (key, client) = (place!(scratch.quoted), place!(scratch.client));
    let Some(leg) = env.leg(key) else { return Verdict::DROP };
    leg::client_of(leg, client);
    if !lock::acquire(env, client) {
        return Verdict::DROP;
    }
    // Again: it may be another one by now, or open.
    let (Some(leg), Some(flow)) = (env.leg(key), env.spliced(client)) else { return Verdict::DROP };
    let quoted = crate::bytes::within::<1024>(field!(scratch.read)).and_then(|at| packet.read::<4>(at as usize + 4));
    let sent = field!(flow.request_at).wrapping_sub(1).to_be_bytes();
    if field!(leg.state) != splice_state::OPENING || field!(flow.state) != splice_state::OPENING || quoted != Some(sent) {
        return Verdict::DROP;
    }
    if genuine(packet, env, field!(leg.forward), key) == 0 {
        return Verdict::DROP;
    }
    refuses(env, key, flow, leg)
}

/// Resets what a backend still has of an old connection, and sends the SYN again. `scratch.out` is the reset.
#[inline(never)]
pub fn reset_stale<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(flow) = env.spliced(place!(scratch.client)) else { return Verdict::DROP };
    if emit::emit(packet, p, place!(scratch.out), place!(scratch.text)) == 0 {
        return Verdict::DROP;
    }
    way::copy_back(packet);
    leg::way(packet, env, flow);
    // The other way round the backend would answer the SYN with another challenge, and the reset would come too late.
    syn(env, flow);
    Verdict::SEND_BEHIND
}

/// A backend's SYN-ACK: the leg is open.
#[inline(never)]
pub fn joined<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    key: &FlowKey<F>,
    segment: &Segment,
    entry: Ref<Leg<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let client = place!(scratch.client);
    leg::client_of(entry, client);
    let Some(flow) = env.spliced(client) else { return Verdict::RESET };
    let number = segment.seq.wrapping_add(1);
    let at = field!(flow.request_at);
    if segment.ack != at || field!(flow.state) != splice_state::OPENING {
        return Verdict::RESET;
    }
    // Who knows the number, and is not behind the backend's interface, may still open the leg: routes are not the same both ways everywhere.
    let proven = genuine(packet, env, field!(entry.forward), key) != 0;
    field!(entry.side = fit::side(packet) | if proven { 0 } else { UNPROVEN });
    if stash::at(env, flow).is_none() {
        // The client sends it again, and the SYN goes out once more.
        if field!(flow.stash) != 0 {
            stash::lost(env, field!(flow.service), Reason::HeadDisplaced);
        }
        field!(entry.next = number);
        return Verdict::DROP;
    }
    tail::fit(env, flow, segment.window);
    let stamps = place!(scratch.stamps);
    let found = options(packet, segment, stamps);
    agree(env, flow, entry, found, stamps);
    let scaled = found >> 24 & tcp_option::SCALE as u32 != 0;
    field!(entry.mss = if found as u16 == 0 { 536 } else { found as u16 });
    field!(
        entry.shift = match (field!(flow.options) & tcp_option::SCALE != 0, scaled) {
            (false, _) => 0,
            (true, true) => (found >> 16 & 15) as i8 - LOCAL_SCALE as i8,
            (true, false) => -(LOCAL_SCALE as i8) - NOT_SCALED,
        }
    );
    leg::take_scale(flow, entry);
    field!(entry.next = number);
    let ack = field!(flow.ack_base);
    field!(entry.seq_add = ack.wrapping_sub(number));
    field!(entry.ack_add = 0);
    field!(flow.ack_add = number.wrapping_sub(ack));
    if let Some(backend) = env.backend(field!(entry.owner).backend()).filter(|_| proven) {
        let version = field!(backend.version);
        account::sample(env, version, Measure::Connect as u32, field!(flow.trial), env.now().wrapping_sub(field!(entry.stamp)));
        if let Some(counters) = env.counters(version) {
            field!(counters.opened += 1);
        }
        opened(env, version);
    }
    field!(entry.state = splice_state::ESTABLISHED);
    leg::expect_response(env, entry, flow);
    field!(flow.tries = 0);
    Verdict::DELIVER
}

/// Timestamps of the leg that has been opened. `found`, `stamps`: what its SYN-ACK says. A backend that does without those that the client was
/// promised is used all the same, since most clients take segments without them (RFC 7323, 3.2, has it that they need not); new clients
/// are promised nothing until the agent knows better.
#[inline(always)]
fn agree<F: Network, E: Env>(env: &E, flow: Ref<Spliced<F>>, leg: Ref<Leg<F>>, found: u32, stamps: &Stamps) {
    if field!(flow.options) & tcp_option::STAMPS & !(found >> 24) as u8 == 0 {
        return leg::stamp(flow, leg, stamps.val);
    }
    env.count(Reason::Unstamped);
    if let Some(service) = env.service(field!(flow.service)) {
        field!(service.flags = field!(service.flags) & !service_flag::STAMPS);
    }
}

/// Sends what the stash of `scratch.client` holds to the leg in use; the packet in hand becomes the last piece.
#[inline(always)]
pub fn deliver<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(flow) = env.spliced(place!(scratch.client)) else { return Verdict::DROP };
    field!(flow.state = splice_state::ESTABLISHED);
    let Some(stash) = stash::at(env, flow) else { return Verdict::DROP };
    let key = place!(scratch.partner);
    leg::key_in_use(flow, key);
    let Some(leg) = env.leg(key) else { return Verdict::DROP };
    let verdict = pieces(packet, env, p, flow, leg);
    tail::sent(flow, stash);
    if field!(stash.acknowledged) != 0 {
        flag!(set flow.owner, splice_flag::STASHED);
        flag!(set leg.owner, leg_flag::STASHED);
    } else {
        stash::give_back(env, flow);
    }
    verdict
}

/// Pieces of the stash, each a segment.
#[inline(never)]
fn pieces<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    flow: Ref<Spliced<F>>,
    leg: Ref<Leg<F>>,
) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(stash) = stash::at(env, flow) else { return Verdict::DROP };
    leg::way(packet, env, flow);
    let (out, t) = (place!(scratch.out), place!(scratch.translation));
    (out.src, out.dst, out.ports) = (t.src, t.dst, t.ports);
    out.ack = field!(leg.next);
    let window = field!(flow.window) as u32;
    let window = if field!(flow.options) & tcp_option::UNSCALED != 0 { window << (field!(flow.scale) & 15) } else { window };
    out.window = if window > 0xffff { 0xffff } else { window as u16 };
    out.flags = tcp::ACK | tcp::PSH;
    let most = field!(leg.mss) as u32;
    let most = if most > 1460 { 1460 } else { most };
    let first = field!(flow.request_at).wrapping_add(field!(flow.seq_add));
    let tail = field!(stash.tail).wrapping_add(field!(flow.seq_add));
    let (len, tail_len) = (field!(stash.len), field!(stash.tail_len));
    *place!(scratch.pieces) = Pieces { first, len, most: leg::stamped(flow, out, most), offset: 0, failed: 0, tail, tail_len };
    let several = len > place!(scratch.pieces).most || tail_len != 0;
    KernelLoop::repeat(PIECES, |i| piece(packet, env, p, scratch, stash, i));
    if place!(scratch.pieces).failed != 0 {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    let verdict = way::send(packet, env, t);
    if several { way::behind::<F, P, E>(packet, env, verdict) } else { verdict }
}

/// Writes the next segment of a stash, and sends it unless it is the last one, which stays in hand. Whether the loop is over.
#[inline(always)]
fn piece<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    scratch: Ref<Scratch<F>>,
    stash: Ref<Stash>,
    i: u32,
) -> bool {
    let (out, t, pieces) = (place!(scratch.out), place!(scratch.translation), place!(scratch.pieces));
    let left = pieces.len.wrapping_sub(pieces.offset);
    out.len = if left > pieces.most { pieces.most } else { left };
    out.offset = pieces.offset;
    out.seq = pieces.first.wrapping_add(pieces.offset);
    // SAFETY: the stash is this flow's.
    if emit::emit(packet, p, out, unsafe { &(*stash.as_ptr()).text }) == 0 {
        pieces.failed = 1;
        return true;
    }
    pieces.offset = pieces.offset.wrapping_add(out.len);
    if pieces.offset >= pieces.len && pieces.tail_len != 0 {
        (pieces.first, pieces.offset) = (pieces.tail.wrapping_sub(tail::AT), tail::AT);
        (pieces.len, pieces.tail_len) = (tail::AT.wrapping_add(pieces.tail_len), 0);
    }
    if pieces.offset >= pieces.len || i == PIECES - 1 {
        return true;
    }
    let verdict = way::send(packet, env, t);
    let verdict = way::behind::<F, P, E>(packet, env, verdict);
    way::copy(packet, verdict);
    false
}

/// Segments of one head: enough for the smallest segments that are usual (RFC 9293, 3.7.1).
const PIECES: u32 = 32;
