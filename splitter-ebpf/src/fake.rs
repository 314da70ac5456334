//! The pipeline's seams on a host: maps as hash maps, a clock that tests turn. `frame`: a packet in a vector.

mod frame;
mod rows;

pub use frame::Frame;

use crate::{
    bytes::Ref,
    env::{Env, Note, Scratch, Table, Tables},
    packet::ports,
};
use splitter_common::{
    abi::*,
    decide::{self, Search},
    filter::{self, Role},
    http::{HeadText, Scan},
};
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{HashMap, HashSet},
    hash::Hash,
    net::{IpAddr, SocketAddr},
};

/// A map whose values stay where they are, those that were replaced or removed too: who still has a reference reads what was there, as in the kernel.
struct Map<K, V>(RefCell<HashMap<K, Box<UnsafeCell<V>>>>, RefCell<Vec<Box<UnsafeCell<V>>>>);

impl<K: Hash + Eq + Copy, V: Copy> Map<K, V> {
    fn new() -> Self {
        Self(RefCell::default(), RefCell::default())
    }
    fn get(&self, key: &K) -> Option<Ref<V>> {
        // SAFETY: boxed, and kept for as long as the map; tests are single-threaded.
        self.0.borrow().get(key).map(|value| unsafe { Ref::new(value.get()) })
    }
    fn put(&self, key: &K, value: V) -> bool {
        let before = self.0.borrow_mut().insert(*key, Box::new(UnsafeCell::new(value)));
        self.1.borrow_mut().extend(before);
        true
    }
    fn put_new(&self, key: &K, value: V) -> bool {
        !self.0.borrow().contains_key(key) && self.put(key, value)
    }
    fn remove(&self, key: &K) {
        let before = self.0.borrow_mut().remove(key);
        self.1.borrow_mut().extend(before);
    }
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// Flow tables of one family.
pub struct Flows<F: Family> {
    tcp: Map<FlowKey<F>, Flow<F>>,
    udp: Map<FlowKey<F>, Flow<F>>,
    closing: Map<FlowKey<F>, Flow<F>>,
    half: Map<FlowKey<F>, HalfOpen<F>>,
    snat: Map<FlowKey<F>, Snat<F>>,
    claims: Map<FlowKey<F>, Snat<F>>,
    fragments: Map<FragmentKey<F>, u32>,
    spliced: Map<FlowKey<F>, Spliced<F>>,
    answered: Map<FlowKey<F>, Spliced<F>>,
    legs: Map<FlowKey<F>, Leg<F>>,
    /// What another CPU puts into `TCP` before `HALF` is looked at.
    pub late: Cell<Option<(FlowKey<F>, Flow<F>)>>,
    scratch: Box<UnsafeCell<Scratch<F>>>,
}

impl<F: Family> Flows<F> {
    fn new() -> Self {
        let mut scratch = Box::<UnsafeCell<Scratch<F>>>::new_uninit();
        // SAFETY: integers, byte arrays, enums that have a zero, and an `Option` of an integer: all may be zero.
        let scratch = unsafe {
            scratch.as_mut_ptr().write_bytes(0, 1);
            scratch.assume_init()
        };
        Self {
            tcp: Map::new(),
            udp: Map::new(),
            closing: Map::new(),
            half: Map::new(),
            snat: Map::new(),
            claims: Map::new(),
            fragments: Map::new(),
            spliced: Map::new(),
            answered: Map::new(),
            legs: Map::new(),
            late: Cell::new(None),
            scratch,
        }
    }
    fn table(&self, table: Table) -> &Map<FlowKey<F>, Flow<F>> {
        match table {
            Table::Tcp => &self.tcp,
            Table::Udp => &self.udp,
            Table::Closing => &self.closing,
        }
    }
    /// Entries of the tables `TCP`, `UDP`, `HALF`, `CLOSING`, and of `SNAT` and `CLAIMS` together.
    pub fn sizes(&self) -> [usize; 5] {
        [self.tcp.len(), self.udp.len(), self.half.len(), self.closing.len(), self.snat.len() + self.claims.len()]
    }
    /// Entries of `SNAT` and of `CLAIMS`.
    pub fn translations(&self) -> [usize; 2] {
        [self.snat.len(), self.claims.len()]
    }
    /// Entries of the tables `SPLICED`, `LEGS`.
    pub fn spliced_sizes(&self) -> [usize; 2] {
        [self.spliced.len(), self.legs.len()]
    }
    /// Sets flags of all connections of http, and has their legs looked at again.
    pub fn mark_spliced(&self, flags: u8) {
        self.legs.0.borrow_mut().values_mut().for_each(|leg| leg.get_mut().last = leg.get_mut().last.wrapping_sub(REFRESH_TICKS));
        self.spliced.0.borrow_mut().values_mut().for_each(|spliced| spliced.get_mut().owner = spliced.get_mut().owner.with(flags));
    }
    /// Flags of all connections of http.
    pub fn spliced_flags(&self) -> Vec<u8> {
        self.spliced.0.borrow_mut().values_mut().map(|spliced| spliced.get_mut().owner.flags()).collect()
    }
    /// Entries of `ANSWERED`.
    pub fn answered_size(&self) -> usize {
        self.answered.len()
    }
    /// Evicts all of `CLAIMS`.
    pub fn forget_claims(&self) {
        self.claims.0.borrow_mut().clear();
    }
    /// Evicts all of `HALF`.
    pub fn forget_half(&self) {
        self.half.0.borrow_mut().clear();
    }
    /// Evicts the legs to a backend.
    pub fn forget_legs(&self, backend: u32) {
        self.legs.0.borrow_mut().retain(|_, leg| leg.get_mut().owner.backend() != backend);
    }
}

/// Key of a backend's IPv4 TCP packets to a client.
fn reverse_key(server: SocketAddr, client: SocketAddr) -> FlowKey<V4> {
    let word = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets())],
        IpAddr::V6(_) => panic!("IPv4 only"),
    };
    FlowKey { src: word(server), dst: word(client), ports: ports(server.port().to_be(), client.port().to_be()), proto: TCP as u32 }
}

