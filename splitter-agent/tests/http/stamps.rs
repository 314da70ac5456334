//! TCP timestamps (RFC 7323): who gets them, and that nobody's clock goes back. What they cost and give is `bench http`'s.

use crate::{
    stage::{Stage, V1, V2, both_families, tagged, through},
    support::{eventually, run_on, vip},
    wire::{TO_V1, TO_V2, Wire, get},
};
use splitter_lab::{http::body_byte, lab::Namespace};
use std::{fs, net::TcpStream, os::fd::AsRawFd, time::Duration};

/// Whether a connection has them, as its own kernel says.
fn stamped(stream: &TcpStream) -> bool {
    // SAFETY: all zero is a value of this plain structure.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers are to live values, and the length is the structure's.
    let result =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    assert_eq!(result, 0);
    info.tcpi_options & 1 != 0
}

/// Segments that an end has thrown away because their clock had gone back (`PAWSActive`, `PAWSEstab`, `PAWSOldAck` and the like).
fn thrown_away(end: &Namespace) -> u64 {
    let text = end.run(|| fs::read_to_string("/proc/thread-self/net/netstat")).expect("a namespace").expect("Linux has it");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    let paws: Vec<u64> = pairs.filter(|(name, _)| name.starts_with("PAWS")).map(|(_, value)| value.parse().expect("a number")).collect();
    assert!(paws.len() >= 2, "{names}");
    paws.iter().sum()
}

#[test]
fn clients_get_them_where_all_backends_agree_and_no_clock_goes_back() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("stamps", &both_families(&tagged(100, 0)));
    let (lab, client) = (&stage.lab, stage.lab.client());
    for v6 in [false, true] {
        let mut wire = eventually("all backends have said that they agree", || {
            let wire = Wire::open(client, vip(v6));
            stamped(&wire.stream).then_some(wire)
        });
        // Legs that rest for different times, small and large responses. A kernel's clock ticks in milliseconds.
        for turn in 0..30u64 {
            for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
                let answer = wire.ask(get("/bytes/100000", &[tag]));
                assert!(expected.contains(&answer.version.as_str()));
                assert!(answer.body.len() == 100_000 && (0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)));
                run_on(Duration::from_millis(turn % 7));
            }
        }
        assert!(stamped(&wire.stream));
    }
    for end in [client].into_iter().chain(lab.backends()) {
        assert_eq!(thrown_away(end), 0, "{}", end.name());
    }
}

#[test]
fn a_backend_that_has_lost_them_serves_on_and_new_clients_get_none() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("unstamp", &[tagged(100, 0)]);
    let client = stage.lab.client();
    let mut wire = eventually("all backends have said that they agree", || {
        let wire = Wire::open(client, vip(false));
        stamped(&wire.stream).then_some(wire)
    });
    wire.get("/", &[TO_V1]);
    stage.lab.backend(3).sysctl("net/ipv4/tcp_timestamps", "0").unwrap();
    for tag in [TO_V2, TO_V1, TO_V2] {
        wire.get("/bytes/100000", &[tag]);
    }
    let new = || stamped(&Wire::open(client, vip(false)).stream);
    assert!(!new(), "the kernel has noticed");
    // So does the agent, which asks again and is told.
    run_on(Duration::from_secs(7));
    assert!(!new());
    // Only new connections of the backend show that it has changed its mind; the agent asks again after half a minute.
}

#[test]
fn they_can_be_switched_off() {
    if through().is_some() {
        return;
    }
    let mut stage = Stage::new("nostamp", &[tagged(100, 0)]);
    let client = stage.lab.client().clone();
    eventually("all backends have said that they agree", || stamped(&Wire::open(&client, vip(false)).stream).then_some(()));
    stage.kill_agent();
    stage.site.options.extend(["--timestamps".into(), "off".into()]);
    stage.start();
    let mut wire = Wire::open(&client, vip(false));
    wire.get("/", &[TO_V1]);
    assert!(!stamped(&wire.stream), "the agent before had promised them");
}
