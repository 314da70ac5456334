//! Single connections that a test holds in its hand: bound source ports, kept open, asked again; and bulk data, checked byte by byte.

use super::PATIENCE;
use splitter_lab::lab::Namespace;
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::LazyLock,
    time::Duration,
};

/// A kept HTTP connection to a server of the lab.
pub struct Conversation {
    stream: TcpStream,
    pub client: SocketAddr,
    /// Name of the backend that answered last.
    pub backend: String,
}

impl Conversation {
    /// Connects and asks once, in the calling thread's namespace.
    pub fn open(from: SocketAddr, to: SocketAddr) -> io::Result<Conversation> {
        let stream = connect(from, to)?;
        let mut conversation = Conversation { client: stream.local_addr()?, stream, backend: String::new() };
        conversation.backend = conversation.ask()?;
        Ok(conversation)
    }

    /// One request; the name of the backend that answered.
    pub fn ask(&mut self) -> io::Result<String> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let length = self.stream.read(&mut buffer)?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&buffer[..length]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((_, body)) = text.split_once("\r\n\r\n")
                && let Some(name) = body.strip_suffix('\n')
            {
                return Ok(name.into());
            }
        }
    }

    /// Whether the connection has ended.
    pub fn ended(&mut self) -> bool {
        self.ask().is_err()
    }
}

/// `count` conversations from consecutive ports of a client, kept open.
pub fn conversations(client: &Namespace, from: IpAddr, to: SocketAddr, first_port: u16, count: u16) -> Vec<Conversation> {
    let open = |port| Conversation::open(SocketAddr::new(from, port), to).unwrap_or_else(|error| panic!("from port {port}: {error}"));
    client.run(|| (first_port..first_port + count).map(open).collect()).expect("the client's namespace")
}

/// A TCP connection from an address, in the calling thread's namespace; reads and writes have a time limit.
pub fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connecting = async {
        let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        // Two connections of one port are allowed when their destinations differ.
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        tokio::time::timeout(PATIENCE, socket.connect(to)).await.map_err(|_| io::Error::from(ErrorKind::TimedOut))??.into_std()
    };
    let stream = runtime.block_on(connecting)?;
    patient(&stream)?;
    Ok(stream)
}

fn patient(stream: &TcpStream) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}

/// Bytes of every bulk transfer: pseudo-random with a prime period, so that a lost, doubled or exchanged segment shows.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const PERIOD: usize = 65_521;
    let mut state = 1u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
    [period.clone(), period].concat()
});

/// What stands at `offset` of a transfer, at most `length` bytes.
fn pattern(offset: usize, length: usize) -> &'static [u8] {
    let period = PATTERN.len() / 2;
    let start = offset % period;
    &PATTERN[start..start + length.min(period)]
}

fn send(stream: &mut TcpStream, size: usize) -> io::Result<()> {
    let mut sent = 0;
    while sent < size {
        sent += stream.write(pattern(sent, size - sent))?;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, size: usize) -> io::Result<()> {
    let mut buffer = vec![0; 60_000];
    let mut received = 0;
    while received < size {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if buffer[..length] != *pattern(received, length) {
            return Err(io::Error::other(format!("wrong bytes between {received} and {}", received + length)));
        }
        received += length;
    }
    if received == size { Ok(()) } else { Err(io::Error::other("more bytes than were sent")) }
}

/// `size` bytes to a listener of its own behind a frontend, and as many back.
pub fn transfer(client: &Namespace, server: (&Namespace, SocketAddr), frontend: SocketAddr, size: usize) {
    let listener = server.0.run(|| TcpListener::bind(server.1)).expect("a namespace").expect("a listener");
    let serve = move || {
        let (mut stream, _) = listener.accept()?;
        patient(&stream)?;
        receive(&mut stream, size)?;
        send(&mut stream, size)
    };
    let serving = std::thread::spawn(serve);
    let any = SocketAddr::new(if frontend.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }, 0);
    let mut stream = client.run(|| connect(any, frontend)).expect("a namespace").expect("a connection");
    send(&mut stream, size).unwrap_or_else(|error| panic!("sending to {frontend}: {error}"));
    receive(&mut stream, size).unwrap_or_else(|error| panic!("receiving from {frontend}: {error}"));
    serving.join().expect("the server's thread").unwrap_or_else(|error| panic!("the server behind {frontend}: {error}"));
}

/// A connected UDP socket of a namespace, whose datagrams must not be fragmented on the way.
pub fn unfragmented(client: &Namespace, to: SocketAddr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let (level, name) =
            if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) };
        set_option(&socket, level, name, libc::IP_PMTUDISC_DO)?;
        Ok::<_, io::Error>(socket)
    };
    client.run(open).expect("a namespace").expect("a UDP socket")
}

/// One datagram and its answer; the name of the backend.
pub fn echo(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"hello")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..length]);
    Ok(answer.strip_suffix(" hello").unwrap_or(&answer).into())
}

/// An option whose value is an int.
pub fn set_option(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an int that lives through the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<i32>() as u32) };
    splitter_lab::poll::check(result).map(drop)
}
