//! The backend of every test: an HTTP/1.1 server that names itself, or a UDP echo that does. A process of its own, one epoll loop a thread.
//!
//! `GET /bytes/N` answers N bytes of [`crate::http::body_byte`]; every other path answers the name and a line feed. `x-version` carries the name.

use crate::{
    http::{Malformed, body_byte, parse_request},
    lab::Namespace,
    poll::{Event, Interest, Poll, check},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub const USAGE: &str = "splitter-bench serve --listen ADDR:PORT --name NAME [--udp] [--delay-ms N] [--error-rate P] [--threads N]
    --listen ADDR:PORT   may be repeated; [::]:PORT listens on IPv4 too
    --name NAME          answered in x-version and as the body
    --udp                echo datagrams behind `NAME ` on the same addresses as well
    --delay-ms N         wait before every HTTP answer
    --error-rate P       share of HTTP requests answered 500, 0 to 1
    --threads N          event loops (default 1)";

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub listen: Vec<SocketAddr>,
    pub name: String,
    pub udp: bool,
    pub delay: Duration,
    /// 0..=1.
    pub error_rate: f64,
    pub threads: usize,
}

impl Options {
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options> {
        let mut options =
            Options { listen: Vec::new(), name: String::new(), udp: false, delay: Duration::ZERO, error_rate: 0.0, threads: 1 };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--udp" {
                options.udp = true;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"))?;
            let bad = || format!("bad value {value:?} of {argument}");
            match argument.as_str() {
                "--listen" => options.listen.push(value.parse().with_context(bad)?),
                "--name" => options.name = value,
                "--delay-ms" => options.delay = Duration::from_millis(value.parse().with_context(bad)?),
                "--error-rate" => options.error_rate = value.parse().with_context(bad)?,
                "--threads" => options.threads = value.parse().with_context(bad)?,
                _ => bail!("unknown option {argument}\n{USAGE}"),
            }
        }
        if options.listen.is_empty() || options.name.is_empty() || options.threads == 0 || !(0.0..=1.0).contains(&options.error_rate) {
            bail!("--listen and --name are needed, --threads is at least 1, --error-rate is 0 to 1\n{USAGE}");
        }
        Ok(options)
    }

    /// The command line that [`Options::parse`] reads back.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = self.listen.iter().flat_map(|address| ["--listen".into(), address.to_string()]).collect();
        let pairs = [
            ("--name", self.name.clone()),
            ("--delay-ms", self.delay.as_millis().to_string()),
            ("--error-rate", self.error_rate.to_string()),
            ("--threads", self.threads.to_string()),
        ];
        arguments.extend(pairs.into_iter().flat_map(|(name, value)| [name.into(), value]));
        arguments.extend(self.udp.then(|| "--udp".into()));
        arguments
    }
}

/// Serves until the process is killed.
pub fn run(options: &Options) -> Result<()> {
    let mut threads = Vec::new();
    for _ in 0..options.threads {
        let mut server = Server::bind(options)?;
        threads.push(std::thread::spawn(move || server.run(None)));
    }
    for thread in threads {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    }
    Ok(())
}

