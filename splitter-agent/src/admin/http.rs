//! Serving HTTP/1.1 connections with limits: what both listeners share.

use crate::{memory, observed::ApiError};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};

pub type Answer = Response<Full<Bytes>>;

/// Time for a request's head to arrive, and for idle connections to go.
const HEAD: Duration = Duration::from_secs(5);
/// Time for a whole connection: a scrape or a command is done long before.
const CONNECTION: Duration = Duration::from_secs(60);
/// Connections served at once by a listener; more wait in the backlog.
const CONNECTIONS: usize = 64;

/// Answers of more bytes leave more behind than is worth keeping.
const LARGE: u64 = 4 << 20;

/// A listener's places; a place is free again when its connection ends.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTIONS))
}

/// Serves one connection to its end, or to the time limit.
pub async fn connection<S, H, F>(stream: S, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answer = handle(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 << 10);
    match timeout(CONNECTION, server.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection ended early"),
        Err(_) => tracing::debug!("connection took too long"),
    }
}

pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Writes a large answer on a thread of its own: the listeners serve others meanwhile.
pub async fn aside(write: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let written = tokio::task::spawn_blocking(|| {
        let answer = write();
        if answer.body().size_hint().exact().is_some_and(|size| size > LARGE) {
            memory::release();
        }
        answer
    });
    let written = written.await;
    written.unwrap_or_else(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

pub fn failure(status: StatusCode, error: impl Into<String>) -> Answer {
    json(status, &ApiError { error: error.into() })
}
