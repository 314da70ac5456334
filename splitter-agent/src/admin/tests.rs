//! Both listeners over real sockets, with a stand-in for the node.

use super::*;
use splitter_api::client::Client;
use splitter_api::{ApiError, Interface, RolloutRequest, TraceEvent, TraceLine};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

#[derive(Clone, Default)]
struct Node {
    generation: u64,
    missing: Vec<&'static str>,
    /// Of a whole status.
    delay: Duration,
    asked: Arc<AtomicU32>,
}

fn node(generation: u64) -> Node {
    Node { generation, ..Node::default() }
}

impl Api for Node {
    async fn status(&self) -> Status {
        let mut status = Status::default();
        status.applied.generation = self.generation;
        let (name, programs, missing) = ("eth0".into(), vec!["tcx-ingress".into()], self.missing.iter().map(ToString::to_string).collect());
        status.interfaces = vec![Interface { name, programs, missing, ..Interface::default() }];
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.delay).await;
        status
    }
    async fn brief(&self) -> Status {
        Node { delay: Duration::ZERO, ..self.clone() }.status().await
    }
    async fn select(&self, query: StatusQuery) -> Result<Status, ControlError> {
        let services = query.services.iter().map(|name| splitter_api::Service { name: name.clone(), ..Default::default() });
        Ok(Status { services: services.collect(), ..self.status().await })
    }
    async fn names(&self, prefix: &str) -> Result<Vec<ServiceNames>, ControlError> {
        Ok(vec![ServiceNames { name: prefix.into(), versions: vec!["v1".into()] }])
    }
    async fn policy(&self, services: Vec<String>) -> Result<PolicyText, ControlError> {
        Ok(PolicyText { yaml: services.join("\n") })
    }
    async fn flows(&self, query: FlowQuery) -> Result<Vec<FlowRow>, ControlError> {
        let service = query.service.ok_or_else(|| ControlError::Kernel("cannot dump".into()))?;
        Ok(vec![FlowRow { service, ..FlowRow::default() }])
    }
    async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        Err(ControlError::NotFound(format!("no service {}", request.service)))
    }
    async fn trace(&self, request: TraceRequest) -> Result<Reader, ControlError> {
        if request.service.as_deref() == Some("busy") {
            return Err(ControlError::Busy("too many".into()));
        }
        let (reader, sender) = crate::control::trace::rehearsal(request);
        for i in 0..10_000 {
            let service = if i % 2 == 0 { "shop/ü" } else { "other" };
            let event = TraceEvent { service: service.into(), client: format!("10.1.0.2:{i}"), ..TraceEvent::default() };
            let _ = sender.send(Arc::new(event));
        }
        Ok(reader)
    }
    async fn waiting_decisions(&self, request: TraceRequest) -> Result<Vec<TraceEvent>, ControlError> {
        let event = TraceEvent { service: request.service.unwrap_or_default(), waiting: true, ..TraceEvent::default() };
        Ok(vec![event])
    }
    async fn set_weights(&self, service: &str, request: WeightRequest, _by: String) -> Result<WeightChange, ControlError> {
        Ok(WeightChange { service: service.to_owned(), after: request.weights, applied: !request.dry_run, ..WeightChange::default() })
    }
    async fn rollouts(&self) -> Result<Vec<RolloutStatus>, ControlError> {
        Ok(vec![RolloutStatus { phase: "idle".into(), ..RolloutStatus::default() }])
    }
    async fn rollout(&self, service: &str) -> Result<RolloutStatus, ControlError> {
        Err(ControlError::NotFound(format!("no service {service}")))
    }
    async fn rollout_history(&self, service: &str) -> Result<Vec<RolloutEvent>, ControlError> {
        Ok(vec![RolloutEvent { service: service.into(), ..RolloutEvent::default() }])
    }
    async fn rollout_word(&self, service: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        let (service, reason) =
            (service.into(), format!("{:?} by {}: {} {} {}", word.kind, word.by, word.reason, word.override_freeze, word.dry_run));
        Ok(RolloutStatus { service, reason, ..RolloutStatus::default() })
    }
}

async fn agent(folder: &Path) -> Client {
    let path = folder.join("admin.sock");
    tokio::spawn(serve_admin(Listener::bind(&path).await.unwrap(), Node::default()));
    Client::new(&path)
}

