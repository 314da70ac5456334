//! What TCP does besides carrying bytes: ends, halves, resets, windows, probes, ports used again.

use crate::{
    stage::{Stage, V1, V2, both_families, tagged, through},
    support::{eventually, run_on, socket::set_option, vip},
    wire::{End, TO_V1, TO_V2, Wire, get, post, seen_client},
};
use splitter_lab::{
    http::body_byte,
    lab::{Lab, Namespace},
    serve::digest,
};
use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

fn right(body: &[u8], length: usize) -> bool {
    body.len() == length && (0..).zip(body).all(|(i, byte)| *byte == body_byte(i))
}

/// TCP sockets of a namespace in a state (`01` established, `06` TIME_WAIT; empty: any) at a local port: `(send queue, receive queue)` of each.
fn sockets(namespace: &Namespace, port: u16, state: &str) -> Vec<(u64, u64)> {
    let read = || ["tcp", "tcp6"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()).concat();
    let text = namespace.run(read).expect("a namespace");
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let here = fields.get(1)?.ends_with(&format!(":{port:04X}")) && (state.is_empty() || *fields.get(3)? == state);
        let (send, receive) = fields.get(4)?.split_once(':').filter(|_| here)?;
        Some((u64::from_str_radix(send, 16).ok()?, u64::from_str_radix(receive, 16).ok()?))
    };
    text.lines().filter_map(row).collect()
}

fn established(lab: &Lab) -> usize {
    lab.backends().iter().map(|backend| sockets(backend, 8080, "01").len()).sum()
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let stage = Stage::new("half", &both_families(&tagged(100, 0)));
    for v6 in [false, true] {
        for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
            for first in [false, true] {
                let mut wire = Wire::open(stage.lab.client(), vip(v6));
                if first {
                    wire.get("/", &[if tag == TO_V1 { TO_V2 } else { TO_V1 }]);
                }
                wire.send(get("/bytes/1000000", &[tag]));
                wire.finish();
                let answer = wire.answer().expect("an answer");
                assert!(expected.contains(&answer.version.as_str()) && right(&answer.body, 1_000_000), "{} bytes", answer.body.len());
                assert_eq!(wire.end(Duration::from_secs(5)), End::Closed);
            }
        }
    }
    // A proxy keeps its connections for others.
    if through().is_none() {
        eventually("every connection of the backends ends", || (established(&stage.lab) == 0).then_some(()));
    }
}

#[test]
fn ends_and_resets_reach_the_other_side() {
    let stage = Stage::new("ends", &[tagged(100, 0)]);
    // The server ends.
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    wire.get("/", &[TO_V2]);
    wire.ask(get("/", &[TO_V1, "Connection: close"]));
    assert_eq!(wire.end(Duration::from_secs(2)), End::Closed);
    drop(wire);
    // The client ends idle connections with one leg and with two.
    for tags in [&[TO_V1][..], &[TO_V1, TO_V2]] {
        let mut wires: Vec<Wire> = (0..10).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
        for tag in tags {
            wires.iter_mut().for_each(|wire| drop(wire.get("/", &[tag])));
        }
        assert!(established(&stage.lab) > 0);
        drop(wires);
        if through().is_none() {
            eventually("ended clients end the backends' connections", || (established(&stage.lab) == 0).then_some(()));
        }
    }
    // And resets them: data on its way, none, none read.
    for path in ["/", "/bytes/1000000", "/dribble/100000"] {
        let mut wires: Vec<Wire> = (0..10).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
        for wire in &mut wires {
            wire.get("/", &[TO_V2]);
            wire.send(get(path, &[TO_V1]));
            reset(wire);
        }
        drop(wires);
        if through().is_none() {
            eventually("reset clients end the backends' connections", || (established(&stage.lab) == 0).then_some(()));
        }
    }
}

/// The backend must notice, not the node's memory.
#[test]
fn a_client_that_does_not_read_stops_its_backend() {
    const SIZE: usize = 16_000_000;
    let stage = Stage::new("zero", &both_families(&tagged(100, 0)));
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        set_option(&wire.stream, libc::SOL_SOCKET, libc::SO_RCVBUF, 20_000).unwrap();
        wire.get("/", &[TO_V1]);
        wire.send(get(&format!("/bytes/{SIZE}"), &[TO_V2]));
        if through().is_none() {
            let waits = || sockets(stage.lab.backend(3), 8080, "01").into_iter().map(|(send, _)| send).max().unwrap_or(0) > 10_000;
            eventually("the backend's socket holds what nobody takes", || waits().then_some(()));
            run_on(Duration::from_millis(1_200));
            assert!(waits(), "who took it?");
        } else {
            run_on(Duration::from_millis(1_200));
        }
        let answer = wire.answer().expect("an answer");
        assert!(V2.contains(&answer.version.as_str()) && right(&answer.body, SIZE), "{} bytes", answer.body.len());
        assert!(V1.contains(&wire.get("/", &[TO_V1]).as_str()));
    }
}

