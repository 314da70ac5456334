//! The datapath against the real kernel: maps, pins, adoption, links, interfaces. Needs root; every test has a network namespace of its own.

mod agent;
mod trial;

use splitter_agent::control::{self, Settings, Xdp};
use splitter_common::abi::*;
use splitter_datapath::{
    BACKENDS, CONFIG, Cursor, Datapath, FRONTENDS, HTTP_RULES, MAGLEV, Memory, Patterns, RULES, SERVICES, Sizes, Table, Tables, XdpMode,
    bytes_of,
    plan::{Generations, Ids, plan},
    reconcile::Reconciler,
};
use splitter_lab::lab::{Lab, Namespace, Options};
use splitter_policy::model::{
    Backend, BackendState, Condition, Frontend, Http, HttpRule, Mode, OnWeightChange, Protocol, Service, Snat, SplitBy, Text, Version,
};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// A node with interfaces c0 and b1, and a directory of pins that goes with it.
struct Node {
    pins: PathBuf,
    lab: Lab,
}

impl Node {
    fn new(name: &str) -> Self {
        assert!(splitter_lab::lab::is_root(), "this test needs root: it makes network namespaces and loads kernel programs");
        let lab = Lab::with(name, Options { backends: 1, ..Options::default() }).expect("a lab");
        let pins = inside(&lab.node, || splitter_datapath::directory(None, true).expect("a bpffs"));
        Self { pins, lab }
    }

    /// Opens the datapath and serves what there is; ends both in this thread.
    fn open(&self) -> Datapath {
        self.try_open().expect("the kernel takes the object")
    }

    fn try_open(&self) -> Result<Datapath, splitter_datapath::DatapathError> {
        Datapath::open(&self.pins, Sizes { max_flows: 1_024, ..Sizes::default() })
    }

    fn settings(&self) -> Settings {
        Settings {
            interfaces: Vec::new(),
            xdp: Xdp::Off,
            pins: None,
            state: std::env::temp_dir().join(format!("{}-state", self.lab.node.name())),
            max_flows: Some(1_024),
            source: "test".into(),
            policy: None,
            path: Default::default(),
            timestamps: true,
            debug_programs: false,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.settings().state);
        let _ = splitter_datapath::remove(&self.pins);
    }
}

fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    namespace.run(work).expect("the namespace can be entered")
}

fn links() -> Vec<splitter_datapath::Link> {
    splitter_datapath::interfaces().expect("rtnetlink answers")
}

fn serve(datapath: &mut Datapath, xdp: XdpMode) {
    let errors = datapath.serve(&links(), &Patterns::default(), xdp).expect("serving");
    assert!(errors.is_empty(), "{errors:?}");
}

fn hooks(datapath: &Datapath) -> Vec<(String, Vec<&'static str>)> {
    let mut hooks: Vec<_> = datapath.served().map(|s| (s.name.clone(), s.hooks.iter().map(|hook| hook.name()).collect())).collect();
    hooks.sort();
    hooks
}

fn program_of(interface: &str) -> Vec<u32> {
    let (_, programs) =
        aya::programs::SchedClassifier::query_tcx(interface, aya::programs::TcAttachType::Ingress).expect("the kernel tells the programs");
    programs.iter().map(|program| program.id()).collect()
}

fn service(number: u32, weights: [u32; 2]) -> Service {
    let [_, a, b, c] = number.to_be_bytes();
    let backend = |net: u8| Backend { address: SocketAddr::from(([net, a, b, c], 8080)), state: BackendState::Ready };
    let version = |name: &str, weight, backends| Version { name: name.into(), weight, backends, lookups: Vec::new(), found: 0 };
    Service {
        name: format!("service-{number}"),
        frontends: vec![Frontend { address: SocketAddr::from(([10, a, b, c], 80)), protocol: Protocol::Tcp }],
        mode: Mode::Tcp,
        split_by: SplitBy::Connection,
        versions: vec![version("v1", weights[0], vec![backend(20), backend(21)]), version("v2", weights[1], vec![backend(22)])],
        rules: Vec::new(),
        http: None,
        tls: None,
        on_weight_change: OnWeightChange::Keep,
        pinned: Default::default(),
        snat: Snat::Auto,
        path: Default::default(),
        vip: Default::default(),
        rollout: None,
        origin: String::new(),
    }
}

