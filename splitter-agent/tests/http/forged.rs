//! Packets that somebody writes in the names of others, against http and layer 4 side by side: resets by the ten thousand, SYNs, bytes in a backend's
//! name, segments whose numbers are right and whose checksums are not, and segments of connections that are over.

use crate::{
    stage::{Stage, V1, V2, tagged},
    support::{
        PORT, Split,
        capture::Capture,
        client_ip, eventually,
        socket::{Conversation, conversations},
        vip,
    },
    wire::{TO_V1, TO_V2, Wire, get, post},
};
use etherparse::PacketBuilder;
use splitter_lab::{
    lab::{Namespace, Options},
    poll::check,
};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// Sends IPv4 packets as they are written, from the calling thread's namespace.
struct Raw(OwnedFd);

impl Raw {
    fn open() -> Raw {
        // SAFETY: no pointers; the descriptor is new and nobody else's.
        Raw(unsafe {
            OwnedFd::from_raw_fd(
                check(libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW)).expect("a raw socket"),
            )
        })
    }

    /// `damage` is added to the checksum.
    fn send(&self, (from, to): (SocketAddr, SocketAddr), flags: u8, (seq, ack): (u32, u32), payload: &[u8], damage: u8) {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip(), to.ip()) else { panic!("IPv4 only") };
        let mut tcp = PacketBuilder::ipv4(src.octets(), dst.octets(), 64).tcp(from.port(), to.port(), seq, 1_000);
        for (flag, set) in [(SYN, 0), (RST, 1), (PSH, 2), (ACK, 3)] {
            tcp = match set {
                _ if flags & flag == 0 => tcp,
                0 => tcp.syn(),
                1 => tcp.rst(),
                2 => tcp.psh(),
                _ => tcp.ack(ack),
            };
        }
        let mut packet = Vec::with_capacity(40 + payload.len());
        tcp.write(&mut packet, payload).expect("a packet");
        packet[36] = packet[36].wrapping_add(damage);
        // SAFETY: all zeroes is a valid address.
        let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        raw.sin_family = libc::AF_INET as u16;
        raw.sin_addr.s_addr = u32::from_ne_bytes(dst.octets());
        // SAFETY: packet and address live through the call.
        let sent = unsafe {
            libc::sendto(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, (&raw const raw).cast(), size_of_val(&raw) as u32)
        };
        assert_eq!(sent, packet.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

/// What a connection's socket sends next, and what it expects (`TCP_REPAIR`, tcp(7)).
fn numbers(socket: &impl AsRawFd) -> (u32, u32) {
    const REPAIR_QUEUE: i32 = 20;
    const QUEUE_SEQ: i32 = 21;
    const OFF_NO_PROBE: i32 = -1;
    let fd = socket.as_raw_fd();
    let set = |name: i32, value: i32| {
        // SAFETY: an int that lives through the call.
        check(unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, name, (&raw const value).cast(), 4) }).expect("the socket's numbers");
    };
    let queue = |queue: i32| {
        set(REPAIR_QUEUE, queue);
        let (mut value, mut length) = (0u32, 4);
        // SAFETY: an int and its length that live through the call.
        check(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, QUEUE_SEQ, (&raw mut value).cast(), &raw mut length) }).expect("a number");
        value
    };
    set(libc::TCP_REPAIR, 1);
    let numbers = (queue(2), queue(1));
    set(libc::TCP_REPAIR, OFF_NO_PROBE);
    numbers
}

/// An http service, and one of layer 4 at port 81, with connections of both; two clients.
fn stage(name: &str) -> Stage {
    let http = tagged(100, 0);
    let at_81 = SocketAddr::new(vip(false).ip(), 81);
    let layer4 = Split { frontends: vec![at_81], ..Split::tcp(1, 0).named("layer4") };
    Stage::with(name, Options { clients: 2, ..Options::default() }, &[http, layer4])
}

fn at_81() -> SocketAddr {
    SocketAddr::new(vip(false).ip(), 81)
}

fn in_namespace(namespace: &Namespace, work: impl FnOnce() + Send) {
    namespace.run(work).expect("a namespace");
}

/// Every connection does what it did: requests go where their tags say, and layer 4 keeps its backend.
fn all_go_on(kept: &mut [Wire], flows: &mut [Conversation]) {
    for wire in kept {
        for (tag, expected) in [(TO_V1, V1), (TO_V2, V2), (TO_V1, V1)] {
            assert!(expected.contains(&wire.get("/", &[tag]).as_str()), "{tag}");
        }
    }
    for flow in flows {
        assert_eq!(flow.ask().expect("the connection lives"), flow.backend);
    }
}

/// A RST for every port in a client's name, to both services, then SYNs for those that are in use; weights have moved meanwhile.
#[test]
fn blind_resets_end_and_move_nothing() {
    let stage = stage("forgedresets");
    let from = client_ip(&stage, false);
    let mut kept: Vec<Wire> = (0..20).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
    let mut flows = conversations(stage.lab.client(), from, at_81(), 21_000, 20);
    all_go_on(&mut kept, &mut flows);
    stage.cli(&["weight", "layer4", "v1=0", "v2=1"]);
    let used: Vec<u16> = kept.iter().map(|wire| wire.stream.local_addr().expect("bound").port()).chain(21_000..21_020).collect();
    in_namespace(stage.lab.client(), || {
        let raw = Raw::open();
        for port in 1_024..=u16::MAX {
            for to in [vip(false), at_81()] {
                raw.send((SocketAddr::new(from, port), to), RST, (u32::from(port).wrapping_mul(0x9e37_79b1), 0), &[], 0);
            }
        }
        for port in &used {
            for to in [vip(false), at_81()] {
                raw.send((SocketAddr::new(from, *port), to), SYN, (7, 0), &[], 0);
            }
        }
    });
    all_go_on(&mut kept, &mut flows);
    all_go_on(&mut kept, &mut flows);
    let closed: u64 = stage.service("web").versions.iter().map(|version| version.closed).sum();
    assert_eq!(closed, 0, "no connection of http has ended");
}

