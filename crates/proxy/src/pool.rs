//! Connections to backends: one worker's, used by one request at a time and kept for the next.

use crate::upload::Upload;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, time::timeout};

pub type Sender = SendRequest<Upload>;

/// Backend id, and where it was: the same id at another address is another server.
pub type Key = (u32, SocketAddr);

/// Idle connections to one backend.
const IDLE_MOST: usize = 64;
/// Shorter than servers commonly wait for the next request.
const IDLE: Duration = Duration::from_secs(55);
const CONNECT: Duration = Duration::from_secs(5);
/// Of what is read at once, and the longest head of an answer, bytes.
const BUFFER: usize = 64 << 10;

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConnection {
    /// The backend, or somebody on the way, said no.
    Refused,
    /// Nobody said anything.
    Silent,
}

#[derive(Default)]
pub struct Pool(RefCell<HashMap<Key, Vec<(Sender, Instant)>>>);

impl Pool {
    /// The connection that was used last of those that can take a request.
    pub fn take(&self, key: Key) -> Option<Sender> {
        let mut all = self.0.borrow_mut();
        let idle = all.get_mut(&key)?;
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE);
        let ready = idle.iter().rposition(|(sender, _)| sender.is_ready())?;
        Some(idle.remove(ready).0)
    }

    /// Keeps a connection whose last answer has ended.
    pub fn give(&self, key: Key, sender: Sender) {
        let mut all = self.0.borrow_mut();
        let idle = all.entry(key).or_default();
        if idle.len() < IDLE_MOST && !sender.is_closed() {
            idle.push((sender, Instant::now()));
        }
    }

    /// Ends what nobody has used for long.
    pub fn tidy(&self) {
        self.0.borrow_mut().retain(|_, idle| {
            idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE);
            !idle.is_empty()
        });
    }
}

/// A new connection.
pub async fn connect(address: SocketAddr) -> Result<Sender, NoConnection> {
    let stream = match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => return Err(NoConnection::Silent),
        Ok(Err(error)) => {
            tracing::debug!(%error, %address, "no connection to a backend");
            return Err(NoConnection::Refused);
        }
        Err(_) => return Err(NoConnection::Silent),
    };
    // Small answers wait for nothing; without it they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER).max_headers(128);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| NoConnection::Refused)?;
    // Ends with the connection, which ends when nobody holds its sender.
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, %address, "connection to a backend");
        }
    });
    Ok(sender)
}