/// All maps.
pub struct Maps {
    pub ns: Cell<u64>,
    filter: RefCell<HashMap<u32, u64>>,
    frontends: Map<FrontendKey, u32>,
    services: Map<u32, Service>,
    maglev: Map<MaglevKey, MaglevChunk>,
    rules: RefCell<Vec<(u32, Addr, u32, u32)>>,
    backends: Map<u32, Backend>,
    ifaces: Map<u32, Iface>,
    vips: Map<Addr, u32>,
    owned: Map<Addr, u32>,
    errors: Map<u32, [u32; 2]>,
    nexthops: Map<u32, NextHop>,
    owners: Map<u32, NextHop>,
    suspects: Map<u32, u32>,
    suspected: Map<u32, Suspected>,
    strays: Map<u32, u32>,
    counters: Map<u32, VersionCounters>,
    /// Versions whose trials changed in the packet in hand.
    moved: RefCell<HashSet<u32>>,
    histograms: Map<HistogramKey, HistogramOctave>,
    reasons: RefCell<HashMap<Reason, u64>>,
    config: Map<u32, Config>,
    http_rules: Map<u32, HttpRules>,
    stashes: Map<u32, Stash>,
    stash_sets: Map<u32, StashSet>,
    spent: Map<u32, CookieSet>,
    handshakes: Map<u32, CookieSet>,
    guesses: Map<u32, Guesses>,
    losses: RefCell<HashMap<LossKey, u64>>,
    locks: Map<u32, u64>,
    trace: Map<u32, Trace>,
    trace_cpu: Map<u32, TraceCpu>,
    told: Map<u32, u64>,
    events: RefCell<Vec<TraceEvent>>,
    notes: RefCell<Vec<(Note, u32, u32)>>,
    /// Events that the ring has room for.
    pub room: Cell<usize>,
    pub v4: Flows<V4>,
    pub v6: Flows<V6>,
}

impl Default for Maps {
    fn default() -> Self {
        Self::new()
    }
}

impl Maps {
    /// No service, no backend; a clock that has run for some minutes.
    pub fn new() -> Self {
        let maps = Self {
            ns: Cell::new(1 << 40),
            filter: RefCell::default(),
            frontends: Map::new(),
            services: Map::new(),
            maglev: Map::new(),
            rules: RefCell::default(),
            backends: Map::new(),
            ifaces: Map::new(),
            vips: Map::new(),
            owned: Map::new(),
            errors: Map::new(),
            nexthops: Map::new(),
            owners: Map::new(),
            suspects: Map::new(),
            suspected: Map::new(),
            strays: Map::new(),
            counters: Map::new(),
            moved: RefCell::default(),
            histograms: Map::new(),
            reasons: RefCell::default(),
            config: Map::new(),
            http_rules: Map::new(),
            stashes: Map::new(),
            stash_sets: Map::new(),
            spent: Map::new(),
            handshakes: Map::new(),
            guesses: Map::new(),
            losses: RefCell::default(),
            locks: Map::new(),
            trace: Map::new(),
            trace_cpu: Map::new(),
            told: Map::new(),
            events: RefCell::default(),
            notes: RefCell::default(),
            room: Cell::new(usize::MAX),
            v4: Flows::new(),
            v6: Flows::new(),
        };
        let config = Config {
            abi_version: ABI_VERSION,
            suspect_ticks: 1_250,
            snat_port_first: 10_000,
            snat_port_count: 20_000,
            max_flows: 0,
            secret: [1, 2],
            cookies: [[3, 4], [5, 6]],
            // Frames are for this address.
            xdp_ports: [xdp_port(0, u32::from_ne_bytes([2, 0, 0, 0]), u16::from_ne_bytes([0, 2])); XDP_PORTS as usize],
        };
        maps.config.put(&0, config);
        maps
    }

