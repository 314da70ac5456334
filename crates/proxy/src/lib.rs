//! The userspace tier: ends TLS on the node and splits the HTTP/1.1 requests inside, each by the very decision that the kernel makes for `mode: http`.
//!
//! Knows nothing of maps and policies. Whoever starts it gives it a [`Snapshot`] of the services and says by [`Node`] what an accepted connection was
//! sent to; what became of the requests is taken from [`Proxy::tallies`].
//!
//! | module | does |
//! |---|---|
//! | [`certificates`] | reads pairs of certificate and key, chooses one by the name that the client asks for |
//! | [`snapshot`] | the services, and the decision over them |
//! | [`tally`] | what is counted of requests, by version |
//! | `handshakes` | those under way, of which the oldest makes room |
//! | `head` | what the kernel's scanner reads of a request, and the fields that are forwarded |
//! | `pool` | connections to backends |
//! | `upload` | requests' bodies on their way |
//! | `body` | answers' bodies, which end what was begun for them |
//! | `serve` | one client's connection: decide, forward, answer |
//! | `worker` | threads, listeners, the end |

mod body;
pub mod certificates;
mod handshakes;
mod head;
mod pool;
mod serve;
pub mod snapshot;
pub mod tally;
mod upload;
mod worker;

pub use snapshot::{Backend, Service, Snapshot};
pub use worker::{Options, Proxy};

use std::net::SocketAddr;

/// What the node knows of connections.
pub trait Node: Send + Sync + 'static {
    /// The address that the client of an accepted connection has sent it to. `None`: not by the kernel programs, so that it is nobody's.
    fn destination(&self, local: SocketAddr, client: SocketAddr) -> Option<SocketAddr>;
}

#[cfg(test)]
mod tests;
