//! The backend of every test: an HTTP/1.1 server that names itself, or a UDP echo that does. A process of its own, one epoll loop a thread.
//!
//! `answer` says what each path answers; `x-version` always carries the name.

mod answer;
mod connection;
mod socket;

pub use answer::{PATHS, digest};
pub use socket::raw_address;

use crate::{
    http::{parse_request, wants_continue},
    lab::Namespace,
    poll::{Event, Interest, Poll},
};
use answer::{Pace, answer_head};
use anyhow::{Context, Result, bail};
use connection::{Connection, Over};
use socket::socket;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
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
    /// Connections whose answer, or the rest of it, waits; the earliest first.
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    plain: [Vec<u8>; 2],
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
            delayed: BinaryHeap::new(),
            plain,
        })
    }

    /// Until `stop`, when there is one: it is looked at every 20 ms.
    fn run(&mut self, stop: Option<&AtomicBool>) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(20);
        let mut events: Vec<Event> = Vec::new();
        while !stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            let due = self.delayed.peek().map(|Reverse((due, _))| due.saturating_duration_since(Instant::now()));
            let timeout = if stop.is_some() { Some(due.unwrap_or(LOOK).min(LOOK)) } else { due };
            self.poll.wait(timeout, &mut events)?;
            for event in &events {
                match event.token {
                    token if token >= FIRST_CONNECTION => self.drive(token, event.readable()),
                    token if (token as usize) < self.listeners.len() => self.accept(token as usize)?,
                    token => self.echo(token as usize - self.listeners.len()),
                }
            }
            while self.delayed.peek().is_some_and(|Reverse((due, _))| *due <= Instant::now()) {
                let Some(Reverse((_, token))) = self.delayed.pop() else { break };
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.resume();
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
            self.connections.insert(token, Connection::new(stream));
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
            if let Some(pause) = connection.flush()? {
                self.delayed.push(Reverse((Instant::now() + pause, token)));
                break;
            }
            if connection.pending() || !self.answer(token, connection)? {
                break;
            }
        }
        if connection.done() {
            return Err(Over);
        }
        let interest = connection.wants();
        if interest != connection.interest {
            self.poll.modify(&connection.stream, interest, token).map_err(|_| Over)?;
            connection.interest = interest;
        }
        Ok(())
    }

    /// Takes the next request, if there is one.
    fn answer(&mut self, token: u64, connection: &mut Connection) -> Result<bool, Over> {
        if connection.tunnel {
            return Ok(connection.echo());
        }
        let Some(request) = parse_request(&connection.input)? else {
            let asked = !connection.continued && wants_continue(&connection.input);
            if asked {
                connection.continued = true;
                connection.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            return Ok(asked);
        };
        connection.input.drain(..request.length);
        connection.continued = false;
        connection.close = !request.keep_alive;
        self.errors_due += self.error_rate;
        let mut delay = self.delay;
        if self.errors_due >= 1.0 {
            self.errors_due -= 1.0;
            connection.output.extend(answer_head(500, &self.name, 0, request.keep_alive));
        } else if request.method == "GET" && request.path == "/" && !request.upgrade {
            connection.output.extend_from_slice(&self.plain[usize::from(!request.keep_alive)]);
        } else {
            let answer = answer::answer(&request, &self.name, connection.peer);
            connection.output.extend(answer.bytes);
            connection.close = answer.close;
            connection.tunnel = answer.tunnel;
            match answer.pace {
                Pace::None => {}
                Pace::Wait(wait) => delay += wait,
                Pace::Dribble(step, pause) => connection.dribble(step, pause),
            }
        }
        if !delay.is_zero() {
            connection.waiting = true;
            self.delayed.push(Reverse((Instant::now() + delay, token)));
        }
        Ok(true)
    }
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