#[tokio::test]
async fn every_call_arrives_and_errors_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let client = agent(folder.path()).await;
    assert_eq!(client.status().await.unwrap().applied.generation, 0);
    let query = FlowQuery { service: Some("shop/ü&=%".into()), ..FlowQuery::default() };
    assert_eq!(client.flows(&query).await.unwrap()[0].service, "shop/ü&=%");
    let query = StatusQuery { services: vec!["a&b".into(), "*".into()], ..StatusQuery::default() };
    assert_eq!(client.select(&query).await.unwrap().services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a&b", "*"]);
    assert_eq!(client.names("shop/").await.unwrap()[0].name, "shop/");
    assert_eq!(client.policy(&["shop/ü&".into(), "b".into()]).await.unwrap().yaml, "shop/ü&\nb");
    assert_eq!(client.policy(&[]).await.unwrap().yaml, "");
    assert_eq!(client.flows(&FlowQuery::default()).await.unwrap_err().to_string(), "cannot dump");
    let request = ExplainRequest { service: "x".into(), ..ExplainRequest::default() };
    assert_eq!(client.explain(&request).await.unwrap_err().to_string(), "no service x");
    let request = WeightRequest { weights: BTreeMap::from([("v1".into(), 3)]), dry_run: true };
    let change = client.set_weights("shop/checkout", &request).await.unwrap();
    assert_eq!((change.service.as_str(), change.applied, change.after["v1"]), ("shop/checkout", false, 3));
}

#[tokio::test]
async fn rollouts_are_told_and_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let client = agent(folder.path()).await;
    assert_eq!(client.rollouts().await.unwrap()[0].phase, "idle");
    assert_eq!(client.rollout("x").await.unwrap_err().to_string(), "no service x");
    assert_eq!(client.rollout_history("shop/ü").await.unwrap()[0].service, "shop/ü");
    // SAFETY: no preconditions.
    let uid = unsafe { libc::geteuid() };
    let request = RolloutRequest { reason: "why".into(), override_freeze: true, dry_run: true };
    for action in ["start", "pause", "resume", "promote", "abort", "undo"] {
        let told = client.rollout_word("shop/web", action, &request).await.unwrap();
        let reason = told.reason.to_lowercase();
        assert_eq!((told.service.as_str(), reason), ("shop/web", format!("{action} by operator (uid {uid}): why true true")));
    }
    assert!(client.rollout_word("web", "jump", &request).await.unwrap_err().to_string().contains("not jump"));
}

#[tokio::test]
async fn decisions_are_streamed_until_the_end_and_what_was_missed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let client = agent(folder.path()).await;
    let request = TraceRequest { service: Some("shop/ü".into()), ..TraceRequest::default() };
    let mut lines = client.trace(&request).await.unwrap();
    let (mut events, mut missed) = (0, 0);
    while let Some(line) = lines.next().await.unwrap() {
        match line {
            TraceLine::Event(event) => {
                assert_eq!(event.service, "shop/ü");
                events += 1;
            }
            TraceLine::Lost(lost) => missed = lost.reader_slow,
        }
    }
    // The queue holds 4096 of 10,000; half of them are of the service.
    assert_eq!((events, missed), (2048, 10_000 - 4096));
    let waiting = client.waiting_decisions(&request).await.unwrap();
    assert_eq!((waiting.len(), waiting[0].service.as_str(), waiting[0].waiting), (1, "shop/ü", true));
    let busy = TraceRequest { service: Some("busy".into()), ..TraceRequest::default() };
    assert_eq!(client.trace(&busy).await.err().unwrap().to_string(), "too many");
}

#[tokio::test]
async fn a_missing_agent_is_named_with_the_way_out() {
    let error = Client::new(Path::new("/nonexistent/admin.sock")).status().await.unwrap_err().to_string();
    assert!(error.contains("not running") && error.contains("SPLITTER_ADMIN"), "{error}");
}

