//! Packets that the node writes arrive in the order in which it wrote them, also where it may deliver straight into a namespace.

use crate::{
    stage::{Stage, both_families, tagged, through},
    support::{
        capture::{Capture, RST, SYN, Seen},
        client_ip,
        socket::connect,
        vip,
    },
    wire::{TO_V2, Wire, get},
};
use std::{
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

/// What came in for a backend from one port.
fn from(seen: Vec<Seen>, port: u16) -> Vec<Seen> {
    seen.into_iter().filter(|seen| seen.src.port() == port).collect()
}

/// Closes a connection whose other end is not to hear of it, as a client does that loses power.
fn forget(stream: TcpStream) {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option is as long as said.
    let done = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, (&raw const on).cast(), size) };
    assert_eq!(done, 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
}

/// The backend still has a connection of the client's port: its challenge is answered by a reset, which must not come behind the new SYN.
#[test]
fn a_stale_connection_is_reset_before_the_syn_comes() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("stale", &both_families(&tagged(100, 0)));
    for (turn, v6) in [false, true, false, true].into_iter().enumerate() {
        let me = SocketAddr::new(client_ip(&stage, v6), 20_000 + turn as u16);
        let backend = stage.lab.backend_addr(3, v6, crate::support::PORT);
        let open = |to| stage.lab.client().run(|| connect(me, to)).expect("a namespace");
        forget(open(backend).expect("a connection past the service"));
        let wires = Capture::start(stage.lab.backend(3));
        let mut wire = Wire::from(open(vip(v6)).expect("a connection")).expect("its options");
        assert_eq!(wire.get("/", &[TO_V2]), "b3");
        let flags: Vec<u8> = from(wires.take(), me.port()).iter().map(|seen| seen.flags & (SYN | RST)).collect();
        assert!(flags.starts_with(&[SYN, RST, SYN, 0]), "IPv{}: {flags:?}", if v6 { 6 } else { 4 });
    }
    assert_eq!((stage.reason("stale_leg"), stage.reason("leg_silent")), (4, 0));
}

#[test]
fn the_pieces_of_a_head_arrive_in_order() {
    let stage = Stage::new("pieces", &both_families(&tagged(100, 0)));
    let long = format!("Accept: {}", "q".repeat(7_000));
    for v6 in [false, true] {
        for _ in 0..5 {
            let wires = Capture::start(stage.lab.backend(3));
            let mut wire = Wire::open(stage.lab.client(), vip(v6));
            let port = wire.stream.local_addr().expect("an address").port();
            wire.send(get("/", &[TO_V2, &long]));
            assert_eq!(wire.answer().expect("an answer").version, "b3");
            if through().is_some() {
                continue;
            }
            let pieces: Vec<Seen> = from(wires.take(), port).into_iter().filter(|seen| seen.len != 0).collect();
            assert!(pieces.len() > 4, "{pieces:?}");
            let next = |pair: &[Seen]| pair[0].seq.wrapping_add(pair[0].len as u32) == pair[1].seq;
            assert!(pieces.windows(2).all(next), "IPv{}: {pieces:?}", if v6 { 6 } else { 4 });
        }
    }
}
