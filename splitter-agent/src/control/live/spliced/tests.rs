use super::super::rows;
use super::*;
use crate::control::explain::explain;
use splitter_api::{ExplainRequest, Explanation, FlowQuery, FlowState};
use splitter_datapath::{Memory, read, reconcile::Reconciler};
use splitter_policy::model::{
    Backend, BackendState, Frontend, Http, Mode, OnWeightChange, Pinned, Protocol, Service, Snat, SplitBy, Unavailable, Version,
};
use std::sync::Arc;

const CLOCK: Clock = Clock { ticks: 10_000, ticks_per_second: 250, heads: 0 };

fn applied() -> (Memory, Reconciler) {
    applied_with(Pinned::Keep)
}

fn applied_with(pinned: Pinned) -> (Memory, Reconciler) {
    let backend = |text: &&str| Backend { address: text.parse().unwrap(), state: BackendState::Ready };
    let version = |name: &str, weight, backends: &[&str]| Version {
        name: name.into(),
        weight,
        backends: backends.iter().map(backend).collect(),
        lookups: Vec::new(),
        found: 0,
    };
    let service = Service {
        name: "checkout".into(),
        frontends: vec![Frontend { address: "10.9.9.9:80".parse().unwrap(), protocol: Protocol::Tcp }],
        mode: Mode::Http,
        split_by: SplitBy::Request,
        versions: vec![version("v1", 0, &["10.2.1.2:8080"]), version("v2", 100, &["10.2.2.2:8080", "10.2.2.3:8080"])],
        rules: Vec::new(),
        http: Some(Http { rules: Vec::new(), unavailable: Unavailable::Status, too_long: Default::default() }),
        tls: None,
        on_weight_change: OnWeightChange::Keep,
        pinned,
        snat: Snat::Auto,
        path: Default::default(),
        vip: Default::default(),
        rollout: None,
        origin: "a:b.yaml:3:18".into(),
    };
    let (mut memory, mut reconciler) = (Memory::new(), Reconciler::new());
    reconciler.apply(&mut memory, &[Arc::new(service)]).unwrap();
    (memory, reconciler)
}

fn word(a: [u8; 4]) -> [u32; 1] {
    [u32::from_ne_bytes(a)]
}

fn ports(source: u16, destination: u16) -> u32 {
    u32::from_ne_bytes([source.to_be_bytes(), destination.to_be_bytes()].concat().try_into().unwrap())
}

const CLIENT: [u8; 4] = [10, 1, 0, 2];
const VIP: [u8; 4] = [10, 9, 9, 9];

/// Of v1, v2 and v2.
const BACKENDS: [[u8; 4]; 3] = [[10, 2, 1, 2], [10, 2, 2, 2], [10, 2, 2, 3]];

/// A connection from a port of the client to one of the backends; `None`: to none yet.
fn connect(memory: &mut Memory, reconciler: &Reconciler, port: u16, state: u8, flags: u8, backend: Option<usize>) {
    let planned = reconciler.service("checkout").unwrap();
    let key = FlowKey { src: word(CLIENT), dst: word(VIP), ports: ports(port, 80), proto: 6 };
    let to = backend.map_or(VIP, |backend| BACKENDS[backend]);
    let number = planned.image.backends.iter().find(|(_, row)| row.addr == mapped(to)).map_or(0, |(id, _)| *id);
    let spliced = Spliced::<V4> {
        src: word(CLIENT),
        dst: word(to),
        ports: ports(port, if backend.is_some() { 8080 } else { 80 }),
        owner: owner(number, flags),
        service: planned.image.id,
        last: CLOCK.ticks - 500,
        state,
        ..read(&[])
    };
    V4::SPLICED.put_one(memory, key, spliced).unwrap();
}

fn all(memory: &Memory, reconciler: &Reconciler, query: FlowQuery) -> Vec<FlowRow> {
    rows(memory, reconciler.applied(), Wanted::new(reconciler.applied(), &query).unwrap(), CLOCK).unwrap()
}

#[test]
fn rows_tell_state_and_backend() {
    let (mut memory, reconciler) = applied();
    connect(&mut memory, &reconciler, 1, splice_state::GATHERING, 0, None);
    connect(&mut memory, &reconciler, 2, splice_state::OPENING, 0, Some(1));
    connect(&mut memory, &reconciler, 3, splice_state::ESTABLISHED, splice_flag::PINNED, Some(0));
    connect(&mut memory, &reconciler, 4, splice_state::ESTABLISHED, splice_flag::PEER_FIN, Some(0));
    connect(&mut memory, &reconciler, 5, splice_state::ANSWERED, 0, Some(0));
    let backend = |port| FlowKey { src: word([10, 2, 1, 2]), dst: word(CLIENT), ports: ports(8080, port), proto: 6 };
    let leg = Leg::<V4> { src: word(VIP), dst: word(CLIENT), ports: ports(80, 3), last: CLOCK.ticks - 250, ..read(&[]) };
    // The second leg has this key by chance: it is another client's.
    V4::LEGS.put(&mut memory, &[(backend(3), leg), (backend(4), Leg { last: CLOCK.ticks, ..leg })]).unwrap();
    let found = all(&memory, &reconciler, FlowQuery { service: Some("checkout".into()), ..FlowQuery::default() });
    let row = |port: u16| found.iter().find(|row| row.client == format!("10.1.0.2:{port}")).unwrap();
    let seen: Vec<_> = (1..=5).map(row).map(|r| (&*r.state, &*r.version, &*r.backend, r.pinned, r.idle)).collect();
    assert_eq!(
        seen,
        [
            ("gathering", "", "", false, 2.0),
            ("opening", "v2", "10.2.2.2:8080", false, 2.0),
            ("established", "v1", "10.2.1.2:8080", true, 1.0),
            ("closing", "v1", "10.2.1.2:8080", false, 2.0),
            ("answered", "", "", false, 2.0),
        ]
    );
    assert!(found.iter().all(|row| row.frontend == "10.9.9.9:80" && row.protocol == "tcp" && row.snat.is_none()));
    let pinned = all(&memory, &reconciler, FlowQuery { state: Some(FlowState::Pinned), ..FlowQuery::default() });
    assert_eq!(pinned.iter().map(|row| row.client.as_str()).collect::<Vec<_>>(), ["10.1.0.2:3"]);
    let v1 = all(&memory, &reconciler, FlowQuery { version: Some("v1".into()), ..FlowQuery::default() });
    assert_eq!(v1.len(), 2, "what the node answers itself belongs to no version: {v1:?}");
    let one = all(&memory, &reconciler, FlowQuery { backend: Some("10.2.2.2".into()), limit: Some(1), ..FlowQuery::default() });
    assert_eq!(one[0].state, "opening");
}

