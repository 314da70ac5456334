//! Servers that misbehave, and clients from many addresses that say what they suffered.

use crate::support::{Bed, PORT, Split};
use splitter_api::{Outcomes, Version};
use splitter_lab::lab::{Namespace, Options};
use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Addresses of the client: no limit of ICMP errors to one address hides anything.
pub const ADDRESSES: usize = 200;
/// Clients at a time.
const CROWD: usize = 20;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Answer,
    /// Accepts, and says nothing for ever.
    Hang,
    /// Closes at once.
    Close,
    /// Resets when the request is there.
    Reset,
    /// Answers the beginning, then resets.
    Cut,
    /// Listens, and accepts nobody.
    Ignore,
}

/// A TCP server in a namespace; ends with its handle.
pub struct Server {
    over: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Namespace, address: SocketAddr, manner: Manner) -> Server {
        let listener =
            namespace.run(|| listen(address, if manner == Manner::Ignore { 0 } else { 1_024 })).expect("a namespace").expect("a listener");
        listener.set_nonblocking(true).expect("a listener");
        let (over, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count) = (over.clone(), accepted.clone());
        let serve = move || {
            let mut kept = Vec::new();
            while !end.load(Ordering::SeqCst) {
                if manner == Manner::Ignore {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                match listener.accept() {
                    Ok((stream, _)) => {
                        count.fetch_add(1, Ordering::SeqCst);
                        if manner == Manner::Hang {
                            kept.push(stream);
                        } else {
                            std::thread::spawn(move || treat(stream, manner));
                        }
                    }
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        Server { over, accepted, thread: Some(std::thread::spawn(serve)) }
    }

    /// Connections that the process took.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().map(JoinHandle::join);
    }
}

/// A listener with a queue of its own length.
fn listen(address: SocketAddr, queue: i32) -> io::Result<TcpListener> {
    let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(splitter_lab::poll::check(libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?) };
    let one = 1i32;
    // SAFETY: the value lives through the call.
    unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const one).cast(), 4) };
    let bound = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: all zeroes is a valid address.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = domain as u16;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            // SAFETY: the address lives through the call.
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), size_of_val(&raw) as u32) }
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all zeroes is a valid address.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = domain as u16;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            // SAFETY: the address lives through the call.
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), size_of_val(&raw) as u32) }
        }
    };
    splitter_lab::poll::check(bound)?;
    // SAFETY: no pointers.
    splitter_lab::poll::check(unsafe { libc::listen(fd.as_raw_fd(), queue) })?;
    Ok(fd.into())
}

fn treat(mut stream: TcpStream, manner: Manner) {
    let mut request = [0; 64];
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    if manner == Manner::Close || stream.read(&mut request).is_err() {
        return;
    }
    match manner {
        Manner::Answer => {
            let _ = stream.write_all(b"whole answer");
        }
        Manner::Cut => {
            let _ = stream.write_all(b"half");
            std::thread::sleep(Duration::from_millis(20));
            let _ = reset(&stream);
        }
        Manner::Reset => {
            let _ = reset(&stream);
        }
        _ => {}
    }
}

/// Makes the end of a connection a RST.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the value lives through the call.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size_of_val(&linger) as u32)
    };
    splitter_lab::poll::check(result).map(drop)
}

/// What a client suffered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Answered,
    /// Answered in part, then reset.
    Cut,
    /// Told at once that there is nobody.
    Refused,
    /// No connection in time.
    NoConnection,
    /// A connection, and no byte in time.
    NoAnswer,
    /// A connection that ended without a byte.
    Ended,
}

/// How a client gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    Close,
    Reset,
}

/// Who asks, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub to: SocketAddr,
    pub count: usize,
    pub patience: Duration,
    pub farewell: Farewell,
}

/// The `i`-th address of the first client.
pub fn address(i: usize, v6: bool) -> IpAddr {
    let host = 20 + (i % ADDRESSES) as u16;
    if v6 { Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 1, host).into() } else { Ipv4Addr::new(10, 1, 0, host as u8).into() }
}

/// As many clients as asked for, [`CROWD`] at a time; how many had which fate.
pub fn ask(bed: &Bed, asking: Asking, udp: bool) -> BTreeMap<Fate, u64> {
    let client = bed.lab.client();
    let one = |i: usize| {
        let from = SocketAddr::new(address(i, asking.to.is_ipv6()), 0);
        if udp { datagram(from, asking) } else { connection(from, asking) }
    };
    let part =
        |begin: usize| client.run(|| (begin..asking.count).step_by(CROWD).map(one).collect::<Vec<_>>()).expect("the client's namespace");
    let part = &part;
    let fates = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CROWD).map(|begin| scope.spawn(move || part(begin))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect::<Vec<_>>()
    });
    let mut counts = BTreeMap::new();
    fates.into_iter().for_each(|fate| *counts.entry(fate).or_default() += 1);
    counts
}

