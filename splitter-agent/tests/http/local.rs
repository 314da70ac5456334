//! Backends that are processes of the node itself.

use crate::{
    stage::{Stage, V1, V2, asks, both_families, count, kinds, mix, tagged, through},
    support::{Bed, PORT, document, rules::strict, vip},
    wire::{End, TO_V1, TO_V2, Wire, get, post},
};
use splitter_lab::{
    http::body_byte,
    lab::Options,
    load::{Plan, Reuse},
    serve::{self, Background, digest},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// Below what any retransmission takes (RFC 6298, 2.4, and the 200 ms of common stacks).
const AT_ONCE: Duration = Duration::from_millis(150);

/// `b3`, the only backend of v2, is at the node's own address; nobody serves there yet. The others are elsewhere.
fn bed(name: &str) -> Stage {
    let splits = both_families(&tagged(100, 0));
    let mut bed = Bed::prepare(name, Options::default(), &splits);
    bed.stop_server(3);
    let mut policy = document(&bed.lab, &splits);
    for v6 in [false, true] {
        policy = policy.replace(&bed.lab.backend_addr(3, v6, PORT).to_string(), &own(&bed, v6).to_string());
    }
    bed.write_policy(&policy);
    strict(&bed.lab.node);
    Stage::begin(bed, &splits, None)
}

fn own(bed: &Bed, v6: bool) -> SocketAddr {
    SocketAddr::new(bed.lab.node_ip(0, v6), PORT)
}

/// The quickest of some answers: the machine may be busy.
fn quickest(mut ask: impl FnMut()) -> Duration {
    let once = |_| {
        let began = Instant::now();
        ask();
        began.elapsed()
    };
    (0..5).map(once).min().expect("five of them")
}

#[test]
fn a_backend_on_the_node_answers_requests() {
    if through().is_some() {
        return;
    }
    let stage = bed("own");
    let options = ["--listen", &format!("[::]:{PORT}"), "--name", "b3"].map(String::from);
    let _server = Background::start(&stage.lab.node, &serve::Options::parse(options).unwrap()).unwrap();
    for v6 in [false, true] {
        let client = stage.lab.client();
        for size in [100, 1_000, 3_000, 7_000, 12_000] {
            let head = get("/", &[TO_V2, &format!("a: {}", "x".repeat(size))]);
            let fresh = quickest(|| assert_eq!(Wire::open(client, vip(v6)).ask(&head).version, "b3"));
            let mut kept = Wire::open(client, vip(v6));
            let again = quickest(|| {
                assert_eq!(kept.ask(&head).version, "b3");
                assert!(V1.contains(&kept.get("/", &[TO_V1]).as_str()));
            });
            assert!(fresh < AT_ONCE && again < AT_ONCE, "{size} bytes to {}: {fresh:?}, {again:?}", vip(v6));
        }
        // Bodies in both directions.
        let body: Vec<u8> = (0..1_000_000).map(body_byte).collect();
        let mut wire = Wire::open(client, vip(v6));
        for tag in [TO_V2, TO_V1, TO_V2] {
            let answer = wire.ask(post("/echo", &[tag], &body));
            assert_eq!(answer.body, format!("{} 1000000 {:016x}\n", answer.version, digest(&body)).into_bytes());
            let answer = wire.ask(get("/bytes/1000000", &[tag]));
            assert!(answer.body.len() == 1_000_000 && (0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)), "damaged");
        }
        // Two heads in the segments of one: cut where a request is only half there.
        let long = get("/", &[TO_V2, &format!("a: {}", "x".repeat(5_000))]);
        wire.send_cut(&long, &[10, 2_000], Duration::from_millis(1));
        assert_eq!(wire.answer().unwrap().version, "b3");
        stage.mixed("a backend on the node", mix(vip(v6), kinds("/", V1, V2, V1)), count(2_000, 20_000));
        let fresh = Plan { reuse: Reuse::New, ..mix(vip(v6), kinds("/bytes/20000", V1, V2, V1)) };
        stage.mixed("new connections to a backend on the node", fresh, count(500, 5_000));
    }
    // The weights move kept connections there and back, request by request.
    for (name, v6) in [("web", false), ("web6", true)] {
        let mut kept = Wire::open(stage.lab.client(), vip(v6));
        for (weights, expected) in [([0, 100], V2), ([100, 0], V1), ([0, 100], V2), ([100, 0], V1)] {
            stage.set_weights(name, [weights].into_iter());
            for _ in 0..3 {
                let version = kept.get("/", &[]);
                assert!(expected.contains(&version.as_str()), "{name} {weights:?}: {version}");
            }
            stage.mixed("moved weights", mix(vip(v6), vec![asks("/", &[], expected)]), count(200, 2_000));
        }
    }
    assert_eq!(stage.locks_held(), 0);
}

/// A server in the test's hand.
struct Own(TcpListener);

impl Own {
    fn listen(bed: &Bed, v6: bool) -> Own {
        Own(bed.lab.node.run(|| TcpListener::bind(own(bed, v6))).unwrap().expect("the node's address"))
    }

    /// The next connection, and its first request.
    fn accept(&self) -> TcpStream {
        let (mut stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        hear(&mut stream);
        stream
    }
}

/// Reads a request without a body.
fn hear(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a request");
        head.push(byte[0]);
    }
}

fn say(stream: &mut TcpStream) {
    stream.write_all(b"HTTP/1.1 200 OK\r\nx-version: b3\r\nContent-Length: 0\r\n\r\n").unwrap();
}

/// Ends a connection by a RST.
fn abort(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open, and the value as long as said.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    assert_eq!(set, 0);
}

#[test]
fn the_end_of_a_backend_on_the_node_is_heard_at_once() {
    if through().is_some() {
        return;
    }
    let stage = bed("owndies");
    for v6 in [false, true] {
        let server = Own::listen(&stage, v6);
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        // It closes while its connection is idle, by FIN and by RST: the next request opens another one.
        for reset in [false, true, false] {
            wire.send(get("/", &[TO_V2]));
            let mut stream = server.accept();
            say(&mut stream);
            assert_eq!(wire.answer().unwrap().version, "b3");
            assert!(V1.contains(&wire.get("/", &[TO_V1]).as_str()));
            if reset {
                abort(stream)
            } else {
                drop(stream)
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The same connection is taken up again, and then dies with a request in hand.
        wire.send(get("/", &[TO_V2]));
        let mut stream = server.accept();
        say(&mut stream);
        assert_eq!(wire.answer().unwrap().version, "b3");
        assert!(V1.contains(&wire.get("/", &[TO_V1]).as_str()));
        wire.send(get("/", &[TO_V2]));
        hear(&mut stream);
        let began = Instant::now();
        abort(stream);
        assert_eq!(wire.end(Duration::from_secs(3)), End::Reset);
        assert!(began.elapsed() < AT_ONCE, "told after {:?}", began.elapsed());
        // A client that goes ends the idle connection too.
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        wire.send(get("/", &[TO_V2]));
        let mut stream = server.accept();
        say(&mut stream);
        assert_eq!(wire.answer().unwrap().version, "b3");
        assert!(V1.contains(&wire.get("/", &[TO_V1]).as_str()));
        abort(wire.stream);
        assert!(stream.read(&mut [0; 1]).is_err(), "reset, not left open");
        // Nobody listens any more.
        drop(server);
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        let began = Instant::now();
        assert_eq!(wire.ask(get("/", &[TO_V2])).status, 503);
        assert!(began.elapsed() < AT_ONCE, "refused after {:?}", began.elapsed());
    }
}
