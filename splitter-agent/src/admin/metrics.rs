//! Metrics and health on TCP: read-only, safe to expose to a monitoring network.

use super::{
    Api,
    http::{Answer, Closing, LARGE, Seats, answer},
};
use crate::{memory, telemetry};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    header::ACCEPT,
};
use splitter_api::{Interface, Status};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, time::timeout};

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves until dropped.
pub async fn serve(listener: TcpListener, api: impl Api) {
    let (seats, scrapes) = (Seats::default(), Scrapes::default());
    let _closing = Closing(seats.clone());
    loop {
        seats.free().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics address");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (api, scrapes) = (api.clone(), scrapes.clone());
        seats.serve(stream, move |request| {
            let (api, scrapes) = (api.clone(), scrapes.clone());
            async move { route(request, &api, &scrapes).await }
        });
    }
}

async fn route(request: Request<Incoming>, api: &impl Api, scrapes: &Scrapes) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/metrics" => scrapes.get(!asks_for_openmetrics(&request), api).await,
        "/healthz" => answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => match timeout(READY, api.brief()).await {
            Ok(status) => match unready(&status) {
                None => answer(StatusCode::OK, TEXT, ready(&status)),
                Some(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
            },
            Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the control loop is busy\n"),
        },
        _ => answer(StatusCode::NOT_FOUND, TEXT, "this agent serves /metrics, /healthz and /readyz here\n"),
    }
}

/// Time for the control loop to say how things are.
const READY: Duration = Duration::from_secs(2);

/// Expositions in both formats, for all who ask at the same time: each gets one that was begun after it asked, and many get the same.
#[derive(Clone, Debug, Default)]
struct Scrapes(Arc<[tokio::sync::Mutex<Option<Scrape>>; 2]>);

#[derive(Debug)]
struct Scrape {
    begun: Instant,
    rendered: Result<Bytes, String>,
}

impl Scrapes {
    async fn get(&self, plain: bool, api: &impl Api) -> Answer {
        let (asked, kind) = (Instant::now(), if plain { telemetry::PLAIN_CONTENT_TYPE } else { telemetry::CONTENT_TYPE });
        let mut last = self.0[usize::from(plain)].lock().await;
        let rendered = match &*last {
            Some(scrape) if scrape.begun >= asked => scrape.rendered.clone(),
            _ => {
                let begun = Instant::now();
                let rendered = render(plain, api).await;
                *last = Some(Scrape { begun, rendered: rendered.clone() });
                rendered
            }
        };
        match rendered {
            Ok(text) => answer(StatusCode::OK, kind, text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }
}

/// On a thread of its own: it is much text at many services.
async fn render(plain: bool, api: &impl Api) -> Result<Bytes, String> {
    let status = api.status().await;
    let rendered = tokio::task::spawn_blocking(move || {
        let text = telemetry::render(status).map_err(|error| error.to_string())?;
        let text = if plain { telemetry::plain(&text) } else { text };
        if text.len() > LARGE {
            memory::release();
        }
        Ok(Bytes::from(text))
    });
    rendered.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Whether the client knows OpenMetrics; who says nothing (curl, and promtool behind it) gets the older text format, which everybody reads.
fn asks_for_openmetrics(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"))
}

/// Why the node should not count as ready. A rejected policy is no reason once an earlier one is applied: traffic goes on.
pub fn unready(status: &Status) -> Option<String> {
    if let Some(error) = &status.applied.error {
        return Some(format!("the last change was not applied: {error}"));
    }
    if let Some(error) = &status.agent.state_error {
        return Some(format!("state cannot be written, a restart would take up an earlier one: {error}"));
    }
    if status.applied.generation == 0 {
        return Some(match status.desired.errors.first() {
            Some(error) => format!("no policy is applied: {error}"),
            None => "no policy is applied yet".to_owned(),
        });
    }
    if status.interfaces.iter().all(|interface| interface.programs.is_empty()) {
        let warnings = status.attachments.warnings.join("\n");
        return Some(if warnings.is_empty() { "attached to no interface: no traffic is split".to_owned() } else { warnings });
    }
    let blind: Vec<_> = status.interfaces.iter().filter(|interface| interface.is_blind()).map(missing).collect();
    (!blind.is_empty()).then(|| format!("not attached, and tried again every few seconds: {}", blind.join("; ")))
}

/// `b1 lacks tcx-ingress`.
fn missing(interface: &Interface) -> String {
    format!("{} lacks {}", interface.name, interface.missing.join(", "))
}

/// What is to be said although the node is ready.
fn ready(status: &Status) -> String {
    let slow = status.interfaces.iter().filter(|interface| !interface.missing.is_empty()).map(missing);
    let warnings = status.attachments.warnings.iter().cloned().chain(slow);
    warnings.fold("ok\n".to_owned(), |text, warning| text + "warning: " + &warning + "\n")
}
