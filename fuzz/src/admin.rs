//! Bytes on the admin socket, from somebody who may change things or may not, as the first byte says.
//!
//! Whatever comes, the answers are HTTP, whole, and never say that the agent failed. Who may not change things changes nothing. The names that arrive
//! in the path arrive as they were meant.

use splitter_agent::{
    admin::{Api, serve_admin_connection},
    control::{ControlError, trace::Reader},
};
use splitter_api::{
    ExplainRequest, Explanation, FlowQuery, FlowRow, PolicyText, RolloutEvent, RolloutStatus, ServiceNames, Status, StatusQuery,
    TraceEvent, TraceRequest, WeightChange, WeightRequest, percent_decode, percent_encode,
};
use splitter_rollout::Word;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
};

thread_local!(static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// Longer requests are refused before this.
const LIMIT: usize = 96 << 10;

/// A node that does what it is asked, and counts changes.
#[derive(Clone, Default)]
struct Node {
    changes: Arc<AtomicU32>,
}

impl Node {
    fn changed(&self, name: &str) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        assert_eq!(percent_decode(&percent_encode(name)).as_deref(), Some(name));
    }
}

impl Api for Node {
    async fn status(&self) -> Status {
        Status::default()
    }
    async fn brief(&self) -> Status {
        Status::default()
    }
    async fn select(&self, query: StatusQuery) -> Result<Status, ControlError> {
        let mut again = StatusQuery::default();
        query.pairs().into_iter().for_each(|(key, value)| again.set(key, value).expect("what was said is understood"));
        assert_eq!(again, query);
        Ok(Status::default())
    }
    async fn names(&self, prefix: &str) -> Result<Vec<ServiceNames>, ControlError> {
        Ok(vec![ServiceNames { name: prefix.into(), versions: vec!["v1".into()] }])
    }
    async fn policy(&self, services: Vec<String>) -> Result<PolicyText, ControlError> {
        Ok(PolicyText { yaml: services.join("\n") })
    }
    async fn flows(&self, query: FlowQuery) -> Result<Vec<FlowRow>, ControlError> {
        let mut again = FlowQuery::default();
        query.pairs().into_iter().for_each(|(key, value)| again.set(key, value).expect("what was said is understood"));
        assert_eq!(again, query);
        Ok(vec![FlowRow::default()])
    }
    async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        // A head that is made of parts has as many lines as there are parts.
        match splitter_agent::control::head_of(&request, "10.9.9.9:80") {
            Ok(head) if request.head.is_none() => {
                assert!(head.ends_with("\r\n\r\n") && head.matches('\n').count() <= 4 + request.headers.len());
                Ok(Explanation::default())
            }
            Ok(_) => Ok(Explanation::default()),
            Err(error) => Err(error),
        }
    }
    async fn trace(&self, _: TraceRequest) -> Result<Reader, ControlError> {
        Err(ControlError::Busy("too many".into()))
    }
    async fn waiting_decisions(&self, _: TraceRequest) -> Result<Vec<TraceEvent>, ControlError> {
        Ok(vec![TraceEvent::default()])
    }
    async fn set_weights(&self, service: &str, request: WeightRequest, _by: String) -> Result<WeightChange, ControlError> {
        self.changed(service);
        Ok(WeightChange { service: service.to_owned(), after: request.weights, ..WeightChange::default() })
    }
    async fn rollouts(&self) -> Result<Vec<RolloutStatus>, ControlError> {
        Ok(Vec::new())
    }
    async fn rollout(&self, service: &str) -> Result<RolloutStatus, ControlError> {
        Err(ControlError::NotFound(format!("no service {service}")))
    }
    async fn rollout_history(&self, service: &str) -> Result<Vec<RolloutEvent>, ControlError> {
        Ok(vec![RolloutEvent { service: service.into(), ..RolloutEvent::default() }])
    }
    async fn rollout_word(&self, service: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        self.changed(service);
        Ok(RolloutStatus { service: service.into(), reason: word.reason, ..RolloutStatus::default() })
    }
}

/// See the module.
pub fn run(input: &[u8]) {
    let Some((choice, request)) = input[..input.len().min(LIMIT)].split_first() else { return };
    let (node, may) = (Node::default(), choice & 1 != 0);
    let writer = if may { Ok(0) } else { Err("you may only read".to_owned()) };
    let answers = RUNTIME.with(|runtime| runtime.block_on(exchange(request, writer, node.clone())));
    assert!(may || node.changes.load(Ordering::Relaxed) == 0, "changed by who may not");
    if let Ok(text) = std::str::from_utf8(request) {
        assert_eq!(percent_decode(&percent_encode(text)).as_deref(), Some(text));
    }
    whole(&answers);
}

async fn exchange(request: &[u8], writer: Result<u32, String>, node: Node) -> Vec<u8> {
    let (mut client, server) = duplex(2 * LIMIT);
    client.write_all(request).await.expect("there is room");
    client.shutdown().await.expect("it is open");
    let mut answers = Vec::new();
    let read = async { client.read_to_end(&mut answers).await.expect("it reads") };
    tokio::join!(serve_admin_connection(server, writer, node), read);
    answers
}

/// One answer after the other, to the end.
fn whole(mut answers: &[u8]) {
    while !answers.is_empty() {
        let mut space = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut space);
        let Ok(httparse::Status::Complete(head)) = answer.parse(answers) else {
            panic!("no head of an answer: {:?}", String::from_utf8_lossy(answers));
        };
        let status = answer.code.expect("a whole head has one");
        assert!(matches!(status, 100 | 200 | 400 | 403 | 404 | 405 | 408 | 413 | 414 | 429 | 431), "{status}");
        let value = |name: &str| answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value);
        let length = value("content-length").map_or(0, |value| std::str::from_utf8(value).expect("digits").parse().expect("a number"));
        let json = value("content-type") == Some(b"application/json");
        answers = &answers[head..];
        // An answer to HEAD says its length and has no body.
        if answers.len() < length || answers.starts_with(b"HTTP/1.1 ") {
            assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "{length} bytes are said of {}", answers.len());
            continue;
        }
        if json {
            serde_json::from_slice::<serde_json::Value>(&answers[..length]).expect("JSON");
        }
        answers = &answers[length..];
    }
}
