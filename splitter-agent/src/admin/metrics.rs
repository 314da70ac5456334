//! Metrics and health on TCP: read-only, safe to expose to a monitoring network.

use super::{
    Api,
    http::{Answer, answer, aside, connection, places},
};
use crate::{observed::Status, telemetry};
use hyper::{Method, Request, StatusCode, body::Incoming, header::ACCEPT};
use std::time::Duration;
use tokio::{net::TcpListener, task::JoinSet};

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves until dropped.
pub async fn serve(listener: TcpListener, api: impl Api) {
    let places = places();
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics address");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let api = api.clone();
        connections.spawn(async move {
            connection(stream, |request| route(request, &api)).await;
            drop(place);
        });
    }
}

async fn route(request: Request<Incoming>, api: &impl Api) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/metrics" => {
            let (status, plain) = (api.status().await, only_plain(&request));
            aside(move || match telemetry::render(status) {
                Ok(text) if plain => answer(StatusCode::OK, telemetry::PLAIN_CONTENT_TYPE, telemetry::plain(&text)),
                Ok(text) => answer(StatusCode::OK, telemetry::CONTENT_TYPE, text),
                Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
            })
            .await
        }
        "/healthz" => answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => match unready(&api.brief().await) {
            None => answer(StatusCode::OK, TEXT, "ok\n"),
            Some(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
        },
        _ => answer(StatusCode::NOT_FOUND, TEXT, "this agent serves /metrics, /healthz and /readyz here\n"),
    }
}

/// Whether the client asks for the older text format and does not know OpenMetrics.
fn only_plain(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.contains("text/plain") && !accept.contains("openmetrics")
}

/// Why the node should not count as ready. A rejected policy is no reason once an earlier one is applied: traffic goes on.
pub fn unready(status: &Status) -> Option<String> {
    if let Some(error) = &status.applied.error {
        return Some(format!("the last change was not applied: {error}"));
    }
    (status.applied.generation == 0).then(|| match status.desired.errors.first() {
        Some(error) => format!("no policy is applied: {error}"),
        None => "no policy is applied yet".to_owned(),
    })
}
