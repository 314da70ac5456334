//! One request in flight: connect, send, receive, check. Knows nothing of pacing or of other slots.

use super::{ErrorKind, Kind, Plan, Protocol};
use crate::{
    http::{Chunks, Response, body_byte, parse_response},
    poll::check,
    serve::{digest, raw_address},
};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Instant,
};

/// A failed request: kind and words.
pub(super) type Failure = (ErrorKind, String);

pub(super) enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Udp(socket) => socket.as_raw_fd(),
        }
    }
}

/// A whole answer.
pub(super) struct Answer {
    pub version: String,
    pub keep_alive: bool,
    pub bytes: u64,
}

/// A connection and the request on it.
pub(super) struct Slot {
    pub socket: Option<Socket>,
    /// Tells this connection's events from an earlier one's.
    pub token: u64,
    /// Phase in which the connection began.
    pub connection_phase: usize,
    /// Nothing was answered on this connection yet.
    pub fresh: bool,
    /// Phase in which the request began.
    pub phase: usize,
    /// When the request was due: latency counts from here.
    pub due: Instant,
    /// When it really began: the timeout counts from here.
    pub begun: Instant,
    pub busy: bool,
    /// Which of the plan's kinds the request is.
    pub kind: usize,
    connected: bool,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    response: Option<Response>,
    chunks: Option<Chunks>,
    received: u64,
}

impl Slot {
    pub fn new(now: Instant) -> Slot {
        Slot {
            socket: None,
            token: 0,
            connection_phase: 0,
            fresh: true,
            phase: 0,
            due: now,
            begun: now,
            busy: false,
            kind: 0,
            connected: false,
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            response: None,
            chunks: None,
            received: 0,
        }
    }

    /// Opens a connection; it is established when the socket becomes writable.
    pub fn open(&mut self, plan: &Plan, source: Option<IpAddr>) -> Result<(), Failure> {
        self.fresh = true;
        self.connected = plan.protocol == Protocol::Udp;
        self.socket = Some(connect(plan, source).map_err(|error| classify(&error, "connect"))?);
        Ok(())
    }

    pub fn begin(&mut self, request: &[u8]) {
        self.busy = true;
        self.output.clear();
        self.output.extend_from_slice(request);
        self.written = 0;
        self.input.clear();
        self.response = None;
        self.chunks = None;
        self.received = 0;
    }

    pub fn close(&mut self) {
        self.socket = None;
        self.busy = false;
    }

    /// Whether the request still has bytes to send.
    pub fn sending(&self) -> bool {
        self.busy && self.written < self.output.len()
    }

    /// Goes on as far as the socket allows.
    pub fn drive(&mut self, plan: &Plan) -> Result<Option<Answer>, Failure> {
        let Some(mut socket) = self.socket.take() else { return Ok(None) };
        let result = match &mut socket {
            Socket::Tcp(stream) => self.drive_tcp(stream, &plan.kinds[self.kind]),
            Socket::Udp(socket) => self.drive_udp(socket),
        };
        self.socket = Some(socket);
        result
    }

