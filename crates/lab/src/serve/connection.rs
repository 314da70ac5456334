//! One connection of the server: what came, what goes out, and when. Knows nothing of paths.

use crate::{http::Malformed, poll::Interest};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

pub(super) struct Connection {
    pub stream: TcpStream,
    pub peer: Option<SocketAddr>,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    written: usize,
    /// A timer will call [`Connection::resume`].
    pub waiting: bool,
    pub close: bool,
    /// After 101 or CONNECT: bytes go back as they came.
    pub tunnel: bool,
    /// 100 was sent for the request that is being received.
    pub continued: bool,
    /// The peer sends nothing more.
    ended: bool,
    pace: Option<(usize, Duration)>,
    allowed: usize,
    pub interest: Interest,
}

/// The connection ended: by the peer, by an error, or because it was asked to.
pub(super) struct Over;

impl From<Malformed> for Over {
    fn from(_: Malformed) -> Over {
        Over
    }
}

impl Connection {
    pub fn new(stream: TcpStream) -> Connection {
        Connection {
            peer: stream.peer_addr().ok(),
            stream,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            waiting: false,
            close: false,
            tunnel: false,
            continued: false,
            ended: false,
            pace: None,
            allowed: 0,
            interest: Interest::READ,
        }
    }

    pub fn pending(&self) -> bool {
        self.written < self.output.len()
    }

    /// Nothing more can come of it.
    pub fn done(&self) -> bool {
        self.ended && !self.waiting && !self.pending()
    }

    pub fn wants(&self) -> Interest {
        match (self.waiting, self.pending()) {
            (true, _) => Interest::NONE,
            (false, true) => Interest::WRITE,
            (false, false) => Interest::READ,
        }
    }

    /// What is in the output goes out `step` bytes at a time with pauses between.
    pub fn dribble(&mut self, step: usize, pause: Duration) {
        self.pace = Some((step, pause));
        self.allowed = self.written + step;
    }

    /// The timer came.
    pub fn resume(&mut self) {
        self.waiting = false;
        self.allowed += self.pace.map_or(0, |(step, _)| step);
    }

    /// Whether there was anything to send back.
    pub fn echo(&mut self) -> bool {
        let any = !self.input.is_empty();
        self.output.append(&mut self.input);
        any
    }

    pub fn fill(&mut self) -> Result<(), Over> {
        let mut buffer = [0u8; 16_384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(());
                }
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

    /// Writes as much as the socket and the pace allow; how long to wait for the next piece, when one is due later.
    pub fn flush(&mut self) -> Result<Option<Duration>, Over> {
        let limit = self.pace.map_or(self.output.len(), |_| self.allowed.min(self.output.len()));
        while self.written < limit {
            match self.stream.write(&self.output[self.written..limit]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Over),
            }
        }
        if let Some((_, pause)) = self.pace.filter(|_| self.pending()) {
            self.waiting = true;
            return Ok(Some(pause));
        }
        self.output.clear();
        self.written = 0;
        self.pace = None;
        // The last answer is out: closing now sends FIN behind it.
        if self.close { Err(Over) } else { Ok(None) }
    }
}