#[test]
fn rows_name_the_translated_source() {
    let (mut memory, reconciler) = applied();
    connect(&mut memory, &reconciler, 1, splice_state::ESTABLISHED, 0, Some(1));
    let key = FlowKey::<V4> { src: word(CLIENT), dst: word(VIP), ports: ports(1, 80), proto: 6 };
    let spliced = V4::SPLICED.get(&memory, key).unwrap().unwrap();
    V4::SPLICED.put_one(&mut memory, key, Spliced { src: word([10, 2, 0, 1]), ports: ports(12345, 8080), ..spliced }).unwrap();
    let found = all(&memory, &reconciler, FlowQuery::default());
    assert_eq!(found[0].snat.as_deref(), Some("10.2.0.1:12345"));
}

fn asked(memory: &Memory, reconciler: &Reconciler, port: u16) -> Explanation {
    let request = ExplainRequest { client: Some(format!("10.1.0.2:{port}")), ..ExplainRequest::default() };
    explain(memory, reconciler.service("checkout").unwrap(), &request, |_| false).unwrap()
}

#[test]
fn pinned_connections_that_belong_elsewhere_are_marked() {
    let counted = |pinned| {
        let (mut memory, reconciler) = applied_with(pinned);
        // To v1, which has no weight; and to v2, which has all.
        connect(&mut memory, &reconciler, 1, splice_state::ESTABLISHED, splice_flag::PINNED | splice_flag::BLIND, Some(0));
        connect(&mut memory, &reconciler, 2, splice_state::ESTABLISHED, splice_flag::PINNED, Some(1));
        connect(&mut memory, &reconciler, 3, splice_state::ESTABLISHED, 0, Some(0));
        connect(&mut memory, &reconciler, 4, splice_state::ANSWERED, splice_flag::PINNED, Some(0));
        let id = reconciler.service("checkout").unwrap().image.id;
        let mut strays = |then| super::super::strays(&mut memory, reconciler.applied(), &HashSet::from([id]), then).unwrap();
        let counts = [strays(Then::Count), strays(Then::End), strays(Then::End)];
        let mut marked = Vec::new();
        let flags = |spliced: &Spliced<V4>| spliced.owner.flags();
        V4::SPLICED.scan(&memory, &mut Cursor::default(), |key, spliced| marked.push((split_ports(key.ports).0, flags(&spliced)))).unwrap();
        marked.retain(|(_, flags)| flags & splice_flag::RESET != 0);
        (counts, marked)
    };
    assert_eq!(counted(Pinned::Keep), ([0, 0, 0], vec![]));
    let flags = splice_flag::PINNED | splice_flag::BLIND | splice_flag::RESET;
    assert_eq!(counted(Pinned::Reset), ([1, 1, 0], vec![([0, 1], flags)]));
}

#[test]
fn explanations_know_the_connection() {
    let (mut memory, reconciler) = applied();
    connect(&mut memory, &reconciler, 1, splice_state::ESTABLISHED, splice_flag::PINNED, Some(0));
    connect(&mut memory, &reconciler, 2, splice_state::ESTABLISHED, 0, Some(0));
    connect(&mut memory, &reconciler, 3, splice_state::ANSWERED, 0, Some(0));
    let pinned = asked(&memory, &reconciler, 1);
    assert_eq!((pinned.decided_by.as_str(), pinned.version.as_deref()), ("flow", Some("v1")));
    assert_eq!(pinned.backend.as_deref(), Some("10.2.1.2:8080"));
    assert!(pinned.reason.contains("is pinned"), "{}", pinned.reason);
    let live = asked(&memory, &reconciler, 2);
    assert_eq!((live.decided_by.as_str(), live.version.as_deref()), ("weight", Some("v2")), "each request is decided");
    assert!(live.reason.ends_with("its last request went to version v1."), "{}", live.reason);
    for (backend, name) in [(1, "10.2.2.2:8080"), (2, "10.2.2.3:8080")] {
        connect(&mut memory, &reconciler, 5, splice_state::ESTABLISHED, 0, Some(backend));
        assert_eq!(asked(&memory, &reconciler, 5).backend.as_deref(), Some(name), "its version is right: it stays where it is");
    }
    for port in [3, 4] {
        assert!(!asked(&memory, &reconciler, port).reason.contains("connection exists"), "answered, unknown");
    }
}
