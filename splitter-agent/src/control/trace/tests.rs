//! Readers, the kernel's filter, and decisions that meet their ends.

use super::{
    join::{Join, Told},
    *,
};
use splitter_common::abi::{self, NO_REASON, Reason, TRACE_TEXT, trace_flag, trace_kind};
use splitter_datapath::{
    Memory,
    reconcile::{Planned, Reconciler},
};
use splitter_policy::model::*;

fn service(name: &str, address: &str, mode: Mode, rules: Vec<HttpRule>) -> Service {
    let version = |name: &str, weight, backend: &str| Version {
        name: name.into(),
        weight,
        backends: vec![Backend { address: backend.parse().unwrap(), state: BackendState::Ready }],
        lookups: Vec::new(),
        found: 0,
    };
    Service {
        name: name.into(),
        frontends: vec![Frontend { address: address.parse().unwrap(), protocol: Protocol::Tcp }],
        mode,
        split_by: SplitBy::Connection,
        versions: vec![version("v1", 1, "10.2.1.2:8080"), version("v2", 1, "10.2.2.2:8080")],
        rules: vec![Rule { source: Cidr { address: "10.1.7.0".parse().unwrap(), prefix: 24 }, version: 1 }],
        http: (mode == Mode::Http).then_some(Http { rules, unavailable: Unavailable::Status, too_long: Default::default() }),
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

fn applied() -> Reconciler {
    let header = Condition::Header("x-canary".into(), Text::Exact("always".into()));
    let rule = HttpRule { conditions: vec![header], version: 1, line: 3, from_canary: false };
    let web = Service { rules: Vec::new(), ..service("web", "10.9.9.9:80", Mode::Http, vec![rule]) };
    let mut reconciler = Reconciler::new();
    let services = [Arc::new(web), Arc::new(service("plain", "10.9.9.9:81", Mode::Tcp, Vec::new()))];
    reconciler.apply(&mut Memory::new(), &services).unwrap();
    reconciler
}

fn words(address: &str) -> [u32; 4] {
    let bytes = plan::addr(address.parse().unwrap());
    std::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..][..4].try_into().unwrap()))
}

fn event(planned: &Planned, version: usize, kind: u8, client: &str) -> abi::TraceEvent {
    abi::TraceEvent {
        time: 1_000,
        spent: 0,
        facts: 0,
        key: 0,
        client: words(client),
        vip: words("10.9.9.9"),
        client_port: 40_000,
        vip_port: planned.model.frontends[0].address.port(),
        service: planned.image.id,
        version: planned.image.record.versions[version].version,
        backend: planned.image.backends[version].0,
        at: 5,
        ruled: u32::MAX,
        kind,
        proto: abi::TCP,
        flags: if planned.model.mode == Mode::Http { trace_flag::HTTP } else { 0 },
        reason: NO_REASON,
        status: 0,
        text_len: 0,
        text: [0; TRACE_TEXT],
    }
}

fn asks(event: abi::TraceEvent, head: &[u8]) -> abi::TraceEvent {
    let mut event = abi::TraceEvent { text_len: head.len().min(TRACE_TEXT) as u16, ..event };
    event.text[..head.len().min(TRACE_TEXT)].copy_from_slice(&head[..head.len().min(TRACE_TEXT)]);
    event
}

fn line(reconciler: &Reconciler, decided: abi::TraceEvent, ended: Option<abi::TraceEvent>) -> TraceEvent {
    let mut names = Names::default();
    names.follow(reconciler.applied(), 1);
    names.line(reconciler.applied(), &Told { decided, ended }, &names::Clock { now: 500_001_000, unix: 100.0 })
}

