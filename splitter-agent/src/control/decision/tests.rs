//! All who decide, side by side: the kernel's pipeline over maps that hold what was planned, and `splitter explain`.

use super::*;
use crate::control::explain::explain;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use splitter_api::{ExplainRequest, Explanation};
use splitter_common::abi::{Trace, TraceEvent, trace_kind};
use splitter_datapath::{Memory, reconcile::Reconciler};
use splitter_ebpf::{
    bytes::Route,
    fake::{Frame, Maps},
};
use splitter_policy::model::{self, *};
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

const NAMES: [&str; 8] = ["v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8"];
const ROUTE: Route = Route::Found { ifindex: 3, macs: [0x0403_0201, 0x0807_0605, 0x0c0b_0a09], mtu: 1500 };
const CLIENT_SIDE: u32 = 2;

/// A service, whether it is of IPv6, and bits of the backends that are suspect.
fn services() -> impl Strategy<Value = (model::Service, bool, u64)> {
    let state = prop_oneof![6 => Just(BackendState::Ready), 1 => Just(BackendState::Draining), 1 => Just(BackendState::Down)];
    let weight = prop_oneof![2 => Just(0), 4 => 1..4u32, 1 => 1..=u32::MAX];
    let version = (weight, prop::collection::vec(state, 0..6));
    let mode = prop_oneof![1 => Just(Mode::Tcp), 1 => Just(Mode::Udp), 2 => Just(Mode::Http)];
    let rules = prop::collection::vec((any::<u8>(), 0..8usize), 0..5);
    (mode, any::<bool>(), 0..5u8, prop::collection::vec(version, 1..=8), rules, any::<u64>(), any::<u64>()).prop_map(
        |(mode, ipv6, split, versions, rules, some, all)| {
            // A quarter of the backends.
            (service(mode, ipv6, split, &versions, &rules), ipv6, some & all)
        },
    )
}

fn service(mode: Mode, ipv6: bool, split: u8, versions: &[(u32, Vec<BackendState>)], rules: &[(u8, usize)]) -> model::Service {
    let address = |version: usize, backend: usize| {
        let text = if ipv6 { format!("[fd02::{version}:{backend}]:8080") } else { format!("10.2.{version}.{backend}:8080") };
        text.parse::<SocketAddr>().unwrap()
    };
    let http = mode == Mode::Http;
    let backends = |version: usize, states: &[BackendState]| {
        states.iter().enumerate().map(|(i, state)| Backend { address: address(version, i + 1), state: *state }).collect()
    };
    // The first byte says which of a few networks, or values of the header, a rule is about.
    let network = |byte: u8| match (ipv6, byte % 3) {
        (false, 0) => Cidr { address: "10.1.0.0".parse().unwrap(), prefix: 16 },
        (false, which) => Cidr { address: IpAddr::from([10, 1, which, 0]), prefix: 24 },
        (true, 0) => Cidr { address: "fd01::".parse().unwrap(), prefix: 64 },
        (true, which) => Cidr { address: format!("fd01::{which}:0").parse().unwrap(), prefix: 112 },
    };
    let condition = |byte: u8| match byte % 2 {
        0 => Condition::Header("X-Canary".into(), Text::Exact((byte / 2 % 4).to_string())),
        _ => Condition::Source(network(byte / 2)),
    };
    let rule = |(byte, version): &(u8, usize)| (*byte, version % versions.len());
    model::Service {
        name: "checkout".into(),
        frontends: vec![Frontend {
            address: if ipv6 { "[fd09::9]:80" } else { "10.9.9.9:80" }.parse().unwrap(),
            protocol: if mode == Mode::Udp { Protocol::Udp } else { Protocol::Tcp },
        }],
        mode,
        split_by: match split {
            0 => SplitBy::ClientIp,
            1 if http => SplitBy::Request,
            2 if http => SplitBy::Header("User".into()),
            3 if http => SplitBy::Cookie("user".into()),
            _ => SplitBy::Connection,
        },
        versions: versions
            .iter()
            .enumerate()
            .map(|(i, (weight, states))| Version {
                name: NAMES[i].into(),
                weight: *weight,
                backends: backends(i + 1, states),
                lookups: Vec::new(),
                found: 0,
            })
            .collect(),
        rules: if http {
            Vec::new()
        } else {
            rules.iter().map(rule).map(|(byte, version)| Rule { source: network(byte), version }).collect()
        },
        http: http.then(|| Http {
            rules: (rules.iter().map(rule))
                .map(|(byte, version)| HttpRule { conditions: vec![condition(byte)], version, line: 1, from_canary: false })
                .collect(),
            unavailable: Unavailable::Status,
            too_long: TooLong::Baseline,
        }),
        tls: None,
        on_weight_change: OnWeightChange::Keep,
        pinned: Default::default(),
        snat: Snat::Auto,
        path: Default::default(),
        vip: Default::default(),
        rollout: None,
        origin: "a.yaml:1:1".into(),
    }
}

