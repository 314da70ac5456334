//! The CLI's side of the admin API: one request, one connection.

use super::percent_encode;
use crate::observed::{
    ApiError, ExplainRequest, Explanation, FlowRow, RolloutEvent, RolloutRequest, RolloutStatus, Status, WeightChange, WeightRequest,
};
use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::Bytes,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, time::timeout};

/// For the whole exchange: listing a million flows takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent at a socket.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    pub async fn status(&self) -> Result<Status> {
        self.call(Method::GET, "/v1/status", None::<&()>).await
    }

    pub async fn flows(&self, service: Option<&str>) -> Result<Vec<FlowRow>> {
        let query = service.map(|name| format!("?service={}", percent_encode(name))).unwrap_or_default();
        self.call(Method::GET, &format!("/v1/flows{query}"), None::<&()>).await
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

    /// `action`: start, pause, resume, promote or abort.
    pub async fn rollout_word(&self, service: &str, action: &str, reason: &str) -> Result<RolloutStatus> {
        let request = RolloutRequest { reason: reason.to_owned() };
        self.call(Method::POST, &format!("/v1/rollouts/{}/{action}", percent_encode(service)), Some(&request)).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T> {
        match timeout(PATIENCE, self.exchange(method, path, body)).await {
            Ok(result) => result,
            Err(_) => bail!("the agent at {} did not answer within {} s: look at its log", self.socket.display(), PATIENCE.as_secs()),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the connection, which ends with `sender` at the latest.
        let connection = tokio::spawn(connection);
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "splitter")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await.context("the agent closed the connection")?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("the agent's answer broke off")?.to_bytes();
        connection.abort();
        if status.is_success() {
            return serde_json::from_slice(&body).context("the agent's answer is not understood: is it of another version?");
        }
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(refused) => Err(anyhow!(refused.error)),
            Err(_) => Err(anyhow!("the agent answered {status}")),
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> anyhow::Error {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!("no agent answers on {socket}: it is not running, or --admin / SPLITTER_ADMIN must name another socket")
            }
            ErrorKind::PermissionDenied => anyhow!("no permission for {socket}: use root or a member of the socket's group"),
            _ => anyhow!("cannot reach the agent on {socket}: {error}"),
        }
    }
}