#[test]
fn requests_are_named_with_their_reason() {
    let reconciler = applied();
    let web = reconciler.service("web").unwrap();
    let decided = abi::TraceEvent {
        facts: 1,
        ruled: web.image.record.versions[1].version,
        ..asks(event(web, 1, trace_kind::DECIDED, "10.1.0.2"), b"GET /beta?secret HTTP/1.1\r\nHost: a\r\n")
    };
    let ended = abi::TraceEvent { status: 200, spent: 2_000_000, ..event(web, 1, trace_kind::ANSWERED, "10.1.0.2") };
    let told = line(&reconciler, decided, Some(ended));
    let expected = TraceEvent {
        time: 99.5,
        client: "10.1.0.2:40000".into(),
        frontend: "10.9.9.9:80".into(),
        protocol: "http".into(),
        service: "web".into(),
        version: Some("v2".into()),
        backend: Some("10.2.2.2:8080".into()),
        decided_by: "rule".into(),
        rule: Some("0: header x-canary=always".into()),
        method: Some("GET".into()),
        path: Some("/beta".into()),
        status: Some(200),
        first_byte: Some(0.002),
        ..TraceEvent::default()
    };
    assert_eq!(told, expected);
    let weighed = line(&reconciler, abi::TraceEvent { ruled: u32::MAX, ..decided }, None);
    assert_eq!((weighed.decided_by.as_str(), weighed.bucket.is_some(), weighed.status), ("weight", true, None));
    let long = abi::TraceEvent { ruled: abi::BASELINE_RULED, facts: 0, reason: Reason::HeadTooLong as u8, ..decided };
    let long = line(&reconciler, abi::TraceEvent { flags: long.flags | trace_flag::PINNED, ..long }, None);
    assert_eq!((long.decided_by.as_str(), long.bucket, long.reason.as_deref()), ("baseline", None, Some("head_too_long")));
    let none = abi::TraceEvent { backend: 0, reason: Reason::NoBackend as u8, ..decided };
    let node = abi::TraceEvent { reason: Reason::Unavailable as u8, status: 503, ..event(web, 1, trace_kind::REFUSED, "10.1.0.2") };
    let refused = line(&reconciler, none, Some(node));
    assert_eq!((refused.refused, refused.status, refused.reason.as_deref()), (true, Some(503), Some("no_backend")));
}

#[test]
fn connections_are_named_with_their_rule_or_bucket() {
    let reconciler = applied();
    let plain = reconciler.service("plain").unwrap();
    let ruled = line(&reconciler, event(plain, 1, trace_kind::DECIDED, "10.1.7.2"), None);
    assert_eq!((ruled.decided_by.as_str(), ruled.rule.as_deref()), ("rule", Some("0: sourceCidr 10.1.7.0/24")));
    let weighed = line(&reconciler, event(plain, 1, trace_kind::DECIDED, "10.1.8.2"), None);
    assert_eq!((weighed.decided_by.as_str(), weighed.rule, weighed.bucket.is_some()), ("weight", None, true));
}

#[test]
fn paths_are_cut_and_kept_without_their_query() {
    let reconciler = applied();
    let web = reconciler.service("web").unwrap();
    let path = |head: &[u8]| {
        let told = line(&reconciler, asks(event(web, 0, trace_kind::DECIDED, "10.1.0.2"), head), None);
        (told.method.unwrap_or_default(), told.path.unwrap_or_default())
    };
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(200));
    assert_eq!(path(long.as_bytes()), ("GET".into(), format!("/{}...", "a".repeat(63))));
    assert_eq!(path(b"GET / HTTP/1.1\r\nCookie: secret\r\n"), ("GET".into(), "/".into()));
    assert_eq!(path(b"rubbish\r\n"), ("rubbish".into(), String::new()));
    assert_eq!(path(b"GET /?a=b HTTP/1.1\r\n"), ("GET".into(), "/".into()));
}

#[test]
fn decisions_wait_for_their_ends_but_not_for_ever() {
    let reconciler = applied();
    let web = reconciler.service("web").unwrap();
    let decided = asks(event(web, 0, trace_kind::DECIDED, "10.1.0.2"), b"GET / HTTP/1.1\r\n");
    let ended = abi::TraceEvent { status: 200, ..event(web, 0, trace_kind::ANSWERED, "10.1.0.2") };
    let other = abi::TraceEvent { client_port: 5, ..decided };
    let (mut join, mut told) = (Join::default(), Vec::new());
    join.take(ended, &mut told);
    assert_eq!(told, [], "asked before anybody looked");
    join.take(decided, &mut told);
    join.take(other, &mut told);
    assert!(told.is_empty() && !join.is_empty());
    let waiting = |event: abi::TraceEvent| Told { decided: event, ended: None };
    let earlier = abi::TraceEvent { client_port: 6, time: decided.time - 1, ..decided };
    join.take(earlier, &mut told);
    assert_eq!(join.waiting().first(), Some(&waiting(earlier)), "in their order");
    assert_eq!(join.waiting().len(), 3);
    join.take(abi::TraceEvent { client_port: 6, ..ended }, &mut told);
    told.clear();
    join.take(ended, &mut told);
    assert_eq!(told, [Told { decided, ended: Some(ended) }]);
    told.clear();
    join.expire(1_000 + 4_999_999_999, &mut told);
    assert_eq!(told, []);
    join.expire(1_000 + 5_000_000_000, &mut told);
    assert_eq!(told, [Told { decided: other, ended: None }]);
    assert!(join.is_empty());
    told.clear();
    // A second request tells the first; a refusal is told without its request too.
    join.take(decided, &mut told);
    join.take(abi::TraceEvent { time: 2_000, ..decided }, &mut told);
    assert_eq!(told, [Told { decided, ended: None }]);
    let refused = abi::TraceEvent { kind: trace_kind::REFUSED, client_port: 9, ..ended };
    join.take(refused, &mut told);
    assert_eq!(told[1], Told { decided: refused, ended: Some(refused) });
    // Layer 4 waits for nothing.
    told.clear();
    let plain = event(reconciler.service("plain").unwrap(), 0, trace_kind::DECIDED, "10.1.0.2");
    join.take(plain, &mut told);
    assert_eq!(told, [Told { decided: plain, ended: None }]);
}

