//! Questions about live flows and decisions, over maps in memory.

use super::{
    ControlError,
    decision::{self, Facts},
    explain::explain,
    live::{self, Then},
    rates::Rates,
    status,
    store::Runtime,
    sweep::{Clock, Janitor},
    wanted::{self, Wanted},
};
use splitter_api::{ExplainRequest, FlowQuery, FlowSort, FlowState, StatusQuery, StatusSort};
use splitter_common::{
    abi::{Addr, Flow, FlowKey, MAGLEV_CHUNK, MaglevKey, TCP, V4, VersionCounters, flow_flag, mapped, owner},
    decide, maglev,
};
use splitter_datapath::{Cursor, FlowTables, Memory, Table, TableError, Tables, bytes_of, plan, reconcile::Reconciler};
use splitter_policy::model::*;
use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

const CLOCK: Clock = Clock { ticks: 10_000, ticks_per_second: 250, heads: 0 };

fn service(split_by: SplitBy, weights: [u32; 2]) -> Service {
    let backend = |text: &str| Backend { address: text.parse().unwrap(), state: BackendState::Ready };
    let version = |name: &str, weight, backends: &[&str]| Version {
        name: name.into(),
        weight,
        backends: backends.iter().map(|text| backend(text)).collect(),
        lookups: Vec::new(),
        found: 0,
    };
    Service {
        name: "checkout".into(),
        frontends: vec![Frontend { address: "10.9.9.9:80".parse().unwrap(), protocol: Protocol::Tcp }],
        mode: Mode::Tcp,
        split_by,
        versions: vec![version("v1", weights[0], &["10.2.1.2:8080", "10.2.1.3:8080"]), version("v2", weights[1], &["10.2.2.2:8080"])],
        rules: vec![
            Rule { source: cidr("10.1.0.0", 16), version: 0 },
            Rule { source: cidr("10.1.7.0", 24), version: 1 },
            Rule { source: cidr("10.1.7.0", 24), version: 0 },
        ],
        http: None,
        tls: None,
        on_weight_change: OnWeightChange::Reset,
        pinned: Default::default(),
        snat: Snat::Auto,
        path: Default::default(),
        vip: Default::default(),
        rollout: None,
        origin: String::new(),
    }
}

fn cidr(address: &str, prefix: u8) -> Cidr {
    Cidr { address: address.parse().unwrap(), prefix }
}

fn applied(service: Service) -> (Reconciler, Memory) {
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    reconciler.apply(&mut memory, &[Arc::new(service)]).unwrap();
    (reconciler, memory)
}

fn facts(client: &str) -> Facts {
    let client: SocketAddr = client.parse().unwrap();
    Facts { client: plan::addr(client.ip()), client_port: client.port(), vip: mapped([10, 9, 9, 9]), vip_port: 80, proto: TCP }
}

/// Both entries of an established flow to the backend that the decision names.
fn open(reconciler: &Reconciler, memory: &mut Memory, client: &str) -> (FlowKey<V4>, FlowKey<V4>) {
    let planned = reconciler.service("checkout").unwrap();
    let facts = facts(client);
    let id = decision::select(planned, &facts, None, |_| false).backend.unwrap();
    let row = planned.image.backends.iter().find(|(known, _)| *known == id).unwrap().1;
    let word = |addr: &Addr| [u32::from_ne_bytes(addr[12..].try_into().unwrap())];
    let ports = |a: [u8; 2], b: [u8; 2]| u32::from_ne_bytes([a[0], a[1], b[0], b[1]]);
    let (client_port, vip_port) = (facts.client_port.to_be_bytes(), [0, 80]);
    let forward = FlowKey::<V4> { src: word(&facts.client), dst: word(&facts.vip), ports: ports(client_port, vip_port), proto: 6 };
    let reverse = FlowKey::<V4> { src: word(&row.addr), dst: word(&facts.client), ports: ports(row.port, client_port), proto: 6 };
    let flow = Flow { peer: word(&row.addr), peer_port: u16::from_ne_bytes(row.port), nexthop: 0, owner: owner(id, 0), last: CLOCK.ticks };
    let back = Flow { peer: word(&facts.vip), peer_port: u16::from_ne_bytes(vip_port), owner: owner(id, flow_flag::REVERSE), ..flow };
    V4::TCP.put(memory, &[(forward, flow), (reverse, back)]).unwrap();
    (forward, reverse)
}

