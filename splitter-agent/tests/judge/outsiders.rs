//! Packets with borrowed addresses: they neither count as failures of a version nor keep clients from its backends.

use crate::{
    stage::{Asking, Farewell, Fate, Manner, Server, address, ask, at, bed, filter, version},
    support::{Bed, PORT, Split, client_ip, eventually, run_on, vip},
};
use etherparse::PacketBuilder;
use splitter_api::Outcomes;
use splitter_lab::{lab::Namespace, poll::check};
use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// Sends TCP segments as they are, from the calling thread's namespace.
struct Raw(OwnedFd);

impl Raw {
    fn open(v6: bool) -> Raw {
        let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: no pointers; the descriptor is new and nobody else's.
        Raw(unsafe {
            OwnedFd::from_raw_fd(check(libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW)).expect("a raw socket"))
        })
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, reset: bool) {
        let mut packet = Vec::new();
        let shape = |step: etherparse::PacketBuilderStep<etherparse::TcpHeader>| if reset { step.rst().ack(1) } else { step.syn() };
        match (from.ip(), to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                shape(PacketBuilder::ipv4(a.octets(), b.octets(), 64).tcp(from.port(), to.port(), 7, 1_000)).write(&mut packet, &[])
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                shape(PacketBuilder::ipv6(a.octets(), b.octets(), 64).tcp(from.port(), to.port(), 7, 1_000)).write(&mut packet, &[])
            }
            _ => panic!("mixed families"),
        }
        .expect("a packet");
        let sent = match to.ip() {
            IpAddr::V4(ip) => {
                // SAFETY: all zeroes is a valid address.
                let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                raw.sin_family = libc::AF_INET as u16;
                raw.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
                // SAFETY: packet and address live through the call.
                unsafe {
                    libc::sendto(
                        self.0.as_raw_fd(),
                        packet.as_ptr().cast(),
                        packet.len(),
                        0,
                        (&raw const raw).cast(),
                        size_of_val(&raw) as u32,
                    )
                }
            }
            IpAddr::V6(ip) => {
                // SAFETY: all zeroes is a valid address.
                let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
                raw.sin6_family = libc::AF_INET6 as u16;
                raw.sin6_addr.s6_addr = ip.octets();
                // SAFETY: packet and address live through the call.
                unsafe {
                    libc::sendto(
                        self.0.as_raw_fd(),
                        packet.as_ptr().cast(),
                        packet.len(),
                        0,
                        (&raw const raw).cast(),
                        size_of_val(&raw) as u32,
                    )
                }
            }
        };
        assert_eq!(sent, packet.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

fn split(v6: bool) -> Split {
    if v6 { Split::tcp(1, 0).v6() } else { Split::tcp(1, 0) }
}

/// Where nobody lives, behind the first client.
fn nobody(i: u16, v6: bool) -> SocketAddr {
    let ip = if v6 { IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 7, i]) } else { IpAddr::from([10, 1, 200, i as u8]) };
    SocketAddr::new(ip, 2_000 + i)
}

fn unmoved(bed: &Bed) {
    let version = version(bed);
    assert_eq!((version.timeouts, version.refused), (0, 0));
    let failed: u64 = version.trials.drawn.named().iter().filter(|(name, _)| *name != "answered").map(|(_, count)| count).sum();
    assert_eq!(failed, 0, "{:?}", version.trials.drawn);
    assert!(version.backends.iter().all(|backend| !backend.suspect), "{:?}", version.backends);
}

fn in_namespace(namespace: &Namespace, work: impl FnOnce() + Send) {
    namespace.run(work).expect("a namespace");
}

/// Two SYNs at once from addresses that answer nothing, sixty times a second for three seconds.
pub fn forge_pairs(bed: &Bed, v6: bool) {
    // As behind an uplink: answers to strangers leave the way that they came, and nobody resets.
    let network = if v6 { "fd01::7:0/112" } else { "10.1.200.0/24" };
    bed.lab.node.batch(&format!("route add {network} via {} dev c0\n", client_ip(bed, v6))).unwrap();
    in_namespace(bed.lab.client(), || {
        let raw = Raw::open(v6);
        for i in 1..=180 {
            (0..2).for_each(|_| raw.send(nobody(i, v6), vip(v6), false));
            run_on(Duration::from_millis(1000 / 60));
        }
    });
}