fn filter(service: Option<&str>, version: Option<&str>, client: Option<&str>) -> Filter {
    let client = client.map(|text| source::cidr(text).unwrap());
    Filter { service: service.map(Into::into), version: version.map(Into::into), client, rate: 100 }
}

#[test]
fn the_kernel_looks_at_what_anybody_wants() {
    let reconciler = applied();
    let web = reconciler.service("web").unwrap();
    let (id, v2) = (web.image.id, web.image.record.versions[1].version);
    let of = |filters: &[Filter]| union(filters.iter(), reconciler.applied(), 7);
    assert_eq!(of(&[]), Trace::default());
    let one = of(&[filter(Some("web"), Some("v2"), Some("10.1.7.0/24"))]);
    assert_eq!((one.service, one.version, one.until, one.interval), (id, v2, 7 + LEASE, 10_000_000));
    assert_eq!((one.client, one.mask), (words("10.1.7.0"), [u32::MAX, u32::MAX, u32::MAX, (!0xffu32).to_be()]));
    let two = of(&[filter(Some("web"), Some("v2"), Some("10.1.7.0/24")), filter(Some("web"), Some("v1"), Some("10.1.6.1"))]);
    assert_eq!((two.service, two.version, two.client, two.mask[3]), (id, 0, words("10.1.6.0"), (!0x1ffu32).to_be()));
    let wide = of(&[filter(Some("web"), None, Some("10.1.7.0/24")), filter(Some("plain"), None, Some("fd00::/8"))]);
    assert_eq!((wide.service, wide.mask, wide.client), (0, [0; 4], [0; 4]));
    assert_eq!(of(&[filter(Some("gone"), None, None)]).service, u32::MAX, "nothing is of a service that is gone");
}

#[tokio::test]
async fn readers_get_what_they_want_lose_what_they_leave_and_are_few() {
    let mut tracing = Tracing::default();
    let mut web = tracing.admit(filter(Some("web"), None, Some("10.1.0.0/16"))).unwrap();
    let mut slow = tracing.admit(filter(None, None, None)).unwrap();
    let others: Vec<_> = (2..READERS).map(|_| tracing.admit(filter(None, None, None)).unwrap()).collect();
    assert!(matches!(tracing.admit(filter(None, None, None)), Err(ControlError::Busy(_))));
    drop(others);
    assert_eq!(tracing.shared.readers().1.len(), 2);
    let sender = tracing.sender.clone().unwrap();
    let say = |service: &str, client: &str| {
        let event = TraceEvent { service: service.into(), client: client.into(), ..TraceEvent::default() };
        let _ = sender.send(Arc::new(event));
    };
    say("other", "10.1.0.2:1");
    say("web", "10.2.0.2:2");
    say("web", "10.1.0.2:3");
    assert_eq!(web.next().await.unwrap().client, "10.1.0.2:3");
    assert_eq!(web.lost(), TraceLost::default());
    (0..BEHIND + 10).for_each(|_| say("other", "[fd00::1]:4"));
    assert_eq!(slow.next().await.unwrap().client, "[fd00::1]:4");
    assert_eq!(slow.lost().reader_slow, 13);
    tracing.shared.lost[0].store(5, Relaxed);
    assert_eq!((slow.lost().over_limit, tracing.admit(filter(None, None, None)).unwrap().lost().over_limit), (5, 0));
}