#[test]
fn maps_behave_as_their_model_in_memory() {
    let node = Node::new("model");
    inside(&node.lab.node, || {
        let mut kernel = node.open();
        assert!(!kernel.adopted());
        let mut memory = Memory::new();
        fn exercise(tables: &mut impl Tables) -> Vec<usize> {
            let mut seen = Vec::new();
            let frontends: Vec<_> =
                (0..5_000u32).map(|i| (FrontendKey { addr: mapped(i.to_be_bytes()), port: [0, 80], proto: TCP, pad: 0 }, i)).collect();
            FRONTENDS.put(tables, &frontends).unwrap();
            let gone: Vec<_> = frontends.iter().map(|(key, _)| *key).step_by(2).collect();
            FRONTENDS.delete(tables, &gone).unwrap();
            // Again, and in between those that are there: what is missing does not matter.
            FRONTENDS.delete(tables, &gone[..10]).unwrap();
            FRONTENDS.delete(tables, &[gone[0], frontends[1].0, gone[1], frontends[3].0]).unwrap();
            let mut count = 0;
            FRONTENDS
                .each(tables, |key, id| {
                    assert_eq!(key.addr, mapped(id.to_be_bytes()));
                    count += 1;
                })
                .unwrap();
            seen.push(count);
            assert_eq!(FRONTENDS.get(tables, frontends[5].0).unwrap(), Some(5));
            assert_eq!(FRONTENDS.get(tables, frontends[4].0).unwrap(), None);
            assert!(!FRONTENDS.replace(tables, frontends[4].0, 9).unwrap());
            assert!(FRONTENDS.replace(tables, frontends[5].0, 9).unwrap());
            let row = |i: u32| splitter_common::abi::Backend { version: i, state: 1, ..Default::default() };
            BACKENDS.put(tables, &(1..3_000).map(|i| (i, row(i))).collect::<Vec<_>>()).unwrap();
            let mut rows = 0;
            BACKENDS.each(tables, |id, row| rows += usize::from(row.state != 0 && row.version == id)).unwrap();
            seen.push(rows);
            let rules: Vec<_> = (0..500u32)
                .map(|i| (RuleKey { prefix_len: 32 + 96 + 24, service: [0, 0, 0, 1], addr: mapped((i << 8).to_be_bytes()) }, i))
                .collect();
            RULES.put(tables, &rules).unwrap();
            RULES.delete(tables, &rules[..100].iter().map(|(key, _)| *key).collect::<Vec<_>>()).unwrap();
            let mut left = 0;
            RULES.each(tables, |_, _| left += 1).unwrap();
            seen.push(left);
            let size = tables.value_size(Table::Counters);
            let value = |version: u32| vec![version as u8; size];
            let mut marks = [[true; 10]; 3];
            tables.take_marks(0, &mut marks[0]);
            for version in [0u32, 1, 7, 8, 9, 600] {
                tables.put(Table::Counters, &version.to_ne_bytes(), &value(version)).unwrap();
            }
            for (first, count) in [(0, 3), (7, 3), (8, 600), (1, 1)] {
                let mut values = vec![9; count * size];
                tables.range(Table::Counters, first, &mut values).unwrap();
                seen.extend(values.chunks_exact(size).map(|value| value.iter().map(|byte| usize::from(*byte)).sum::<usize>()));
            }
            assert_eq!(seen[6..9], [7 * size, 8 * size, 9 * size]);
            // Who writes counters tells the judge, once.
            tables.take_marks(0, &mut marks[1]);
            tables.take_marks(0, &mut marks[2]);
            let marked = marks.map(|marks| (0..10).filter(|version| marks[*version]).collect::<Vec<_>>());
            assert_eq!(marked, [vec![], vec![0, 1, 7, 8, 9], vec![]]);
            seen
        }
        assert_eq!(exercise(&mut kernel.tables), exercise(&mut memory));
        assert_eq!(kernel.tables.limit(Table::Tcp4), 2_048);
        assert!(kernel.tables.memory(Table::Tcp4) > 0);
        let full: Vec<_> =
            (0..200_000u32).map(|i| (FrontendKey { addr: mapped(i.to_be_bytes()), port: [1, 80], proto: TCP, pad: 0 }, i)).collect();
        let error = FRONTENDS.put(&mut kernel.tables, &full).unwrap_err().to_string();
        assert!(error.contains("FRONTENDS is full (131072 entries)") && error.contains("splitter detach"), "{error}");
    });
}

#[test]
fn a_batch_finds_every_entry_of_a_hash() {
    let node = Node::new("scan");
    inside(&node.lab.node, || {
        let mut datapath = node.open();
        let entries: Vec<_> =
            (0..100_000u32).map(|i| (i, splitter_common::abi::Service { salt: u64::from(i), ..Default::default() })).collect();
        SERVICES.put(&mut datapath.tables, &entries[..60_000]).unwrap();
        let mut seen = vec![false; 60_000];
        SERVICES
            .each(&datapath.tables, |id, record| {
                assert_eq!(record.salt, u64::from(id));
                assert!(!std::mem::replace(&mut seen[id as usize], true), "{id} twice");
            })
            .unwrap();
        assert!(seen.into_iter().all(|seen| seen));
        // One entry at a time: a bucket may hold more than there is room for.
        let (mut cursor, mut keys, mut values, mut count) = (Cursor::default(), Vec::new(), Vec::new(), 0);
        while datapath.tables.scan(Table::Services, &mut cursor, 1, &mut keys, &mut values).unwrap() {
            count += keys.len() / 4;
        }
        assert_eq!(count + keys.len() / 4, 60_000);
    });
}

