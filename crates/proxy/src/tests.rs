//! The whole tier over loopback: TLS clients, small servers.

use crate::{Backend, Node, Options, Proxy, Service, Snapshot, certificates::Certificates, snapshot::Health, tally::Terms};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use splitter_common::{
    abi::{self, Outcomes, VersionSlot, backend_state, service_mode, split_by},
    decide,
};
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

const VIP: &str = "192.0.2.9:443";
const VERSION: u32 = 7;

/// Connections from everywhere are for one service, or for nobody.
struct Everybody(bool);

impl Node for Everybody {
    fn destination(&self, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        self.0.then(|| VIP.parse().unwrap())
    }
}

struct Tier {
    proxy: Proxy,
    address: SocketAddr,
    trusted: Arc<ClientConfig>,
}

fn service(dir: &Path, backends: &[SocketAddr], proxy: &Proxy) -> (Service, Arc<ClientConfig>) {
    let (certificate, key) = splitter_lab::certificate::issue(dir, "a", &["a.test"]).unwrap();
    let tls = Certificates::read([(certificate.as_path(), key.as_path())]).unwrap().config().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let client =
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let mut record = abi::Service {
        salt: decide::salt(b"shop"),
        split_by: split_by::REQUEST,
        version_count: 1,
        mode: service_mode::HTTP,
        ..abi::Service::default()
    };
    record.versions[0] = VersionSlot { end: 1 << 32, version: VERSION, size: 1, table: 1, ready: 1 };
    let one = |(id, address): (u32, &SocketAddr)| {
        (id, Backend { address: *address, version: VERSION, state: backend_state::READY, health: Arc::<Health>::default() })
    };
    let service = Service {
        id: 1,
        record,
        rules: None,
        backends: (1..).zip(backends).map(one).collect(),
        tables: Arc::default(),
        accounts: HashMap::from([(VERSION, proxy.tallies().of(VERSION))]),
        terms: Terms::default(),
        tls: Some(tls),
    };
    (service, Arc::new(client))
}

fn tier(backend: SocketAddr, known: bool) -> Tier {
    let dir = tempfile::tempdir().unwrap();
    // Nobody else takes a port that was just given back.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = Options { listen: vec![address], threads: 1, connections: 1_000, drain: Duration::from_secs(2) };
    let proxy = Proxy::start(&options, Arc::new(Everybody(known))).unwrap();
    let (service, trusted) = service(dir.path(), &[backend], &proxy);
    proxy.publish(Snapshot { services: HashMap::from([(VIP.parse().unwrap(), Arc::new(service))]) });
    Tier { proxy, address, trusted }
}

/// A server in a thread; `answer` gets each connection.
fn server(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, answer) = (listener.local_addr().unwrap(), Arc::new(answer));
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || answer(stream));
        }
    });
    address
}

/// Reads one head; whether there was one.
fn head(stream: &mut impl Read) -> bool {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => text.push(byte[0]),
            _ => return false,
        }
    }
    true
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

