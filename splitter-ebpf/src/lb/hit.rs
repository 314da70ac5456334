//! A packet of a known flow. The common case is straight: state of the backend, next hop, rewrite. Everything that happens once in a while
//! is in `hit`, which TC alone runs.

use super::{
    flow::{elsewhere, find_nexthop, forget, kept_nexthop, partner_flow, partner_key, translate},
    side::genuine,
    trial::{self, BY_NODE, BY_PACKET, BY_POLICY},
};
use crate::{
    account,
    bytes::{Packet, Ref, fetch_clear},
    env::{Env, Table, Tables},
    field, flag, nat,
    network::Network,
    packet::{Parsed, tcp},
    place,
    state::Translation,
    verdict::Verdict,
};
use splitter_common::abi::{
    trial::{flag, outcome},
    *,
};

/// Whether a backend keeps its flows.
#[inline(always)]
fn serves(state: u8) -> bool {
    state == backend_state::READY || state == backend_state::DRAINING
}

/// The translation of a packet to which nothing special happens; `None` leaves it to [`hit`].
#[inline(always)]
pub fn usual<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Flow<F>>) -> Option<Translation<F>> {
    const UNUSUAL: u8 = flow_flag::SNAT | flow_flag::YOUNG | flow_flag::RESET | flow_flag::FIN | flow_flag::PEER_FIN;
    let flow = entry.get();
    let backend = env.backend(flow.backend())?;
    let (state, version) = (field!(backend.state), field!(backend.version));
    let unusual = flow.is(UNUSUAL)
        || p.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
        || !serves(state)
        // 0 or STACK.
        || flow.nexthop.wrapping_sub(1) >= STACK - 1
        || env.ticks().wrapping_sub(flow.last) >= REFRESH_TICKS;
    let mut t = Translation::empty(p);
    (!unusual && translate(env, &p.key, &flow, version, &mut t)).then_some(t)
}

/// A packet that a `TCP` or `UDP` entry matches: flags, first payload, a second gone by, SNAT, a dead backend.
#[inline(never)]
pub fn hit<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &mut Translation<F>,
) -> Verdict {
    let flow = entry.get();
    let Some(backend) = env.backend(flow.backend()).filter(|_| !elsewhere::<F, P>(&flow)) else { return Verdict::PASS };
    let (state, version) = (field!(backend.state), field!(backend.version));
    let table = if p.is_tcp() { Table::Tcp } else { Table::Udp };
    let anew = !p.is_tcp() || p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let given_up = !serves(state) || flow.is(flow_flag::RESET);
    if anew && (given_up || p.is_tcp() && ended(flow.owner)) {
        // A datagram, or a client that connects again: decided anew.
        if !p.is_tcp() {
            env.count(Reason::UdpRedecided);
        }
        forget(env, table, &p.key, &flow);
        if flow.is(flow_flag::REVERSE) {
            env.count(Reason::BackendSilenced);
            return Verdict::DROP;
        }
        return Verdict::AGAIN;
    }
    if !translate(env, &p.key, &flow, version, t) {
        forget(env, table, &p.key, &flow);
        return Verdict::AGAIN;
    }
    if given_up {
        if t.nexthop == 0 {
            find_nexthop(packet, env, p.key.proto, t);
        }
        env.count(if serves(state) { Reason::WeightChangeReset } else { Reason::BackendDown });
        // The client hears it either way: in answer to its packet, or in the place of the backend's.
        return if t.reverse { Verdict::RESET_RECEIVER } else { Verdict::RESET };
    }
    let now = env.ticks();
    if flow.nexthop == 0 || now.wrapping_sub(flow.last) >= REFRESH_TICKS {
        // A reply of this node's own process is already on its way: the stack has routed it.
        if !(P::EGRESS && t.reverse) && flow.nexthop != VIA_STACK {
            let ifindex = find_nexthop(packet, env, p.key.proto, t);
            field!(entry.nexthop = kept_nexthop(t));
            confirm_neighbour(env, t, ifindex);
        }
        field!(entry.last = now);
        mend_partner(env, table, p, &flow, t);
    }
    Verdict::CONTINUE
}