    /// Puts a service in place: versions are (weight, backend ids); backends get version ids 1, 2, ...
    pub fn serve(&self, service: u32, frontend: FrontendKey, split_by: u8, versions: &[(u32, &[u32])]) {
        self.frontends.put(&frontend, service);
        self.mark(Role::Frontend, &frontend.addr, frontend.port, frontend.proto);
        self.mark(Role::Vip, &frontend.addr, [0; 2], 0);
        self.vips.put_new(&frontend.addr, 0);
        let weights: Vec<u32> = versions.iter().map(|(weight, _)| *weight).collect();
        let mut record = Service { salt: decide::salt(b"test"), split_by, version_count: versions.len() as u8, ..Default::default() };
        let ends = decide::intervals(&weights).unwrap_or_default();
        for (i, (_, backends)) in versions.iter().enumerate() {
            let version = i as u32 + 1;
            let mut slot = VersionSlot { end: ends[i], version, ready: backends.len() as u32, ..Default::default() };
            match backends {
                [] => {}
                [one] => (slot.size, slot.table) = (1, *one),
                many => {
                    slot.size = 509;
                    slot.table = 7;
                    for chunk in 0..8 {
                        let ids = core::array::from_fn(|i| many[(chunk * 64 + i) % many.len()]);
                        self.maglev.put(&MaglevKey { version, table: 7, chunk: chunk as u32 }, MaglevChunk { backends: ids });
                    }
                }
            }
            for id in *backends {
                if let Some(backend) = self.backends.get(id) {
                    backend.set(Backend { version, service, ..backend.get() });
                }
            }
            record.versions[i] = slot;
            if self.counters.get(&version).is_none() {
                self.counters.put(&version, VersionCounters::default());
            }
        }
        self.services.put(&service, record);
    }

    /// Makes a service that was put in place one of `mode: http`.
    pub fn serve_http(&self, id: u32, mss: u16, rules: Option<Box<HttpRules>>) {
        let frontends = self.frontends.0.borrow().keys().copied().collect::<Vec<_>>();
        for FrontendKey { addr, port, proto, .. } in frontends {
            self.mark_http(Role::Frontend, &addr, port, proto);
        }
        for backend in self.backends.0.borrow().values() {
            // SAFETY: single-threaded, no reference is alive.
            let Backend { addr, port, .. } = unsafe { *backend.get() };
            self.mark_http(Role::Backend, &addr, port, TCP);
        }
        self.http_rules.put(&id, rules.map_or_else(HttpRules::empty, |rules| *rules));
        self.change_service(id, |service| {
            (service.mode, service.mss, service.has_rules) = (service_mode::HTTP, mss, 1);
        });
    }

    /// What the node does with what is not served of a VIP: [`vip_flag`] bits.
    pub fn set_vip(&self, addr: Addr, flags: u32) {
        self.vips.put(&addr, flags);
    }

    /// An address is the node's own.
    pub fn own(&self, addr: Addr) {
        self.owned.put(&addr, 1);
    }

    /// An interface of the node has an address.
    pub fn assign(&self, ifindex: u32, ip: IpAddr) {
        let mut row = self.ifaces.get(&ifindex).map(Ref::get).unwrap_or_default();
        match ip {
            IpAddr::V4(ip) => row.addr4 = ip.octets(),
            IpAddr::V6(ip) => row.addr6 = ip.octets(),
        }
        self.ifaces.put(&ifindex, row);
    }

    fn mark_http(&self, role: Role, addr: &Addr, port: [u8; 2], proto: u8) {
        let (word, bits) = filter::bits_of(role, addr, port, proto);
        *self.filter.borrow_mut().entry(word).or_default() |= bits | filter::http(bits);
    }

    /// Words of the slots for heads that are taken.
    pub fn stash_words(&self) -> Vec<u64> {
        // SAFETY: single-threaded, no reference is alive.
        let words = self.stash_sets.0.borrow().values().flat_map(|set| unsafe { (*set.get()).words }).collect::<Vec<_>>();
        words.into_iter().filter(|word| word & stash_word::TAKEN != 0).collect()
    }

