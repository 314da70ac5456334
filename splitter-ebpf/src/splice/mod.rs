//! Spliced flows: the node accepts a client's connection, reads the head of each request, opens a connection (a *leg*) to a backend of
//! the version that the request belongs to, and from then on rewrites addresses and numbers so that client and backend speak TCP with
//! each other. Delayed binding after Maltz and Bhagwat (TCP splicing, 1998).
//!
//! ```text
//! client                     node                          backend
//!   SYN  ------------------->  cookie (no state)
//!   <------------- SYN, ACK
//!   request ---------------->  GATHERING: head complete?
//!                              OPENING:  SYN, seq = request - 1 --->
//!                                        <------------------ SYN, ACK
//!                              ESTABLISHED:  ACK + request -------->
//!   <---------------------------------------------- response
//!   next request ----------->  same version: translated
//!                              another one: the leg turns idle, and another is opened or taken up again
//! ```
//! The node acknowledges nothing that a backend has not, but the beginning of a head whose end is still to come: the end stays
//! unacknowledged, so the client's timer drives what has to be sent again.
//!
//! Packets of known flows take `client` and `server` straight to `nat::forward`. The rest is TC's, and goes one packet of a connection at a
//! time: see `lock`.

mod accept;
mod again;
mod body;
mod close;
mod cookie;
mod decide;
mod emit;
mod enter;
mod established;
mod fit;
mod gather;
mod guard;
mod leg;
mod lock;
mod numbers;
mod open;
mod parked;
mod request;
mod response;
mod seen;
mod segment;
mod stash;
mod tail;
mod trial;
mod way;

pub use body::body;
pub use lock::release;
pub use numbers::Numbers;
pub use segment::Segment;

use crate::{
    answer,
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field, flag, nat,
    network::Network,
    packet::{Ip, Parsed, tcp, verify},
    place,
    state::Translation,
    verdict::{Action, Verdict},
};
use segment::{OPENS, after, is_near};
use splitter_common::{
    abi::{trial::outcome, *},
    barrier::forget,
};

/// A client's packet to an http frontend. Besides actions: `AGAIN` (layer 4's after all), `RESET`, `Error` and steps, for [`steps`].
#[inline(always)]
pub fn client<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::PASS };
    if let Some(entry) = env.spliced(&p.key)
        && let Some((t, numbers)) = usual_client(env, &segment, entry)
    {
        return nat::forward::forward(packet, env, p, &t, &numbers);
    }
    if P::XDP { Verdict::PASS } else { Verdict::CONNECTION }
}

/// A client's packet that [`client`] left: all that is not plain. A program of its own, so that the calls below do not lie on top of what the
/// common path keeps on the stack.
#[inline(always)]
pub fn connection<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::PASS };
    if verify::holds(packet, env, p) == 0 || !lock::acquire(env, &p.key) {
        return Verdict::DROP;
    }
    if let Some(scratch) = Tables::<F>::scratch(env) {
        field!(scratch.more = 0);
    }
    let entry = match env.spliced(&p.key) {
        None => env.answered(&p.key),
        found => found,
    };
    from_client(packet, env, p, &segment, entry)
}

/// Reads the head in the scratch text and sends the request on its way. A program of its own, so that the verifier comes to the scanner
/// with one state. Comes after [`client`], which holds the lock, or straight from the pipeline with data that most likely is a request.
#[inline(always)]
pub fn read<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::PASS };
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let Some(mut entry) = env.spliced(&p.key) else { return Verdict::SPLICE_CLIENT };
    let mut verdict =
        if field!(scratch.locked) != 0 || asks(&segment, entry, place!(scratch.read)) { Verdict::READ } else { Verdict::PLAIN };
    if verdict == Verdict::READ && field!(scratch.locked) == 0 {
        if verify::holds(packet, env, p) == 0 || !lock::acquire(env, &p.key) {
            return Verdict::DROP;
        }
        // Again: it may be another one by now, or gone.
        match env.spliced(&p.key) {
            Some(again) if asks(&segment, again, place!(scratch.read)) => {
                entry = again;
                field!(scratch.more = 0);
                field!(scratch.fits = fit::NOT);
            }
            _ => {
                lock::release::<F, _>(env);
                return Verdict::SPLICE_CLIENT;
            }
        }
    }
    if verdict == Verdict::READ && field!(entry.state) == splice_state::ESTABLISHED {
        if field!(entry.owner).is(splice_flag::CHUNKED) {
            field!(scratch.step = Verdict::PLAIN);
            return Verdict::BODY;
        }
        verdict = request::next(packet, env, p, &segment, entry);
        if verdict == Verdict::READ {
            leg::heard(packet, &segment, entry);
        }
        if verdict == Verdict::CONNECTION {
            // It may be of another connection.
            lock::release::<F, _>(env);
        }
    }
    if verdict == Verdict::READ {
        gather::scan(env, &p.key, entry);
        verdict = request::read(packet, env, p, &segment, entry);
    }
    if verdict != Verdict::PLAIN {
        return verdict;
    }
    match usual_client(env, &segment, entry) {
        Some((t, numbers)) => nat::forward::forward(packet, env, p, &t, &numbers),
        None if field!(scratch.locked) == 0 => Verdict::SPLICE_CLIENT,
        None => Verdict::PLAIN,
    }
}

