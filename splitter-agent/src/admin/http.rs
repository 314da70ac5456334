//! Serving HTTP/1.1 connections with limits: what both listeners share.

use super::trace::Stream;
use crate::memory;
use http_body_util::{Either, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use splitter_api::ApiError;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task::AbortHandle,
    time::timeout,
};

pub type Answer = Response<Either<Full<Bytes>, Stream>>;

/// Time for a request's head to arrive, and for idle connections to go.
const HEAD: Duration = Duration::from_secs(5);
/// Time for a whole connection: a scrape or a command is done long before.
const CONNECTION: Duration = Duration::from_secs(60);
/// Connections of a listener at once. Both listeners together stay below the usual limit of 1,024 open files.
const CONNECTIONS: usize = 256;

/// Answers of more bytes leave more behind than is worth keeping.
pub const LARGE: usize = 4 << 20;

/// The connections of a listener. Each has a seat from when it was accepted; when none is left, the oldest connection for which nothing is being
/// done has to go: who sends half a request, reads slowly or is idle holds up nobody.
#[derive(Clone, Debug)]
pub struct Seats {
    all: Arc<Mutex<BTreeMap<u64, Seat>>>,
    freed: Arc<Notify>,
    limit: usize,
}

#[derive(Debug)]
struct Seat {
    /// Requests that are being worked on.
    busy: Arc<AtomicU32>,
    task: AbortHandle,
}

impl Default for Seats {
    fn default() -> Self {
        Self::new(CONNECTIONS)
    }
}

impl Seats {
    fn new(limit: usize) -> Self {
        Self { all: Arc::default(), freed: Arc::default(), limit }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Seat>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when there is room for one more.
    pub async fn free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.make_room() {
                return;
            }
            // All are being worked on: one of them ends first.
            freed.await;
        }
    }

    /// `false` when every connection is being worked on.
    fn make_room(&self) -> bool {
        let mut all = self.all();
        if all.len() < self.limit {
            return true;
        }
        let oldest = all.iter().find(|(_, seat)| seat.busy.load(Ordering::Relaxed) == 0).map(|(number, _)| *number);
        let Some(seat) = oldest.and_then(|number| all.remove(&number)) else { return false };
        seat.task.abort();
        true
    }

    /// Serves a connection on a task of its own, which ends with it.
    pub fn serve<S, H, F>(&self, stream: S, handle: H)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send,
    {
        let busy = Arc::<AtomicU32>::default();
        // Numbers rise, so that the first is the oldest.
        let mut all = self.all();
        let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
        let (seats, working) = (self.clone(), busy.clone());
        let task = tokio::spawn(async move {
            let _leave = Leave(seats, number);
            connection(stream, |request| {
                let work = Work::begin(&working);
                let answer = handle(request);
                async move {
                    let mut answer = answer.await;
                    // What goes on is worked on until its end.
                    if let Either::Right(stream) = answer.body_mut() {
                        stream.keep(work);
                    }
                    answer
                }
            })
            .await;
        });
        all.insert(number, Seat { busy, task: task.abort_handle() });
    }

    /// Ends all connections.
    fn clear(&self) {
        std::mem::take(&mut *self.all()).values().for_each(|seat| seat.task.abort());
    }
}

/// Ends a listener's connections with it.
pub struct Closing(pub Seats);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Gives the seat back, however the connection ends.
struct Leave(Seats, u64);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
        self.0.freed.notify_one();
    }
}

/// A request for which something is being done.
#[derive(Debug)]
pub struct Work(Arc<AtomicU32>);

impl Work {
    fn begin(busy: &Arc<AtomicU32>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(busy.clone())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection to its end, or to the time limit, which does not count while an answer goes on.
pub async fn connection<S, H, F>(stream: S, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let going_on = Mutex::new(Arc::new(AtomicBool::new(false)));
    let service = service_fn(|request| {
        let answer = handle(request);
        async {
            let answer = answer.await;
            if let Either::Right(stream) = answer.body() {
                *going_on.lock().unwrap_or_else(PoisonError::into_inner) = stream.alive();
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 << 10);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), service));
    loop {
        match timeout(CONNECTION, &mut served).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection ended early"),
            Err(_) if going_on.lock().unwrap_or_else(PoisonError::into_inner).load(Ordering::Relaxed) => continue,
            Err(_) => tracing::debug!("connection took too long"),
        }
        return;
    }
}

/// An answer that goes on.
pub fn streamed(content_type: &'static str, body: Stream) -> Answer {
    let mut answer = Response::new(Either::Right(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Writes a large answer on a thread of its own: the listeners serve others meanwhile.
pub async fn aside(write: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let written = tokio::task::spawn_blocking(|| {
        let answer = write();
        if answer.body().size_hint().exact().is_some_and(|size| size > LARGE as u64) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::Instant,
    };

    const WHOLE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    async fn come(seats: &Seats, request: &[u8], gate: &Arc<Notify>) -> DuplexStream {
        seats.free().await;
        let (mut client, server) = duplex(4096);
        let gate = gate.clone();
        seats.serve(server, move |_| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                answer(StatusCode::OK, "text/plain", "done")
            }
        });
        client.write_all(request).await.unwrap();
        tokio::task::yield_now().await;
        client
    }

    #[tokio::test]
    async fn who_is_served_stays_and_the_oldest_other_goes() {
        let (seats, gate) = (Seats::new(3), Arc::new(Notify::new()));
        let begin = Instant::now();
        let mut served = come(&seats, WHOLE, &gate).await;
        let mut half = Vec::new();
        for _ in 0..10 {
            half.push(come(&seats, &WHOLE[..20], &gate).await);
        }
        assert!(begin.elapsed() < HEAD / 2, "half requests held up others for {:?}", begin.elapsed());
        for client in &mut half[..8] {
            assert_eq!(client.read(&mut [0; 64]).await.unwrap(), 0, "an older one was to go");
        }
        gate.notify_one();
        let mut text = String::new();
        served.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("done"), "{text}");
        // All are being worked on: the next one waits for an end.
        let mut served = Vec::new();
        for _ in 0..3 {
            served.push(come(&seats, WHOLE, &gate).await);
        }
        let next = timeout(Duration::from_millis(50), seats.free()).await;
        assert!(next.is_err(), "somebody was thrown out at work");
        gate.notify_one();
        timeout(Duration::from_secs(5), seats.free()).await.expect("a seat is free after an end");
    }
}
