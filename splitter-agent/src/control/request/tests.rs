//! Explanations of requests, and the scanner's rules against a plain reading of the policy.

use super::*;
use crate::control::explain::explain as ask;
use proptest::prelude::*;
use splitter_datapath::{Memory, reconcile::Reconciler};
use splitter_policy::model::*;
use std::{net::IpAddr, sync::Arc, time::Duration};

fn exact(value: &str) -> Text {
    Text::Exact(value.into())
}

fn service(split_by: SplitBy, weights: [u32; 2], rules: Vec<(Vec<Condition>, usize)>) -> Service {
    let version = |name: &str, weight, backend: &str| Version {
        name: name.into(),
        weight,
        backends: vec![Backend { address: backend.parse().unwrap(), state: BackendState::Ready }],
        lookups: Vec::new(),
        found: 0,
    };
    let rule = |(conditions, version)| HttpRule { conditions, version, line: 20, from_canary: false };
    Service {
        name: "checkout".into(),
        frontends: vec![Frontend { address: "10.9.9.9:80".parse().unwrap(), protocol: Protocol::Tcp }],
        mode: Mode::Http,
        split_by,
        versions: vec![version("v1", weights[0], "10.2.1.2:8080"), version("v2", weights[1], "10.2.2.2:8080")],
        rules: Vec::new(),
        http: Some(Http { rules: rules.into_iter().map(rule).collect(), unavailable: Unavailable::Status, too_long: Default::default() }),
        tls: None,
        on_weight_change: OnWeightChange::Keep,
        pinned: Default::default(),
        snat: Snat::Auto,
        path: Default::default(),
        vip: Default::default(),
        rollout: None,
        origin: "a:b.yaml:3:18".into(),
    }
}

fn applied(service: Service) -> Reconciler {
    let mut reconciler = Reconciler::new();
    reconciler.apply(&mut Memory::new(), &[Arc::new(service)]).unwrap();
    reconciler
}

fn explained(service: &Service, request: ExplainRequest) -> Explanation {
    let reconciler = applied(service.clone());
    ask(&Memory::new(), reconciler.service("checkout").unwrap(), &request, |_| false).unwrap()
}

fn with_header(name: &str, value: &str) -> ExplainRequest {
    ExplainRequest { headers: vec![(name.into(), value.into())], ..ExplainRequest::default() }
}

#[test]
fn rules_decide_first() {
    let source = Condition::Source(Cidr { address: "10.1.7.0".parse().unwrap(), prefix: 24 });
    let rules = vec![
        (vec![Condition::Header("X-Canary".into(), exact("always"))], 1),
        (vec![Condition::PathPrefix("/beta".into()), Condition::Cookie("canary".into(), Text::Present), source], 1),
    ];
    let service = service(SplitBy::Request, [1, 1], rules);
    let canary = explained(&service, with_header("x-canary", "always"));
    assert_eq!((canary.version.as_deref(), canary.decided_by.as_str()), (Some("v2"), "rule"));
    assert_eq!(canary.rule.as_deref(), Some("0: header X-Canary=always"));
    assert_eq!(canary.rule_origin.as_deref(), Some("a:b.yaml:20"));
    assert_eq!(canary.backend.as_deref(), Some("10.2.2.2:8080"), "one backend, whoever asks");
    let beta = |client: Option<&str>| {
        let cookies = vec![("a".into(), "b".into()), ("canary".into(), "1".into())];
        let (path, client) = (Some("/beta/x?y".into()), client.map(Into::into));
        explained(&service, ExplainRequest { cookies, path, client, ..ExplainRequest::default() })
    };
    let expected = "1: pathPrefix /beta, cookie canary present, sourceCidr 10.1.7.0/24";
    assert_eq!(beta(Some("10.1.7.9")).rule.as_deref(), Some(expected));
    assert_eq!(beta(Some("10.1.8.9")).decided_by, "undecided");
    // A rule behind, for the same version: whoever the client is. For another one, or for the weights, the client counts.
    let mut more = service.clone();
    let rules = &mut more.http.as_mut().unwrap().rules;
    rules.push(HttpRule { conditions: vec![Condition::Method("GET".into())], version: 1, line: 30, from_canary: false });
    let cookies = vec![("canary".to_owned(), "1".to_owned())];
    let ask_beta = |service: &Service| {
        explained(service, ExplainRequest { cookies: cookies.clone(), path: Some("/beta".into()), ..ExplainRequest::default() })
    };
    assert_eq!(ask_beta(&more).rule.as_deref(), Some("2: method GET"));
    more.http.as_mut().unwrap().rules[2].version = 0;
    assert_eq!(ask_beta(&more).decided_by, "undecided");
    let unknown = beta(None);
    assert!(unknown.decided_by == "undecided" && unknown.reason.contains("reads the client's address"), "{unknown:?}");
}