    fn drive_tcp(&mut self, stream: &mut TcpStream, kind: &Kind) -> Result<Option<Answer>, Failure> {
        if !self.connected {
            match stream.take_error() {
                Ok(None) => self.connected = true,
                Ok(Some(error)) | Err(error) => return Err(classify(&error, "connect")),
            }
        }
        while self.written < self.output.len() {
            match stream.write(&self.output[self.written..]) {
                Ok(length) => self.written += length,
                // Not connected is what a spurious wake-up during connect says.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => return Ok(None),
                Err(error) => return Err(classify(&error, "send")),
            }
        }
        let mut buffer = [0u8; 65_536];
        loop {
            let length = match stream.read(&mut buffer) {
                Ok(0) => return Err((ErrorKind::Truncated, format!("closed by the peer after {} bytes", self.received))),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(classify(&error, "receive")),
            };
            if let Some(answer) = self.receive(&buffer[..length], kind)? {
                return Ok(Some(answer));
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], kind: &Kind) -> Result<Option<Answer>, Failure> {
        let wrong = |what: String| (ErrorKind::WrongBody, what);
        if self.response.is_some() {
            return self.body(bytes, kind);
        }
        self.input.extend_from_slice(bytes);
        let response = parse_response(&self.input).map_err(|_| wrong("the answer is not HTTP/1.1".into()))?;
        let Some(response) = response else { return Ok(None) };
        if response.status != 200 {
            return Err((ErrorKind::Status, format!("status {} from {}", response.status, response.version)));
        }
        if !kind.expect.is_empty() && !kind.expect.contains(&response.version) {
            let text = format!("{} answered {:?} {:?}, which is for {:?}", response.version, kind.path, kind.headers, kind.expect);
            return Err((ErrorKind::WrongVersion, text));
        }
        let expected = Content::of(kind, &response.version).length();
        if !response.chunked && response.body_length != expected {
            return Err(wrong(format!("content-length {} instead of {expected}", response.body_length)));
        }
        self.chunks = response.chunked.then(Chunks::default);
        let body = self.input.split_off(response.head_length);
        self.response = Some(response);
        self.body(&body, kind)
    }

    /// The next bytes of the body.
    fn body(&mut self, bytes: &[u8], kind: &Kind) -> Result<Option<Answer>, Failure> {
        let wrong = |what: String| (ErrorKind::WrongBody, what);
        let Some(response) = &self.response else { return Ok(None) };
        let content = Content::of(kind, &response.version);
        let mut behind = 0;
        let over = if let Some(chunks) = &mut self.chunks {
            let (mut checked, mut received) = (Ok(()), self.received);
            let data = &mut |piece: &[u8]| {
                if checked.is_ok() {
                    checked = content.check(received, piece);
                }
                received += piece.len() as u64;
            };
            let (used, over) = chunks.take(bytes, data).map_err(|_| wrong("the chunks are not well formed".into()))?;
            checked?;
            self.received = received;
            behind = bytes.len() - used;
            if over && received != content.length() {
                return Err(wrong(format!("{received} bytes in chunks instead of {}", content.length())));
            }
            over
        } else {
            content.check(self.received, bytes)?;
            self.received += bytes.len() as u64;
            self.received >= response.body_length
        };
        if self.chunks.is_none() && over {
            behind = (self.received - response.body_length) as usize;
        }
        if behind > 0 {
            return Err(wrong(format!("{behind} bytes behind the body")));
        }
        let Some(response) = self.response.take_if(|_| over) else { return Ok(None) };
        self.busy = false;
        Ok(Some(Answer { version: response.version, keep_alive: response.keep_alive, bytes: self.received }))
    }

    fn drive_udp(&mut self, socket: &UdpSocket) -> Result<Option<Answer>, Failure> {
        if self.written < self.output.len() {
            match socket.send(&self.output) {
                Ok(length) => self.written = length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(classify(&error, "send")),
            }
        }
        let mut buffer = [0u8; 65_536];
        loop {
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(classify(&error, "receive")),
            };
            let text = String::from_utf8_lossy(&buffer[..length]);
            let (name, payload) = text.split_once(' ').unwrap_or_default();
            if payload.as_bytes() == self.output {
                self.busy = false;
                return Ok(Some(Answer { version: name.into(), keep_alive: true, bytes: length as u64 }));
            }
            // The late answer to a request that timed out on this socket is no answer to this one.
            if !payload.starts_with("request ") {
                return Err((ErrorKind::WrongBody, format!("datagram {text:?}")));
            }
        }
    }

    /// An event on a connection without a request: only its end can be told.
    pub fn idle_event(&mut self) -> Option<Failure> {
        let mut byte = [0u8; 1];
        let (what, error) = match &mut self.socket {
            Some(Socket::Tcp(stream)) => match stream.read(&mut byte) {
                Ok(0) => ("closed", None),
                Ok(_) => ("sent unasked bytes", None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => ("failed", Some(error)),
            },
            // Late or doubled datagrams are the network's right.
            Some(Socket::Udp(socket)) => {
                let _ = socket.recv(&mut byte);
                return None;
            }
            None => return None,
        };
        let detail = error.map(|error| format!(": {error}")).unwrap_or_default();
        Some((ErrorKind::Lost, format!("an idle connection {what}{detail}")))
    }
}

/// The body that a request must get.
enum Content {
    /// So many bytes of [`body_byte`].
    Pattern(u64),
    Text(Vec<u8>),
}

impl Content {
    fn of(kind: &Kind, version: &str) -> Content {
        let (word, number) = kind.path[1..].split_once('/').unwrap_or((&kind.path[1..], ""));
        match (word, number.parse()) {
            ("bytes" | "chunked" | "dribble", Ok(size)) => Content::Pattern(size),
            ("echo", _) => {
                let body = kind.body.as_deref().unwrap_or_default();
                Content::Text(format!("{version} {} {:016x}\n", body.len(), digest(body)).into_bytes())
            }
            _ => Content::Text(format!("{version}\n").into_bytes()),
        }
    }

    fn length(&self) -> u64 {
        match self {
            Content::Pattern(size) => *size,
            Content::Text(text) => text.len() as u64,
        }
    }