#[test]
fn slow_ends_are_waited_for() {
    let stage = Stage::new("slow", &[tagged(100, 0)]);
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    for (tag, expected) in [(TO_V1, V1), (TO_V2, V2), (TO_V1, V1)] {
        let answer = wire.ask(get("/dribble/5000", &[tag]));
        assert!(expected.contains(&answer.version.as_str()) && right(&answer.body, 5_000));
        let answer = wire.ask(get("/wait/400", &[tag]));
        assert!(expected.contains(&answer.version.as_str()));
        // A slow client: its body in small pieces.
        let body: Vec<u8> = (0..3_000).map(body_byte).collect();
        let bytes = post("/echo", &[tag], &body);
        let cuts: Vec<usize> = (100..bytes.len()).step_by(100).collect();
        wire.send_cut(&bytes, &cuts, Duration::from_millis(4));
        let answer = wire.answer().expect("an answer");
        assert!(expected.contains(&answer.version.as_str()));
        assert_eq!(answer.body, format!("{} 3000 {:016x}\n", answer.version, digest(&body)).into_bytes());
    }
}

/// Probes of idle connections (RFC 9293, 3.8.4) are answered, whichever legs there are.
#[test]
fn idle_connections_survive_their_probes() {
    let stage = Stage::new("probes", &both_families(&tagged(100, 0)));
    let mut wires = Vec::new();
    for v6 in [false, true] {
        for tags in [&[][..], &[TO_V1], &[TO_V1, TO_V2]] {
            let mut wire = Wire::open(stage.lab.client(), vip(v6));
            let options = [
                (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
                (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 1),
                (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1),
                (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 2),
            ];
            options.into_iter().for_each(|(level, name, value)| set_option(&wire.stream, level, name, value).unwrap());
            tags.iter().for_each(|tag| drop(wire.get("/", &[tag])));
            wires.push((tags.len(), wire));
        }
    }
    run_on(Duration::from_millis(4_500));
    for (legs, wire) in &mut wires {
        for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
            let answer = wire.try_ask(get("/", &[tag])).unwrap_or_else(|error| panic!("{legs} legs: {error}"));
            assert!(expected.contains(&answer.version.as_str()));
        }
    }
}

/// A client's port used again at once, while its last connection rests in TIME_WAIT at the backend, or hangs there still.
#[test]
fn ports_are_used_again() {
    let stage = Stage::new("ports", &[tagged(100, 0)]);
    let client = stage.lab.client();
    let from = SocketAddr::new(stage.lab.client_ip(0, false), 21_000);
    let open = |what: &str| {
        let stream = client.run(|| connect(from, vip(false))).unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
        Wire::from(stream).unwrap()
    };
    for round in 0..30 {
        let (tag, expected) = if round % 2 == 0 { (TO_V1, V1) } else { (TO_V2, V2) };
        let what = format!("round {round}");
        let mut wire = open(&what);
        let began = Instant::now();
        // The server closes first, so that TIME_WAIT is the backend's.
        let answer = wire.try_ask(get("/", &[tag, "Connection: close"])).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(expected.contains(&answer.version.as_str()), "{what}: {}", answer.version);
        assert!(began.elapsed() < Duration::from_millis(900), "{what}: {:?}", began.elapsed());
        assert_eq!(wire.end(Duration::from_secs(2)), End::Closed, "{what}");
        // The client's own FIN is acknowledged: until then its system refuses the port (EADDRNOTAVAIL).
        drop(wire);
        eventually("the client's end is gone", || sockets(client, from.port(), "").is_empty().then_some(()));
    }
    if through().is_none() {
        let waiting: usize = stage.lab.backends().iter().map(|backend| sockets(backend, 8080, "06").len()).sum();
        assert!(waiting > 0, "nothing rests in TIME_WAIT: this proves nothing");
    }
}