#[test]
fn weights_decide_by_the_key() {
    let by = |split_by, request: ExplainRequest| explained(&service(split_by, [1, 1], Vec::new()), request);
    let client = |text: &str| ExplainRequest { client: Some(text.into()), ..ExplainRequest::default() };
    let drawn = by(SplitBy::Request, client("10.3.0.1:4000"));
    assert!(drawn.decided_by == "undecided" && drawn.reason.contains("each request is drawn anew"), "{drawn:?}");
    assert_eq!((drawn.shares["v1"], drawn.shares["v2"]), (0.5, 0.5));
    let certain = by(SplitBy::Request, ExplainRequest { sequence: Some(7), ..client("10.3.0.1:4000") });
    assert!(certain.decided_by == "weight" && certain.bucket.is_some(), "{certain:?}");
    assert_eq!(by(SplitBy::ClientIp, client("10.3.0.1")).decided_by, "weight");
    assert_eq!(by(SplitBy::ClientIp, ExplainRequest::default()).decided_by, "undecided");
    assert_eq!(by(SplitBy::Connection, client("10.3.0.1")).decided_by, "undecided");
    assert_eq!(by(SplitBy::Connection, client("10.3.0.1:4000")).decided_by, "weight");
    let user = SplitBy::Header("X-User-Id".into());
    let keyed = by(user.clone(), with_header("x-user-id", "7"));
    let hash = b"7".iter().fold(decide::VALUE_START, |hash, byte| decide::value_step(hash, *byte));
    assert_eq!(keyed.bucket, Some(decide::bucket(decide::salt(b"checkout"), decide::value_key(hash))));
    assert_eq!(by(user.clone(), ExplainRequest::default()).decided_by, "undecided");
    assert_eq!(by(user, client("10.3.0.1:4000")).decided_by, "weight");
    let all = explained(&service(SplitBy::Request, [0, 1], Vec::new()), ExplainRequest::default());
    assert_eq!((all.version.as_deref(), all.decided_by.as_str()), (Some("v2"), "weight"));
    assert_eq!(explained(&service(SplitBy::Request, [0, 0], Vec::new()), ExplainRequest::default()).decided_by, "none");
}

/// What a script sends needs no more than it says.
#[test]
fn requests_may_leave_out_what_they_do_not_need() {
    let service = service(SplitBy::Request, [1, 0], vec![(vec![Condition::Path("/a".into())], 1)]);
    for body in [r#"{"service": "checkout", "path": "/a"}"#, r#"{"service": "checkout", "head": "GET /a HTTP/1.0\r\n\r\n"}"#] {
        let answer = explained(&service, serde_json::from_str(body).unwrap());
        assert_eq!(answer.version.as_deref(), Some("v2"), "{body}");
    }
}

#[test]
fn odd_heads() {
    let service = service(SplitBy::Request, [1, 0], vec![(vec![Condition::Header("X-A".into(), Text::Present)], 1)]);
    let whole = |head: &str| ExplainRequest { head: Some(head.into()), ..ExplainRequest::default() };
    assert_eq!(explained(&service, whole("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")).decided_by, "refused");
    let pinned = explained(&service, whole("GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nContent-Length: 9999999999\r\n\r\n"));
    assert!(pinned.version.as_deref() == Some("v2") && pinned.reason.contains("stays with its backend"), "{pinned:?}");
    let tagged = explained(&service, with_header("X-A", &"a".repeat(16_000)));
    assert_eq!((tagged.version.as_deref(), tagged.decided_by.as_str()), (Some("v2"), "rule"));
    let reconciler = applied(service);
    let refused = |request| ask(&Memory::new(), reconciler.service("checkout").unwrap(), &request, |_| false).unwrap_err().to_string();
    assert!(refused(whole("GET / HTTP/1.1\r\n")).contains("has no end"));
    assert!(refused(with_header("X-A", "a\r\nX-B: c")).contains("line break"));
}