/// Goes on behind [`hit`], with what it said: first payloads and ends. Apart, so that its frame does not lie on top of that one's.
#[inline(never)]
pub fn after<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &Translation<F>,
    verdict: Verdict,
) -> Verdict {
    let owner = field!(entry.owner);
    if verdict == Verdict::CONTINUE {
        if owner.is(flow_flag::YOUNG) && (!p.is_tcp() || has_payload(packet, p)) {
            first_payload(packet, env, p, entry, t);
        }
        if p.flags & (tcp::FIN | tcp::RST) != 0 || p.is_tcp() && ended(owner) {
            end(packet, env, p, entry, t, BY_PACKET);
        }
    } else if verdict == Verdict::RESET || verdict == Verdict::RESET_RECEIVER {
        let by = env.backend(owner.backend()).is_some_and(|backend| serves(field!(backend.state)));
        end(packet, env, p, entry, t, if by { BY_POLICY } else { BY_NODE });
    }
    verdict
}

/// Sends the packet that looked its route up through the neighbour table, once a second: packets that carry a stored link header do not
/// show the kernel that the neighbour is in use, and it would never ask whether the address is still right. The other end of a veth needs
/// no address.
#[inline(always)]
fn confirm_neighbour<F: Network, E: Env>(env: &E, t: &mut Translation<F>, ifindex: u32) {
    let peer = env.nexthop(t.nexthop).is_none_or(|hop| field!(hop.flags) as u32 & iface_flag::PEER != 0);
    if t.nexthop != 0 && !peer {
        t.neighbour = ifindex;
        t.nexthop = 0;
    }
}

/// LRU maps evict the two directions independently: puts back what is missing.
#[inline(always)]
fn mend_partner<F: Network, E: Env + Tables<F>>(env: &E, table: Table, p: &Parsed<F>, flow: &Flow<F>, t: &Translation<F>) {
    let Some(scratch) = env.scratch() else { return };
    let key = place!(scratch.partner);
    partner_key(p.key.proto, t, key);
    if env.flow(table, key).is_none() {
        put_partner(env, table, &p.key, flow, key);
    }
}

#[inline(never)]
fn put_partner<F: Network, E: Env + Tables<F>>(env: &E, table: Table, key: &FlowKey<F>, flow: &Flow<F>, partner: &FlowKey<F>) -> u32 {
    let mut flags = flow.flags() & (flow_flag::SNAT | flow_flag::RULED);
    if flow.is(flow_flag::FIN) {
        flags |= flow_flag::PEER_FIN;
    }
    if flow.is(flow_flag::PEER_FIN) {
        flags |= flow_flag::FIN;
    }
    // A translated source cannot be restored from one side alone.
    if flow.is(flow_flag::SNAT) && env.snat(partner).is_none() {
        return 0;
    }
    env.count(Reason::FlowEvicted);
    env.put_flow(table, partner, &partner_flow(key, flow, flags)) as u32
}

/// Payload for the first time in this direction: starts or stops the clock of the first response byte, and ends the trial.
#[inline(never)]
fn first_payload<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &Translation<F>,
) -> u32 {
    if entry.get().is(flow_flag::REVERSE) {
        return response(packet, env, p, entry, t);
    }
    flag!(clear entry.owner, flow_flag::YOUNG);
    if let Some(half) = env.half(&p.key) {
        field!(half.stamp = env.now());
        let trial = field!(half.trial);
        if trial & flag::UNDER_WAY != 0
            && let Some(backend) = env.backend(field!(entry.owner).backend())
        {
            field!(half.trial = account::waits(env, backend, trial));
        }
    }
    0
}

/// The first payload of a backend.
#[inline(never)]
fn response<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &Translation<F>,
) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    if !took(entry, flow_flag::YOUNG) {
        return 0;
    }
    let forward = place!(scratch.partner);
    partner_key(p.key.proto, t, forward);
    let half = env.half(forward);
    let way = match half {
        Some(half) => field!(half.flow.nexthop),
        None => env.flow(if p.is_tcp() { Table::Tcp } else { Table::Udp }, forward).map_or(0, |flow| field!(flow.nexthop)),
    };
    let genuine = genuine(packet, env, way, &p.key) != 0;
    if let Some(half) = half.filter(|_| genuine) {
        let waited = env.now().wrapping_sub(field!(half.stamp));
        account::sample(env, t.version, Measure::FirstByte as u32, field!(half.trial), waited);
    }
    if p.is_tcp() {
        let asked = half.is_some() || env.flow(Table::Tcp, forward).is_some_and(|flow| !flow.get().is(flow_flag::YOUNG));
        let outcome = if genuine { outcome::ANSWERED } else { outcome::TRIALS };
        if trial::over(env, forward, entry, outcome, asked as u32) != 0 {
            flag!(set entry.owner, flow_flag::REPLIED);
        }
    } else {
        let flow = entry.get();
        if genuine && !flow.is(flow_flag::REPLIED) {
            trial::count(env, t.version, &flow, outcome::ANSWERED);
        }
        if flow.is(flow_flag::SNAT) {
            nat::snat::settle(env, &p.key, forward);
        }
        flag!(set entry.owner, flow_flag::REPLIED);
        if let Some(other) = env.flow(Table::Udp, forward) {
            flag!(set other.owner, flow_flag::REPLIED);
        }
    }
    env.drop_half(forward);
    0
}