/// Two SYNs at once from addresses that answer nothing, sixty times a second.
#[test]
fn pairs_of_syns_do_not_vote() {
    for v6 in [false, true] {
        let bed = bed(if v6 { "pairs6" } else { "pairs4" }, split(v6), vec![1, 2]);
        let _servers = [1, 2].map(|i| Server::start(bed.lab.backend(i), at(&bed, i, v6), Manner::Answer));
        forge_pairs(&bed, v6);
        eventually("all are counted", || (version(&bed).connections >= 180).then_some(()));
        run_on(Duration::from_secs(1));
        unmoved(&bed);
        assert_eq!(version(&bed).trials.drawn.begun, 180);
        let asking = Asking { to: vip(v6), count: 40, patience: Duration::from_secs(3), farewell: Farewell::Close };
        assert_eq!(ask(&bed, asking, false), [(Fate::Answered, 40)].into());
        unmoved(&bed);
    }
}

/// Resets in a backend's name, sent from where clients are.
#[test]
fn resets_from_the_clients_side_do_not_vote() {
    for v6 in [false, true] {
        let bed = bed(if v6 { "forged6" } else { "forged4" }, split(v6), vec![1, 2]);
        let servers = [1, 2].map(|i| Server::start(bed.lab.backend(i), at(&bed, i, v6), Manner::Hang));
        let open = |port: u16| {
            let from = SocketAddr::new(address(0, v6), port);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let socket = if v6 { tokio::net::TcpSocket::new_v6() } else { tokio::net::TcpSocket::new_v4() }.expect("a socket");
                socket.bind(from).expect("a port");
                socket.connect(vip(v6)).await.expect("a connection").into_std().expect("a connection")
            })
        };
        let ports = 30_000..30_070u16;
        let mut connections: Vec<TcpStream> = bed.lab.client().run(|| ports.clone().map(open).collect()).expect("the client's namespace");
        for stream in &mut connections {
            stream.set_nonblocking(false).unwrap();
            stream.write_all(b"question").unwrap();
        }
        let forge = |ports: std::ops::Range<u16>| {
            in_namespace(&bed.lab.clients()[1], || {
                let raw = Raw::open(v6);
                for port in ports {
                    for backend in [1, 2] {
                        raw.send(at(&bed, backend, v6), SocketAddr::new(address(0, v6), port), true);
                    }
                }
            });
        };
        forge(ports);
        eventually("the node has seen them", || (bed.reason("wrong_side") >= 70).then_some(()));
        unmoved(&bed);
        assert_eq!(version(&bed).trials.drawn, Outcomes { begun: 70, ..Outcomes::default() });
        assert_eq!(bed.flows().iter().filter(|flow| flow.state == "established").count(), 70);
        assert_eq!(servers.iter().map(Server::accepted).sum::<u64>(), 70);
        // Handshakes under way.
        [1, 2].iter().for_each(|i| filter(bed.lab.backend(*i), "drop"));
        let asking = Asking { to: vip(v6), count: 20, patience: Duration::from_millis(900), farewell: Farewell::Close };
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&bed, asking, false));
            run_on(Duration::from_millis(300));
            for flow in bed.flows().iter().filter(|flow| flow.state == "half-open") {
                let (client, backend): (SocketAddr, SocketAddr) = (flow.client.parse().unwrap(), flow.backend.parse().unwrap());
                assert_eq!(backend.port(), PORT);
                in_namespace(&bed.lab.clients()[1], || Raw::open(v6).send(backend, client, true));
            }
            asked.join().expect("clients");
        });
        unmoved(&bed);
        drop(connections);
    }
}