/// The client forgot its connection, the node and the backend did not: a new SYN from the same port begins anew (RFC 9293, 3.5.2).
#[test]
fn a_forgotten_connection_gives_way_to_a_new_one() {
    let stage = Stage::new("forgot", &[tagged(100, 0)]);
    let client = stage.lab.client();
    for (round, tags) in [&[TO_V1][..], &[TO_V2], &[TO_V1, TO_V2], &[]].into_iter().enumerate() {
        let from = SocketAddr::new(stage.lab.client_ip(0, false), 22_000 + round as u16);
        let mut wire = Wire::from(client.run(|| connect(from, vip(false))).unwrap().unwrap()).unwrap();
        tags.iter().for_each(|tag| drop(wire.get("/", &[tag])));
        // Nobody hears how it ends.
        client.batch("route add blackhole 10.9.9.9/32\n").unwrap();
        reset(&wire);
        drop(wire);
        client.batch("route del blackhole 10.9.9.9/32\n").unwrap();
        let began = Instant::now();
        let stream = client.run(|| connect(from, vip(false))).unwrap().unwrap_or_else(|error| panic!("after {tags:?}: {error}"));
        let mut wire = Wire::from(stream).unwrap();
        for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
            let answer = wire.try_ask(get("/bytes/5000", &[tag])).unwrap_or_else(|error| panic!("after {tags:?}: {error}"));
            assert!(expected.contains(&answer.version.as_str()) && right(&answer.body, 5_000), "after {tags:?}: {}", answer.version);
        }
        assert!(began.elapsed() < Duration::from_secs(3), "after {tags:?}: {:?}", began.elapsed());
    }
}

/// Closing will send RST.
fn reset(wire: &Wire) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (fd, raw) = (std::os::fd::AsRawFd::as_raw_fd(&wire.stream), (&raw const linger).cast());
    // SAFETY: the structure lives through the call.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, raw, size_of_val(&linger) as u32) };
    assert_eq!(set, 0);
}

/// From a port that may be in use, as a client behind address translation would look.
fn connect(from: SocketAddr, to: SocketAddr) -> std::io::Result<std::net::TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connecting = async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        socket.connect(to).await?.into_std()
    };
    let stream = runtime.block_on(connecting)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Scales, selective acknowledgements, timestamps and ECN that only one end wants, or both.
#[test]
fn ends_may_differ_in_their_options() {
    let sets: [&[(&str, &str)]; 4] = [
        &[("net/ipv4/tcp_window_scaling", "0")],
        &[("net/ipv4/tcp_sack", "0"), ("net/ipv4/tcp_timestamps", "0")],
        &[("net/ipv4/tcp_ecn", "1")],
        &[("net/ipv4/tcp_rmem", "4096 8192 16384"), ("net/ipv4/tcp_wmem", "4096 8192 16384")],
    ];
    for (i, set) in sets.into_iter().enumerate() {
        let stage = Stage::new(&format!("options{i}"), &[tagged(100, 0)]);
        let before: Vec<(&str, String)> = set.iter().map(|(name, _)| (*name, read(stage.lab.client(), name))).collect();
        for (client, backends) in [(true, false), (false, true), (true, true)] {
            let ends = [stage.lab.client()].into_iter().chain(stage.lab.backends());
            for (end, on) in ends.zip([client, backends, backends, backends]) {
                let old: Vec<(&str, &str)> = before.iter().map(|(name, value)| (*name, value.as_str())).collect();
                end.sysctls(if on { set } else { &old }).unwrap();
            }
            let mut wire = Wire::open(stage.lab.client(), vip(false));
            let body: Vec<u8> = (0..400_000).map(body_byte).collect();
            for (tag, expected) in [(TO_V1, V1), (TO_V2, V2), (TO_V1, V1)] {
                let what = format!("{set:?} at client {client}, at backends {backends}, {tag}");
                let answer = wire.try_ask(get("/bytes/2000000", &[tag])).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(expected.contains(&answer.version.as_str()) && right(&answer.body, 2_000_000), "{what}");
                let answer = wire.try_ask(post("/echo", &[tag], &body)).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(answer.body, format!("{} 400000 {:016x}\n", answer.version, digest(&body)).into_bytes(), "{what}");
            }
        }
    }
}

fn read(namespace: &Namespace, name: &str) -> String {
    namespace.run(|| fs::read_to_string(format!("/proc/sys/{name}"))).unwrap().unwrap().trim().to_owned()
}

/// What a client of the node may not know: its own address stays what the backend sees.
#[test]
fn the_backend_sees_the_client() {
    let stage = Stage::new("facts", &both_families(&tagged(100, 0)));
    if through().is_some() {
        return;
    }
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        let own: SocketAddr = wire.stream.local_addr().unwrap();
        for tag in [TO_V1, TO_V2] {
            let answer = wire.ask(get("/facts", &[tag, "X-Something:  kept  as it is "]));
            assert_eq!(seen_client(&answer), own, "{answer:?}");
            let text = String::from_utf8(answer.body).unwrap();
            assert!(text.contains("X-Something:  kept  as it is \r\n") || text.ends_with("X-Something:  kept  as it is \n"), "{text}");
        }
    }
}
