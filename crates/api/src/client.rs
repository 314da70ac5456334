//! The CLI's side of the admin API: one request, one connection.

use super::{
    ApiError, ExplainRequest, Explanation, FlowQuery, FlowRow, PolicyText, RolloutEvent, RolloutRequest, RolloutStatus, ServiceNames,
    Status, StatusQuery, TraceEvent, TraceLine, TraceRequest, WeightChange, WeightRequest, percent_encode,
};
use anyhow::{Result, anyhow};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::VecDeque,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

/// For the whole exchange: listing a million flows takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is done to an answer before it is read.
type Filter = fn(&[u8]) -> Vec<u8>;

/// An agent at a socket.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
    filter: Option<Filter>,
}

/// The agent answered that it does not do what was asked.
#[derive(Clone, Debug, Error)]
#[error("{text}")]
pub struct Refused {
    pub status: StatusCode,
    text: String,
}

/// Nobody answers; asking again later may help.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct Unreachable(String);

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), filter: None }
    }

    /// Every answer, refusals too, goes through `filter` before it is read: JSON in, JSON out.
    pub fn filtered(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// As the agent says it.
    pub fn verbatim(&self) -> Self {
        Self { filter: None, ..self.clone() }
    }

    pub async fn status(&self) -> Result<Status> {
        self.call(Method::GET, "/v1/status", None::<&()>).await
    }

    /// As [`Client::status`], with some of the services.
    pub async fn select(&self, query: &StatusQuery) -> Result<Status> {
        self.call(Method::GET, &target("/v1/status", query.pairs()), None::<&()>).await
    }

    /// Names of services that begin so, and of their versions.
    pub async fn names(&self, prefix: &str) -> Result<Vec<ServiceNames>> {
        self.call(Method::GET, &target("/v1/services", vec![("prefix", prefix.into())]), None::<&()>).await
    }

    /// The policy that is in force, of these services, or of all.
    pub async fn policy(&self, services: &[String]) -> Result<PolicyText> {
        let pairs = services.iter().map(|name| ("service", name.clone())).collect();
        self.call(Method::GET, &target("/v1/policy", pairs), None::<&()>).await
    }

    pub async fn flows(&self, query: &FlowQuery) -> Result<Vec<FlowRow>> {
        self.call(Method::GET, &target("/v1/flows", query.pairs()), None::<&()>).await
    }

    pub async fn explain(&self, request: &ExplainRequest) -> Result<Explanation> {
        self.call(Method::POST, "/v1/explain", Some(request)).await
    }

    pub async fn set_weights(&self, service: &str, request: &WeightRequest) -> Result<WeightChange> {
        self.call(Method::PUT, &format!("/v1/services/{}/weights", percent_encode(service)), Some(request)).await
    }

    pub async fn rollouts(&self) -> Result<Vec<RolloutStatus>> {
        self.call(Method::GET, "/v1/rollouts", None::<&()>).await
    }

    pub async fn rollout(&self, service: &str) -> Result<RolloutStatus> {
        self.call(Method::GET, &format!("/v1/rollouts/{}", percent_encode(service)), None::<&()>).await
    }

    pub async fn rollout_history(&self, service: &str) -> Result<Vec<RolloutEvent>> {
        self.call(Method::GET, &format!("/v1/rollouts/{}/history", percent_encode(service)), None::<&()>).await
    }

    /// `action`: start, pause, resume, promote, abort or undo.
    pub async fn rollout_word(&self, service: &str, action: &str, request: &RolloutRequest) -> Result<RolloutStatus> {
        self.call(Method::POST, &format!("/v1/rollouts/{}/{action}", percent_encode(service)), Some(request)).await
    }

    /// Decisions live.
    pub async fn trace(&self, request: &TraceRequest) -> Result<Trace> {
        let path = target("/v1/trace", request.pairs());
        match timeout(PATIENCE, self.send(Method::GET, &path, None::<&()>)).await {
            Ok(answer) => {
                let (status, body, connection) = answer?;
                if !status.is_success() {
                    let body = body.collect().await.map_err(|_| self.broken("broke off in its answer"))?.to_bytes();
                    return Err(self.refusal(status, &self.read(&body)));
                }
                Ok(Trace { client: self.clone(), body, text: Vec::new(), lines: VecDeque::new(), _connection: connection })
            }
            Err(_) => Err(self.silent()),
        }
    }

    /// Decisions that [`Client::trace`] has not told yet, because their answers may still come.
    pub async fn waiting_decisions(&self, request: &TraceRequest) -> Result<Vec<TraceEvent>> {
        self.call(Method::GET, &target("/v1/trace/waiting", request.pairs()), None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T> {
        match timeout(PATIENCE, self.exchange(method, path, body)).await {
            Ok(result) => result,
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> anyhow::Error {
        let (socket, patience) = (self.socket.display(), PATIENCE.as_secs());
        Unreachable(format!("the agent at {socket} did not answer within {patience} s: look at its log")).into()
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T> {
        let (status, body, _connection) = self.send(method, path, body).await?;
        let body = body.collect().await.map_err(|_| self.broken("broke off in its answer"))?.to_bytes();
        let body = self.read(&body);
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.not_understood(&error.to_string()));
        }
        Err(self.refusal(status, &body))
    }

    fn read(&self, body: &[u8]) -> Vec<u8> {
        self.filter.map_or_else(|| body.to_vec(), |filter| filter(body))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> anyhow::Error {
        match serde_json::from_slice::<ApiError>(body) {
            Ok(refused) => Refused { status, text: refused.error }.into(),
            Err(_) => self.not_understood(&format!("status {status}")),
        }
    }

    /// The answer's head, its body, and what brings it.
    async fn send(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(StatusCode, Incoming, Connection)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| self.broken("closed the connection"))?;
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "splitter")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await.map_err(|error| self.broken(ended(&error)))?;
        Ok((answer.status(), answer.into_body(), connection))
    }

    fn not_understood(&self, what: &str) -> anyhow::Error {
        let socket = self.socket.display();
        anyhow!("the answer on {socket} is not understood ({what}): the agent is of another version, or --admin names another socket")
    }

    fn broken(&self, what: &str) -> anyhow::Error {
        Unreachable(format!("the agent at {} {what}: it may be ending, look at its log and try again", self.socket.display())).into()
    }

    fn unreachable(&self, error: &std::io::Error) -> anyhow::Error {
        let socket = self.socket.display();
        Unreachable(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                format!("no agent answers on {socket}: it is not running, or --admin / SPLITTER_ADMIN must name another socket")
            }
            ErrorKind::PermissionDenied => format!("no permission for {socket}: use root or a member of the socket's group"),
            _ => format!("cannot reach the agent on {socket}: {error}; is that its admin socket?"),
        })
        .into()
    }
}

