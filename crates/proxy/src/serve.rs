//! One client's connection: each of its requests is decided, forwarded, and answered.

use crate::{
    body::Download,
    head::{self, Refusal},
    pool::{self, Key, NoConnection, Pool, Sender},
    snapshot::{Service, Snapshot, addr},
    tally::{Trial, Unanswered},
    upload::Upload,
};
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::{Body, Incoming},
    header::{self, HeaderValue},
};
use splitter_common::{
    abi::{Measure, TCP, service_flag},
    decide::{self, Choice, Facts},
};
use std::{cell::Cell, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Instant};
use thiserror::Error;
use tokio::sync::watch;

pub type Reply = Either<Download, Full<Bytes>>;

/// The connection ends without an answer, as the service wants it.
#[derive(Debug, Error)]
#[error("nobody serves, and the service's clients are to be cut off")]
pub struct CutOff;

/// A fresh connection to a backend can close under a request that never left so many times.
const TRIES: u32 = 3;

/// What all requests of a connection share.
pub struct Client {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pool: Rc<Pool>,
    destination: SocketAddr,
    facts: Facts,
    /// The value of `X-Forwarded-For`, and of `Host` where there is none.
    address: HeaderValue,
    host: HeaderValue,
    /// What stands for the place of the next request: its number, from a random start.
    at: Cell<u32>,
    /// Backend and version of the last request; 0: none.
    used: Cell<(u32, u32)>,
}