    /// How many these are.
    pub fn taken(&self) -> usize {
        self.stash_words().len()
    }

    /// The slots themselves.
    pub fn stash_slots(&self) -> Vec<u32> {
        (0..STASH_SLOTS).filter(|slot| self.stash_word(*slot) & stash_word::TAKEN != 0).collect()
    }

    pub fn stash_word(&self, slot: u32) -> u64 {
        self.stash_set(slot / STASH_WAYS).expect("a set").get().words[(slot % STASH_WAYS) as usize]
    }

    pub fn set_stash_word(&self, slot: u32, word: u64) {
        let found = self.stash_set(slot / STASH_WAYS).expect("a set");
        let mut set = found.get();
        set.words[(slot % STASH_WAYS) as usize] = word;
        found.set(set);
    }

    /// Gives back all slots but some.
    pub fn free_all_stashes_but(&self, slots: &[u32]) {
        (0..STASH_SLOTS).filter(|slot| !slots.contains(slot)).for_each(|slot| self.set_stash_word(slot, 0));
    }

    /// Another CPU works with a slot's connection; the lock that it holds.
    pub fn hold_lock_of(&self, slot: u32) -> u32 {
        let lock = self.stash(slot).expect("a slot").get().lock - 1;
        self.splice_lock(lock).expect("a lock").set(1 << 32 | self.ticks() as u64);
        lock
    }

    pub fn give_lock(&self, lock: u32) {
        self.splice_lock(lock).expect("a lock").set(0);
    }

    /// Draws another key.
    pub fn set_secret(&self, secret: [u64; 2]) {
        let config = self.config.get(&0).expect("it is there");
        config.set(Config { secret, ..config.get() });
    }

    /// What a service's clients suffered for want of a slot.
    pub fn losses(&self, service: u32, reason: Reason) -> u64 {
        self.losses.borrow().get(&LossKey { service, reason: reason as u32 }).copied().unwrap_or(0)
    }

    /// Locks that are held.
    pub fn locks_held(&self) -> usize {
        // SAFETY: single-threaded, no reference is alive.
        self.locks.0.borrow().values().filter(|lock| unsafe { *lock.get() } != 0).count()
    }

    /// Another CPU takes all locks, at a tick, or gives them back.
    pub fn hold_all_locks(&self, since: Option<u32>) {
        for slot in 0..SPLICE_LOCKS {
            if let Some(lock) = self.splice_lock(slot) {
                lock.set(since.map_or(0, |ticks| 1 << 32 | ticks as u64));
            }
        }
    }

    /// Others take all slots for heads, each for a service of its own, or give all back.
    pub fn take_all_stashes(&self, taken: bool) {
        let since = stash_word::clock(self.now()) as u64;
        for set in 0..STASH_SETS {
            if let Some(found) = self.stash_set(set) {
                let word = |way| stash_word::TAKEN | stash_word::ACKNOWLEDGED | (1_000 + way as u64) << stash_word::SERVICE | since;
                found.set(StashSet { words: core::array::from_fn(|way| if taken { word(way) } else { 0 }) });
            }
        }
    }

    /// Draws another key of cookies.
    pub fn set_cookie_key(&self, slot: usize, key: [u64; 2]) {
        let config = self.config.get(&0).expect("it is there");
        let mut new = config.get();
        new.cookies[slot] = key;
        config.set(new);
    }

    pub fn forget_handshakes(&self) {
        self.handshakes.0.borrow_mut().clear();
    }

    /// Handshakes that are remembered.
    pub fn handshakes_kept(&self) -> usize {
        // SAFETY: single-threaded, no reference is alive.
        self.handshakes.0.borrow().values().map(|set| unsafe { (*set.get()).words }.iter().filter(|word| **word != 0).count()).sum()
    }

    /// So many connections have begun that all older ones are forgotten.
    pub fn spend_all(&self) {
        let word = 1 << 40 | self.now() >> 26 & 0xffff;
        for set in 0..SPENT_SETS {
            self.spent.put(&set, CookieSet { words: [word; COOKIE_WAYS] });
        }
    }

    pub fn change_service(&self, id: u32, change: impl FnOnce(&mut Service)) {
        let service = self.services.get(&id).expect("the service is there");
        let mut value = service.get();
        change(&mut value);
        service.set(value);
    }

    pub fn add_rule(&self, service: u32, addr: Addr, prefix: u32, version: u32) {
        self.rules.borrow_mut().push((service, addr, prefix, version));
        self.change_service(service, |service| service.has_rules = 1);
    }