/// What became of a request that got no answer.
fn ended(error: &hyper::Error) -> &'static str {
    if error.is_parse() { "does not speak HTTP" } else { "closed the connection" }
}

fn target(path: &str, pairs: Vec<(&str, String)>) -> String {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={}", percent_encode(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// The task that moves a connection's bytes; ends with this.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Decisions as they come.
pub struct Trace {
    client: Client,
    body: Incoming,
    text: Vec<u8>,
    lines: VecDeque<TraceLine>,
    _connection: Connection,
}

impl Trace {
    /// The next line; `None` when the agent ends. Loses nothing when it is dropped before.
    ///
    /// # Errors
    /// When the agent dies, or is of another version.
    pub async fn next(&mut self) -> Result<Option<TraceLine>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|_| self.client.broken("is gone"))?;
            let Ok(data) = frame.into_data() else { continue };
            self.text.extend_from_slice(&data);
            for line in lines(&mut self.text, |line| self.client.read(line)) {
                self.lines.push_back(line.map_err(|error| self.client.not_understood(&error.to_string()))?);
            }
        }
    }
}

/// The whole lines of a text, which go through `read` before; what is left stays.
fn lines(text: &mut Vec<u8>, read: impl Fn(&[u8]) -> Vec<u8>) -> Vec<serde_json::Result<TraceLine>> {
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let whole: Vec<u8> = text.drain(..end).collect();
    whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(&read(line))).collect()
}