/// Clears a flag; whether it was set, on one CPU alone.
#[inline(always)]
fn took<F: Family>(entry: Ref<Flow<F>>, flag: u8) -> bool {
    // SAFETY: a Ref points to a live map value.
    Owner::from_word(unsafe { fetch_clear((&raw mut (*entry.as_ptr()).owner).cast(), Owner::bits(flag)) }).is(flag)
}

/// Whether a TCP segment carries data.
#[inline(always)]
pub fn has_payload<F: Network, P: Packet>(packet: &mut P, p: &Parsed<F>) -> bool {
    let Some(l4) = crate::bytes::within::<1024>(p.l4) else { return false };
    let Some(w) = packet.window::<20>(l4 as usize) else { return false };
    let header = (w.load::<u8, 12>() >> 4) as u32 * 4;
    p.ip_len > l4 - crate::packet::ETHERNET as u32 + header
}

const BOTH_FINS: u8 = flow_flag::FIN | flow_flag::PEER_FIN;

/// Whether both sides have sent their FIN.
#[inline(always)]
pub fn ended(owner: Owner) -> bool {
    owner.has_all(BOTH_FINS)
}

/// FIN or RST: notes it on both sides; after both FINs, or a RST, the flow moves to `CLOSING`, where it cannot crowd out live ones.
#[inline(never)]
fn end<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &Translation<F>,
    by: u32,
) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    let key = place!(scratch.partner);
    partner_key(p.key.proto, t, key);
    let other = env.flow(Table::Tcp, key);
    if p.flags & (tcp::FIN | tcp::RST) != 0 || by != BY_PACKET {
        let (way, back) = if t.reverse { (other, Some(entry)) } else { (Some(entry), other) };
        if let Some(back) = back
            && !judge(packet, env, p, t.reverse, way, back, by)
        {
            return 0;
        }
    }
    close(env, p, entry, by)
}

/// What a FIN, a RST or the node's reset makes of a flow's trial; `false`: the packet is not from where the backend is, and ends nothing.
#[inline(always)]
fn judge<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    reverse: bool,
    way: Option<Ref<Flow<F>>>,
    back: Ref<Flow<F>>,
    by: u32,
) -> bool {
    let (flow, sent) = (back.get(), way.map(Ref::get));
    if flow.flags() & (flow_flag::YOUNG | flow_flag::REPLIED) == 0 {
        return true;
    }
    let Some(scratch) = env.scratch() else { return true };
    let forward = if reverse { place!(scratch.partner) } else { &p.key };
    if reverse && by == BY_PACKET && genuine(packet, env, sent.map_or(0, |flow| flow.nexthop), &p.key) == 0 {
        return false;
    }
    let found = trial::outcome_of(env, p, by, reverse, sent, &flow, forward);
    if found == outcome::CUT && took(back, flow_flag::REPLIED) {
        let version = env.backend(flow.backend()).map_or(0, |backend| field!(backend.version));
        trial::count(env, version, &flow, found);
    } else if found != outcome::CUT && found != outcome::COUNT && took(back, flow_flag::YOUNG) {
        let asked = sent.is_none_or(|flow| !flow.is(flow_flag::YOUNG));
        trial::over(env, forward, back, found, asked as u32);
        env.drop_half(forward);
    }
    true
}

