//! One connection in a test's hand, byte by byte: what is sent in which segments, and every answer that comes back.

use crate::support::PATIENCE;
use splitter_lab::{http::Chunks, lab::Namespace};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// A client's connection; every segment goes out at once.
pub struct Wire {
    pub stream: TcpStream,
    input: Vec<u8>,
}

/// A final answer, and the interim ones before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// `x-version`: the server's name.
    pub version: String,
    pub head: String,
    pub body: Vec<u8>,
    pub interim: Vec<u16>,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
    /// Not within the time given.
    Open,
}

impl Wire {
    /// # Panics
    /// When it cannot connect.
    pub fn open(client: &Namespace, to: SocketAddr) -> Wire {
        Wire::try_open(client, to).unwrap_or_else(|error| panic!("no connection to {to}: {error}"))
    }

    pub fn try_open(client: &Namespace, to: SocketAddr) -> io::Result<Wire> {
        Wire::from(client.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("the client's namespace")?)
    }

    pub fn from(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire { stream, input: Vec::new() })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the connection takes it");
    }

    /// One segment up to each of `cuts`, with a pause behind it, then the rest.
    pub fn send_cut(&mut self, bytes: &[u8], cuts: &[usize], pause: Duration) {
        let mut from = 0;
        for cut in cuts {
            self.send(&bytes[from..*cut]);
            std::thread::sleep(pause);
            from = *cut;
        }
        self.send(&bytes[from..]);
    }

    /// Nothing more will be sent; answers still come.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("a connection");
    }

    pub fn answer(&mut self) -> io::Result<Answer> {
        self.answer_to("GET")
    }

    /// The next final answer, whose framing depends on the method (RFC 9112, 6.3).
    pub fn answer_to(&mut self, method: &str) -> io::Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let (head, status) = self.head()?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            let bodiless = method == "HEAD" || matches!(status, 101 | 204 | 304) || method == "CONNECT" && status == 200;
            let body = if bodiless { Vec::new() } else { self.body(&head)? };
            let version = header(&head, "x-version").unwrap_or_default().into();
            return Ok(Answer { status, version, head, body, interim });
        }
    }

    /// A whole request and its answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.try_ask(request).expect("an answer")
    }

    pub fn try_ask(&mut self, request: impl AsRef<[u8]>) -> io::Result<Answer> {
        self.stream.write_all(request.as_ref())?;
        self.answer()
    }

    /// The name of the server that answers a GET with these lines of head.
    pub fn get(&mut self, path: &str, lines: &[&str]) -> String {
        let answer = self.ask(get(path, lines));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.version
    }

    /// Bytes that follow, as they come.
    pub fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.input.len() < length {
            self.more()?;
        }
        Ok(self.input.drain(..length).collect())
    }

    /// Whether the other side ends the connection, after whatever it still sends.
    pub fn end(&mut self, within: Duration) -> End {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let _ = self.stream.set_read_timeout(Some(left));
            match self.more() {
                Ok(()) => self.input.clear(),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return End::Closed,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return End::Open,
                Err(_) => return End::Reset,
            }
        }
    }

    /// Everything that comes until the end or until nothing came for `quiet`.
    pub fn rest(&mut self, quiet: Duration) -> Vec<u8> {
        let _ = self.stream.set_read_timeout(Some(quiet));
        while self.more().is_ok() {}
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
        std::mem::take(&mut self.input)
    }

    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 65_536];
        match self.stream.read(&mut buffer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            length => {
                self.input.extend_from_slice(&buffer[..length]);
                Ok(())
            }
        }
    }

    fn head(&mut self) -> io::Result<(String, u16)> {
        loop {
            if let Some(end) = self.input.windows(4).position(|window| window == b"\r\n\r\n") {
                let bytes: Vec<u8> = self.input.drain(..end + 4).collect();
                let head = String::from_utf8_lossy(&bytes).into_owned();
                let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).filter(|_| head.starts_with("HTTP/1.1 "));
                return status.map(|status| (head.clone(), status)).ok_or_else(|| io::Error::other(format!("not HTTP: {head:?}")));
            }
            self.more()?;
        }
    }

    fn body(&mut self, head: &str) -> io::Result<Vec<u8>> {
        if header(head, "transfer-encoding").is_some() {
            return self.chunks();
        }
        if let Some(length) = header(head, "content-length") {
            return self.bytes(length.parse().map_err(|_| io::Error::other("odd content-length"))?);
        }
        loop {
            match self.more() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(std::mem::take(&mut self.input)),
                Err(error) => return Err(error),
            }
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let (mut chunks, mut body) = (Chunks::default(), Vec::new());
        loop {
            let taken = chunks.take(&self.input, &mut |data| body.extend_from_slice(data));
            let (used, over) = taken.map_err(|_| io::Error::other("odd chunks"))?;
            self.input.drain(..used);
            if over {
                return Ok(body);
            }
            self.more()?;
        }
    }
}

/// The client that a backend sees: of an answer to `/facts`.
pub fn seen_client(answer: &Answer) -> SocketAddr {
    let text = String::from_utf8_lossy(&answer.body);
    let seen: SocketAddr = text.lines().nth(1).and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("no address in {text}"));
    SocketAddr::new(seen.ip().to_canonical(), seen.port())
}

/// A header's value.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// A request's bytes.
pub fn get(path: &str, lines: &[&str]) -> Vec<u8> {
    request("GET", path, lines, b"")
}

/// With a body, whose length the head tells.
pub fn post(path: &str, lines: &[&str], body: &[u8]) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    request("POST", path, &[lines, &[&length]].concat(), body)
}

pub fn request(method: &str, path: &str, lines: &[&str], body: &[u8]) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    [format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n{lines}\r\n").as_bytes(), body].concat()
}

/// Tags of [`super::stage::tagged`].
pub const TO_V1: &str = "X-Canary: never";
pub const TO_V2: &str = "X-Canary: always";