/// The pipeline over what was planned for a service.
struct Node<'a> {
    maps: Maps,
    planned: &'a Planned,
    suspects: HashSet<u32>,
}

impl<'a> Node<'a> {
    fn new(planned: &'a Planned, suspect: u64) -> Self {
        let (maps, image) = (Maps::new(), &planned.image);
        maps.put_service(image.id, image.record, &image.frontends);
        let mut suspects = HashSet::new();
        for (i, (id, row)) in image.backends.iter().enumerate() {
            maps.put_backend(*id, *row, image.record.mode, image.frontends[0].proto);
            if suspect >> (i % 64) & 1 != 0 {
                maps.put_suspect(*id, 100);
                suspects.insert(*id);
            }
        }
        image.tables.iter().flat_map(MaglevTable::chunks).for_each(|(key, chunk)| maps.put_maglev(key, chunk));
        image.rules.iter().for_each(|(key, index)| maps.put_rule(*key, *index));
        if let Some(rules) = &image.http {
            maps.put_http_rules(image.id, rules);
        }
        maps.look(Trace { until: u64::MAX, interval: 1, burst: 1 << 60, ..Trace::default() });
        Self { maps, planned, suspects }
    }

    /// A packet of a client; what came out.
    fn send(&self, client: SocketAddr, flags: &str, (seq, ack): (u32, u32), payload: &[u8]) -> Vec<u8> {
        let model = &self.planned.model;
        let vip = model.frontends[0].address;
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = match (client.ip(), vip.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
            _ => panic!("mixed families"),
        };
        let mut bytes = Vec::new();
        if model.mode == Mode::Udp {
            ip.udp(client.port(), vip.port()).write(&mut bytes, payload).unwrap();
        } else {
            let tcp = ip.tcp(client.port(), vip.port(), seq, 64_000);
            let tcp = if flags == "SYN" { tcp.syn() } else { tcp.psh().ack(ack) };
            tcp.write(&mut bytes, payload).unwrap();
        }
        let mut frame = Frame::<false>::new(&bytes, ROUTE);
        frame.ifindex = CLIENT_SIDE;
        frame.run(&self.maps);
        frame.bytes
    }

    /// What the pipeline decides for a new flow or a first request.
    fn decided(&self, client: SocketAddr, isn: u32, head: &str) -> TraceEvent {
        let syn = self.send(client, "SYN", (isn, 0), &[]);
        if self.planned.model.mode == Mode::Http {
            let answer = SlicedPacket::from_ethernet(&syn).unwrap();
            let Some(TransportSlice::Tcp(answer)) = answer.transport else { panic!("no TCP") };
            assert!(answer.syn() && answer.ack());
            self.send(client, "ACK", (isn.wrapping_add(1), answer.sequence_number().wrapping_add(1)), head.as_bytes());
        }
        let events = self.maps.events();
        let decided: Vec<_> = events.iter().filter(|event| event.kind == trace_kind::DECIDED).collect();
        assert_eq!(decided.len(), 1, "{events:?}");
        *decided[0]
    }

    /// What `splitter explain` says of the same.
    fn explained(&self, client: SocketAddr, isn: u32, head: &str) -> Explanation {
        let request = ExplainRequest {
            service: "checkout".into(),
            client: Some(client.to_string()),
            head: (self.planned.model.mode == Mode::Http).then(|| head.into()),
            sequence: Some(isn.wrapping_add(1)),
            ..ExplainRequest::default()
        };
        explain(&Memory::new(), self.planned, &request, |id| self.suspects.contains(&id)).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The kernel's paths and `explain` name the same version and the same backend, whatever the policy says and whoever comes.
    #[test]
    fn the_kernel_and_explain_agree(
        (model, ipv6, suspect) in services(),
        clients in prop::collection::vec((0..4u8, 1024..65535u16, any::<u32>(), 0..4u8, 0..4u8), 4),
    ) {
        let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
        reconciler.apply(&mut memory, &[Arc::new(model)]).unwrap();
        let node = Node::new(reconciler.service("checkout").unwrap(), suspect);
        for (i, (net, port, isn, canary, user)) in clients.into_iter().enumerate() {
            // Each client once.
            let host = i + 1;
            let client = if ipv6 { format!("[fd01::{net}:{host}]:{port}") } else { format!("10.1.{net}.{host}:{port}") };
            let client = client.parse().unwrap();
            let key = if user == 0 { String::new() } else { format!("User: {user}\r\nCookie: user={user}\r\n") };
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Canary: {canary}\r\n{key}\r\n");
            let (decided, explained) = (node.decided(client, isn, &head), node.explained(client, isn, &head));
            let version = index_of(node.planned, decided.version).map(|index| NAMES[index]);
            let row = node.planned.image.backends.iter().find(|(id, _)| *id == decided.backend);
            let backend = row.map(|(_, row)| crate::control::live::endpoint(&row.addr, row.port));
            prop_assert_eq!((version, &backend), (explained.version.as_deref(), &explained.backend), "{} of {:?}: {:?}", client, node.planned.model, explained);
        }
    }
}