/// What is too long to be read goes to the rollout's baseline or the first version, to the first one with weight, by weight, or gets 431.
fn rollout() -> Rollout {
    Rollout {
        canary: 1,
        baseline: 0,
        steps: vec![ALL],
        pauses: Default::default(),
        pace: Pace::Fixed,
        dwell: Duration::from_secs(10),
        watch: Duration::from_secs(20),
        watch_after: Duration::from_secs(60),
        progress_deadline: None,
        min_samples: 50,
        warm_up: Duration::from_secs(2),
        false_alarm: 10_000,
        gates: Gates::default(),
        retries: 0,
        cool_down: Duration::from_secs(30),
        freeze: Vec::new(),
        hooks: Vec::new(),
        judge: Default::default(),
    }
}

#[test]
fn heads_that_are_too_long() {
    let rules = || vec![(vec![Condition::Header("X-A".into(), Text::Present)], 1)];
    let ask = |weights, baseline: Option<usize>, too_long| {
        let mut service = service(SplitBy::Connection, weights, rules());
        service.http.as_mut().unwrap().too_long = too_long;
        service.rollout = baseline.map(|baseline| Rollout { canary: 1 - baseline, baseline, ..rollout() });
        let answer = explained(&service, with_header("X-A", &"a".repeat(17_000)));
        (answer.decided_by, answer.version.unwrap_or_default(), answer.reason)
    };
    for (weights, baseline, expected) in [
        ([1, 99], None, "v1"),
        ([0, 1], None, "v2"),
        ([1, 99], Some(0), "v1"),
        ([99, 1], Some(1), "v2"),
        ([1, 0], Some(1), "v1"),
        ([0, 1], Some(0), "v2"),
    ] {
        let (by, version, reason) = ask(weights, baseline, TooLong::Baseline);
        assert_eq!((by.as_str(), version.as_str()), ("baseline", expected), "{weights:?} {baseline:?}: {reason}");
        assert!(reason.contains("longer than 16384 bytes") && reason.contains("whenTooLong"), "{reason}");
    }
    let (by, version, reason) = ask([0, 1], Some(0), TooLong::Weight);
    assert_eq!((by.as_str(), version.as_str()), ("weight", "v2"), "{reason}");
    let (by, version, reason) = ask([1, 1], None, TooLong::Status);
    assert_eq!((by.as_str(), version.as_str()), ("refused", ""));
    assert!(reason.contains("the node answers 431"), "{reason}");
    assert_eq!(ask([0, 0], None, TooLong::Baseline).0, "none");
}

/// A request in parts.
#[derive(Clone, Debug)]
struct Parts {
    method: &'static str,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    cookies: Vec<(String, String)>,
    client: IpAddr,
}

impl Parts {
    fn head(&self) -> String {
        let join = |pairs: &[(String, String)], with: &str| pairs.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(with);
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", join(&self.query, "&")) };
        let mut head = format!("{} {}{query} HTTP/1.1\r\nHost: h\r\n", self.method, self.path);
        for (i, (name, value)) in self.headers.iter().enumerate() {
            let name = if i % 2 == 0 { name.to_uppercase() } else { name.clone() };
            head += &format!("{name}: {value}\r\n");
        }
        if !self.cookies.is_empty() {
            head += &format!("cookie: {}\r\n", join(&self.cookies, "; "));
        }
        head + "\r\n"
    }

    /// The meaning of a condition, written without the compiler's or the scanner's help.
    fn fulfils(&self, condition: &Condition) -> bool {
        let any = |pairs: &[(String, String)], fold: bool, name: &str, wanted: &Text| {
            let named = pairs.iter().filter(|(n, _)| if fold { n.eq_ignore_ascii_case(name) } else { n == name });
            named.into_iter().any(|(_, value)| match wanted {
                Text::Exact(text) => value == text,
                Text::Prefix(text) => value.starts_with(text.as_str()),
                Text::Present => true,
            })
        };
        match condition {
            Condition::Header(name, wanted) => any(&self.headers, true, name, wanted),
            Condition::Cookie(name, wanted) => any(&self.cookies, false, name, wanted),
            Condition::Query(name, wanted) => any(&self.query, false, name, wanted),
            Condition::Path(path) => self.path == *path,
            Condition::PathPrefix(prefix) => {
                let mut segments = self.path.split('/').skip(1);
                prefix.split('/').skip(1).filter(|segment| !segment.is_empty()).all(|wanted| segments.next() == Some(wanted))
            }
            Condition::Method(method) => self.method == method,
            Condition::Source(network) => network.contains(self.client),
        }
    }
}