fn connection(from: SocketAddr, asking: Asking) -> Fate {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let connecting = async {
        let socket = if from.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.bind(from)?;
        tokio::time::timeout(asking.patience, socket.connect(asking.to))
            .await
            .map_err(|_| io::Error::from(ErrorKind::TimedOut))??
            .into_std()
    };
    let mut stream = match runtime.block_on(connecting) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Fate::NoConnection,
        Err(_) => return Fate::Refused,
    };
    stream.set_nonblocking(false).expect("a socket");
    stream.set_read_timeout(Some(asking.patience)).expect("a socket");
    if stream.write_all(b"question").is_err() {
        return Fate::Ended;
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 64];
    let fate = loop {
        match stream.read(&mut buffer) {
            Ok(0) if answer == b"whole answer" => break Fate::Answered,
            Ok(0) if answer.is_empty() => break Fate::Ended,
            Ok(0) => break Fate::Cut,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break Fate::NoAnswer,
            Err(_) => break if answer.is_empty() { Fate::Ended } else { Fate::Cut },
        }
    };
    if fate == Fate::NoAnswer && asking.farewell == Farewell::Reset {
        let _ = reset(&stream);
    }
    let _ = if asking.farewell == Farewell::Close { stream.shutdown(Shutdown::Write) } else { Ok(()) };
    fate
}

fn datagram(from: SocketAddr, asking: Asking) -> Fate {
    let socket = UdpSocket::bind(from).expect("an address");
    socket.set_read_timeout(Some(asking.patience)).expect("a socket");
    socket.connect(asking.to).expect("a route");
    if socket.send(b"question").is_err() {
        return Fate::Refused;
    }
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Fate::Answered,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Fate::NoAnswer,
        Err(_) => Fate::Refused,
    }
}

/// A node whose service has v1 on these backends, without servers, and a client with many addresses. ICMP errors are not limited.
pub fn bed(name: &str, split: Split, backends: Vec<usize>) -> Bed {
    bed_of(name, Split { versions: vec![(1, backends)], ..split })
}

/// The same with the versions that the split has.
pub fn bed_of(name: &str, split: Split) -> Bed {
    let mut bed = Bed::prepare(name, Options { clients: 2, ..Options::default() }, &[split]);
    (1..=3).for_each(|i| bed.stop_server(i));
    let mut lines = String::new();
    for i in 0..ADDRESSES {
        lines += &format!("address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\n", address(i, false), address(i, true));
    }
    bed.lab.client().batch(&lines).expect("addresses");
    for namespace in bed.lab.backends() {
        unlimited(namespace);
    }
    bed.started()
}

/// No limit of ICMP errors.
pub fn unlimited(namespace: &Namespace) {
    let values = [
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv4/icmp_ratemask", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        ("net/ipv6/icmp/ratemask", "127"),
    ];
    namespace.sysctls(&values).expect("limits of ICMP errors");
}

/// Where backend `i` listens.
pub fn at(bed: &Bed, i: usize, v6: bool) -> SocketAddr {
    bed.lab.backend_addr(i, v6, PORT)
}

/// Rules for what comes to a backend's port.
pub fn filter(namespace: &Namespace, verdict: &str) {
    let rules = format!(
        "add table inet judge; add chain inet judge in {{ type filter hook input priority 0; }}; \
         add rule inet judge in meta l4proto {{ tcp, udp }} th dport {PORT} {verdict}"
    );
    let mut command = namespace.command("nft");
    command.arg(rules);
    crate::support::tool(command);
}

pub fn unfilter(namespace: &Namespace) {
    let mut command = namespace.command("nft");
    command.arg("delete table inet judge");
    crate::support::tool(command);
}

/// The first version as the agent tells it.
pub fn version(bed: &Bed) -> Version {
    bed.service("web").versions.swap_remove(0)
}

/// Outcomes of drawn trials, once as many have ended.
pub fn ended(bed: &Bed, count: u64) -> Outcomes {
    crate::support::eventually(&format!("{count} trials end"), || {
        let drawn = version(bed).trials.drawn;
        let ended: u64 = drawn.named().iter().filter(|(name, _)| *name != "cut").map(|(_, count)| count).sum();
        (ended >= count).then_some(drawn)
    })
}