#[test]
fn the_longest_rule_wins_and_of_equal_ones_the_first() {
    let (reconciler, _) = applied(service(SplitBy::Connection, [1, 1]));
    let planned = reconciler.service("checkout").unwrap();
    for (client, rule) in [("10.1.7.9:1", Some(1)), ("10.1.8.9:1", Some(0)), ("10.2.0.1:1", None)] {
        assert_eq!(decision::rule(planned, &facts(client).client), rule, "{client}");
    }
}

/// The slot of the Maglev table is the one that the kernel reads from the map.
#[test]
fn the_backend_is_that_of_the_map() {
    let (reconciler, memory) = applied(service(SplitBy::Connection, [1, 0]));
    let planned = reconciler.service("checkout").unwrap();
    let slot = planned.image.record.versions[0];
    for port in 1..200u16 {
        let facts = facts(&format!("10.3.0.1:{port}"));
        let key = decide::connection_key(&facts.client, port, &facts.vip, 80, TCP);
        let at = maglev::slot(decide::backend_hash(planned.image.record.salt, key, 0), slot.size);
        let chunk = MaglevKey { version: slot.version, table: slot.table, chunk: at / MAGLEV_CHUNK as u32 };
        let expected = splitter_datapath::MAGLEV.get(&memory, chunk).unwrap().unwrap().backends[at as usize % MAGLEV_CHUNK];
        assert_eq!(decision::select(planned, &facts, None, |_| false).backend, Some(expected));
        let other = decision::select(planned, &facts, None, |id| id == expected).backend;
        assert!(other.is_some_and(|other| other != expected));
    }
}

#[test]
fn flows_that_belong_elsewhere_are_counted_then_marked_both_ways() {
    let (mut reconciler, mut memory) = applied(service(SplitBy::Connection, [1, 0]));
    let keys: Vec<_> = (1..=100).map(|port| open(&reconciler, &mut memory, &format!("10.3.0.1:{port}"))).collect();
    let id = HashSet::from([reconciler.service("checkout").unwrap().image.id]);
    assert_eq!(live::strays(&mut memory, reconciler.applied(), &id, Then::Count).unwrap(), 0);
    reconciler.set_weights(&mut memory, "checkout", &[1, 1]).unwrap();
    let half = live::strays(&mut memory, reconciler.applied(), &id, Then::Count).unwrap();
    assert!((30..=70).contains(&half), "{half}");
    assert_eq!(live::strays(&mut memory, reconciler.applied(), &id, Then::End).unwrap(), half);
    let marked = |key: &FlowKey<V4>| V4::TCP.get(&memory, *key).unwrap().unwrap().is(flow_flag::RESET);
    assert_eq!(keys.iter().filter(|(forward, _)| marked(forward)).count() as u64, half);
    assert!(keys.iter().all(|(forward, reverse)| marked(forward) == marked(reverse)));
    let still = live::strays(&mut memory, reconciler.applied(), &id, Then::End).unwrap();
    assert_eq!(still, 0, "marked ones are not counted again");
    assert_eq!(live::strays(&mut memory, reconciler.applied(), &HashSet::from([99]), Then::End).unwrap(), 0);
}

#[test]
fn rows_tell_the_names() {
    let (reconciler, mut memory) = applied(service(SplitBy::Connection, [0, 1]));
    open(&reconciler, &mut memory, "10.3.0.1:4000");
    let rows = live::rows(&memory, reconciler.applied(), wanted(&reconciler, FlowQuery::default()), CLOCK).unwrap();
    let row = &rows[0];
    assert_eq!(
        [&row.service, &row.version, &row.protocol, &row.client, &row.frontend, &row.backend, &row.state],
        ["checkout", "v2", "tcp", "10.3.0.1:4000", "10.9.9.9:80", "10.2.2.2:8080", "established"]
    );
    assert_eq!((rows.len(), row.idle), (1, 0.0));
    let other = FlowQuery { service: Some("other".into()), ..FlowQuery::default() };
    let error = Wanted::new(reconciler.applied(), &other).err().unwrap().to_string();
    assert!(error.contains("the node runs: checkout"), "{error}");
}

fn wanted(reconciler: &Reconciler, query: FlowQuery) -> Wanted<'_> {
    Wanted::new(reconciler.applied(), &query).unwrap()
}

