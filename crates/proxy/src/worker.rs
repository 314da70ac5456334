//! Threads, each with listeners, connections and pools of its own, so that none waits for another.

use crate::{
    Node,
    handshakes::{Handshakes, Turn},
    pool::Pool,
    serve::Client,
    snapshot::{Snapshot, Tls},
    tally::Accounts,
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{JoinSet, LocalSet},
    time::{interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// Connections that wait for `accept`.
const BACKLOG: u32 = 4096;
/// A client has so long for its handshake, and for a head; a kept connection waits so long for the next one.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(60);
/// Handshakes at once, of one thread. One more ends the oldest.
const HANDSHAKES: usize = 500;
/// Of what is read at once, and the longest head of a request, bytes.
const BUFFER: usize = 64 << 10;
/// How often it is asked whose a connection is, and the time between.
const LOOKS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(5);
/// How long a new service may be unknown here.
const UNPUBLISHED: Duration = Duration::from_secs(1);
const TIDY: Duration = Duration::from_secs(10);

/// How the tier is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the kernel programs send connections; every thread listens on each.
    pub listen: Vec<SocketAddr>,
    pub threads: usize,
    /// Connections at once, of all threads.
    pub connections: usize,
    /// How long requests may go on when the tier ends.
    pub drain: Duration,
}

/// The running tier. Ends when it is dropped, without waiting; see [`Proxy::end`].
pub struct Proxy {
    snapshots: watch::Sender<Arc<Snapshot>>,
    ends: watch::Sender<bool>,
    tallies: Arc<Accounts>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Listens; nobody is served before [`Proxy::publish`].
    ///
    /// # Errors
    /// When an address cannot be listened on, or there is no memory for a thread.
    pub fn start(options: &Options, node: Arc<dyn Node>) -> io::Result<Self> {
        let (snapshots, seen) = watch::channel(Arc::default());
        let (ends, end) = watch::channel(false);
        let count = options.threads.max(1);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let listeners = match listen(&runtime, &options.listen) {
                Ok(listeners) => listeners,
                Err(error) => {
                    // Those that run already see the other end of `end` go.
                    runtime.shutdown_background();
                    return Err(error);
                }
            };
            let worker = Start {
                node: node.clone(),
                snapshots: seen.clone(),
                end: end.clone(),
                connections: (options.connections / count).max(1),
                drain: options.drain,
            };
            let run = move || LocalSet::new().block_on(&runtime, worker.run(listeners));
            threads.push(thread::Builder::new().name(format!("proxy-{number}")).spawn(run)?);
        }
        Ok(Self { snapshots, ends, tallies: Arc::default(), threads })
    }

    /// What is counted: by whoever makes snapshots, of whoever serves by them.
    pub fn tallies(&self) -> &Arc<Accounts> {
        &self.tallies
    }

    /// Requests that come from now on are decided by this.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// Accepts nobody any more and lets requests end for as long as [`Options::drain`] says. Blocks until that is done.
    pub fn end(self) {
        self.ends.send_replace(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the userspace tier has panicked");
            }
        }
    }
}

fn listen(runtime: &Runtime, addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let _inside = runtime.enter();
    let one = |address: &SocketAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(*address)?;
        socket.listen(BACKLOG)
    };
    addresses.iter().map(one).collect()
}

/// What a thread begins with.
struct Start {
    node: Arc<dyn Node>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    end: watch::Receiver<bool>,
    connections: usize,
    drain: Duration,
}

/// What the tasks of one thread share.
struct Worker {
    node: Arc<dyn Node>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    end: watch::Receiver<bool>,
    pool: Rc<Pool>,
    handshakes: Rc<Handshakes>,
    /// Where connections' numbers for requests begin: nobody can tell which bucket the next one gets.
    random: RandomState,
    accepted: Cell<u64>,
}

impl Start {
    async fn run(self, listeners: Vec<TcpListener>) {
        let Self { node, snapshots, end, connections, drain } = self;
        let mut ended = end.clone();
        let worker = Worker {
            node,
            snapshots,
            end,
            pool: Rc::default(),
            handshakes: Rc::new(Handshakes::new(HANDSHAKES)),
            random: RandomState::new(),
            accepted: Cell::new(0),
        };
        let worker = Rc::new(worker);
        let seats = Arc::new(Semaphore::new(connections));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn_local(accept(listener, worker.clone(), seats.clone()));
        }
        let pool = worker.pool.clone();
        accepting.spawn_local(async move {
            let mut tick = interval(TIDY);
            loop {
                tick.tick().await;
                pool.tidy();
            }
        });
        // An error is the tier's end, too: who could say so is gone.
        let asked = ended.wait_for(|ended| *ended).await.is_ok();
        accepting.shutdown().await;
        if asked {
            let all = seats.acquire_many(connections.try_into().unwrap_or(u32::MAX));
            let _ = timeout(drain, all).await;
        }
    }
}

async fn accept(listener: TcpListener, worker: Rc<Worker>, seats: Arc<Semaphore>) {
    loop {
        // More wait in the backlog.
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let turn = worker.handshakes.begin();
                drop(tokio::task::spawn_local(serve(stream, client, worker.clone(), seat, turn)));
            }
            Err(error) => {
                // Out of descriptors or memory: others give theirs back.
                tracing::warn!(%error, "accept");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, client: SocketAddr, worker: Rc<Worker>, _seat: OwnedSemaphorePermit, mut turn: Turn) {
    // Without it small answers are late, not wrong.
    let _ = stream.set_nodelay(true);
    let Some(destination) = destination(&stream, client, &*worker.node).await else { return reset(&stream) };
    let tls = tls_of(destination, worker.snapshots.clone()).await;
    let Some(tls) = tls else { return reset(&stream) };
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)) => accepted,
        () = turn.displaced() => return,
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, %client, "handshake"),
        Err(_) => return,
    };
    drop(turn);
    let number = worker.accepted.replace(worker.accepted.get().wrapping_add(1));
    let start = worker.random.hash_one(number) as u32;
    let mut end = worker.end.clone();
    let Some(client) = Client::new(worker.snapshots.clone(), worker.pool.clone(), destination, client, start) else { return };
    let client = Rc::new(client);
    let answer = service_fn(move |request| client.clone().answer(request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER).max_headers(128);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = end.wait_for(|ended| *ended) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of a client");
    }
}

/// What the client has connected to. Its entry may be on its way from one table to the other: who is not known at first is looked for again.
async fn destination(stream: &TcpStream, client: SocketAddr, node: &dyn Node) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    for _ in 0..LOOKS {
        if let Some(found) = node.destination(local, client) {
            return Some(found);
        }
        sleep(PAUSE).await;
    }
    None
}

/// How its clients are met. The kernel may have sent the first of a new service before it was published.
async fn tls_of(destination: SocketAddr, mut snapshots: watch::Receiver<Arc<Snapshot>>) -> Option<Tls> {
    let known = snapshots.wait_for(|snapshot| snapshot.services.contains_key(&destination));
    let snapshot = timeout(UNPUBLISHED, known).await.ok()?.ok()?;
    snapshot.services.get(&destination)?.tls.clone()
}

/// Ends a connection by a RST: nobody knows it.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
