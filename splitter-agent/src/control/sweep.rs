//! The janitor: one pass over all flow tables in small steps, so that requests are served in between. Removes what idled out and what
//! belongs to dead backends, counts the rest, frees next hops that nobody names.

mod splice;

use splitter_common::abi::*;
use splitter_datapath::{
    BACKENDS, Cursor, FlowTables, LAPSED, NEXTHOP_OWNERS, NEXTHOPS, Plain, SUSPECTED, SUSPECTS, Table, TableError, Tables, Typed, bytes_of,
    reconcile::{Bits, flows},
};
use std::{collections::HashMap, sync::Arc};

/// Idle timeouts, seconds. Established TCP outlives the two hours of TCP keepalive (RFC 9293, 3.8.4).
const ESTABLISHED: u32 = 2 * 3600 + 900;
const HALF_CLOSED: u32 = 120;
const HALF_OPEN: u32 = 30;
const CLOSING: u32 = 10;
const UDP_UNREPLIED: u32 = 30;
const UDP_REPLIED: u32 = 120;
/// Entries that only wait for the first answer of an established flow: longer than the histogram reaches.
const AWAITED: u32 = 150;
/// Flows whose backend is gone, until a packet of theirs comes by; source translations whose flow was evicted, until a packet of the other
/// direction puts it back.
const ORPHANED: u32 = 60;
/// What is known of a version that answers nobody is kept this long after its last failure.
const SILENT: u32 = 60;
/// Half-closed flows that idled out, and whose ends have not been told: they are until a packet of theirs comes by.
const UNTOLD: u32 = 3600;
/// A next hop that no flow names is kept this long after its last use.
const NEXT_HOP: u32 = 60;

/// What a sweep needs to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub ticks: u32,
    pub ticks_per_second: u32,
    /// Of slots for heads: see [`stash_word::clock`].
    pub heads: u32,
}

impl Clock {
    /// Seconds since a tick, 0 for one in the future.
    pub fn age(&self, then: u32) -> f64 {
        let ticks = self.ticks.wrapping_sub(then) as i32;
        f64::from(ticks.max(0)) / f64::from(self.ticks_per_second.max(1))
    }

    fn is_older(&self, then: u32, seconds: u32) -> bool {
        self.age(then) > f64::from(seconds)
    }
}

/// What the last whole sweep found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub entries: HashMap<Table, u64>,
    /// Established TCP and UDP flows by backend id.
    pub flows: HashMap<u32, u64>,
    /// Of these, connections of http services that are pinned.
    pub pinned: HashMap<u32, u64>,
    next_hops: Bits,
    /// Keys of source translations without a flow, as bytes, and the tick at which that was first seen.
    strays: HashMap<Vec<u8>, u32>,
    /// Slots for heads that are in use, by the low 16 bits of their service's number.
    heads: HashMap<u16, u64>,
    /// Numbers that spliced flows name.
    backends: Bits,
    services: Bits,
    /// A table could not be read: it may name more.
    incomplete: bool,
}

impl Findings {
    /// Slots for heads that a service's connections had.
    pub fn heads(&self, service: u32) -> u64 {
        self.heads.get(&(service as u16)).copied().unwrap_or(0)
    }