/// A packet of a backend of an http service. As [`client`].
#[inline(always)]
pub fn server<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::PASS };
    let Some(entry) = env.leg(&p.key) else { return Verdict::AGAIN };
    if segment.len != 0 && !fit::is_plain(packet, &segment, entry) {
        return if P::XDP { Verdict::PASS } else { Verdict::LEG };
    }
    if segment.len != 0 && field!(entry.owner).is(response::READ) {
        if P::XDP {
            return Verdict::PASS;
        }
        if verify::holds(packet, env, p) == 0 {
            return Verdict::DROP;
        }
        let mut read = response::read(packet, env, &segment, entry);
        // Interim responses (RFC 9110, 15.2) may stand before a final one in one segment.
        if read == response::INTERIM {
            read = response::read(packet, env, &segment, entry);
        }
        if read == response::INTERIM {
            read = response::read(packet, env, &segment, entry);
        }
        if read == response::INTERIM {
            response::begin(entry);
            read = 0;
        }
        if read == 0 {
            read = response::pieces(packet, env, &segment, entry);
        }
        if read == response::KNOWN {
            read = response::known(env, segment.ack, entry);
        }
        if read == response::OVERTAKEN || response::follow(packet, env, &segment, entry) == response::OVERTAKEN {
            env.count(Reason::OutOfOrder);
            return Verdict::DROP;
        }
    }
    if let Some((t, numbers)) = usual_server(env, &segment, entry) {
        return nat::forward::forward(packet, env, p, &t, &numbers);
    }
    if P::XDP { Verdict::PASS } else { Verdict::LEG }
}

/// A backend's packet that [`server`] left, after what it carries of a response was read. As [`connection`].
#[inline(always)]
pub fn leg<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(segment) = Segment::read(packet, p) else { return Verdict::PASS };
    let Some(entry) = env.leg(&p.key) else { return Verdict::AGAIN };
    if !P::EGRESS && field!(entry.nexthop) == VIA_STACK {
        // On its way to the stack: see `VIA_STACK`.
        return Verdict::PASS;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let client = place!(scratch.client);
    leg::client_of(entry, client);
    if verify::holds(packet, env, p) == 0 || !lock::acquire(env, client) {
        return Verdict::DROP;
    }
    // As in `read`.
    let Some(entry) = env.leg(&p.key) else { return Verdict::AGAIN };
    if field!(entry.state) == splice_state::ESTABLISHED {
        let verdict = fit::look(packet, env, p, &segment, entry);
        if verdict == Verdict::SPLICE_SERVER {
            lock::release::<F, _>(env);
        }
        if verdict != Verdict::CONTINUE {
            return verdict;
        }
    }
    from_server(packet, env, p, &segment, entry)
}

/// What is left to do when the splice has made up its mind: a client's packet to translate, packets that the node writes. A program of its own, one step after the other:
/// the kernel allows eight nested calls and 512 bytes of stack. `scratch` says what the steps need.
#[inline(always)]
pub fn steps<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    way::note::<F, P, E>(packet, env);
    let mut verdict = field!(scratch.step);
    if verdict == Verdict::UNHEARD {
        verdict = again::unheard(packet, env, p);
    }
    if verdict == Verdict::UNREAD {
        verdict = again::unread(packet, env, p);
    }
    if verdict == Verdict::PLAIN {
        verdict = established::plain(packet, env, p);
    }
    if verdict == Verdict::SWITCHED {
        verdict = established::plain(packet, env, p);
        verdict = parked::behind(packet, env, p, verdict);
    }
    if verdict == Verdict::UNREACHABLE {
        verdict = open::unreachable::<F, P, E>(packet, env);
    }
    if verdict == Verdict::CONNECT {
        verdict = open::connect(packet, env, p);
    }
    if verdict == Verdict::CUT {
        verdict = close::cut(packet, env, p);
    }
    if verdict == Verdict::STALE {
        verdict = open::reset_stale(packet, env, p);
    }
    if verdict == Verdict::DELIVER {
        parked::before(packet, env, p);
        return open::deliver(packet, env, p);
    }
    if verdict == Verdict::TO_CLIENT {
        verdict = open::towards_client(packet, env, p);
    }
    match verdict.action() {
        Action::Step => emit::finish(packet, env, p, verdict),
        Action::Over(ifindex) => close::reset_idle_legs(packet, env, p, ifindex),
        Action::Reset => answer::reset(packet, env, p),
        Action::Error(_) if verify::holds(packet, env, p) == 0 => Verdict::DROP,
        Action::Error(what) => answer::error(packet, env, p, what),
        _ => verdict,
    }
}