    pub fn add_backend(&self, id: u32, addr: Addr, port: u16, proto: u8) {
        let port = port.to_be_bytes();
        self.backends.put(&id, Backend { addr, port, state: backend_state::READY, service: 1, ..Default::default() });
        self.mark(Role::Backend, &addr, port, proto);
    }

    /// Trials of all backends are entered as pending, and overdue after 5 s.
    pub fn time_trials(&self) {
        for backend in self.backends.0.borrow_mut().values_mut() {
            let backend = backend.get_mut();
            (backend.timing, backend.unanswered) = (trial::timing::DRAWN | trial::timing::RULED | trial::shift(1_250), 1_250);
        }
    }

    /// Changes all backends.
    pub fn change_backends(&self, change: impl Fn(&mut Backend)) {
        self.backends.0.borrow_mut().values_mut().for_each(|backend| change(backend.get_mut()));
    }

    /// Trials of a version whose clients wait, whenever they began.
    pub fn pending(&self, version: u32) -> i32 {
        let slots = self.version(version).pending;
        slots.iter().map(|value| (value << 14) as i32 >> 14).sum()
    }

    pub fn suspected_now(&self, backend: u32) -> bool {
        self.suspects.get(&backend).is_some_and(|until| is_suspected(until.get(), self.ticks()))
    }

    pub fn set_state(&self, id: u32, state: u8) {
        let backend = self.backends.get(&id).expect("the backend is there");
        backend.set(Backend { state, ..backend.get() });
    }

    pub fn add_iface(&self, ifindex: u32, iface: Iface) {
        self.ifaces.put(&ifindex, iface);
    }

    fn mark(&self, role: Role, addr: &Addr, port: [u8; 2], proto: u8) {
        let (word, bits) = filter::bits_of(role, addr, port, proto);
        *self.filter.borrow_mut().entry(word).or_default() |= bits;
    }

    pub fn counted(&self, reason: Reason) -> u64 {
        self.reasons.borrow().get(&reason).copied().unwrap_or(0)
    }
    pub fn version(&self, id: u32) -> VersionCounters {
        self.counters.get(&id).map(Ref::get).unwrap_or_default()
    }
    /// What a judge reads of every version.
    /// How often a reason was counted that accounts for a packet that goes nowhere.
    fn told(&self) -> u64 {
        self.reasons.borrow().iter().filter(|(reason, _)| reason.kind() != splitter_common::abi::Kind::Pass).map(|(_, count)| count).sum()
    }
    fn judged(&self) -> Vec<(u32, Outcomes, Outcomes, [u32; trial::SLOTS])> {
        let judged = |id: &u32| {
            let VersionCounters { drawn, ruled, pending, .. } = self.version(*id);
            (*id, drawn, ruled, pending)
        };
        self.counters.0.borrow().keys().map(judged).collect()
    }
    /// No trial of a version may change without a word to its judge. `before`: as [`Maps::judged`] said before the packet.
    fn check_moved(&self, before: &[(u32, Outcomes, Outcomes, [u32; trial::SLOTS])]) {
        for now in self.judged() {
            let silent = !self.moved.borrow().contains(&now.0) && !before.contains(&now);
            assert!(!silent, "trials of version {} changed, and nobody was told", now.0);
        }
        self.moved.borrow_mut().clear();
    }
    pub fn samples(&self, version: u32, measure: Measure) -> u32 {
        self.samples_of(version, measure, false) + self.samples_of(version, measure, true)
    }
    /// Of trials that a rule sent there, or that the weights drew.
    pub fn samples_of(&self, version: u32, measure: Measure, ruled: bool) -> u32 {
        let histograms = self.histograms.0.borrow();
        let of = |key: &HistogramKey| key.version == version && key.measure() == measure as u32 && key.ruled() == ruled;
        // SAFETY: single-threaded, no reference is alive.
        histograms.iter().filter(|(key, _)| of(key)).map(|(_, value)| unsafe { (*value.get()).counts.iter().sum::<u32>() }).sum()
    }
    /// Lower bound of the longest time that was measured, nanoseconds.
    pub fn slowest(&self, version: u32, measure: Measure) -> u64 {
        let histograms = self.histograms.0.borrow();
        let of = |key: &HistogramKey| key.version == version && key.measure() == measure as u32;
        let lower = |(key, value): (&HistogramKey, &UnsafeCell<HistogramOctave>)| {
            // SAFETY: single-threaded, no reference is alive.
            let sub = unsafe { (*value.get()).counts.iter().rposition(|count| *count != 0) };
            sub.map(|sub| splitter_common::histogram::lower(key.octave(), sub as u32))
        };
        histograms.iter().filter(|(key, _)| of(key)).filter_map(|(key, value)| lower((key, value))).max().unwrap_or(0)
    }
    /// Evicts the reverse entry of an IPv4 TCP flow.
    pub fn forget_reverse(&self, server: SocketAddr, client: SocketAddr) {
        self.v4.tcp.remove(&reverse_key(server, client));
    }
    /// The entry of an IPv4 TCP flow for what `from` sends `to` is only on its way there: see [`Flows::late`].
    pub fn delay(&self, from: SocketAddr, to: SocketAddr) {
        let key = reverse_key(from, to);
        self.v4.late.set(self.v4.tcp.get(&key).map(|flow| (key, flow.get())));
        self.v4.tcp.remove(&key);
    }
    /// Sets flags in all IPv4 TCP entries, which must be those of one flow.
    pub fn set_flags(&self, server: SocketAddr, client: SocketAddr, flags: u8) {
        assert!(self.v4.tcp.get(&reverse_key(server, client)).is_some());
        for value in self.v4.tcp.0.borrow_mut().values_mut() {
            value.get_mut().owner = value.get_mut().owner.with(flags);
        }
    }
    /// Somebody looks at decisions.
    pub fn look(&self, trace: Trace) {
        self.trace.put(&0, trace);
    }
    /// What they look at.
    pub fn looked_at(&self) -> Option<Trace> {
        self.trace.get(&0).map(Ref::get)
    }
    /// Events since the last call.
    pub fn events(&self) -> Vec<TraceEvent> {
        self.events.take()
    }
    /// Notes since the last call.
    pub fn notes(&self) -> Vec<(Note, u32, u32)> {
        self.notes.take()
    }
    /// Events that came too fast, and those for which there was no room.
    pub fn events_lost(&self) -> [u64; 2] {
        self.trace_cpu().map_or([0; 2], |cpu| [cpu.get().over, cpu.get().full])
    }
    /// Turns the clock on until it shows `ticks`.
    pub fn turn_clock(&self, ticks: u32) {
        self.pass(ticks.wrapping_sub(self.ticks()) as u64 * 4);
    }
    /// Turns the clock.
    pub fn pass(&self, ms: u64) {
        self.ns.set(self.ns.get() + ms * 1_000_000);
    }
}