#[test]
fn flows_are_filtered_while_the_tables_are_walked() {
    let (reconciler, mut memory) = applied(service(SplitBy::Connection, [1, 1]));
    for port in 1..=40 {
        open(&reconciler, &mut memory, &format!("10.3.0.{}:{port}", port % 4));
    }
    let count = |query: FlowQuery| live::rows(&memory, reconciler.applied(), wanted(&reconciler, query), CLOCK).unwrap().len();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(count(FlowQuery::default()), 40);
    assert_eq!(count(FlowQuery { client: text("10.3.0.1"), ..FlowQuery::default() }), 10);
    assert_eq!(count(FlowQuery { client: text("10.3.0.0/31"), ..FlowQuery::default() }), 20);
    assert_eq!(count(FlowQuery { service: text("check*"), client: text("fd00::/8"), ..FlowQuery::default() }), 0);
    let version = |name| count(FlowQuery { version: text(name), ..FlowQuery::default() });
    assert_eq!((version("v1") > 0, version("v1") + version("v2")), (true, 40));
    assert_eq!(count(FlowQuery { backend: text("10.2.2.2:8080"), ..FlowQuery::default() }), version("v2"));
    assert_eq!(count(FlowQuery { backend: text("10.2.2.2:1"), ..FlowQuery::default() }), 0);
    assert_eq!(count(FlowQuery { state: Some(FlowState::Closing), ..FlowQuery::default() }), 0);
    assert_eq!(count(FlowQuery { state: Some(FlowState::Established), limit: Some(7), ..FlowQuery::default() }), 7);
    let unknown = FlowQuery { version: text("v3"), ..FlowQuery::default() };
    assert!(Wanted::new(reconciler.applied(), &unknown).err().unwrap().to_string().contains("there are: v1, v2"));
}

/// A table of many portions, of which a limit reads one.
#[test]
fn a_limit_ends_the_walk() {
    let (reconciler, mut memory) = applied(service(SplitBy::Connection, [1, 1]));
    for port in 1..=4_000u16 {
        open(&reconciler, &mut memory, &format!("10.3.0.1:{port}"));
    }
    let seen = std::cell::Cell::new(0);
    let counting = Counting { memory: &memory, seen: &seen };
    let query = |sort, limit| FlowQuery { sort, limit: Some(limit), ..FlowQuery::default() };
    let rows = live::rows(&counting, reconciler.applied(), wanted(&reconciler, query(None, 5)), CLOCK).unwrap();
    assert_eq!(rows.len(), 5);
    let few = seen.replace(0);
    let rows = live::rows(&counting, reconciler.applied(), wanted(&reconciler, query(Some(FlowSort::Client), 5)), CLOCK).unwrap();
    assert_eq!(
        rows.iter().map(|row| row.client.as_str()).collect::<Vec<_>>(),
        (1..=5).map(|p| format!("10.3.0.1:{p}")).collect::<Vec<_>>()
    );
    // In memory the entries of the backends' side come first: four portions of them.
    assert!(few <= 5 * splitter_datapath::SCAN && seen.get() >= 8_000, "{few} and {} entries were read", seen.get());
}

/// Counts the entries that are read.
struct Counting<'a> {
    memory: &'a Memory,
    seen: &'a std::cell::Cell<usize>,
}

impl Tables for Counting<'_> {
    fn put(&mut self, _: Table, _: &[u8], _: &[u8]) -> Result<(), TableError> {
        unreachable!("readers do not write")
    }
    fn replace(&mut self, _: Table, _: &[u8], _: &[u8]) -> Result<bool, TableError> {
        unreachable!("readers do not write")
    }
    fn delete(&mut self, _: Table, _: &[u8]) -> Result<(), TableError> {
        unreachable!("readers do not write")
    }
    fn get(&self, table: Table, key: &[u8], value: &mut [u8]) -> Result<bool, TableError> {
        self.memory.get(table, key, value)
    }
    fn scan(&self, table: Table, cursor: &mut Cursor, limit: usize, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> Result<bool, TableError> {
        let more = self.memory.scan(table, cursor, limit, keys, values)?;
        self.seen.set(self.seen.get() + keys.len() / table.key_size());
        Ok(more)
    }
    fn range(&self, table: Table, first: u32, values: &mut [u8]) -> Result<(), TableError> {
        self.memory.range(table, first, values)
    }
    fn limit(&self, table: Table) -> u32 {
        self.memory.limit(table)
    }
    fn cpus(&self) -> usize {
        self.memory.cpus()
    }
    fn memory(&self, table: Table) -> u64 {
        self.memory.memory(table)
    }
}