/// Fills the translation, and `scratch.renumber`, of an ICMP error that quotes a packet of a spliced flow; 0: there is none. `key`: the
/// quoted packet, turned round.
#[inline(never)]
pub fn quoted<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, t: &mut Translation<F>) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    if let Some(leg) = env.leg(key) {
        (t.src, t.dst, t.ports) = (field!(leg.src), field!(leg.dst), field!(leg.ports));
        (t.nexthop, t.reverse) = (via_stack(field!(leg.nexthop)), true);
        field!(scratch.renumber = field!(leg.ack_add));
        return 1;
    }
    let Some(s) = env.spliced(key) else { return 0 };
    (t.src, t.dst, t.ports) = (field!(s.src), field!(s.dst), field!(s.ports));
    (t.nexthop, t.reverse) = (via_stack(field!(s.nexthop)), false);
    field!(scratch.renumber = field!(s.ack_add));
    1
}

/// [`Translation::nexthop`] of an error about a packet that `kept` has led.
#[inline(always)]
const fn via_stack(kept: u16) -> u32 {
    if kept == VIA_STACK { VIA_STACK as u32 } else { 0 }
}

/// Whether a packet that cannot be delivered, as an ICMP error says, may be the SYN of a leg. `key`: the quoted packet, turned round. Of a leg that
/// goes through the stack, errors do too.
#[inline(always)]
pub fn opens<F: Ip, P: Packet, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>) -> bool {
    env.leg(key).is_some_and(|leg| field!(leg.state) == splice_state::OPENING && (P::EGRESS || field!(leg.nexthop) != VIA_STACK))
}

const EITHER_FIN: u8 = splice_flag::FIN | splice_flag::PEER_FIN;

/// Whether a segment holds the beginning of a request, and nothing else is to be done for it. `memory` is for the verifier: what it learns of
/// the length here, and an end that the compiler keeps on the stack for the next time, would let it go through the scanner once more.
#[inline(always)]
fn asks<F: Family>(segment: &Segment, entry: Ref<Spliced<F>>, memory: &mut u32) -> bool {
    const OTHERWISE: u8 = EITHER_FIN | splice_flag::STASHED | splice_flag::SYN_AGAIN | splice_flag::RESET | splice_flag::BLIND;
    field!(entry.state) == splice_state::ESTABLISHED
        && !field!(entry.owner).is(OTHERWISE)
        && segment.flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
        && forget(memory, segment.len) != 0
        && after(forget(memory, segment.seq).wrapping_add(segment.len), field!(entry.body_end))
}

/// The translation of a client's packet to which nothing special happens: acknowledgements, bodies, pinned connections.
#[inline(always)]
fn usual_client<F: Network, E: Env + Tables<F>>(
    env: &E,
    segment: &Segment,
    entry: Ref<Spliced<F>>,
) -> Option<(Translation<F>, Numbers<true>)> {
    const UNUSUAL: u8 = EITHER_FIN | splice_flag::STASHED | splice_flag::SYN_AGAIN | splice_flag::RESET;
    let owner = field!(entry.owner);
    let flags = owner.flags();
    let (end, next) = (segment.end(), field!(entry.next));
    let request = segment.len != 0 && after(end, field!(entry.body_end)) && flags & splice_flag::BLIND == 0;
    let unusual = field!(entry.state) != splice_state::ESTABLISHED
        || request
        || segment.len != 0 && !is_near(end, next)
        || flags & UNUSUAL != 0
        || segment.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
        || field!(entry.nexthop).wrapping_sub(1) >= STACK - 1
        || env.ticks().wrapping_sub(field!(entry.last)) >= REFRESH_TICKS;
    if unusual {
        return None;
    }
    let backend = env.backend(owner.backend())?;
    if !backend_state::finishes(field!(backend.state)) {
        return None;
    }
    if segment.len != 0 {
        if !after(end, next) {
            // Sent again: see `again`.
            return None;
        }
        field!(entry.next = end);
    }
    let s = entry.get();
    Some((translation(&s, field!(backend.version)), leg::numbers_of_client(&s)))
}