impl Tier {
    /// Requests one after the other on one connection; the statuses, until it ends.
    fn statuses(&self, request: &str, count: usize) -> Vec<String> {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let session = rustls::ClientConnection::new(self.trusted.clone(), "a.test".try_into().unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(session, socket);
        let mut found = Vec::new();
        for _ in 0..count {
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = Vec::new();
            let mut byte = [0];
            while !text.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(1) => text.push(byte[0]),
                    _ => return found,
                }
            }
            let text = String::from_utf8(text).unwrap();
            found.push(text[9..12].to_owned());
            let length =
                text.to_lowercase().split("content-length: ").nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
            if length > 0 {
                stream.read_exact(&mut vec![0; length]).unwrap();
            }
        }
        found
    }

    fn outcomes(&self) -> Outcomes {
        self.proxy.tallies().take().pop().map(|(_, tally)| tally.counters.drawn).unwrap_or_default()
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

#[test]
fn a_kept_connection_that_the_backend_has_closed_costs_no_request() {
    let backend = server(|mut stream| {
        // One answer; the next request is on its way when the connection ends.
        if head(&mut stream) && stream.write_all(OK).is_ok() {
            head(&mut stream);
        }
    });
    let tier = tier(backend, true);
    assert_eq!(tier.statuses(GET, 50), vec!["200"; 50]);
    assert_eq!(tier.outcomes(), Outcomes { trials: 50, answered: 50, status: [0, 0, 50, 0, 0, 0], ..Outcomes::default() });
    tier.proxy.end();
}

#[test]
fn what_changes_something_is_never_sent_twice() {
    let seen = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = seen.clone();
    let backend = server(move |mut stream| {
        while head(&mut stream) {
            // The second request of a connection is read, and not answered.
            if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
                return;
            }
            let _ = stream.write_all(OK);
        }
    });
    let tier = tier(backend, true);
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(tier.statuses(post, 3), ["200", "502"], "the connection ends with the answer that the node gives");
    assert_eq!(seen.load(std::sync::atomic::Ordering::Relaxed), 2);
    let outcomes = tier.outcomes();
    assert_eq!((outcomes.trials, outcomes.answered, outcomes.closed), (2, 1, 1));
    tier.proxy.end();
}

#[test]
fn heads_that_two_parsers_read_in_two_ways_are_refused() {
    let tier = tier(server(|mut stream| while head(&mut stream) && stream.write_all(OK).is_ok() {}), true);
    for (lines, expected) in [
        ("Host: a.test", "200"),
        ("Host: a.test\r\nHost: b.test", "400"),
        ("X: y", "400"),
        ("Host: a.test\r\nContent-Length: 0\r\nContent-Length: 1", "400"),
        ("Host: a.test\r\nTransfer-Encoding: gzip", "400"),
        ("Host: a.test\r\nX : y", "400"),
        ("Host: a.test\r\nX: y\r\n folded", "400"),
    ] {
        assert_eq!(tier.statuses(&format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n"), 1), [expected], "{lines:?}");
    }
    tier.proxy.end();
}

#[test]
fn who_is_not_known_is_reset() {
    let tier = tier("127.0.0.1:9".parse().unwrap(), false);
    let mut stream = TcpStream::connect(tier.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let error = stream.write_all(b"x").and_then(|()| stream.read(&mut [0])).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    tier.proxy.end();
}

/// More than the tier has handshakes at once, and none of them goes on.
#[test]
fn who_only_connects_keeps_nobody_out() {
    let tier = tier(server(|mut stream| while head(&mut stream) && stream.write_all(OK).is_ok() {}), true);
    let silent: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(tier.address).unwrap()).collect();
    let begun = std::time::Instant::now();
    assert_eq!(tier.statuses(GET, 1), ["200"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "a handshake may take ten: {:?}", begun.elapsed());
    // The oldest has made room; the youngest waits on.
    let ended = |mut stream: &TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        !matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert_eq!((ended(&silent[0]), ended(&silent[599])), (true, false));
    tier.proxy.end();
}

#[test]
fn a_client_that_leaves_is_counted() {
    let backend = server(|mut stream| {
        head(&mut stream);
        // Until the tier ends the connection.
        let _ = stream.read(&mut [0]);
    });
    let tier = tier(backend, true);
    let socket = TcpStream::connect(tier.address).unwrap();
    let session = rustls::ClientConnection::new(tier.trusted.clone(), "a.test".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(GET.as_bytes()).unwrap();
    let mut seen = Outcomes::default();
    for _ in 0..500 {
        let now = tier.outcomes();
        (seen.trials, seen.abandoned) = (seen.trials + now.trials, seen.abandoned + now.abandoned);
        if seen.trials == 1 {
            let _ = stream.sock.shutdown(std::net::Shutdown::Both);
        }
        if seen.abandoned == 1 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((seen.trials, seen.abandoned), (1, 1));
    tier.proxy.end();
}