impl Client {
    /// `start`: random. Fails for no address.
    pub fn new(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        pool: Rc<Pool>,
        destination: SocketAddr,
        client: SocketAddr,
        start: u32,
    ) -> Option<Self> {
        let facts = Facts {
            client: addr(client.ip()),
            vip: addr(destination.ip()),
            client_port: client.port(),
            vip_port: destination.port(),
            proto: TCP,
        };
        let address = HeaderValue::from_str(&client.ip().to_string()).ok()?;
        let host = HeaderValue::from_str(&destination.to_string()).ok()?;
        Some(Self { snapshots, pool, destination, facts, address, host, at: Cell::new(start), used: Cell::default() })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When nobody serves and the service says `whenUnavailable: reset`.
    pub async fn answer(self: Rc<Self>, mut request: Request<Incoming>) -> Result<Response<Reply>, CutOff> {
        let service = self.snapshots.borrow().services.get(&self.destination).cloned();
        let Some(service) = service else { return Ok(own(StatusCode::SERVICE_UNAVAILABLE, "the service is gone")) };
        if request.method() == Method::CONNECT {
            return Ok(own(StatusCode::NOT_IMPLEMENTED, "no tunnels"));
        }
        let at = self.at.replace(self.at.get().wrapping_add(1));
        let read = match head::read(&request, &service, &self.facts.client, at) {
            Ok(read) => read,
            Err(Refusal::Malformed) => return Ok(own(StatusCode::BAD_REQUEST, "the head can be read in two ways")),
            Err(Refusal::TooLong) => return Ok(own(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")),
        };
        let (choice, trial) = match self.decide(&service, &read) {
            Some(decided) => decided,
            None => return self.nobody(&service),
        };
        *request.version_mut() = Version::HTTP_11;
        head::forward(request.headers_mut(), &self.address, &self.host);
        self.forward(&service, choice, trial, request.map(Upload::new)).await
    }

    /// The decision, and the trial that begins with it; `None`: no version has weight.
    fn decide(&self, service: &Service, read: &decide::Request) -> Option<(Choice, Trial)> {
        let (used, before) = self.used.get();
        let choice = service.decide(&self.facts, read, used);
        let account = service.accounts.get(&choice.version)?;
        if before != choice.version {
            account.count(|counters| if before == 0 { counters.connections += 1 } else { counters.switches += 1 });
        }
        self.used.set((used, choice.version));
        Some((choice, Trial::begin(account.clone(), service.terms, choice.ruled != 0)))
    }

    /// To the chosen backend, or to others of its version while the request has not left.
    async fn forward(
        &self,
        service: &Service,
        mut choice: Choice,
        mut trial: Trial,
        mut request: Request<Upload>,
    ) -> Result<Response<Reply>, CutOff> {
        let (mut why, mut tries) = (Unanswered::Unavailable, 0);
        loop {
            let Some(backend) = service.backends.get(&choice.backend) else {
                trial.unanswered(why);
                return self.nobody(service);
            };
            let key = (choice.backend, backend.address);
            let kept = self.pool.take(key);
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => match connect(key, &mut trial).await {
                    Ok(sender) => sender,
                    Err(none) => {
                        backend.health.suspect();
                        why = if none == NoConnection::Refused { Unanswered::Refused } else { Unanswered::Unopened };
                        service.decide_again(&self.facts, choice.backend, &mut choice);
                        continue;
                    }
                },
            };
            if fresh {
                backend.health.well();
            }
            self.used.set((choice.backend, choice.version));
            // The backend may have closed a kept connection just now, having seen nothing of it: what changes nothing is asked again.
            let again = if fresh { None } else { copy(&request) };
            let sent = sender.try_send_request(request);
            let mut error = match watched(&mut trial, sent).await {
                Ok(response) => return Ok(self.answered(response, sender, key, trial)),
                Err(error) => error,
            };
            tries += u32::from(fresh);
            match error.take_message().or(again) {
                Some(back) if tries < TRIES => request = back,
                _ => {
                    let left = error.error().is_user();
                    trial.unanswered(if left { Unanswered::Abandoned } else { Unanswered::Closed });
                    tracing::debug!(error = %error.error(), backend = %key.1, "no answer");
                    return Ok(own(StatusCode::BAD_GATEWAY, "the backend gave no answer"));
                }
            }
        }
    }

    fn answered(&self, mut response: Response<Incoming>, sender: Sender, key: Key, mut trial: Trial) -> Response<Reply> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for it: the request's `Upgrade` was not forwarded.
            trial.unanswered(Unanswered::Closed);
            return own(StatusCode::BAD_GATEWAY, "the backend changed the protocol");
        }
        trial.answered(response.status().as_u16());
        head::strip(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        let pool = self.pool.clone();
        response.map(|body| Either::Left(Download::new(body, sender, key, pool, trial)))
    }

    fn nobody(&self, service: &Service) -> Result<Response<Reply>, CutOff> {
        if service.record.flags & service_flag::RESET != 0 {
            return Err(CutOff);
        }
        Ok(own(StatusCode::SERVICE_UNAVAILABLE, "no backend serves"))
    }
}

/// A connection, measured.
async fn connect(key: Key, trial: &mut Trial) -> Result<Sender, NoConnection> {
    let begin = Instant::now();
    let connected = watched(trial, pool::connect(key.1)).await;
    match &connected {
        Ok(_) => trial.account().sample(Measure::Connect, trial.is_ruled(), begin.elapsed()),
        Err(NoConnection::Refused) => trial.account().count(|counters| counters.refused += 1),
        Err(NoConnection::Silent) => trial.account().count(|counters| counters.timeouts += 1),
    }
    connected
}

/// Waits, and notes when that takes the client too long.
async fn watched<T>(trial: &mut Trial, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let Some(due) = trial.due() else { return future.await };
    tokio::select! {
        biased;
        done = future.as_mut() => return done,
        () = tokio::time::sleep_until(due.into()) => trial.overdue(),
    }
    future.await
}

/// The same request once more, when it changes nothing and has no body.
fn copy(request: &Request<Upload>) -> Option<Request<Upload>> {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) && request.body().is_end_stream();
    safe.then(|| {
        let mut copy = Request::new(Upload::none());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

/// An answer of the node itself; the connection ends with it.
fn own(status: StatusCode, text: &'static str) -> Response<Reply> {
    let mut response = Response::new(Either::Right(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