/// A server in a thread of this process, inside a namespace: for tests of packages that have no server binary at hand. It listens when
/// [`Background::start`] returns; dropping it closes its listeners and resets or ends its connections, as a killed process would.
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// One event loop, whatever `options.threads` says.
    pub fn start(namespace: &Namespace, options: &Options) -> Result<Background> {
        // Sockets belong to the namespace of the thread that made them.
        let mut server = namespace.run(|| Server::bind(options))??;
        let stop = Arc::new(AtomicBool::new(false));
        let ours = stop.clone();
        let thread = std::thread::Builder::new().name("serve".into()).spawn(move || server.run(Some(&ours)))?;
        Ok(Background { stop, thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // An error has nobody left to read it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

const FIRST_CONNECTION: u64 = 1 << 32;

/// One loop with listeners of its own (SO_REUSEPORT).
struct Server {
    name: String,
    error_rate: f64,
    errors_due: f64,
    delay: Duration,
    poll: Poll,
    listeners: Vec<TcpListener>,
    sockets: Vec<UdpSocket>,
    connections: HashMap<u64, Connection>,
    next: u64,
    /// Connections whose answer waits, in order of time: the delay is the same for all.
    delayed: VecDeque<(Instant, u64)>,
    plain: [Vec<u8>; 2],
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    waiting: bool,
    close: bool,
    interest: Interest,
}

impl Server {
    fn bind(options: &Options) -> Result<Server> {
        let (poll, mut listeners, mut sockets) = (Poll::new()?, Vec::new(), Vec::new());
        for address in &options.listen {
            let listener = TcpListener::from(socket(*address, libc::SOCK_STREAM).with_context(|| format!("cannot listen on {address}"))?);
            poll.add(&listener, Interest::READ, listeners.len() as u64)?;
            listeners.push(listener);
        }
        for address in options.listen.iter().filter(|_| options.udp) {
            let udp = UdpSocket::from(socket(*address, libc::SOCK_DGRAM).with_context(|| format!("cannot bind UDP {address}"))?);
            poll.add(&udp, Interest::READ, (listeners.len() + sockets.len()) as u64)?;
            sockets.push(udp);
        }
        let body = format!("{}\n", options.name).into_bytes();
        let plain = [true, false].map(|keep| [answer_head(200, &options.name, body.len() as u64, keep), body.clone()].concat());
        Ok(Server {
            name: options.name.clone(),
            error_rate: options.error_rate,
            errors_due: 0.0,
            delay: options.delay,
            poll,
            listeners,
            sockets,
            connections: HashMap::new(),
            next: FIRST_CONNECTION,
            delayed: VecDeque::new(),
            plain,
        })
    }

    /// Until `stop`, when there is one: it is looked at every 20 ms.
    fn run(&mut self, stop: Option<&AtomicBool>) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(20);
        let mut events: Vec<Event> = Vec::new();
        while !stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            let due = self.delayed.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
            let timeout = if stop.is_some() { Some(due.unwrap_or(LOOK).min(LOOK)) } else { due };
            self.poll.wait(timeout, &mut events)?;
            for event in &events {
                match event.token {
                    token if token >= FIRST_CONNECTION => self.drive(token, event.readable()),
                    token if (token as usize) < self.listeners.len() => self.accept(token as usize)?,
                    token => self.echo(token as usize - self.listeners.len()),
                }
            }
            while self.delayed.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                let Some((_, token)) = self.delayed.pop_front() else { break };
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.waiting = false;
                    self.drive(token, false);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        // Bounded, so that a storm of connections cannot starve the open ones.
        for _ in 0..64 {
            let stream = match self.listeners[listener].accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The client gave up while it waited in the queue.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let token = self.next;
            self.next += 1;
            self.poll.add(&stream, Interest::READ, token)?;
            let connection = Connection {
                stream,
                input: Vec::new(),
                output: Vec::new(),
                written: 0,
                waiting: false,
                close: false,
                interest: Interest::READ,
            };
            self.connections.insert(token, connection);
            // Most clients have sent their request by now.
            self.drive(token, true);
        }
        Ok(())
    }

    fn echo(&mut self, socket: usize) {
        let mut buffer = [0u8; 65_536];
        let start = self.name.len() + 1;
        buffer[..self.name.len()].copy_from_slice(self.name.as_bytes());
        buffer[self.name.len()] = b' ';
        while let Ok((length, from)) = self.sockets[socket].recv_from(&mut buffer[start..]) {
            // A full send queue loses the datagram, as UDP may.
            let _ = self.sockets[socket].send_to(&buffer[..start + length], from);
        }
    }

    /// Reads, answers, writes, as far as it goes; forgets the connection when it is over.
    fn drive(&mut self, token: u64, readable: bool) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
        if self.step(token, &mut connection, readable).is_ok() {
            self.connections.insert(token, connection);
        }
    }

    /// Fails when the connection is over.
    fn step(&mut self, token: u64, connection: &mut Connection, readable: bool) -> Result<(), Over> {
        if readable && !connection.waiting {
            connection.fill()?;
        }
        while !connection.waiting {
            connection.flush()?;
            if connection.pending() || !self.answer(token, connection)? {
                break;
            }
        }
        let interest = match (connection.waiting, connection.pending()) {
            (true, _) => Interest::NONE,
            (false, true) => Interest::WRITE,
            (false, false) => Interest::READ,
        };
        if interest != connection.interest {
            self.poll.modify(&connection.stream, interest, token).map_err(|_| Over)?;
            connection.interest = interest;
        }
        Ok(())
    }

    /// Takes the next request, if there is one.
    fn answer(&mut self, token: u64, connection: &mut Connection) -> Result<bool, Over> {
        let Some(request) = parse_request(&connection.input)? else { return Ok(false) };
        connection.input.drain(..request.length);
        connection.close = !request.keep_alive;
        self.errors_due += self.error_rate;
        let size = request.path.strip_prefix("/bytes/").and_then(|size| size.parse::<u64>().ok());
        if self.errors_due >= 1.0 {
            self.errors_due -= 1.0;
            connection.output.extend(answer_head(500, &self.name, 0, request.keep_alive));
        } else if let Some(size) = size {
            connection.output.extend(answer_head(200, &self.name, size, request.keep_alive));
            connection.output.extend((0..size).map(body_byte));
        } else {
            connection.output.extend_from_slice(&self.plain[usize::from(!request.keep_alive)]);
        }
        if !self.delay.is_zero() {
            connection.waiting = true;
            self.delayed.push_back((Instant::now() + self.delay, token));
        }
        Ok(true)
    }
}

/// The connection ended: by the peer, by an error, or because it was asked to.
struct Over;

impl From<Malformed> for Over {
    fn from(_: Malformed) -> Over {
        Over
    }
}

impl Connection {
    fn pending(&self) -> bool {
        self.written < self.output.len()
    }

    fn fill(&mut self) -> Result<(), Over> {
        let mut buffer = [0u8; 16_384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Over),
                Ok(length) => {
                    self.input.extend_from_slice(&buffer[..length]);
                    if length < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Over),
            }
        }
    }

    fn flush(&mut self) -> Result<(), Over> {
        while self.pending() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Over),
            }
        }
        self.output.clear();
        self.written = 0;
        // The last answer is out: closing now sends FIN behind it.
        if self.close { Err(Over) } else { Ok(()) }
    }
}

