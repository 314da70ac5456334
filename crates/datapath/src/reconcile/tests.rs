//! Reconcile over maps in memory, with every operation failing now and then, and with the kernel's decision made after each of them.

use super::{contents::observe, *};
use crate::{BACKENDS, Cursor, FRONTENDS, Memory, VIPS, bytes_of_mut, plan};
use proptest::prelude::*;
use splitter_common::{
    decide,
    filter::{self, Role},
    http, maglev,
};
use splitter_policy::model::{
    Backend as ModelBackend, BackendState, Cidr, Condition, Frontend, Http, HttpRule as Ruling, Mode, OnWeightChange, Protocol, Rule,
    Service as Model, Snat as ModelSnat, SplitBy, Text, Unserved, Version, Vip,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Splits batches into single operations, fails where told, and shows the tables after every one.
struct Faulty<'a> {
    inner: Memory,
    operations: usize,
    fail_at: Option<usize>,
    after: &'a mut dyn FnMut(&Memory),
}

impl Faulty<'_> {
    fn operate(&mut self, table: Table, operation: impl FnOnce(&mut Memory) -> Result<(), TableError>) -> Result<(), TableError> {
        self.operations += 1;
        if self.fail_at == Some(self.operations) {
            return Err(TableError::Refused { table, action: "write to", cause: std::io::Error::from_raw_os_error(libc::ENOMEM) });
        }
        operation(&mut self.inner)?;
        (self.after)(&self.inner);
        Ok(())
    }
}