/// What a client's packet becomes.
#[inline(always)]
fn translation<F: Family>(s: &Spliced<F>, version: u32) -> Translation<F> {
    let nexthop = if s.nexthop == STACK { 0 } else { s.nexthop as u32 };
    Translation { src: s.src, dst: s.dst, ports: s.ports, version, nexthop, neighbour: 0, reverse: false }
}

/// The same for a backend's packets.
#[inline(always)]
fn usual_server<F: Network, E: Env + Tables<F>>(
    env: &E,
    segment: &Segment,
    entry: Ref<Leg<F>>,
) -> Option<(Translation<F>, Numbers<false>)> {
    const UNUSUAL: u8 = leg_flag::FIN | leg_flag::PEER_FIN | leg_flag::IDLE | leg_flag::STASHED;
    const WITH_DATA: u8 = leg_flag::AWAIT | leg_flag::CHUNKED;
    let owner = field!(entry.owner);
    let flags = owner.flags();
    let unusual = field!(entry.state) != splice_state::ESTABLISHED
        || flags & UNUSUAL != 0
        || segment.len != 0 && flags & WITH_DATA != 0
        || segment.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
        || field!(entry.nexthop).wrapping_sub(1) >= STACK - 1
        || env.ticks().wrapping_sub(field!(entry.last)) >= REFRESH_TICKS;
    if unusual {
        return None;
    }
    let backend = env.backend(owner.backend())?;
    if !backend_state::finishes(field!(backend.state)) {
        return None;
    }
    if segment.len != 0 && after(segment.end(), field!(entry.next)) {
        field!(entry.next = segment.end());
    }
    let leg = entry.get();
    Some((leg::translation(&leg, field!(backend.version)), leg::numbers(&leg)))
}

/// Whatever of a client is not plain.
#[inline(always)]
fn from_client<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Option<Ref<Spliced<F>>>,
) -> Verdict {
    if segment.opens() {
        if let Some(entry) = entry {
            flag!(set entry.owner, splice_flag::SYN_AGAIN);
        }
        return accept::syn(packet, env, p, segment);
    }
    let Some(entry) = entry else { return accept::stranger(packet, env, p, segment) };
    let fits = fit::of_client(env, segment, entry);
    if let Some(scratch) = Tables::<F>::scratch(env) {
        field!(scratch.fits = fits);
    }
    let syn_again = field!(entry.owner).is(splice_flag::SYN_AGAIN);
    if fits == fit::EXACT {
        if syn_again {
            // The client goes on as before: the SYN was somebody else's.
            flag!(clear entry.owner, splice_flag::SYN_AGAIN);
        }
    } else if (syn_again || fits == fit::NOT && !segment.is(tcp::RST))
        && cookie::open(env, &p.key, segment, field!(entry.service)) & OPENS != 0
    {
        // The client uses its port again: what was there is over.
        if field!(entry.state) == splice_state::ANSWERED {
            env.drop_answered(&p.key);
        } else {
            close::forget(env, p, entry, outcome::ABANDONED);
        }
        return accept::stranger(packet, env, p, segment);
    }
    if fits == fit::NOT {
        env.count(Reason::OutOfWindow);
        return Verdict::DROP;
    }
    leg::heard(packet, segment, entry);
    match field!(entry.state) {
        splice_state::GATHERING => gather::more(packet, env, p, segment, entry),
        splice_state::OPENING => open::waiting(packet, env, p, segment, entry),
        splice_state::ANSWERED => accept::answered(packet, env, p, segment, entry),
        _ => established::client(env, p, segment, entry),
    }
}

/// Whatever of a backend is not plain.
#[inline(always)]
fn from_server<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    segment: &Segment,
    entry: Ref<Leg<F>>,
) -> Verdict {
    if field!(entry.owner).is(leg_flag::IDLE) {
        return leg::idle(packet, env, p, segment, entry);
    }
    if field!(entry.state) == splice_state::OPENING {
        return if segment.flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK {
            open::joined(packet, env, &p.key, segment, entry)
        } else {
            open::refused(packet, env, p, segment, entry)
        };
    }
    established::server(packet, env, p, segment, entry)
}