    /// Whether `bytes` are what stands at `offset`; what stands behind the end is not looked at.
    fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let wrong = match self {
            Content::Pattern(_) => (offset..).zip(bytes).find(|(i, byte)| **byte != body_byte(*i)).map(|(i, _)| i),
            Content::Text(text) => {
                let expected = text.get(offset as usize..).unwrap_or_default();
                (offset..).zip(bytes.iter().zip(expected)).find(|(_, (got, expected))| got != expected).map(|(i, _)| i)
            }
        };
        match wrong {
            None => Ok(()),
            Some(i) => Err((ErrorKind::WrongBody, format!("byte {i} of the body is wrong"))),
        }
    }
}

fn connect(plan: &Plan, source: Option<IpAddr>) -> io::Result<Socket> {
    let family = if plan.target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = if plan.protocol == Protocol::Udp { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |level, option| {
        let one = 1i32;
        // SAFETY: the value is an int that lives through the call.
        check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const one).cast(), size_of::<i32>() as u32) })
    };
    if let Some(source) = source {
        // The port is chosen at connect, so that one address can reach several targets from the same port.
        set(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
        let (storage, length) = raw_address(SocketAddr::new(source, 0));
        // SAFETY: the storage holds an address of that length.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), length) })?;
    }
    if plan.protocol == Protocol::Http {
        set(libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
    }
    let (storage, length) = raw_address(plan.target);
    // SAFETY: as above.
    match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const storage).cast(), length) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ if plan.protocol == Protocol::Udp => Ok(Socket::Udp(fd.into())),
        _ => Ok(Socket::Tcp(fd.into())),
    }
}

fn classify(error: &io::Error, doing: &str) -> Failure {
    let kind = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => ErrorKind::Refused,
        Some(libc::ECONNRESET | libc::EPIPE) => ErrorKind::Reset,
        Some(libc::ETIMEDOUT) => ErrorKind::Timeout,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EPROTO | libc::EACCES) => ErrorKind::Unreachable,
        _ => ErrorKind::Local,
    };
    (kind, format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(n: u64) -> Vec<u8> {
        (0..n).map(body_byte).collect()
    }

    fn receive(path: &str, bytes: &[u8], chunk: usize) -> Result<Option<Answer>, Failure> {
        let mut slot = Slot::new(Instant::now());
        slot.begin(b"");
        let mut last = None;
        let kind = Kind { expect: vec!["v1".into(), "v2".into()], ..Kind::get(path) };
        for part in bytes.chunks(chunk) {
            last = slot.receive(part, &kind)?;
        }
        Ok(last)
    }

    #[test]
    fn a_right_body_passes_in_any_chunks() {
        let bytes = [b"HTTP/1.1 200 OK\r\nx-version: v2\r\ncontent-length: 1000\r\n\r\n".as_slice(), &body(1000)].concat();
        for chunk in [1, 7, 60, 5000] {
            let answer = receive("/bytes/1000", &bytes, chunk).unwrap().unwrap();
            assert_eq!((answer.version.as_str(), answer.bytes), ("v2", 1000));
        }
    }

    #[test]
    fn chunks_pass_and_a_wrong_version_does_not() {
        let bytes = b"HTTP/1.1 200 OK\r\nx-version: v2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n\0\x01\r\n1\r\n\x02\r\n0\r\n\r\n";
        for chunk in [1, 5, 500] {
            assert_eq!(receive("/chunked/3", bytes, chunk).unwrap().unwrap().bytes, 3);
        }
        assert_eq!(receive("/chunked/4", bytes, 9).err().unwrap().0, ErrorKind::WrongBody);
        let stranger = b"HTTP/1.1 200 OK\r\nx-version: v3\r\ncontent-length: 3\r\n\r\nv3\n";
        assert_eq!(receive("/", stranger, 9).err().unwrap().0, ErrorKind::WrongVersion);
    }

    #[test]
    fn a_lost_byte_or_an_error_status_is_told() {
        let mut wrong = body(1000);
        wrong.remove(500);
        wrong.push(0);
        let head = b"HTTP/1.1 200 OK\r\nx-version: v2\r\ncontent-length: 1000\r\n\r\n".as_slice();
        let (kind, text) = receive("/bytes/1000", &[head, &wrong].concat(), 100).err().unwrap();
        assert_eq!((kind, text.as_str()), (ErrorKind::WrongBody, "byte 500 of the body is wrong"));
        let (kind, _) = receive("/", b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", 100).err().unwrap();
        assert_eq!(kind, ErrorKind::Status);
        let (kind, _) = receive("/", b"HTTP/1.1 200 OK\r\nx-version: v1\r\ncontent-length: 3\r\n\r\nv2\n", 100).err().unwrap();
        assert_eq!(kind, ErrorKind::WrongBody);
    }
}