    /// Whether a spliced flow named a backend or service, by [`identity_kind`] and number: nobody else may get it yet.
    pub fn names(&self, kind: u32, number: u32) -> bool {
        let named = match kind {
            identity_kind::BACKEND => &self.backends,
            identity_kind::SERVICE => &self.services,
            _ => return false,
        };
        self.incomplete || named.has(number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Half,
    Closing,
    Snat,
    Claims,
    Fragments,
    Stashes,
    Spliced,
    Legs,
}

const STAGES: [(Kind, bool); 19] = [
    (Kind::Stashes, false),
    (Kind::Spliced, false),
    (Kind::Spliced, true),
    (Kind::Legs, false),
    (Kind::Legs, true),
    (Kind::Tcp, false),
    (Kind::Tcp, true),
    (Kind::Udp, false),
    (Kind::Udp, true),
    (Kind::Half, false),
    (Kind::Half, true),
    (Kind::Closing, false),
    (Kind::Closing, true),
    (Kind::Snat, false),
    (Kind::Snat, true),
    (Kind::Claims, false),
    (Kind::Claims, true),
    (Kind::Fragments, false),
    (Kind::Fragments, true),
];

/// See the module.
#[derive(Debug, Default)]
pub struct Janitor {
    stage: Option<(usize, Cursor)>,
    now: Findings,
    last: Arc<Findings>,
    /// Flows of backends that are not among these are removed; `None`: not known yet.
    live: Option<Bits>,
    /// Of the others, those that finish what they have begun.
    leaving: Bits,
}

impl Janitor {
    /// Backends that may have flows.
    pub fn set_live(&mut self, live: Option<Bits>) {
        self.live = live;
    }

    /// Backends that are in the policy no more, and finish what they have begun.
    pub fn set_leaving(&mut self, leaving: Bits) {
        self.leaving = leaving;
    }

    pub fn is_sweeping(&self) -> bool {
        self.stage.is_some()
    }

    pub fn begin(&mut self) {
        self.stage = Some((0, Cursor::default()));
        self.now = Findings::default();
    }

    pub fn findings(&self) -> &Arc<Findings> {
        &self.last
    }

    /// One step; `true` when it was the last of the sweep.
    ///
    /// # Errors
    /// When the kernel refuses; the sweep goes on with the next table then.
    pub fn step(&mut self, tables: &mut impl Tables, clock: Clock) -> Result<bool, TableError> {
        let Some((index, mut cursor)) = self.stage.take() else { return Ok(false) };
        let (kind, ipv6) = STAGES[index];
        let result =
            if ipv6 { self.scan::<V6>(kind, tables, &mut cursor, clock) } else { self.scan::<V4>(kind, tables, &mut cursor, clock) };
        let more = matches!(result, Ok(true));
        self.now.incomplete |= result.is_err();
        if more {
            self.stage = Some((index, cursor));
        } else if index + 1 < STAGES.len() {
            self.stage = Some((index + 1, Cursor::default()));
        } else {
            self.free_next_hops(tables, clock)?;
            end_suspicions(tables, clock)?;
            self.last = Arc::new(std::mem::take(&mut self.now));
        }
        result?;
        Ok(self.stage.is_none())
    }

    fn scan<F: FlowTables>(&mut self, kind: Kind, tables: &mut impl Tables, cursor: &mut Cursor, clock: Clock) -> Result<bool, TableError> {
        match kind {
            Kind::Tcp => self.flows::<F, _>(F::TCP, tables, cursor, clock, |flow: &Flow<F>| *flow, tcp_timeout),
            Kind::Udp => self.flows::<F, _>(F::UDP, tables, cursor, clock, |flow: &Flow<F>| *flow, udp_timeout),
            Kind::Half => self.half::<F>(tables, cursor, clock),
            Kind::Closing => self.flows::<F, _>(F::CLOSING, tables, cursor, clock, |flow: &Flow<F>| *flow, closing_timeout),
            Kind::Snat => self.translations::<F>(F::SNAT, tables, cursor, clock),
            Kind::Claims => self.translations::<F>(F::CLAIMS, tables, cursor, clock),
            Kind::Stashes => self.stashes(tables, clock),
            Kind::Spliced => self.spliced::<F>(tables, cursor, clock),
            Kind::Legs => self.legs::<F>(tables, cursor, clock),
            Kind::Fragments => {
                let (mut keys, mut values, mut more) = (Vec::new(), Vec::new(), true);
                while more {
                    more = tables.scan(F::FRAGMENTS, cursor, splitter_datapath::SCAN, &mut keys, &mut values)?;
                    *self.now.entries.entry(F::FRAGMENTS).or_default() += (keys.len() / F::FRAGMENTS.key_size()) as u64;
                }
                Ok(false)
            }
        }
    }

    /// An entry of `SNAT` or `CLAIMS` keeps a port: it goes when its flow has been missing for long.
    fn translations<F: FlowTables>(
        &mut self,
        table: Typed<FlowKey<F>, Snat<F>>,
        tables: &mut impl Tables,
        cursor: &mut Cursor,
        clock: Clock,
    ) -> Result<bool, TableError> {
        let mut keys = Vec::new();
        let more = table.scan(tables, cursor, |key, _| keys.push(key))?;
        let mut free = Vec::new();
        for key in &keys {
            if has_flow(tables, *key)? {
                continue;
            }
            let bytes = bytes_of(std::slice::from_ref(key)).to_vec();
            let since = self.last.strays.get(&bytes).copied().unwrap_or(clock.ticks);
            if clock.is_older(since, ORPHANED) {
                free.push(*key);
            } else {
                self.now.strays.insert(bytes, since);
            }
        }
        *self.now.entries.entry(table.0).or_default() += (keys.len() - free.len()) as u64;
        table.delete(tables, &free)?;
        Ok(more)
    }

    fn flows<F: FlowTables, V: Plain>(
        &mut self,
        table: Typed<FlowKey<F>, V>,
        tables: &mut impl Tables,
        cursor: &mut Cursor,
        clock: Clock,
        flow: impl Fn(&V) -> Flow<F>,
        timeout: impl Fn(u8) -> u32,
    ) -> Result<bool, TableError> {
        let (mut seen, mut dead, mut idle, mut untold) = (0, Vec::new(), Vec::new(), Vec::new());
        let more = table.scan(tables, cursor, |key, value| {
            let flow = flow(&value);
            seen += 1;
            self.now.next_hops.set(u32::from(flow.nexthop));
            let nobodys = table.0 == F::TCP.0 && flow.backend() == flows::NOBODY;
            if nobodys || self.live.as_ref().is_some_and(|live| !live.has(flow.backend())) {
                // Established TCP of a dead backend waits for the packet that resets its ends, and what has idled out half-closed for longer.
                let limit = if nobodys && flow.is(EITHER_FIN) { UNTOLD } else { ORPHANED };
                if table.0 != F::TCP.0 || clock.is_older(flow.last, limit) {
                    dead.push((key, flow));
                }
            } else if clock.is_older(flow.last, timeout(flow.flags())) {
                idle.push((key, flow));
            } else if !flow.is(flow_flag::REVERSE) && (table.0 != F::CLOSING.0) {
                *self.now.flows.entry(flow.backend()).or_default() += 1;
            }
        })?;
        // One direction may be silent for long while the other is not.
        for (key, own) in idle {
            let other = match flows::partner(tables, &key, &own)? {
                Some(partner) => table.get(tables, partner)?.map(|value| flow(&value)),
                None => None,
            };
            let limit = timeout(own.flags() | other.map_or(0, |other| other.flags()));
            if clock.is_older(own.last, limit) && other.is_none_or(|other| clock.is_older(other.last, limit)) {
                // Who is half closed waits for an answer: a silent end would have it wait for ever.
                if table.0 == F::TCP.0 && own.flags() & EITHER_FIN | other.map_or(0, |other| other.flags() & EITHER_FIN) != 0 {
                    untold.push((key, flows::orphan(own, other)));
                } else {
                    dead.push((key, own));
                }
            } else if !own.is(flow_flag::REVERSE) && table.0 != F::CLOSING.0 {
                *self.now.flows.entry(own.backend()).or_default() += 1;
            }
        }
        *self.now.entries.entry(table.0).or_default() += seen - dead.len() as u64;
        flows::remove(tables, table, &dead)?;
        F::TCP.put(tables, &untold)?;
        Ok(more)
    }

    fn half<F: FlowTables>(&mut self, tables: &mut impl Tables, cursor: &mut Cursor, clock: Clock) -> Result<bool, TableError> {
        let (mut seen, mut dead, mut done) = (0, Vec::new(), Vec::new());
        let mut lapsed: HashMap<u32, Lapsed> = HashMap::new();
        let more = F::HALF.scan(tables, cursor, |key, half| {
            let flow = half.flow;
            seen += 1;
            self.now.next_hops.set(u32::from(flow.nexthop));
            let gone = self.live.as_ref().is_some_and(|live| !live.has(flow.backend()));
            if flow.is(flow_flag::ESTABLISHED) {
                // The flow itself lives in another table: only this note goes.
                if gone || clock.is_older(flow.last, AWAITED) {
                    done.push(key);
                }
            } else if gone || clock.is_older(flow.last, HALF_OPEN) {
                if is_unopened(&half) {
                    let of = lapsed.entry(flow.backend()).or_default();
                    *if half.trial & trial::flag::RULED == 0 { &mut of.drawn } else { &mut of.ruled } += 1;
                }
                dead.push((key, flow));
            }
        })?;
        *self.now.entries.entry(F::HALF.0).or_default() += seen - (dead.len() + done.len()) as u64;
        F::HALF.delete(tables, &done)?;
        flows::remove(tables, F::HALF, &dead)?;
        for (backend, new) in lapsed {
            lapse(tables, backend, new)?;
        }
        Ok(more)
    }

    /// Frees the slots that no flow named in this sweep nor in the last one.
    fn free_next_hops(&mut self, tables: &mut impl Tables, clock: Clock) -> Result<(), TableError> {
        let (now, last) = (&self.now.next_hops, &self.last.next_hops);
        let mut free = Vec::new();
        NEXTHOP_OWNERS.each(tables, |slot, owner| {
            if !now.has(slot) && !last.has(slot) && clock.is_older(owner.checked, NEXT_HOP) {
                free.push(slot);
            }
        })?;
        NEXTHOP_OWNERS.delete(tables, &free)?;
        let zeros: Vec<(u32, NextHop)> = free.iter().map(|slot| (*slot, NextHop::default())).collect();
        NEXTHOPS.put(tables, &zeros)
    }
}

/// Whether an aged entry is a trial that no backend's answer opened.
fn is_unopened<F: FlowTables>(half: &HalfOpen<F>) -> bool {
    let waits = !half.flow.is(flow_flag::REVERSE) && !half.flow.is(flow_flag::REPLIED);
    waits && half.flow.flags() & flow_flag::ESTABLISHED == 0 && half.trial & trial::flag::UNDER_WAY != 0
}

/// Counts handshakes that aged out for the version of their backend.
fn lapse(tables: &mut impl Tables, backend: u32, new: Lapsed) -> Result<(), TableError> {
    let Some(row) = BACKENDS.get(tables, backend)?.filter(|row| row.version != 0) else { return Ok(()) };
    let before = LAPSED.get(tables, row.version)?.unwrap_or_default();
    LAPSED.put_one(tables, row.version, Lapsed { drawn: before.drawn + new.drawn, ruled: before.ruled + new.ruled })
}

/// Removes the suspicions that have ended: the clock wraps.
fn end_suspicions(tables: &mut impl Tables, clock: Clock) -> Result<(), TableError> {
    let mut over = Vec::new();
    SUSPECTS.each(tables, |backend, until| {
        if !is_suspected(until, clock.ticks) {
            over.push(backend);
        }
    })?;
    SUSPECTS.delete(tables, &over)?;
    let mut empty = Vec::new();
    SUSPECTED.each(tables, |version, suspected| {
        let silent = suspected.is_silent(clock.ticks, SILENT * clock.ticks_per_second);
        if !silent && suspected.until.iter().all(|until| !is_suspected(*until, clock.ticks)) {
            empty.push(version);
        }
    })?;
    SUSPECTED.delete(tables, &empty)
}

/// Whether any table holds a flow of this key.
fn has_flow<F: FlowTables>(tables: &impl Tables, key: FlowKey<F>) -> Result<bool, TableError> {
    if key.proto == u32::from(UDP) {
        return Ok(F::UDP.get(tables, key)?.is_some());
    }
    Ok(F::TCP.get(tables, key)?.is_some()
        || F::CLOSING.get(tables, key)?.is_some()
        || F::HALF.get(tables, key)?.is_some()
        || F::SPLICED.get(tables, key)?.is_some()
        || F::LEGS.get(tables, key)?.is_some())
}

const EITHER_FIN: u8 = flow_flag::FIN | flow_flag::PEER_FIN;

fn tcp_timeout(flags: u8) -> u32 {
    if flags & (flow_flag::FIN | flow_flag::PEER_FIN | flow_flag::RESET) != 0 { HALF_CLOSED } else { ESTABLISHED }
}

/// What a RST alone has ended may live on, since anybody could have sent it: only the table's limit shortens its life. Whose source is translated
/// holds a port meanwhile.
fn closing_timeout(flags: u8) -> u32 {
    let ended = flags & EITHER_FIN == EITHER_FIN;
    if ended || flags & flow_flag::SNAT != 0 { CLOSING } else { ESTABLISHED }
}

fn udp_timeout(flags: u8) -> u32 {
    if flags & flow_flag::REPLIED != 0 { UDP_REPLIED } else { UDP_UNREPLIED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_datapath::{Memory, read};

    const CLOCK: Clock = Clock { ticks: 5_000_000u32.wrapping_neg(), ticks_per_second: 250, heads: 0 };

    /// A flow of one client port, idle for some seconds in each direction.
    fn flow(memory: &mut Memory, table: Typed<FlowKey<V4>, Flow<V4>>, port: u16, flags: u8, idle: (u32, u32)) {
        let word = |a: [u8; 4]| [u32::from_ne_bytes(a)];
        let ports = |s: u16, d: u16| u32::from_ne_bytes([s.to_be_bytes(), d.to_be_bytes()].concat().try_into().unwrap());
        let (client, vip, backend) = (word([10, 1, 0, 2]), word([10, 9, 9, 9]), word([10, 2, 0, 1]));
        let last = |seconds: u32| CLOCK.ticks.wrapping_sub(seconds * 250);
        let forward = Flow { peer: backend, peer_port: 8080u16.to_be(), nexthop: 3, owner: owner(1, flags), last: last(idle.0) };
        let reverse =
            Flow { peer: vip, peer_port: 80u16.to_be(), nexthop: 4, owner: owner(1, flags | flow_flag::REVERSE), last: last(idle.1) };
        let entries = [
            (FlowKey { src: client, dst: vip, ports: ports(port, 80), proto: 6 }, forward),
            (FlowKey { src: backend, dst: client, ports: ports(8080, port), proto: 6 }, reverse),
        ];
        table.put(memory, &entries).unwrap();
    }

    fn sweep(janitor: &mut Janitor, memory: &mut Memory) {
        janitor.begin();
        while !janitor.step(memory, CLOCK).unwrap() {}
    }

    /// A table of flows that no stage goes through would only ever be emptied by LRU.
    #[test]
    fn every_table_of_flows_is_swept() {
        let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
        sweep(&mut janitor, &mut memory);
        let mut swept: Vec<_> = janitor.findings().entries.keys().copied().collect();
        swept.sort_unstable();
        assert_eq!(swept, Table::of_flows().chain([Table::Stashes]).collect::<Vec<_>>());
    }

    #[test]
    fn flows_end_when_both_directions_are_idle() {
        for (table, flags, timeout) in [
            (V4::TCP, 0, ESTABLISHED),
            (V4::UDP, 0, UDP_UNREPLIED),
            (V4::UDP, flow_flag::REPLIED, UDP_REPLIED),
            (V4::CLOSING, flow_flag::FIN | flow_flag::PEER_FIN, CLOSING),
            (V4::CLOSING, flow_flag::FIN, ESTABLISHED),
            (V4::CLOSING, 0, ESTABLISHED),
        ] {
            let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
            flow(&mut memory, table, 1, flags, (timeout + 1, timeout + 1));
            flow(&mut memory, table, 2, flags, (timeout + 1, 1));
            flow(&mut memory, table, 3, flags, (1, timeout + 1));
            flow(&mut memory, table, 4, flags, (timeout - 1, timeout - 1));
            sweep(&mut janitor, &mut memory);
            assert_eq!(memory.entries(table.0).count(), 6, "{} {flags}", table.0);
            assert_eq!(janitor.findings().entries[&table.0], 6);
            let counted = if table.0 == Table::Closing4 { None } else { Some(&3) };
            assert_eq!(janitor.findings().flows.get(&1), counted);
        }
    }

    #[test]
    fn half_closed_flows_that_idle_out_are_told() {
        for flags in [flow_flag::FIN, flow_flag::PEER_FIN] {
            let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
            flow(&mut memory, V4::TCP, 1, flags, (HALF_CLOSED + 1, HALF_CLOSED + 1));
            flow(&mut memory, V4::TCP, 2, flags, (HALF_CLOSED + 1, 1));
            flow(&mut memory, V4::TCP, 3, flags, (UNTOLD + 1, UNTOLD + 1));
            let mut live = Bits::default();
            live.set(1);
            janitor.set_live(Some(live));
            let owners = |memory: &Memory| {
                let mut owners: Vec<(u32, u8)> = memory
                    .entries(Table::Tcp4)
                    .map(|(_, flow)| read::<Flow<V4>>(flow))
                    .map(|flow| (flow.backend(), flow.flags()))
                    .collect();
                owners.sort_unstable();
                owners
            };
            let reverse = flags | flow_flag::REVERSE;
            let live = [(1, flags), (1, reverse)];
            let told = |each| [vec![(flows::NOBODY, flags); each], vec![(flows::NOBODY, reverse); each], live.to_vec()].concat();
            sweep(&mut janitor, &mut memory);
            assert_eq!(owners(&memory), told(2), "the kernel resets both ends with its next packet");
            sweep(&mut janitor, &mut memory);
            assert_eq!(owners(&memory), told(1), "not for ever");
        }
    }

    #[test]
    fn flows_of_dead_backends_go() {
        let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
        flow(&mut memory, V4::TCP, 1, 0, (0, 0));
        flow(&mut memory, V4::TCP, 2, 0, (ORPHANED + 1, ORPHANED + 1));
        flow(&mut memory, V4::UDP, 1, 0, (0, 0));
        sweep(&mut janitor, &mut memory);
        assert_eq!(memory.entries(Table::Tcp4).count(), 4, "nobody said which backends live");
        janitor.set_live(Some(Bits::default()));
        sweep(&mut janitor, &mut memory);
        assert_eq!(memory.entries(Table::Udp4).count(), 0);
        assert_eq!(memory.entries(Table::Tcp4).count(), 2, "the one that was busy waits for its reset");
    }

    #[test]
    fn translations_outlive_their_flow_for_a_minute() {
        let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
        flow(&mut memory, V4::TCP, 1, flow_flag::SNAT, (0, 0));
        let key = |port: u32| FlowKey { src: [1], dst: [2], ports: port, proto: 6 };
        let flows: Vec<_> = memory.entries(Table::Tcp4).map(|(key, _)| read::<FlowKey<V4>>(key)).collect();
        let snat = Snat { addr: [3], port: 4, pad: 0 };
        let at = |seconds: u32| Clock { ticks: CLOCK.ticks.wrapping_add(seconds * 250), ..CLOCK };
        let mut left = |memory: &mut Memory, clock| {
            janitor.begin();
            while !janitor.step(memory, clock).unwrap() {}
            let left = memory.entries(Table::Snat4).count();
            assert_eq!(janitor.findings().entries[&Table::Snat4], left as u64);
            left
        };
        V4::SNAT.put(&mut memory, &[(flows[0], snat), (flows[1], snat), (key(1), snat)]).unwrap();
        assert_eq!(left(&mut memory, at(0)), 3, "a claim comes before its flow");
        assert_eq!(left(&mut memory, at(ORPHANED - 1)), 3);
        V4::SNAT.put(&mut memory, &[(key(2), snat)]).unwrap();
        assert_eq!(left(&mut memory, at(ORPHANED + 1)), 3);
        assert_eq!(V4::SNAT.get(&memory, key(1)).unwrap(), None);
        // What found its flow again begins anew.
        flow(&mut memory, V4::CLOSING, 9, 0, (0, 0));
        V4::CLOSING
            .put(&mut memory, &[(key(2), Flow { peer: [0], peer_port: 0, nexthop: 0, owner: Owner::NONE, last: at(99).ticks })])
            .unwrap();
        assert_eq!(left(&mut memory, at(99)), 3);
        V4::CLOSING.delete(&mut memory, &[key(2)]).unwrap();
        assert_eq!(left(&mut memory, at(2 * ORPHANED + 5)), 3);
    }

    #[test]
    fn suspicions_that_have_ended_go() {
        let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
        let at = |ticks: u32| CLOCK.ticks.wrapping_add(ticks);
        SUSPECTS.put(&mut memory, &[(1, at(1_250)), (2, at(0)), (3, at(1 << 31)), (4, at(1))]).unwrap();
        let list = |until: u32| Suspected { backends: [9; SUSPECTS_MOST], until: [until; SUSPECTS_MOST], ..Suspected::default() };
        let silent = |last: u32| Suspected { silent_since: 1, silent_last: last, ..list(at(0)) };
        let rows = [
            (5, list(at(7))),
            (6, list(at(0))),
            (7, silent(at(0).wrapping_sub(SILENT * 250))),
            (8, silent(at(0).wrapping_sub(SILENT * 250 + 1))),
        ];
        SUSPECTED.put(&mut memory, &rows).unwrap();
        sweep(&mut janitor, &mut memory);
        let left = |table| memory.entries(table).map(|(key, _)| key[0]).collect::<Vec<_>>();
        assert_eq!((left(Table::Suspects), left(Table::Suspected)), (vec![1, 4], vec![5, 7]));
    }

    #[test]
    fn next_hops_are_freed_when_unused_twice() {
        let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
        flow(&mut memory, V4::TCP, 1, 0, (0, 0));
        let old = NextHop { ifindex: 7, checked: CLOCK.ticks.wrapping_sub(61 * 250), ..NextHop::default() };
        let fresh = NextHop { checked: CLOCK.ticks, ..old };
        NEXTHOP_OWNERS.put(&mut memory, &[(3, old), (5, old), (6, fresh)]).unwrap();
        NEXTHOPS.put(&mut memory, &[(3, old), (5, old), (6, fresh)]).unwrap();
        Arc::make_mut(&mut janitor.last).next_hops.set(5);
        let slots = |memory: &Memory| memory.entries(Table::NextHopOwners).map(|(key, _)| key[0]).collect::<Vec<_>>();
        sweep(&mut janitor, &mut memory);
        assert_eq!(slots(&memory), [3, 5, 6], "named in the last sweep");
        sweep(&mut janitor, &mut memory);
        assert_eq!(slots(&memory), [3, 6]);
        assert_eq!(NEXTHOPS.get(&memory, 5).unwrap(), Some(NextHop::default()));
    }
}