/// Notes the end of one direction, or of both. `scratch.partner` is the other direction's key.
#[inline(never)]
fn close<F: Network, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, entry: Ref<Flow<F>>, by: u32) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    let (key, t) = (place!(scratch.partner), place!(scratch.translation));
    let other = env.flow(Table::Tcp, key);
    let reset = p.flags & tcp::RST != 0 || by != BY_PACKET;
    if p.flags & tcp::FIN != 0 {
        flag!(set entry.owner, flow_flag::FIN);
        if let Some(other) = other {
            flag!(set other.owner, flow_flag::PEER_FIN);
        }
    }
    // Read back: both sides may be closing at once, on two CPUs. If each misses the other, the next packet finds both.
    if !reset && !ended(field!(entry.owner)) {
        return 0;
    }
    let mut forward = field!(entry.owner);
    if let Some(other) = other {
        if t.reverse {
            forward = field!(other.owner);
        }
        flag!(clear other.owner, flow_flag::SPOKEN);
        if by != BY_PACKET {
            // Both ends are told: nothing lives on.
            flag!(set other.owner, BOTH_FINS);
        }
    }
    flag!(clear entry.owner, flow_flag::SPOKEN);
    if by != BY_PACKET {
        flag!(set entry.owner, BOTH_FINS);
    }
    // Who came back from `CLOSING` was counted when it went there.
    let counted = forward.flags() & (flow_flag::RETURNED | flow_flag::REVERSE) == flow_flag::RETURNED;
    if !counted && let Some(counters) = env.counters(t.version) {
        field!(counters.closed += 1);
        if reset && (t.reverse || by != BY_PACKET) {
            field!(counters.resets_backend += 1);
        } else if reset {
            field!(counters.resets_client += 1);
        }
    }
    // The entries are copied as they are: the kernel takes a map's value as the value of another.
    entry.with(|flow| env.put_flow(Table::Closing, &p.key, flow));
    if let Some(other) = other {
        other.with(|flow| env.put_flow(Table::Closing, key, flow));
        env.drop_flow(Table::Tcp, key);
    }
    env.drop_flow(Table::Tcp, &p.key);
    env.drop_half(if t.reverse { key } else { &p.key });
    0
}

/// A packet of a flow that has ended: last acknowledgements and retransmissions, or a client that uses its port again. What a RST alone has ended,
/// whose number nobody here can check, lives on when its ends show that they did not believe it, and keeps its backend until a new handshake is over.
#[inline(never)]
pub fn closing<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &mut Translation<F>,
) -> Verdict {
    let flow = entry.get();
    if elsewhere::<F, P>(&flow) {
        return Verdict::PASS;
    }
    let anew = p.flags & (tcp::SYN | tcp::ACK) == tcp::SYN && !flow.is(flow_flag::REVERSE);
    if flow.is(flow_flag::REVERSE) && p.flags & tcp::SYN != 0 {
        // The backend greets a client that came to it directly, from the port of this ended flow.
        forget(env, Table::Closing, &p.key, &flow);
        return Verdict::PASS;
    }
    let version = env.backend(flow.backend()).map_or(0, |backend| field!(backend.version));
    let over = ended(flow.owner);
    // The new flow needs the place of the old one's translation.
    if anew && (over || flow.is(flow_flag::SNAT)) || !translate(env, &p.key, &flow, version, t) {
        forget(env, Table::Closing, &p.key, &flow);
        return Verdict::AGAIN;
    }
    if anew {
        return Verdict::AGAIN;
    }
    if flow.nexthop == 0 && !(P::EGRESS && t.reverse) {
        find_nexthop(packet, env, p.key.proto, t);
        field!(entry.nexthop = kept_nexthop(t));
    }
    if !over && p.flags & (tcp::SYN | tcp::RST) == 0 {
        if flow.is(flow_flag::REVERSE) {
            lives_on(packet, env, p, entry, t);
        } else {
            flag!(set entry.owner, flow_flag::SPOKEN);
        }
    }
    Verdict::CONTINUE
}

/// A backend's packet after a RST: when the client has spoken since, neither end has believed it, and the flow goes back to `TCP`.
#[inline(never)]
fn lives_on<F: Network, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    p: &Parsed<F>,
    entry: Ref<Flow<F>>,
    t: &Translation<F>,
) -> u32 {
    let Some(scratch) = env.scratch() else { return 0 };
    let key = place!(scratch.partner);
    partner_key(p.key.proto, t, key);
    let Some(forward) = env.flow(Table::Closing, key) else { return 0 };
    if !field!(forward.owner).is(flow_flag::SPOKEN) || genuine(packet, env, field!(forward.nexthop), &p.key) == 0 {
        return 0;
    }
    let now = env.ticks();
    field!(entry.last = now);
    field!(forward.last = now);
    flag!(clear forward.owner, flow_flag::SPOKEN);
    flag!(set forward.owner, flow_flag::RETURNED);
    if entry.with(|flow| env.put_flow(Table::Tcp, &p.key, flow)) && forward.with(|flow| env.put_flow(Table::Tcp, key, flow)) {
        env.drop_flow(Table::Closing, key);
        env.drop_flow(Table::Closing, &p.key);
    }
    1
}