fn answer_head(status: u16, name: &str, length: u64, keep_alive: bool) -> Vec<u8> {
    let reason = if status == 200 { "OK" } else { "Internal Server Error" };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!("HTTP/1.1 {status} {reason}\r\nx-version: {name}\r\ncontent-length: {length}\r\nconnection: {connection}\r\n\r\n").into_bytes()
}

/// A bound, non-blocking socket with SO_REUSEPORT; TCP ones listen.
fn socket(address: SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |level, option, value: i32| {
        // SAFETY: the value is an int that lives through the call.
        check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<i32>() as u32) })
    };
    set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    if family == libc::AF_INET6 {
        let any = address.ip() == Ipv6Addr::UNSPECIFIED;
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, i32::from(!any))?;
    }
    let (storage, length) = raw_address(address);
    // SAFETY: the storage holds an address of that length.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), length) })?;
    if kind == libc::SOCK_STREAM {
        // SAFETY: no pointers.
        check(unsafe { libc::listen(fd.as_raw_fd(), 16_384) })?;
    }
    Ok(fd)
}

/// An address as the kernel wants it.
pub(crate) fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every address type.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            size_of_val(&raw)
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            size_of_val(&raw)
        }
    };
    (storage, length as libc::socklen_t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_read_back() {
        let words = ["--listen", "[::]:80", "--listen", "1.2.3.4:81", "--name", "v2", "--udp", "--delay-ms", "7", "--error-rate", "0.25"];
        let options = Options::parse(words.map(String::from)).unwrap();
        assert_eq!(options.delay, Duration::from_millis(7));
        assert_eq!(options.listen.len(), 2);
        assert_eq!(Options::parse(options.arguments()).unwrap(), options);
    }

    #[test]
    fn bad_arguments_are_refused() {
        for words in [vec!["--name", "x"], vec!["--listen", "x", "--name", "y"], vec!["--port", "1"], vec!["--name"]] {
            assert!(Options::parse(words.iter().map(|w| w.to_string())).is_err(), "{words:?}");
        }
    }
}