/// From the side of the clients, with numbers from everywhere, to each backend's connections.
#[test]
fn a_byte_in_a_backends_name_pins_nothing() {
    let stage = stage("forgedbytes");
    let mut kept: Vec<Wire> = (0..20).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
    all_go_on(&mut kept, &mut []);
    let ports: Vec<u16> = kept.iter().map(|wire| wire.stream.local_addr().expect("bound").port()).collect();
    let to = client_ip(&stage, false);
    in_namespace(&stage.lab.clients()[1], || {
        let raw = Raw::open();
        for port in ports {
            for backend in 1..=3 {
                for seq in 0..8 {
                    let from = stage.lab.backend_addr(backend, false, PORT);
                    raw.send((from, SocketAddr::new(to, port)), ACK | PSH, (seq << 29, seq << 29), b"x", 0);
                }
            }
        }
    });
    // Each port has a leg to a backend of each version.
    let seen = || [stage.reason("wrong_side"), stage.reason("out_of_window")];
    eventually("the node has seen them", || (seen().iter().sum::<u64>() >= 300).then_some(()));
    assert!(seen()[0] >= 100, "{:?}", seen());
    all_go_on(&mut kept, &mut []);
    assert_eq!(stage.reason("pinned_pipeline") + stage.reason("pinned_response"), 0);
}

/// Exact numbers, wrong checksums: no request is executed, no connection ends.
#[test]
fn wrong_checksums_are_believed_by_nobody() {
    let stage = stage("forgedsums");
    let from = client_ip(&stage, false);
    let mut kept = vec![Wire::open(stage.lab.client(), vip(false))];
    let mut flows = conversations(stage.lab.client(), from, at_81(), 21_000, 1);
    all_go_on(&mut kept, &mut flows);
    let requests = || stage.service("web").versions.iter().map(|version| version.requests).sum::<u64>();
    let before = requests();
    let ends = (kept[0].stream.local_addr().expect("bound"), vip(false));
    let exact = numbers(&kept[0].stream);
    in_namespace(stage.lab.client(), || {
        let raw = Raw::open();
        for damage in 1..=50 {
            raw.send(ends, ACK | PSH, exact, &get("/", &[TO_V2]), damage);
            raw.send(ends, RST, exact, &[], damage);
            raw.send((flows[0].client, at_81()), RST, (1, 0), &[], damage);
        }
    });
    eventually("the node has seen them", || (stage.reason("checksum") >= 150).then_some(()));
    assert_eq!(requests(), before);
    all_go_on(&mut kept, &mut flows);
    // The same with a right one is a reset.
    let exact = numbers(&kept[0].stream);
    in_namespace(stage.lab.client(), || Raw::open().send(ends, RST, exact, &[], 0));
    eventually("the connection ends", || {
        (stage.service("web").versions.iter().map(|version| version.closed).sum::<u64>() == 1).then_some(())
    });
}

/// A connection with one request, up to its end; its ends, and the numbers with which it began.
fn ended(stage: &Stage, request: &[u8], what: &str) -> ((SocketAddr, SocketAddr), (u32, u32)) {
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    let ends = (wire.stream.local_addr().expect("bound"), vip(false));
    let first = numbers(&wire.stream);
    assert_eq!(wire.ask(request).status, 200, "{what}");
    drop(wire);
    eventually("the connection is over", || (stage.flows().iter().all(|flow| flow.client != ends.0.to_string())).then_some(()));
    (ends, first)
}

/// A POST of a connection that is over, sent again: alone, and behind its SYN. Nobody executes it a second time.
#[test]
fn a_replayed_post_is_executed_by_nobody() {
    const ROUNDS: u32 = 10;
    let stage = stage("replayed");
    let request = post("/echo", &[TO_V2, "Connection: close"], b"100 euros");
    let connections: Vec<_> = (0..ROUNDS).map(|i| ended(&stage, &request, &format!("connection {i}"))).collect();
    let requests = || stage.service("web").versions.iter().map(|version| version.requests).sum::<u64>();
    assert_eq!(requests(), u64::from(ROUNDS));
    let at_backends: Vec<Capture> = stage.lab.backends().iter().map(Capture::start).collect();
    in_namespace(stage.lab.client(), || {
        let raw = Raw::open();
        for (ends, (seq, ack)) in &connections {
            for syn in [false, true] {
                if syn {
                    raw.send(*ends, SYN, (seq.wrapping_sub(1), 0), &[], 0);
                }
                raw.send(*ends, ACK | PSH, (*seq, *ack), &request, 0);
            }
        }
    });
    eventually("the node has seen them", || (stage.reason("replayed") >= u64::from(2 * ROUNDS)).then_some(()));
    assert_eq!(requests(), u64::from(ROUNDS), "a request was decided once more");
    let opened: usize = at_backends.iter().map(|seen| seen.take().iter().filter(|seen| seen.flags & SYN != 0).count()).sum();
    assert_eq!(opened, 0, "a backend was asked once more");
    assert_eq!(Wire::open(stage.lab.client(), vip(false)).get("/", &[TO_V2]), "b3");
}