#[test]
fn the_next_agent_adopts_maps_and_replaces_programs() {
    let node = Node::new("adopt");
    inside(&node.lab.node, || {
        let mut first = node.open();
        serve(&mut first, XdpMode::Off);
        let mut reconciler = Reconciler::new();
        reconciler.apply(&mut first.tables, &[Arc::new(service(7, [95, 5]))]).unwrap();
        let (hooks_before, programs_before) = (hooks(&first), program_of("c0"));
        assert_eq!(hooks_before.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b1", "c0"]);
        assert_eq!(programs_before.len(), 1);
        drop(first);
        assert_eq!(program_of("c0"), programs_before, "the link is pinned");
        // Other sizes do not matter: the maps are there.
        let mut second = Datapath::open(&node.pins, Sizes::default()).unwrap();
        assert!(second.adopted());
        assert_eq!(second.tables.limit(Table::Tcp4), 2_048);
        assert_eq!(CONFIG.get(&second.tables, 0).unwrap().unwrap().max_flows, 1_024);
        serve(&mut second, XdpMode::Off);
        assert_eq!(hooks(&second), hooks_before);
        let programs = program_of("c0");
        assert!(programs.len() == 1 && programs != programs_before, "replaced in place: {programs_before:?} {programs:?}");
        let mut again = Reconciler::new();
        let report = again.apply(&mut second.tables, &[Arc::new(service(7, [95, 5]))]).unwrap();
        assert_eq!(report.changed, 0);
        assert_eq!(again.service("service-7").unwrap().image, reconciler.service("service-7").unwrap().image);
    });
}

#[test]
fn maps_from_before_they_had_layouts_are_refused_with_the_remedy() {
    let node = Node::new("abi");
    inside(&node.lab.node, || {
        let mut datapath = node.open();
        let config = CONFIG.get(&datapath.tables, 0).unwrap().unwrap();
        CONFIG.put_one(&mut datapath.tables, 0, Config { abi_version: FIRST_ABI_VERSION - 1, ..config }).unwrap();
        drop(datapath);
        let Err(error) = node.try_open() else { panic!("adopted maps of another layout") };
        let text = error.to_string();
        assert!(text.contains("splitter detach") && text.contains(&format!("layout {}", FIRST_ABI_VERSION - 1)), "{text}");
        assert!(control::detach(None).unwrap().iter().any(|line| line == "map CONFIG"));
        assert!(!node.open().adopted());
    });
}

#[test]
fn detach_removes_everything_also_of_interfaces_that_are_gone() {
    let node = Node::new("detach");
    inside(&node.lab.node, || {
        let mut datapath = node.open();
        serve(&mut datapath, XdpMode::Generic);
        drop(datapath);
        let gone = splitter_datapath::interfaces().unwrap().into_iter().find(|link| link.name == "b1").unwrap();
        node.lab.node.batch("link del b1\n").unwrap();
        let lines = control::detach(None).unwrap();
        for line in ["link tcx-ingress on c0", "link xdp-generic on c0", "map TCP4"] {
            assert!(lines.iter().any(|known| known == line), "{line}: {lines:?}");
        }
        assert!(lines.iter().any(|line| line.contains(&format!("interface {} (gone)", gone.ifindex))), "{lines:?}");
        assert!(!node.pins.exists());
        assert!(program_of("c0").is_empty());
        assert_eq!(control::detach(None).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn interfaces_are_told_to_the_kernel() {
    let node = Node::new("ifaces");
    inside(&node.lab.node, || {
        let mut datapath = node.open();
        let patterns = Patterns::parse(&["c*:uplink".into(), "b*".into()]).unwrap();
        for (mode, programs, flags) in [
            (XdpMode::Native, "xdp-native", iface_flag::PEER | iface_flag::XDP_FORWARD),
            (XdpMode::Generic, "xdp-generic", iface_flag::PEER | iface_flag::XDP_FORWARD | iface_flag::XDP_TRANSMIT),
        ] {
            // A mode cannot be changed in place: a new agent brings its own link.
            drop(std::mem::replace(&mut datapath, node.open()));
            assert!(datapath.serve(&links(), &patterns, mode).unwrap().is_empty());
            let c0 = links().into_iter().find(|link| link.name == "c0").unwrap();
            let row = splitter_datapath::IFACES.get(&datapath.tables, c0.ifindex).unwrap().unwrap();
            assert_eq!(row.flags, flags, "{mode:?}");
            assert_eq!((row.mtu, row.addr4), (1500, [10, 1, 0, 1]));
            assert_ne!(row.addr6, [0; 16]);
            let ports = CONFIG.get(&datapath.tables, 0).unwrap().unwrap().xdp_ports;
            let [a, b, c, d, e, f] = c0.mac.unwrap();
            let port = xdp_port(c0.ifindex, u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
            assert_eq!(ports.iter().filter(|port| **port != 0).collect::<Vec<_>>(), [&port]);
            assert_eq!(ports[(c0.ifindex % XDP_PORTS) as usize], port);
            let names = hooks(&datapath);
            assert!(names.iter().any(|(name, hooks)| name == "c0" && hooks.contains(&programs)), "{names:?}");
            assert!(names.iter().any(|(name, hooks)| name == "b1" && !hooks.contains(&programs)), "{names:?}");
        }
    });
}

#[test]
fn the_clock_runs_at_the_rate_that_it_says() {
    let node = Node::new("clock");
    inside(&node.lab.node, || {
        let datapath = node.open();
        let ((before, rate), begin) = (datapath.ticks().unwrap(), Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let ticks = datapath.ticks().unwrap().0.wrapping_sub(before);
        let measured = f64::from(ticks) / begin.elapsed().as_secs_f64();
        assert!((measured / f64::from(rate) - 1.0).abs() < 0.1, "{measured} ticks a second, said {rate}");
    });
}

/// What the kernel holds is what the plan says, table by table.
#[test]
fn the_kernel_holds_the_image() {
    let node = Node::new("image");
    inside(&node.lab.node, || {
        let mut datapath = node.open();
        let wanted = service(3, [95, 5]);
        let image = plan(&wanted, 1500, &mut Ids::new(100, 100, [], &[]), &mut Generations::default(), |_| None).unwrap();
        Reconciler::new().apply(&mut datapath.tables, &[Arc::new(wanted)]).unwrap();
        let tables = &datapath.tables;
        assert_eq!(SERVICES.get(tables, image.id).unwrap(), Some(image.record));
        assert_eq!(FRONTENDS.get(tables, image.frontends[0]).unwrap(), Some(image.id));
        for (id, row) in &image.backends {
            assert_eq!(BACKENDS.get(tables, *id).unwrap(), Some(*row));
        }
        for (key, chunk) in image.tables[0].chunks() {
            assert_eq!(MAGLEV.get(tables, key).unwrap(), Some(chunk));
        }
        let mut bytes = vec![0u8; Table::Filter.entry_size()];
        assert!(tables.get(Table::Filter, bytes_of(&[0u32]), &mut bytes).unwrap());
        assert!(bytes.iter().any(|byte| *byte != 0));
    });
}

fn http_service(number: u32) -> Service {
    let value = |text: String| Condition::Header("X-Canary".into(), Text::Exact(text));
    let rule = |version| HttpRule { conditions: vec![value(format!("{number}-{version}"))], version, line: 1, from_canary: false };
    let mut service = service(number, [1, 0]);
    (service.mode, service.split_by) = (Mode::Http, SplitBy::Request);
    service.http = Some(Http { rules: vec![rule(0), rule(1)], ..Http::default() });
    service
}

#[test]
fn rules_of_http_are_kept_by_the_kernel() {
    let node = Node::new("http");
    inside(&node.lab.node, || {
        let mut datapath = node.open();
        let mut desired: Vec<_> = (1..=600).map(|number| Arc::new(http_service(number))).collect();
        let mut first = Reconciler::new();
        first.apply(&mut datapath.tables, &desired).unwrap();
        let count = |datapath: &Datapath| {
            let mut count = 0;
            HTTP_RULES.each(&datapath.tables, |_, rules| count += usize::from(rules.rule_count == 2)).unwrap();
            count
        };
        assert_eq!(count(&datapath), 600);
        for planned in first.services().take(20) {
            let held = HTTP_RULES.get(&datapath.tables, planned.image.id).unwrap();
            assert_eq!(held.as_ref(), planned.image.http.as_deref());
        }
        let mut second = Reconciler::new();
        assert_eq!(second.apply(&mut datapath.tables, &desired).unwrap().changed, 0, "a restart changes nothing");
        for service in &mut desired[..200] {
            Arc::make_mut(service).http = Some(Http::default());
        }
        assert_eq!(second.apply(&mut datapath.tables, &desired).unwrap().changed, 200);
        second.prune(&mut datapath.tables).unwrap();
        assert_eq!(count(&datapath), 400);
    });
}