#[test]
fn status_takes_names_patterns_order_and_limit() {
    let named = |name: &str, port: u16| {
        let mut model = service(SplitBy::Connection, [1, 1]);
        model.name = name.into();
        model.frontends[0].address.set_port(port);
        Arc::new(model)
    };
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    let all = [named("shop/a", 81), named("shop/b", 82), named("web", 83)];
    reconciler.apply(&mut memory, &all).unwrap();
    for (name, connections) in [("shop/a", 5u64), ("shop/b", 9), ("web", 7)] {
        let number = status::versions(reconciler.service(name).unwrap()).next().unwrap();
        let one = VersionCounters { connections, refused: 10 - connections, ..VersionCounters::default() };
        memory.put(Table::Counters, bytes_of(&[number]), bytes_of(&[one, VersionCounters::default()])).unwrap();
    }
    let (runtime, janitor, rates) = (Runtime::default(), Janitor::default(), Rates::default());
    let ask = |names: &[&str], sort, limit| {
        let query = StatusQuery { services: names.iter().map(|name| (*name).into()).collect(), sort, limit };
        let chosen = wanted::services(reconciler.applied(), &query.services)?;
        let context = (&runtime, janitor.findings().as_ref(), CLOCK, &rates);
        let services = status::some(&memory, reconciler.applied(), chosen, &query, context).unwrap();
        Ok::<_, ControlError>(services.into_iter().map(|service| service.name).collect::<Vec<_>>())
    };
    assert_eq!(ask(&[], StatusSort::Name, None).unwrap(), ["shop/a", "shop/b", "web"]);
    assert_eq!(ask(&["web", "shop/a", "web"], StatusSort::Name, None).unwrap(), ["shop/a", "web"]);
    assert_eq!(ask(&["shop/*"], StatusSort::Connections, None).unwrap(), ["shop/b", "shop/a"]);
    assert_eq!(ask(&[], StatusSort::Failed, Some(1)).unwrap(), ["shop/a"]);
    assert_eq!(ask(&[], StatusSort::Name, Some(2)).unwrap(), ["shop/a", "shop/b"]);
    assert!(ask(&["nobody"], StatusSort::Name, None).unwrap_err().to_string().contains("the node runs: shop/a, shop/b, web"));
    assert!(ask(&["x*"], StatusSort::Name, None).unwrap_err().to_string().contains("no service matches"));
    assert_eq!(wanted::names(reconciler.applied(), "shop/").len(), 2);
    assert_eq!(wanted::names(reconciler.applied(), "w")[0].versions, ["v1", "v2"]);
}

fn ask(reconciler: &Reconciler, memory: &Memory, client: Option<&str>) -> Result<splitter_api::Explanation, ControlError> {
    let request = ExplainRequest { service: "checkout".into(), client: client.map(Into::into), ..ExplainRequest::default() };
    explain(memory, reconciler.service("checkout").unwrap(), &request, |_| false)
}

#[test]
fn explanations() {
    let (reconciler, mut memory) = applied(service(SplitBy::Connection, [95, 5]));
    open(&reconciler, &mut memory, "10.3.0.1:4000");
    for (client, decided_by, words) in [
        (None, "undecided", "name one with --client"),
        (Some("10.3.0.1"), "undecided", "source port"),
        (Some("10.3.0.1:4000"), "flow", "The flow exists"),
        (Some("10.3.0.1:4001"), "weight", "Bucket"),
        (Some("10.1.7.1"), "rule", "rule 1: sourceCidr 10.1.7.0/24: version v2"),
        (Some("::ffff:10.1.7.1"), "rule", "version v2"),
    ] {
        let answer = ask(&reconciler, &memory, client).unwrap();
        assert_eq!(answer.decided_by, decided_by, "{client:?}: {answer:?}");
        assert!(answer.reason.contains(words), "{client:?}: {}", answer.reason);
        assert!((answer.shares["v1"] - 0.95).abs() < 1e-9);
        assert_eq!(answer.version.is_none(), decided_by == "undecided");
    }
    let rule = ask(&reconciler, &memory, Some("10.1.7.1")).unwrap();
    assert_eq!(rule.backend.as_deref(), Some("10.2.2.2:8080"), "one backend: the port does not matter");
    for (client, words) in [("10.3.0.1:x", "IP or IP:PORT"), ("fd00::1", "no IPv6 frontend")] {
        let Err(ControlError::Invalid(message)) = ask(&reconciler, &memory, Some(client)) else { panic!("{client}") };
        assert!(message.contains(words), "{message}");
    }
    let (reconciler, memory) = applied(service(SplitBy::ClientIp, [0, 0]));
    assert_eq!(ask(&reconciler, &memory, Some("10.3.0.1")).unwrap().decided_by, "none");
    let (reconciler, memory) = applied(service(SplitBy::ClientIp, [1, 0]));
    let by_address = ask(&reconciler, &memory, Some("10.3.0.1")).unwrap();
    assert_eq!((by_address.decided_by.as_str(), by_address.version.as_deref()), ("weight", Some("v1")));
    assert!(by_address.backend.is_some() && by_address.bucket.is_some());
}