impl Tables for Faulty<'_> {
    fn put(&mut self, table: Table, keys: &[u8], values: &[u8]) -> Result<(), TableError> {
        let size = self.value_size(table);
        for (key, value) in keys.chunks_exact(table.key_size()).zip(values.chunks_exact(size)) {
            self.operate(table, |inner| inner.put(table, key, value))?;
        }
        Ok(())
    }
    fn replace(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<bool, TableError> {
        self.inner.replace(table, key, value)
    }
    fn delete(&mut self, table: Table, keys: &[u8]) -> Result<(), TableError> {
        for key in keys.chunks_exact(table.key_size()) {
            self.operate(table, |inner| inner.delete(table, key))?;
        }
        Ok(())
    }
    fn get(&self, table: Table, key: &[u8], value: &mut [u8]) -> Result<bool, TableError> {
        self.inner.get(table, key, value)
    }
    fn scan(&self, table: Table, cursor: &mut Cursor, limit: usize, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> Result<bool, TableError> {
        self.inner.scan(table, cursor, limit, keys, values)
    }
    fn range(&self, table: Table, first: u32, values: &mut [u8]) -> Result<(), TableError> {
        self.inner.range(table, first, values)
    }
    fn limit(&self, table: Table) -> u32 {
        self.inner.limit(table)
    }
    fn cpus(&self) -> usize {
        self.inner.cpus()
    }
    fn memory(&self, _table: Table) -> u64 {
        0
    }
}

/// What the kernel would answer a client: a backend's address, nobody, or not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    NotOurs,
    Nobody,
    Torn(&'static str),
    Backend(Addr, [u8; 2]),
}

/// `header`: the value of the header that rules of http look at.
fn answer(memory: &Memory, frontend: &FrontendKey, client: Ipv4Addr, header: u8) -> Answer {
    let mut words = vec![0u64; filter::WORDS as usize];
    memory.get(Table::Filter, bytes_of(&[0u32]), bytes_of_mut(&mut words)).unwrap();
    let filtered = |(word, bits): (u32, u64)| words[word as usize] & bits != bits;
    if filtered(filter::bits_of(Role::Frontend, &frontend.addr, frontend.port, frontend.proto)) {
        return Answer::NotOurs;
    }
    let Some(id) = FRONTENDS.get(memory, *frontend).unwrap() else { return Answer::NotOurs };
    let Some(record) = SERVICES.get(memory, id).unwrap() else { return Answer::Torn("a frontend names no record") };
    let client = mapped(client.octets());
    let key = decide::client_key(&client);
    let splice = record.mode == service_mode::HTTP;
    if splice {
        let (word, bits) = filter::bits_of(Role::Frontend, &frontend.addr, frontend.port, frontend.proto);
        if filtered((word, filter::http(bits))) {
            return Answer::Torn("an http frontend without its bits in the filter");
        }
    }
    let ruled = match record.has_rules {
        _ if splice => {
            let Some(rules) = HTTP_RULES.get(memory, id).unwrap() else { return Answer::Torn("a record names missing rules") };
            http::rule(&rules, holds(&rules, header)).and_then(|version| record.versions.iter().position(|slot| slot.version == version))
        }
        0 => None,
        _ => longest(memory, id, &client).map(|index| index as usize),
    };
    let index = ruled.or_else(|| decide::pick(&record, decide::bucket(record.salt, key)));
    let Some(index) = index else { return Answer::Nobody };
    let slot = record.versions[index];
    let backend = match slot.size {
        0 => return Answer::Nobody,
        1 => slot.table,
        _ => {
            let at = maglev::slot(decide::backend_hash(record.salt, key, 0), slot.size);
            let chunk = MaglevKey { version: slot.version, table: slot.table, chunk: at / MAGLEV_CHUNK as u32 };
            let Some(chunk) = MAGLEV.get(memory, chunk).unwrap() else { return Answer::Torn("a record names a missing chunk") };
            chunk.backends[at as usize % MAGLEV_CHUNK]
        }
    };
    let row = BACKENDS.get(memory, backend).unwrap().unwrap();
    if row.state != backend_state::READY && row.state != backend_state::DRAINING {
        return Answer::Torn("a table names a backend that is not ready");
    }
    if filtered(filter::bits_of(Role::Backend, &row.addr, row.port, frontend.proto)) {
        return Answer::Torn("replies would not pass the filter");
    }
    Answer::Backend(row.addr, row.port)
}

/// The predicates that a request with this header's value fulfils.
fn holds(rules: &HttpRules, header: u8) -> u64 {
    let value = |predicate: &HttpPredicate| rules.pool[usize::from(predicate.at)];
    let predicates = rules.predicates.iter().take(usize::from(rules.predicate_count)).enumerate();
    predicates.fold(0, |bits, (bit, predicate)| bits | u64::from(value(predicate) == header) << bit)
}

fn longest(memory: &Memory, service: u32, client: &Addr) -> Option<u32> {
    let mut best: Option<(u32, u32)> = None;
    RULES
        .each(memory, |key, index| {
            let bits = key.prefix_len - RULE_PREFIX_BASE;
            let same =
                |bits: u32| bits == 0 || u128::from_be_bytes(key.addr) >> (128 - bits) == u128::from_be_bytes(*client) >> (128 - bits);
            if key.service == service.to_be_bytes() && same(bits) && best.is_none_or(|(longest, _)| bits > longest) {
                best = Some((bits, index));
            }
        })
        .unwrap();
    best.map(|(_, index)| index)
}

const PORTS: [u16; 4] = [80, 81, 82, 83];

/// Ports of two addresses.
fn frontend(port: u16) -> Frontend {
    Frontend { address: SocketAddr::from(([10, 9, 9, 9 + u8::from(port > 81)], port)), protocol: Protocol::Tcp }
}

fn answers(memory: &Memory) -> Vec<Answer> {
    let clients = (0..12u8).map(|i| Ipv4Addr::new(10, 1, i % 3, i));
    let ask = |client: Ipv4Addr, port| answer(memory, &plan::frontend_key(&frontend(port)), client, b'a' + client.octets()[3] % 4);
    clients.flat_map(|client| PORTS.map(|port| ask(client, port))).collect()
}

/// Policies of up to three services over a few frontends, versions, backends and rules, so that everything moves around.
fn policy() -> impl Strategy<Value = Vec<Arc<Model>>> {
    let state = prop_oneof![3 => Just(BackendState::Ready), 1 => Just(BackendState::Draining), 1 => Just(BackendState::Down)];
    let backends = proptest::collection::vec((0..4u8, state), 0..4);
    let version = (0..4usize, 0..3u32, backends);
    let versions = proptest::collection::vec(version, 1..4);
    let rules = proptest::collection::vec((0..4u8, 0..4usize), 0..4);
    let services = proptest::collection::vec((versions, rules, any::<bool>()), 3);
    // Services come and go whole: a frontend that leaves one would see its new record too, which is neither old nor new, and right.
    (services, proptest::array::uniform3(proptest::bool::weighted(0.8))).prop_map(|(services, present)| {
        let owner_of_port = std::array::from_fn(|port| if present[port % 3] { port % 3 } else { usize::MAX });
        let build = |(i, (versions, rules, http)): (usize, (Vec<_>, Vec<_>, bool))| {
            let service = service(i, versions, rules, &owner_of_port)?;
            Some(if http { as_http(service) } else { service })
        };
        services.into_iter().enumerate().filter_map(build).collect()
    })
}

type Parts = Vec<(usize, u32, Vec<(u8, BackendState)>)>;

fn service(number: usize, parts: Parts, rules: Vec<(u8, usize)>, owner_of_port: &[usize; 4]) -> Option<Arc<Model>> {
    let frontends: Vec<_> =
        PORTS.iter().zip(owner_of_port).filter(|(_, owner)| **owner == number).map(|(port, _)| frontend(*port)).collect();
    let mut versions: Vec<Version> = Vec::new();
    for (name, weight, backends) in parts {
        let name = format!("v{name}");
        if versions.iter().any(|version| version.name == name) {
            continue;
        }
        let mut known: Vec<ModelBackend> = Vec::new();
        for (host, state) in backends {
            let address = SocketAddr::from(([10, 2, number as u8, host], 8080 + name.as_bytes()[1] as u16));
            if known.iter().all(|backend| backend.address != address) {
                known.push(ModelBackend { address, state });
            }
        }
        versions.push(Version { name, weight, backends: known, lookups: Vec::new(), found: 0 });
    }
    let rule = |(net, version): (u8, usize)| {
        let (address, prefix) = if net == 3 { (Ipv4Addr::new(10, 1, 0, 0), 16) } else { (Ipv4Addr::new(10, 1, net, 0), 24) };
        Rule { source: Cidr { address: IpAddr::V4(address), prefix }, version: version % versions.len() }
    };
    let rules = rules.into_iter().map(rule).collect();
    (!frontends.is_empty()).then(|| {
        Arc::new(Model {
            name: format!("s{number}"),
            frontends,
            mode: Mode::Tcp,
            split_by: SplitBy::ClientIp,
            versions,
            rules,
            http: None,
            tls: None,
            on_weight_change: OnWeightChange::Keep,
            pinned: Default::default(),
            snat: ModelSnat::Auto,
            path: Default::default(),
            vip: Vip { ping: number == 1, unserved: if number == 2 { Unserved::Pass } else { Unserved::Refuse } },
            rollout: None,
            origin: String::new(),
        })
    })
}

/// The same with rules on a header in the place of networks.
fn as_http(service: Arc<Model>) -> Arc<Model> {
    let mut model = Arc::unwrap_or_clone(service);
    let rule = |rule: &Rule| {
        let IpAddr::V4(network) = rule.source.address else { unreachable!("networks are IPv4") };
        let value = char::from(b'a' + network.octets()[2] % 4).to_string();
        let conditions = vec![Condition::Header("x".into(), Text::Exact(value))];
        Ruling { conditions, version: rule.version, line: 0, from_canary: false }
    };
    let rules = std::mem::take(&mut model.rules).iter().map(rule).collect();
    (model.mode, model.http) = (Mode::Http, Some(Http { rules, ..Http::default() }));
    Arc::new(model)
}

/// A service with the rules of http that it will have, as far as it has their versions: what a request meets while it changes.
fn between(old: &Arc<Model>, desired: &[Arc<Model>]) -> Arc<Model> {
    let new = desired.iter().find(|new| new.name == old.name);
    let (Some(new), Some(rules)) = (new, old.http.as_ref()) else { return old.clone() };
    let Some(wanted) = new.http.as_ref() else { return old.clone() };
    let (mut model, mut seen, mut found) = (Model::clone(old), Vec::new(), Vec::new());
    for rule in &wanted.rules {
        // The first rule that holds decides, by weight when its version is not there.
        if !seen.contains(&rule.conditions) {
            let name = &new.versions[rule.version].name;
            let version = old.versions.iter().position(|version| version.name == *name);
            found.extend(version.map(|version| Ruling { version, ..rule.clone() }));
            seen.push(rule.conditions.clone());
        }
    }
    model.http = Some(Http { rules: found, ..rules.clone() });
    Arc::new(model)
}

/// The sweeps after which nothing of the past may be left.
fn settle(reconciler: &mut Reconciler, tables: &mut impl Tables) {
    for _ in 0..2 {
        reconciler.sweep_begins();
        reconciler.swept(tables, |_, _| false).unwrap();
    }
}

fn assert_nothing_left(memory: &Memory, desired: &[Arc<Model>]) {
    let observed = observe(memory).unwrap();
    assert!(observed.garbage.is_empty(), "{:?}", observed.garbage);
    assert_eq!(observed.contents.services.len(), desired.len());
    let backends: usize = desired.iter().flat_map(|s| &s.versions).map(|v| v.backends.len()).sum();
    assert_eq!(observed.contents.backends.len(), backends);
    let keys: usize = desired.iter().map(|service| plan::keys(service).len()).sum();
    assert_eq!(memory.entries(Table::Ids).count(), keys);
    let mut vips: HashMap<Addr, u32> = HashMap::new();
    for service in desired {
        let pass = if service.vip.unserved == Unserved::Pass { vip_flag::PASS } else { 0 };
        let flags = pass | if service.vip.ping { vip_flag::PING } else { 0 };
        service.frontends.iter().for_each(|frontend| *vips.entry(plan::addr(frontend.address.ip())).or_default() |= flags);
    }
    let mut known = HashMap::new();
    VIPS.each(memory, |addr, flags| {
        known.insert(addr, flags);
    })
    .unwrap();
    assert_eq!(known, vips, "what one service of an address wants holds");
    let http = desired.iter().filter(|service| service.http.is_some());
    assert_eq!(memory.entries(Table::HttpRules).count(), http.count());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any operation may fail, the agent may restart after it: in every state that a packet can see, each client gets the old answer
    /// or the new one, and repeating ends in the new one with nothing left behind.
    #[test]
    fn converges_and_never_mixes(policies in proptest::collection::vec(policy(), 2..4), step in 1..9usize, restart in any::<bool>(), portion in 1..4usize) {
        let mut reconciler = Reconciler { portion, ..Reconciler::new() };
        let mut memory = Memory::new();
        let mut last: &[Arc<Model>] = &[];
        for desired in &policies {
            let target = {
                let mut fresh = Memory::new();
                Reconciler::new().apply(&mut fresh, desired).unwrap();
                answers(&fresh)
            };
            let before = answers(&memory);
            // Between two writes a request of http may meet new rules with old weights.
            let between = {
                let mut fresh = Memory::new();
                Reconciler::new().apply(&mut fresh, &last.iter().map(|old| between(old, desired)).collect::<Vec<_>>()).unwrap();
                answers(&fresh)
            };
            last = desired;
            let mut check = |memory: &Memory| {
                for (((seen, old), new), between) in answers(memory).iter().zip(&before).zip(&target).zip(&between) {
                    assert!([old, new, between].contains(&seen), "{seen:?} is neither {old:?} nor {new:?} nor {between:?}");
                }
            };
            let mut fail_at = step;
            loop {
                let mut tables = Faulty { inner: memory.clone(), operations: 0, fail_at: Some(fail_at), after: &mut check };
                let result = reconciler.apply(&mut tables, desired);
                memory = tables.inner;
                if result.is_ok() {
                    break;
                }
                if restart {
                    reconciler = Reconciler { portion, ..Reconciler::new() };
                }
                fail_at += step;
            }
            prop_assert_eq!(&answers(&memory), &target);
            let mut tables = Faulty { inner: memory.clone(), operations: 0, fail_at: None, after: &mut check };
            let report = reconciler.apply(&mut tables, desired).unwrap();
            prop_assert_eq!((report.changed, tables.operations), (0, 0), "idempotent");
            settle(&mut reconciler, &mut memory);
            prop_assert_eq!(&answers(&memory), &target);
            assert_nothing_left(&memory, desired);
        }
        Reconciler::new().apply(&mut memory, &[]).unwrap();
    }
}

fn plain(number: usize, weights: [u32; 2]) -> Arc<Model> {
    let ready = |host| (host, BackendState::Ready);
    let parts = vec![(0, weights[0], vec![ready(1), ready(2)]), (1, weights[1], vec![ready(3)])];
    service(number, parts, Vec::new(), &[0, 1, 2, 3]).unwrap()
}

#[test]
fn a_weight_change_is_one_write() {
    let mut reconciler = Reconciler::new();
    let mut nothing = |_: &Memory| {};
    let mut tables = Faulty { inner: Memory::new(), operations: 0, fail_at: None, after: &mut nothing };
    reconciler.apply(&mut tables, &[plain(0, [95, 5]), plain(1, [1, 0])]).unwrap();
    tables.operations = 0;
    reconciler.set_weights(&mut tables, "s0", &[1, 1]).unwrap();
    assert_eq!(tables.operations, 1);
    let report = reconciler.apply(&mut tables, &[plain(0, [95, 5]), plain(1, [1, 0])]).unwrap();
    assert_eq!((tables.operations, report.changed, report.reweighted), (2, 1, vec!["s0".to_string()]));
}

#[test]
fn a_restart_keeps_numbers_and_tables() {
    let desired = [plain(0, [95, 5]), plain(1, [1, 0])];
    let mut memory = Memory::new();
    Reconciler::new().apply(&mut memory, &desired).unwrap();
    let mut nothing = |_: &Memory| {};
    let mut tables = Faulty { inner: memory, operations: 0, fail_at: None, after: &mut nothing };
    let report = Reconciler::new().apply(&mut tables, &desired).unwrap();
    assert_eq!((report.changed, tables.operations), (0, 0));
}

#[test]
fn full_tables_are_named() {
    let mut memory = Memory::new().with_limit(Table::Backends, 3);
    let error = Reconciler::new().apply(&mut memory, &[plain(0, [1, 1])]).unwrap_err().to_string();
    assert!(error.contains("more backends than the maps hold (2)") && error.contains("splitter detach"), "{error}");
    let mut memory = Memory::new().with_limit(Table::Services, 1);
    let error = Reconciler::new().apply(&mut memory, &[plain(0, [1, 1]), plain(1, [1, 1])]).unwrap_err().to_string();
    assert!(error.contains("SERVICES is full (1 entries)"), "{error}");
}

/// A backend that leaves takes its flows along, in both directions, and nobody else's.
#[test]
fn flows_go_with_their_backend() {
    use crate::FlowTables;
    let mut memory = Memory::new();
    let mut reconciler = Reconciler::new();
    reconciler.apply(&mut memory, &[plain(0, [1, 1])]).unwrap();
    let id = |host: u8| {
        let wanted = mapped([10, 2, 0, host]);
        let image = &reconciler.service("s0").unwrap().image;
        image.backends.iter().find(|(_, row)| row.addr == wanted).unwrap().0
    };
    let word = |a: [u8; 4]| [u32::from_ne_bytes(a)];
    let ports = |s: u16, d: u16| u32::from_ne_bytes([s.to_be_bytes(), d.to_be_bytes()].concat().try_into().unwrap());
    for (host, client_port) in [(1, 1000), (2, 2000)] {
        let (client, vip, backend, node) = (word([10, 1, 0, 2]), word([10, 9, 9, 9]), word([10, 2, 0, host]), word([10, 2, 0, 254]));
        let flags = flow_flag::SNAT;
        let flow = Flow { peer: backend, peer_port: 8080u16.to_be(), nexthop: 0, owner: owner(id(host), flags), last: 0 };
        let forward = FlowKey { src: client, dst: vip, ports: ports(client_port, 80), proto: 17 };
        let reverse = FlowKey { src: backend, dst: node, ports: ports(8080, client_port + 1), proto: 17 };
        let back = Flow { peer: vip, peer_port: 80u16.to_be(), owner: owner(id(host), flags | flow_flag::REVERSE), ..flow };
        V4::UDP.put(&mut memory, &[(forward, flow), (reverse, back)]).unwrap();
        let out = Snat { addr: node, port: (client_port + 1).to_be(), pad: 0 };
        let home = Snat { addr: client, port: client_port.to_be(), pad: 0 };
        V4::SNAT.put(&mut memory, &[(forward, out), (reverse, home)]).unwrap();
        assert_eq!(flows::partner::<V4>(&memory, &forward, &flow).unwrap(), Some(reverse));
        assert_eq!(flows::partner::<V4>(&memory, &reverse, &back).unwrap(), Some(forward));
    }
    let mut fewer = Arc::unwrap_or_clone(plain(0, [1, 1]));
    fewer.versions[0].backends.remove(0);
    let report = reconciler.apply(&mut memory, &[Arc::new(fewer)]).unwrap();
    assert!(report.flows_removed >= 1);
    assert_eq!(memory.entries(Table::Udp4).count(), 2);
    assert_eq!(memory.entries(Table::Snat4).count(), 2);
}

#[test]
fn rules_of_http_change_by_one_write() {
    let http = |rules: Vec<(u8, usize)>| {
        let parts = vec![(0, 1, vec![(1, BackendState::Ready)]), (1, 1, vec![(2, BackendState::Ready)])];
        as_http(service(0, parts, rules, &[0, 1, 2, 3]).unwrap())
    };
    let mut reconciler = Reconciler::new();
    let mut nothing = |_: &Memory| {};
    let mut tables = Faulty { inner: Memory::new(), operations: 0, fail_at: None, after: &mut nothing };
    reconciler.apply(&mut tables, &[http(vec![(0, 1), (1, 0)])]).unwrap();
    tables.operations = 0;
    let report = reconciler.apply(&mut tables, &[http(vec![(0, 0), (2, 1), (1, 0)])]).unwrap();
    assert_eq!((tables.operations, report.changed), (1, 1));
    // None any more: the scanner wants a value all the same.
    tables.operations = 0;
    reconciler.apply(&mut tables, &[http(vec![])]).unwrap();
    reconciler.prune(&mut tables).unwrap();
    assert_eq!((tables.operations, tables.inner.entries(Table::HttpRules).count()), (1, 1));
    assert!(tables.inner.entries(Table::HttpRules).all(|(_, value)| value.iter().take(8).all(|byte| *byte == 0)));
    // Another segment size is another record, and nothing else.
    tables.operations = 0;
    assert!(reconciler.set_mtu(1400) && !reconciler.set_mtu(1400));
    reconciler.apply(&mut tables, &[http(vec![])]).unwrap();
    assert_eq!(tables.operations, 1);
    assert_eq!(SERVICES.get(&tables.inner, 1).unwrap().map(|record| record.mss), Some(1360));
}

#[test]
fn a_service_becomes_http_and_back() {
    let rules = vec![(0, 1), (1, 0)];
    let parts = || vec![(0, 1, vec![(1, BackendState::Ready), (2, BackendState::Ready)]), (1, 1, vec![(3, BackendState::Ready)])];
    let tcp = service(0, parts(), rules, &[0, 1, 2, 3]).unwrap();
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    for desired in [tcp.clone(), as_http(tcp.clone()), tcp.clone(), as_http(tcp)] {
        reconciler.apply(&mut memory, std::slice::from_ref(&desired)).unwrap();
        settle(&mut reconciler, &mut memory);
        assert_nothing_left(&memory, std::slice::from_ref(&desired));
        assert_eq!(reconciler.service("s0").unwrap().image.id, 1);
        assert_eq!(memory.entries(Table::Rules).count(), desired.rules.len());
        let words = |address: [u8; 4], port: u16| filter::bits_of(Role::Backend, &mapped(address), port.to_be_bytes(), TCP);
        let (word, bits) = words([10, 2, 0, 1], 8080 + u16::from(b'0'));
        let mut filter = vec![0u64; filter::WORDS as usize];
        memory.get(Table::Filter, bytes_of(&[0u32]), bytes_of_mut(&mut filter)).unwrap();
        let marked = filter[word as usize] & filter::http(bits) == filter::http(bits);
        assert_eq!(marked, desired.mode == Mode::Http);
    }
}

#[test]
fn numbers_that_live_connections_name_stay_taken() {
    let desired = plain(0, [1, 1]);
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    reconciler.apply(&mut memory, std::slice::from_ref(&desired)).unwrap();
    let planned = reconciler.service(&desired.name).unwrap();
    let (service, backend) = (planned.image.id, planned.image.backends[0].0);
    reconciler.apply(&mut memory, &[]).unwrap();
    let mut left = |named: &dyn Fn(u32, u32) -> bool| {
        for _ in 0..2 {
            reconciler.sweep_begins();
            reconciler.swept(&mut memory, named).unwrap();
        }
        let mut left = Vec::new();
        IDS.each(&memory, |_, identity| left.push((identity.kind, identity.id))).unwrap();
        left.sort_unstable();
        left
    };
    let held = [(identity_kind::SERVICE, service), (identity_kind::BACKEND, backend)];
    assert_eq!(left(&|kind, number| held.contains(&(kind, number))), held);
    assert_eq!(left(&|_, _| false), []);
}

/// A backend of http that leaves the policy keeps its row, its bits in the filter and its version's number while connections name it; a service that goes
/// takes it along.
#[test]
fn a_backend_of_http_finishes_what_it_has_begun() {
    let ready = |host| (host, BackendState::Ready);
    let http = |versions: Parts| [as_http(service(0, versions, Vec::new(), &[0, 1, 2, 3]).unwrap())];
    let all = http(vec![(0, 1, vec![ready(1), ready(2)]), (1, 1, vec![ready(3)])]);
    let fewer = http(vec![(0, 1, vec![ready(1)])]);
    for (after, states) in [(&fewer[..], [backend_state::LEAVING; 2]), (&[][..], [backend_state::NONE; 2])] {
        for restart in [false, true] {
            let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
            reconciler.apply(&mut memory, &all).unwrap();
            let rows = reconciler.service("s0").unwrap().image.backends.clone();
            let left: Vec<(u32, Backend)> = rows.iter().copied().filter(|(_, row)| row.addr != mapped([10, 2, 0, 1])).collect();
            reconciler.apply(&mut memory, after).unwrap();
            if restart {
                reconciler = Reconciler::new();
                reconciler.apply(&mut memory, after).unwrap();
            }
            let seen = |memory: &Memory| left.iter().map(|(id, _)| BACKENDS.get(memory, *id).unwrap().unwrap().state).collect::<Vec<_>>();
            assert_eq!((left.len(), seen(&memory)), (2, states.to_vec()), "restart {restart}");
            let leaving = states[0] == backend_state::LEAVING;
            assert!(left.iter().all(|(id, _)| reconciler.leaving().has(*id) == leaving));
            let named = |kind, id| kind == identity_kind::BACKEND && left.iter().any(|(other, _)| *other == id);
            for _ in 0..3 {
                reconciler.sweep_begins();
                reconciler.swept(&mut memory, named).unwrap();
            }
            assert_eq!(seen(&memory), states, "as long as connections name it");
            let mut words = vec![0u64; filter::WORDS as usize];
            memory.get(Table::Filter, bytes_of(&[0u32]), bytes_of_mut(&mut words)).unwrap();
            for (_, row) in &left {
                let (word, bits) = filter::bits_of(Role::Backend, &row.addr, row.port, TCP);
                assert_eq!(words[word as usize] & (bits | filter::http(bits)) == bits | filter::http(bits), leaving);
            }
            let mut numbers = 0;
            IDS.each(&memory, |_, identity| numbers += u32::from(identity.kind == identity_kind::VERSION)).unwrap();
            assert_eq!(numbers, if leaving { 2 } else { 0 }, "what it finishes counts for its version");
            // It may come back, under the same number.
            let back = if leaving { &all[..] } else { after };
            reconciler.apply(&mut memory, back).unwrap();
            assert_eq!(seen(&memory) == [backend_state::READY; 2], leaving);
            reconciler.apply(&mut memory, after).unwrap();
            settle(&mut reconciler, &mut memory);
            assert_nothing_left(&memory, after);
            assert_eq!(seen(&memory), [backend_state::NONE; 2]);
        }
    }
}

/// Who is down when it leaves has nothing to finish.
#[test]
fn a_backend_that_is_down_leaves_at_once() {
    let http = |backends| [as_http(service(0, vec![(0, 1, backends)], Vec::new(), &[0, 1, 2, 3]).unwrap())];
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    reconciler.apply(&mut memory, &http(vec![(1, BackendState::Ready), (2, BackendState::Down)])).unwrap();
    let (id, _) = reconciler.service("s0").unwrap().image.backends[1];
    reconciler.apply(&mut memory, &http(vec![(1, BackendState::Ready)])).unwrap();
    assert_eq!(BACKENDS.get(&memory, id).unwrap().unwrap(), Backend::default());
}

/// What decides of `mode: https` is nothing to the kernel: its record stays when weights change, and a change of the mode leaves nothing behind.
#[test]
fn https_has_one_record_in_the_kernel_and_another_that_decides() {
    let policy = |mode, address: &str| {
        let backends = |last: u8| {
            let addresses = (1..=3).map(move |i| SocketAddr::from(([10, 2, i, last], 8080)));
            addresses.map(|address| ModelBackend { address, state: BackendState::Ready })
        };
        let version = |(name, weight, last): (&str, u32, u8)| Version {
            name: name.into(),
            weight,
            backends: backends(last).collect(),
            lookups: vec![],
            found: 0,
        };
        vec![Arc::new(Model {
            name: "shop".into(),
            frontends: vec![Frontend { address: address.parse().unwrap(), protocol: Protocol::Tcp }],
            mode,
            split_by: SplitBy::Request,
            versions: [("v1", 90, 1), ("v2", 10, 2)].map(version).into(),
            rules: Vec::new(),
            http: Some(Http::default()),
            tls: None,
            on_weight_change: OnWeightChange::Keep,
            pinned: Default::default(),
            snat: ModelSnat::Auto,
            path: Default::default(),
            vip: Vip::default(),
            rollout: None,
            origin: String::new(),
        })]
    };
    let (https, http) = (policy(Mode::Https, "10.9.9.9:443"), policy(Mode::Http, "10.9.9.9:443"));
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    reconciler.apply(&mut memory, &https).unwrap();
    assert_eq!((memory.entries(Table::HttpRules).count(), memory.entries(Table::Maglev).count()), (0, 0));
    let id = reconciler.service("shop").unwrap().image.id;
    let kernel = SERVICES.get(&memory, id).unwrap().unwrap();
    assert_eq!((kernel.mode, kernel.version_count), (service_mode::L4, 1));
    let before = reconciler.service("shop").unwrap().image.record;
    reconciler.set_weights(&mut memory, "shop", &[50, 50]).unwrap();
    assert_eq!(SERVICES.get(&memory, id).unwrap(), Some(kernel));
    let after = reconciler.service("shop").unwrap().image.record;
    assert_ne!(before.versions[0].end, after.versions[0].end);
    // The next agent finds it in order, and says nothing of weights.
    let mut next = Reconciler::new();
    let report = next.apply(&mut memory, &https).unwrap();
    assert_eq!((report.changed, report.reweighted.len()), (0, 0), "{report:?}");
    next.apply(&mut memory, &http).unwrap();
    settle(&mut next, &mut memory);
    assert_nothing_left(&memory, &http);
    next.apply(&mut memory, &https).unwrap();
    next.apply(&mut memory, &[]).unwrap();
    settle(&mut next, &mut memory);
    assert_nothing_left(&memory, &[]);
}