impl Env for Maps {
    fn ticks(&self) -> u32 {
        (self.ns.get() / 4_000_000) as u32
    }
    fn now(&self) -> u64 {
        self.ns.get()
    }
    fn config(&self) -> Option<Ref<Config>> {
        self.config.get(&0)
    }
    fn xdp_port(&self, ifindex: u32) -> u64 {
        self.config.get(&0).map_or(0, |config| config.get().xdp_ports[(ifindex % XDP_PORTS) as usize])
    }
    fn filter_word(&self, index: u32) -> u64 {
        self.filter.borrow().get(&index).copied().unwrap_or(0)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<u32> {
        self.frontends.get(key).map(Ref::get)
    }
    fn service(&self, id: u32) -> Option<Ref<Service>> {
        self.services.get(&id)
    }
    fn maglev(&self, key: &MaglevKey) -> Option<Ref<MaglevChunk>> {
        self.maglev.get(key)
    }
    fn rule(&self, service: u32, client: &Addr) -> Option<u32> {
        let client = u128::from_be_bytes(*client);
        let rules = self.rules.borrow();
        let matching = rules.iter().filter(|(of, addr, prefix, _)| {
            *of == service && (*prefix == 0 || (client ^ u128::from_be_bytes(*addr)) >> (128 - prefix) == 0)
        });
        matching.max_by_key(|(_, _, prefix, _)| *prefix).map(|(_, _, _, version)| *version)
    }
    fn backend(&self, id: u32) -> Option<Ref<Backend>> {
        self.backends.get(&id)
    }
    fn iface(&self, ifindex: u32) -> Option<Ref<Iface>> {
        self.ifaces.get(&ifindex)
    }
    fn vip(&self, addr: &Addr) -> Option<u32> {
        self.vips.get(addr).map(Ref::get)
    }
    fn owned(&self, addr: &Addr) -> bool {
        self.owned.get(addr).is_some()
    }
    fn errors(&self) -> Option<Ref<[u32; 2]>> {
        self.errors.put_new(&0, [0; 2]);
        self.errors.get(&0)
    }
    fn nexthop(&self, slot: u32) -> Option<Ref<NextHop>> {
        self.nexthops.put_new(&slot, NextHop::default());
        (slot < NEXTHOP_SLOTS).then(|| self.nexthops.get(&slot)).flatten()
    }
    fn nexthop_owner(&self, slot: u32) -> Option<Ref<NextHop>> {
        self.owners.get(&slot)
    }
    fn claim_nexthop(&self, slot: u32, hop: &NextHop) -> bool {
        self.owners.put_new(&slot, *hop)
    }
    fn suspect(&self, backend: u32) -> Option<u32> {
        self.suspects.get(&backend).map(Ref::get)
    }
    fn set_suspect(&self, backend: u32, until: u32) {
        self.suspects.put(&backend, until);
    }
    fn suspected(&self, version: u32) -> Option<Ref<Suspected>> {
        self.suspected.put_new(&version, Suspected::default());
        self.suspected.get(&version)
    }
    fn known_suspected(&self, version: u32) -> Option<Ref<Suspected>> {
        self.suspected.get(&version)
    }
    fn stray(&self, connection: u32) -> Option<u32> {
        self.strays.get(&connection).map(Ref::get)
    }
    fn set_stray(&self, connection: u32, since: u32) {
        self.strays.put(&connection, since);
    }
    fn counters(&self, version: u32) -> Option<Ref<VersionCounters>> {
        self.counters.get(&version)
    }
    fn moved(&self, version: u32) {
        self.moved.borrow_mut().insert(version);
    }
    fn octave(&self, key: &HistogramKey) -> Option<Ref<HistogramOctave>> {
        self.histograms.put_new(key, HistogramOctave { counts: [0; 32] });
        self.histograms.get(key)
    }
    fn count(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }
    fn search(&self) -> Option<Ref<Search>> {
        // SAFETY: lives as long as the maps; one packet at a time.
        Some(unsafe { Ref::new(&raw mut (*self.v4.scratch.get()).search) })
    }
    fn http_rules(&self, service: u32) -> Option<Ref<HttpRules>> {
        self.http_rules.get(&service)
    }
    fn stash_set(&self, set: u32) -> Option<Ref<StashSet>> {
        self.stash_sets.put_new(&set, StashSet::default());
        (set < STASH_SETS).then(|| self.stash_sets.get(&set)).flatten()
    }
    fn spent(&self, set: u32) -> Option<Ref<CookieSet>> {
        self.spent.put_new(&set, CookieSet::default());
        (set < SPENT_SETS).then(|| self.spent.get(&set)).flatten()
    }
    fn handshakes(&self, set: u32) -> Option<Ref<CookieSet>> {
        self.handshakes.put_new(&set, CookieSet::default());
        (set < HANDSHAKE_SETS).then(|| self.handshakes.get(&set)).flatten()
    }
    fn guesses(&self, slot: u32) -> Option<Ref<Guesses>> {
        self.guesses.put_new(&slot, Guesses::default());
        (slot < GUESS_SLOTS).then(|| self.guesses.get(&slot)).flatten()
    }
    fn count_loss(&self, key: &LossKey) {
        *self.losses.borrow_mut().entry(*key).or_default() += 1;
    }
    fn stash(&self, slot: u32) -> Option<Ref<Stash>> {
        if self.stashes.get(&slot).is_none() && slot < STASH_SLOTS {
            let (scan, rules) = (Scan::default(), 0);
            self.stashes.put(
                &slot,
                Stash { len: 0, acknowledged: 0, lock: 0, tried: 0, tail: 0, tail_len: 0, scan, rules, text: [0; size_of::<HeadText>()] },
            );
        }
        self.stashes.get(&slot)
    }
    fn splice_lock(&self, slot: u32) -> Option<Ref<u64>> {
        self.locks.put_new(&slot, 0);
        (slot < SPLICE_LOCKS).then(|| self.locks.get(&slot)).flatten()
    }
    fn copy_text(&self, to: &mut HeadText, from: &HeadText, len: u32) {
        to[..len as usize].copy_from_slice(&from[..len as usize]);
    }
    fn trace(&self) -> Option<Ref<Trace>> {
        self.trace.put_new(&0, Trace::default());
        self.trace.get(&0)
    }
    fn told(&self, slot: u32) -> Option<Ref<u64>> {
        self.told.put_new(&slot, 0);
        (slot < TRACE_MARKS).then(|| self.told.get(&slot)).flatten()
    }
    fn trace_cpu(&self) -> Option<Ref<TraceCpu>> {
        // SAFETY: integers and byte arrays.
        self.trace_cpu.put_new(&0, unsafe { core::mem::zeroed() });
        self.trace_cpu.get(&0)
    }
    fn copy_start(&self, to: &mut [u8; TRACE_TEXT], from: &HeadText) {
        to.copy_from_slice(&from[..TRACE_TEXT]);
    }
    fn speaks(&self) -> bool {
        true
    }
    fn note(&self, what: Note, service: u32, detail: u32) {
        self.notes.borrow_mut().push((what, service, detail));
    }
    fn emit(&self, event: &TraceEvent) -> bool {
        let room = self.room.get();
        if room > 0 {
            self.room.set(room - 1);
            self.events.borrow_mut().push(*event);
        }
        room > 0
    }
}

macro_rules! tables {
    ($family:ty, $field:ident) => {
        impl Tables<$family> for Maps {
            fn scratch(&self) -> Option<Ref<Scratch<$family>>> {
                // SAFETY: lives as long as the maps.
                Some(unsafe { Ref::new(self.$field.scratch.get()) })
            }
            fn flow(&self, table: Table, key: &FlowKey<$family>) -> Option<Ref<Flow<$family>>> {
                self.$field.table(table).get(key)
            }
            fn put_flow(&self, table: Table, key: &FlowKey<$family>, flow: &Flow<$family>) -> bool {
                self.$field.table(table).put(key, *flow)
            }
            fn new_flow(&self, table: Table, key: &FlowKey<$family>, flow: &Flow<$family>) -> bool {
                self.$field.table(table).put_new(key, *flow)
            }
            fn drop_flow(&self, table: Table, key: &FlowKey<$family>) {
                self.$field.table(table).remove(key);
            }
            fn half(&self, key: &FlowKey<$family>) -> Option<Ref<HalfOpen<$family>>> {
                if let Some((key, flow)) = self.$field.late.take() {
                    self.$field.tcp.put(&key, flow);
                }
                self.$field.half.get(key)
            }
            fn put_half(&self, key: &FlowKey<$family>, half: &HalfOpen<$family>) -> bool {
                self.$field.half.put(key, *half)
            }
            fn new_half(&self, key: &FlowKey<$family>, half: &HalfOpen<$family>) -> bool {
                self.$field.half.put_new(key, *half)
            }
            fn drop_half(&self, key: &FlowKey<$family>) {
                self.$field.half.remove(key);
            }
            fn snat(&self, key: &FlowKey<$family>) -> Option<Ref<Snat<$family>>> {
                self.$field.snat.get(key).or_else(|| self.$field.claims.get(key))
            }
            fn put_snat(&self, key: &FlowKey<$family>, snat: &Snat<$family>) -> bool {
                self.$field.snat.put(key, *snat)
            }
            fn drop_snat(&self, key: &FlowKey<$family>) {
                self.$field.snat.remove(key);
                self.$field.claims.remove(key);
            }
            fn claim(&self, key: &FlowKey<$family>) -> Option<Ref<Snat<$family>>> {
                self.$field.claims.get(key)
            }
            fn put_claim(&self, key: &FlowKey<$family>, snat: &Snat<$family>) -> bool {
                self.$field.claims.put(key, *snat)
            }
            fn new_claim(&self, key: &FlowKey<$family>, snat: &Snat<$family>) -> bool {
                self.$field.claims.put_new(key, *snat)
            }
            fn drop_claim(&self, key: &FlowKey<$family>) {
                self.$field.claims.remove(key);
            }
            fn fragment(&self, key: &FragmentKey<$family>) -> Option<u32> {
                self.$field.fragments.get(key).map(Ref::get)
            }
            fn put_fragment(&self, key: &FragmentKey<$family>, ports: u32) {
                self.$field.fragments.put(key, ports);
            }
            fn spliced(&self, key: &FlowKey<$family>) -> Option<Ref<Spliced<$family>>> {
                self.$field.spliced.get(key)
            }
            fn put_spliced(&self, key: &FlowKey<$family>, spliced: &Spliced<$family>) -> bool {
                self.$field.spliced.put(key, *spliced)
            }
            fn drop_spliced(&self, key: &FlowKey<$family>) {
                self.$field.spliced.remove(key);
            }
            fn answered(&self, key: &FlowKey<$family>) -> Option<Ref<Spliced<$family>>> {
                self.$field.answered.get(key)
            }
            fn put_answered(&self, key: &FlowKey<$family>, spliced: &Spliced<$family>) -> bool {
                self.$field.answered.put(key, *spliced)
            }
            fn drop_answered(&self, key: &FlowKey<$family>) {
                self.$field.answered.remove(key);
            }
            fn leg(&self, key: &FlowKey<$family>) -> Option<Ref<Leg<$family>>> {
                self.$field.legs.get(key)
            }
            fn put_leg(&self, key: &FlowKey<$family>, leg: &Leg<$family>) -> bool {
                self.$field.legs.put(key, *leg)
            }
            fn new_leg(&self, key: &FlowKey<$family>, leg: &Leg<$family>) -> bool {
                self.$field.legs.put_new(key, *leg)
            }
            fn drop_leg(&self, key: &FlowKey<$family>) {
                self.$field.legs.remove(key);
            }
        }
    };
}
tables!(V4, v4);
tables!(V6, v6);