#[test]
fn status_tells_shares_since_the_weights_changed() {
    let (reconciler, mut memory) = applied(service(SplitBy::Connection, [95, 5]));
    let planned = reconciler.service("checkout").unwrap();
    for (version, connections) in status::versions(planned).zip([100u64, 60]) {
        let one = VersionCounters { connections: connections / 2, ..VersionCounters::default() };
        memory.put(Table::Counters, bytes_of(&[version]), bytes_of(&[one, one])).unwrap();
    }
    open(&reconciler, &mut memory, "10.1.7.1:4000");
    let mut janitor = Janitor::default();
    janitor.begin();
    while !janitor.step(&mut memory, CLOCK).unwrap() {}
    let mut runtime = Runtime::default();
    let first = status::services(&memory, reconciler.applied(), &runtime, janitor.findings(), CLOCK, &Rates::default()).unwrap();
    let ratio = |services: &[splitter_api::Service]| services[0].versions.iter().map(|v| v.observed_ratio.unwrap()).collect::<Vec<_>>();
    assert_eq!(ratio(&first), [0.625, 0.375]);
    assert_eq!((first[0].versions[0].flows, first[0].versions[1].flows), (0, 1));
    assert_eq!(first[0].frontends, ["10.9.9.9:80/TCP"]);
    assert_eq!(first[0].on_weight_change, "reset");
    runtime.baselines.insert("checkout".into(), BTreeMap::from([("v1".into(), 90), ("v2".into(), 50)]));
    let second = status::services(&memory, reconciler.applied(), &runtime, janitor.findings(), CLOCK, &Rates::default()).unwrap();
    assert_eq!(ratio(&second), [0.5, 0.5]);
    assert_eq!(status::tables(&memory, janitor.findings())[0].entries, 2);
    assert!(status::reasons(&memory).unwrap().is_empty());
}

#[test]
fn http_services_tell_requests() {
    let mut model = service(SplitBy::Request, [1, 1]);
    (model.mode, model.rules, model.http) = (Mode::Http, Vec::new(), Some(Http::default()));
    let (reconciler, mut memory) = applied(model);
    let planned = reconciler.service("checkout").unwrap();
    let numbers: Vec<u32> = status::versions(planned).collect();
    for (version, requests) in numbers.iter().zip([300u64, 100]) {
        let one = VersionCounters { connections: 1, requests, status: [1, 2, 3, 4, 5, 6], switches: 9, ..VersionCounters::default() };
        memory.put(Table::Counters, bytes_of(&[*version]), bytes_of(&[one, VersionCounters::default()])).unwrap();
    }
    let mut rates = Rates::default();
    rates.note(0.0, numbers.iter().map(|number| (*number, 0)).collect());
    rates.note(5.0, numbers.iter().map(|number| (*number, 10)).collect());
    let janitor = Janitor::default();
    let services = status::services(&memory, reconciler.applied(), &Runtime::default(), janitor.findings(), CLOCK, &rates).unwrap();
    let [v1, v2] = &services[0].versions[..] else { panic!("{services:?}") };
    assert_eq!((v1.observed_ratio, v2.observed_ratio), (Some(0.75), Some(0.25)), "by requests, not by connections");
    assert_eq!((v1.requests, v1.switches, v1.request_rate), (300, 9, Some(2.0)));
    let codes: Vec<(&str, u64)> = v1.codes.iter().map(|(code, count)| (code.as_str(), *count)).collect();
    assert_eq!(codes, [("1xx", 2), ("2xx", 3), ("3xx", 4), ("4xx", 5), ("5xx", 6), ("other", 1)]);
    assert_eq!((services[0].mode.as_str(), services[0].split_by.as_str()), ("http", "request"));
}