const NAMES: [&str; 4] = ["a", "x-canary", "x-canary-of-a-long-name", "B"];
const VALUES: [&str; 5] = ["1", "always", "alway", "a-value-that-is-longer-than-thirty-two-bytes", "x"];
const PATHS: [&str; 7] = ["/", "/beta", "/beta/x", "/betamax", "/beta/", "/a/very/long/path/that/needs/several/rounds", "/b"];
const METHODS: [&str; 3] = ["GET", "POST", "HEAD"];

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(&NAMES[..]).prop_map(Into::into)
}

fn value() -> impl Strategy<Value = String> {
    proptest::sample::select(&VALUES[..]).prop_map(Into::into)
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![3 => value().prop_map(Text::Exact), 1 => Just(Text::Present)]
}

fn condition() -> impl Strategy<Value = Condition> {
    let path = || proptest::sample::select(&PATHS[..]);
    let prefix = |path: &str| Condition::PathPrefix(if path == "/" { path.into() } else { path.trim_end_matches('/').into() });
    let network = |(net, prefix): (u8, u8)| {
        let address = std::net::Ipv4Addr::from_bits(u32::from_be_bytes([10, 1, net, 0]) & u32::MAX << (32 - u32::from(prefix)));
        Condition::Source(Cidr { address: address.into(), prefix })
    };
    prop_oneof![
        3 => (name(), prop_oneof![text(), value().prop_map(Text::Prefix)]).prop_map(|(name, text)| Condition::Header(name, text)),
        3 => (name(), text()).prop_map(|(name, text)| Condition::Cookie(name, text)),
        2 => (name(), text()).prop_map(|(name, text)| Condition::Query(name, text)),
        1 => path().prop_map(|path| Condition::Path(path.into())),
        2 => path().prop_map(prefix),
        1 => proptest::sample::select(&METHODS[..]).prop_map(|method| Condition::Method(method.into())),
        1 => (0..3u8, 8..=24u8).prop_map(network),
    ]
}

fn parts() -> impl Strategy<Value = Parts> {
    let pairs = || proptest::collection::vec((name(), value()), 0..3);
    let line = (proptest::sample::select(&METHODS[..]), proptest::sample::select(&PATHS[..]), pairs());
    (line, pairs(), pairs(), 0..4u8).prop_map(|((method, path, query), headers, cookies, net)| Parts {
        method,
        path: path.into(),
        query,
        headers,
        cookies,
        client: IpAddr::from([10, 1, net, 7]),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the compiler makes of rules and the scanner of heads is what the policy says.
    #[test]
    fn compiled_rules_mean_what_the_policy_says(
        rules in proptest::collection::vec((proptest::collection::vec(condition(), 1..4), 0..2usize), 1..12),
        requests in proptest::collection::vec(parts(), 12),
    ) {
        let service = service(SplitBy::Request, [1, 1], rules);
        let reconciler = applied(service.clone());
        let planned = reconciler.service("checkout").unwrap();
        for request in requests {
            let http = service.http.as_ref().unwrap();
            let expected = http.rules.iter().position(|rule| rule.conditions.iter().all(|condition| request.fulfils(condition)));
            let head = request.head();
            let read = read(planned, head.as_bytes(), &plan::addr(request.client));
            prop_assert_eq!(read.head.verdict, verdict::COMPLETE, "{}", head);
            prop_assert_eq!(rule(planned, read.head.facts), expected, "{}", head);
            let id = planned.image.http.as_deref().and_then(|rules| http::rule(rules, read.head.facts));
            let version = expected.map(|position| planned.image.record.versions[http.rules[position].version].version);
            prop_assert_eq!(id, version);
        }
    }
}
