//! Routes of the admin API.

use super::{
    Api, Listener,
    http::{Answer, Closing, Seats, answer, aside, connection, failure, json},
    rollouts, trace,
};
use crate::control::ControlError;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, StatusCode, body::Incoming};
use serde::de::DeserializeOwned;
use splitter_api::{FlowQuery, StatusQuery, TraceRequest, percent_decode};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

/// Largest body accepted, bytes.
const BODY: usize = 64 << 10;
/// Time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(5);

/// Serves until dropped.
pub async fn serve(listener: Listener, api: impl Api) {
    let seats = Seats::default();
    let _closing = Closing(seats.clone());
    loop {
        seats.free().await;
        let stream = match listener.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let writer = Arc::new(listener.writers().check(stream.peer_cred()));
        let api = api.clone();
        seats.serve(stream, move |request| {
            let (writer, api) = (writer.clone(), api.clone());
            async move { route(request, &writer, &api).await }
        });
    }
}

/// Serves one connection to its end. `writer`: the user who may change things, or why nobody may.
pub async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin, writer: Result<u32, String>, api: impl Api) {
    connection(stream, |request| route(request, &writer, &api)).await;
}

/// Who changes something, for the audit log.
pub fn operator(uid: u32) -> String {
    format!("operator (uid {uid})")
}

async fn route(request: Request<Incoming>, writer: &Result<u32, String>, api: &impl Api) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
    let (method, expected) =
        (request.method().clone(), |method: &str| failure(StatusCode::METHOD_NOT_ALLOWED, format!("{path} answers {method} only")));
    match parts[..] {
        ["healthz"] => answer(StatusCode::OK, "text/plain", "ok\n"),
        ["v1", "status"] if method == Method::GET => match query(request.uri().query(), StatusQuery::set) {
            Ok(query) => {
                let status = api.select(query).await;
                aside(move || finish(status)).await
            }
            Err(error) => failure(StatusCode::BAD_REQUEST, error),
        },
        ["v1", "status"] => expected("GET"),
        ["v1", "policy"] if method == Method::GET => match query(request.uri().query(), service) {
            Ok(services) => finish(api.policy(services).await),
            Err(error) => failure(StatusCode::BAD_REQUEST, error),
        },
        ["v1", "policy"] => expected("GET"),
        ["v1", "flows"] if method == Method::GET => match query(request.uri().query(), FlowQuery::set) {
            Ok(query) => {
                let flows = api.flows(query).await;
                aside(move || finish(flows)).await
            }
            Err(error) => failure(StatusCode::BAD_REQUEST, error),
        },
        ["v1", "flows"] => expected("GET"),
        ["v1", "services"] if method == Method::GET => match query(request.uri().query(), prefix) {
            Ok(prefix) => finish(api.names(&prefix).await),
            Err(error) => failure(StatusCode::BAD_REQUEST, error),
        },
        ["v1", "services"] => expected("GET"),
        ["v1", "trace"] if method == Method::GET => match query(request.uri().query(), TraceRequest::set) {
            Ok(request) => trace::answer(request, api).await,
            Err(error) => failure(StatusCode::BAD_REQUEST, error),
        },
        ["v1", "trace"] => expected("GET"),
        ["v1", "trace", "waiting"] if method == Method::GET => match query(request.uri().query(), TraceRequest::set) {
            Ok(request) => finish(api.waiting_decisions(request).await),
            Err(error) => failure(StatusCode::BAD_REQUEST, error),
        },
        ["v1", "trace", "waiting"] => expected("GET"),
        ["v1", "explain"] if method == Method::POST => match body(request).await {
            Ok(request) => finish(api.explain(request).await),
            Err(refused) => refused,
        },
        ["v1", "explain"] => expected("POST"),
        ["v1", "services", name, "weights"] if method == Method::PUT => {
            let by = match writer {
                Ok(uid) => operator(*uid),
                Err(reason) => return failure(StatusCode::FORBIDDEN, reason.clone()),
            };
            let Some(name) = percent_decode(name) else {
                return failure(StatusCode::BAD_REQUEST, "the service's name in the path is not percent-encoded UTF-8");
            };
            match body(request).await {
                Ok(request) => finish(api.set_weights(&name, request, by).await),
                Err(refused) => refused,
            }
        }
        ["v1", "services", _, "weights"] => expected("PUT"),
        ["v1", "rollouts", ..] => rollouts::route(request, &parts[2..], writer, api).await,
        _ => failure(
            StatusCode::NOT_FOUND,
            format!(
                "nothing at {path}; this agent serves /v1/status, /v1/policy, /v1/flows, /v1/trace, /v1/trace/waiting, /v1/explain, /v1/services, /v1/services/NAME/weights and /v1/rollouts"
            ),
        ),
    }
}

/// `KEY=VALUE&...` of a URL, each pair handed to `set`.
fn query<T: Default>(text: Option<&str>, set: impl Fn(&mut T, &str, String) -> Result<(), String>) -> Result<T, String> {
    let mut query = T::default();
    for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("the query `{pair}` has no value: write {pair}=VALUE"))?;
        let value = percent_decode(value).ok_or_else(|| format!("the value of `{key}` in the query is not percent-encoded UTF-8"))?;
        set(&mut query, key, value)?;
    }
    Ok(query)
}

/// Query of `GET /v1/policy`.
fn service(services: &mut Vec<String>, key: &str, value: String) -> Result<(), String> {
    if key != "service" {
        return Err(format!("unknown query key `{key}`; known: service"));
    }
    services.push(value);
    Ok(())
}

/// Query of `GET /v1/services`.
fn prefix(prefix: &mut String, key: &str, value: String) -> Result<(), String> {
    if key != "prefix" {
        return Err(format!("unknown query key `{key}`; known: prefix"));
    }
    *prefix = value;
    Ok(())
}

pub(super) async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let collected = match timeout(BODY_TIME, Limited::new(request.into_body(), BODY).collect()).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) => {
            let status =
                if error.is::<http_body_util::LengthLimitError>() { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            return Err(failure(status, format!("cannot read the body (limit {BODY} bytes): {error}")));
        }
        Err(_) => return Err(failure(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    };
    serde_json::from_slice(&collected)
        .map_err(|error| failure(StatusCode::BAD_REQUEST, format!("the body is not what is expected here: {error}")))
}

pub(super) fn finish<T: serde::Serialize>(result: Result<T, ControlError>) -> Answer {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => {
            let status = match error {
                ControlError::NotFound(_) => StatusCode::NOT_FOUND,
                ControlError::Invalid(_) => StatusCode::BAD_REQUEST,
                ControlError::Kernel(_) => StatusCode::INTERNAL_SERVER_ERROR,
                ControlError::NotYet(_) => StatusCode::SERVICE_UNAVAILABLE,
                ControlError::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            };
            failure(status, error.to_string())
        }
    }
}