async fn raw(folder: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(folder.join("admin.sock")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn wrong_requests_are_refused_as_api_errors() {
    let folder = tempfile::tempdir().unwrap();
    agent(folder.path()).await;
    let end = "Host: x\r\nConnection: close\r\n";
    let large = "x".repeat(70 << 10);
    for (request, status) in [
        (format!("GET /v2 HTTP/1.1\r\n{end}\r\n"), "404"),
        (format!("POST /v1/status HTTP/1.1\r\n{end}\r\n"), "405"),
        (format!("GET /v1/flows?name=x HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("GET /v1/flows?state=open HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("GET /v1/status?limit=0 HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("GET /v1/policy?name=x HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("POST /v1/policy HTTP/1.1\r\n{end}\r\n"), "405"),
        (format!("GET /v1/trace?colour=red HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("GET /v1/trace?rate=fast HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("GET /v1/trace?service=busy HTTP/1.1\r\n{end}\r\n"), "429"),
        (format!("POST /v1/trace HTTP/1.1\r\n{end}\r\n"), "405"),
        (format!("GET /v1/trace/waiting?colour=red HTTP/1.1\r\n{end}\r\n"), "400"),
        (format!("POST /v1/trace/waiting HTTP/1.1\r\n{end}\r\n"), "405"),
        (format!("POST /v1/services HTTP/1.1\r\n{end}\r\n"), "405"),
        (format!("PUT /v1/services/%zz/weights HTTP/1.1\r\n{end}Content-Length: 2\r\n\r\n{{}}"), "400"),
        (format!("PUT /v1/services/a/weights HTTP/1.1\r\n{end}Content-Length: 2\r\n\r\n{{}}"), "400"),
        (format!("POST /v1/explain HTTP/1.1\r\n{end}Content-Length: {}\r\n\r\n{large}", large.len()), "413"),
    ] {
        let answer = raw(folder.path(), &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(!serde_json::from_str::<ApiError>(body).unwrap().error.is_empty());
    }
}

async fn get(node: Node, path: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve_metrics(listener, node));
    let answer = ask(address, path).await;
    server.abort();
    answer
}

async fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Clients that never finish their request, and one that reads nothing of its answer.
#[tokio::test]
async fn half_requests_delay_nobody() {
    const MANY: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let client = agent(folder.path()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_metrics(listener, node(1)));
    let (mut on_metrics, mut on_admin) = (Vec::new(), Vec::new());
    for _ in 0..MANY {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHos").await.unwrap();
        on_metrics.push(stream);
        let mut stream = UnixStream::connect(folder.path().join("admin.sock")).await.unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHos").await.unwrap();
        on_admin.push(stream);
    }
    let begin = Instant::now();
    assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    let request = WeightRequest { weights: BTreeMap::from([("v1".into(), 3)]), dry_run: true };
    client.set_weights("checkout", &request).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "after {:?}", begin.elapsed());
}

/// Scrapes at the same time are one to the node, and none of them is older than its question.
#[tokio::test]
async fn scrapes_at_the_same_time_share_one_rendering() {
    let node = Node { delay: Duration::from_millis(200), ..node(3) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_metrics(listener, node.clone()));
    let scrapes: Vec<_> = (0..50).map(|_| tokio::spawn(ask(address, "/metrics"))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begin = Instant::now();
    assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(begin.elapsed() < Duration::from_millis(150), "health waited for a scrape");
    for scrape in scrapes {
        assert!(scrape.await.unwrap().contains("splitter_policy_generation 3\n"));
    }
    let asked = node.asked.load(Ordering::Relaxed);
    assert!(asked <= 3, "50 scrapes made {asked} renderings");
    assert!(ask(address, "/metrics").await.starts_with("HTTP/1.1 200"));
    assert_eq!(node.asked.load(Ordering::Relaxed), asked + 1, "a later scrape is a new one");
}

#[test]
fn readiness_is_what_the_kernel_runs() {
    let interface = |programs: &[&str], missing: &[&str]| Interface {
        name: "b1".into(),
        programs: programs.iter().map(ToString::to_string).collect(),
        missing: missing.iter().map(ToString::to_string).collect(),
        ..Interface::default()
    };
    let mut status = Status::default();
    status.applied.generation = 1;
    assert!(metrics::unready(&status).unwrap().contains("attached to no interface"));
    status.interfaces = vec![interface(&["tcx-ingress", "tcx-egress"], &["xdp-native"])];
    assert_eq!(metrics::unready(&status), None, "XDP is an acceleration");
    status.interfaces.push(interface(&["tcx-ingress"], &["tcx-egress"]));
    assert!(metrics::unready(&status).unwrap().ends_with("b1 lacks tcx-egress"));
    status.interfaces.pop();
    status.attachments.warnings = vec!["--interface eht1: no interface has this name".into()];
    assert_eq!(metrics::unready(&status), None);
    status.interfaces.clear();
    assert!(metrics::unready(&status).unwrap().contains("eht1"));
}

#[tokio::test]
async fn metrics_and_health() {
    let accept = |what: &str| format!("/metrics HTTP/1.1\r\nAccept: {what}\r\nX-Rest:");
    let metrics = get(node(3), &accept("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3")).await;
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{metrics}");
    assert!(metrics.contains("splitter_policy_generation 3\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    for path in ["/metrics".to_owned(), accept("*/*"), accept("text/plain")] {
        let plain = get(node(0), &path).await;
        assert!(
            plain.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n") && !plain.contains("# EOF"),
            "{path}: {plain}"
        );
    }
    assert!(get(Node::default(), "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(node(1), "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(Node::default(), "/readyz").await.starts_with("HTTP/1.1 503"));
    let warned = get(Node { missing: vec!["xdp-native"], ..node(1) }, "/readyz").await;
    assert!(warned.starts_with("HTTP/1.1 200") && warned.ends_with("ok\nwarning: eth0 lacks xdp-native\n"), "{warned}");
    assert!(get(Node { missing: vec!["tcx-egress"], ..node(1) }, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(get(Node::default(), "/").await.starts_with("HTTP/1.1 404"));
}
