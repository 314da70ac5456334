//! What the node says to connections of http when it is taken out of the path: resets, to the client and to every backend of each. Their numbers are the
//! node's own, so that nobody could go on without it, and an end that only waits would wait for ever. To be called when no program moves the
//! numbers any more.

use super::{BACKENDS, DatapathError, FlowTables, Tables, load};
use splitter_common::abi::*;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

const RST: u8 = 4;
const ACK: u8 = 16;
const TCP_HEADER: usize = 20;
const HOPS: u8 = 64;

/// A TCP reset that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reset {
    from: SocketAddr,
    to: SocketAddr,
    /// What the receiver expects next, exactly: it believes nothing else (RFC 5961, 3.2).
    seq: u32,
    ack: u32,
}

/// Resets all connections of http that the maps in `pins` know; how many they were. None when these maps are of another layout.
///
/// # Errors
/// When a table cannot be read, or there is no right to send (CAP_NET_RAW).
pub fn reset_spliced(pins: &Path) -> Result<usize, DatapathError> {
    let needed = [V4::SPLICED.0, V6::SPLICED.0, V4::LEGS.0, V6::LEGS.0, BACKENDS.0];
    let Some(tables) = load::open_tables(pins, &needed)? else { return Ok(0) };
    let found = [resets::<V4>(&tables)?, resets::<V6>(&tables)?];
    let failed = |cause| DatapathError::Pins { path: pins.into(), cause };
    for (_, resets) in found.iter().filter(|(_, resets)| !resets.is_empty()) {
        let socket = Raw::open(resets[0].to.is_ipv6()).map_err(failed)?;
        // An end that cannot be reached is not told.
        resets.iter().for_each(|reset| drop(socket.send(reset)));
    }
    Ok(found.iter().map(|(connections, _)| connections).sum())
}

/// Resets for all connections of a family, and how many connections there are.
fn resets<F: FlowTables>(tables: &impl Tables) -> Result<(usize, Vec<Reset>), super::TableError> {
    let (mut count, mut out) = (0, Vec::new());
    let mut found = Vec::new();
    F::SPLICED.each(tables, |key, spliced| found.push((key, spliced)))?;
    for (key, spliced) in found {
        count += 1;
        let (client, vip) = ends::<F>(&key.src, &key.dst, key.ports);
        let leg_key = FlowKey { src: spliced.dst, dst: spliced.src, ports: spliced.ports.rotate_left(16), proto: u32::from(TCP) };
        let is_ours = |leg: &Leg<F>| leg.src == key.dst && leg.dst == key.src && leg.ports == key.ports.rotate_left(16);
        let leg = F::LEGS.get(tables, leg_key)?.filter(is_ours);
        let fin = |owner: Owner, flag: u8| u32::from(owner.is(flag));
        let ack = spliced.next.wrapping_add(fin(spliced.owner, splice_flag::FIN));
        let open = leg.filter(|leg| leg.state == splice_state::ESTABLISHED);
        let seq = open.map_or(spliced.ack_base, |leg| leg.next.wrapping_add(leg.seq_add).wrapping_add(fin(leg.owner, leg_flag::FIN)));
        out.push(Reset { from: vip, to: client, seq, ack });
        if let Some(leg) = leg {
            let (backend, seen) = ends::<F>(&leg_key.src, &leg_key.dst, leg_key.ports);
            let seq = if leg.state == splice_state::OPENING { spliced.request_at } else { ack.wrapping_add(spliced.seq_add) };
            out.push(Reset { from: seen, to: backend, seq, ack: leg.next });
        }
        for id in spliced.idle.into_iter().filter(|id| *id != 0) {
            let Some(row) = BACKENDS.get(tables, id)? else { continue };
            let backend = SocketAddr::new(IpAddr::from(row.addr).to_canonical(), u16::from_be_bytes(row.port));
            let [a, b, ..] = key.ports.to_ne_bytes();
            let ports = u32::from_ne_bytes([row.port[0], row.port[1], a, b]);
            let leg_key = FlowKey { src: F::words(&row.addr), dst: key.src, ports, proto: u32::from(TCP) };
            if let Some(leg) = F::LEGS.get(tables, leg_key)?.filter(is_ours) {
                out.push(Reset { from: client, to: backend, seq: leg.sent, ack: leg.next });
            }
        }
    }
    Ok((count, out))
}

/// Both ends of a key.
fn ends<F: FlowTables>(src: &F::Words, dst: &F::Words, ports: u32) -> (SocketAddr, SocketAddr) {
    let [a, b, c, d] = ports.to_ne_bytes();
    let end = |words, port| SocketAddr::new(IpAddr::from(F::mapped(words)).to_canonical(), u16::from_be_bytes(port));
    (end(src, [a, b]), end(dst, [c, d]))
}

/// The packet from its network header on.
fn packet(reset: &Reset) -> Vec<u8> {
    let mut tcp = [0; TCP_HEADER];
    tcp[..2].copy_from_slice(&reset.from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&reset.to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&reset.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&reset.ack.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, RST | ACK);
    let addresses = match (reset.from.ip(), reset.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (from, to) => [octets(from), octets(to)].concat(),
    };
    let pseudo = [&addresses[..], &[0, TCP, 0, TCP_HEADER as u8]].concat();
    let sum = checksum(&[&pseudo[..], &tcp[..]].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut out = if reset.to.is_ipv4() {
        // The kernel fills in identification and checksum (raw(7)).
        vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, HOPS, TCP, 0, 0]
    } else {
        vec![0x60, 0, 0, 0, 0, TCP_HEADER as u8, TCP, HOPS]
    };
    out.extend_from_slice(&addresses);
    out.extend_from_slice(&tcp);
    out
}

const fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// RFC 1071. Of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    !((folded + (folded >> 16)) as u16)
}

/// A socket for whole packets.
struct Raw(OwnedFd);

impl Raw {
    fn open(ipv6: bool) -> io::Result<Raw> {
        let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
        // SAFETY: the descriptor is new, and nobody else's.
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Raw(unsafe { OwnedFd::from_raw_fd(fd) })) }
    }

    fn send(&self, reset: &Reset) -> io::Result<()> {
        let bytes = packet(reset);
        let result = match reset.to.ip() {
            IpAddr::V4(to) => self.send_to(&bytes, &in4(to)),
            IpAddr::V6(to) => self.send_to(&bytes, &in6(to)),
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn send_to<A>(&self, bytes: &[u8], to: &A) -> isize {
        let length = size_of::<A>() as libc::socklen_t;
        // SAFETY: the pointers are to live values of the lengths given; `A` is a socket address.
        unsafe { libc::sendto(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, std::ptr::from_ref(to).cast(), length) }
    }
}

fn in4(to: Ipv4Addr) -> libc::sockaddr_in {
    let sin_addr = libc::in_addr { s_addr: u32::from_ne_bytes(to.octets()) };
    libc::sockaddr_in { sin_family: libc::AF_INET as libc::sa_family_t, sin_port: 0, sin_addr, sin_zero: [0; 8] }
}

fn in6(to: Ipv6Addr) -> libc::sockaddr_in6 {
    let sin6_addr = libc::in6_addr { s6_addr: to.octets() };
    libc::sockaddr_in6 { sin6_family: libc::AF_INET6 as libc::sa_family_t, sin6_port: 0, sin6_flowinfo: 0, sin6_addr, sin6_scope_id: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, read};
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const fn word(last: u8) -> [u32; 1] {
        [u32::from_ne_bytes([10, 0, 0, last])]
    }

    fn ports(source: u16, destination: u16) -> u32 {
        u32::from_ne_bytes([source.to_be_bytes(), destination.to_be_bytes()].concat().try_into().unwrap())
    }

    fn address(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], port))
    }

    /// A client (1) at the VIP (9), with a leg to backend 7 (101) in use and one to 8 (102) idle.
    #[test]
    fn every_end_of_a_connection_is_told_exactly_what_it_expects() {
        let mut memory = Memory::new();
        let key = FlowKey { src: word(1), dst: word(9), ports: ports(4000, 80), proto: 6 };
        let spliced = Spliced {
            src: word(1),
            dst: word(101),
            ports: ports(4000, 8080),
            owner: owner(7, splice_flag::FIN),
            next: 1_000,
            seq_add: 50,
            ack_base: 77,
            idle: [0, 8, 0],
            state: splice_state::ESTABLISHED,
            ..read(&[])
        };
        let common = Leg { src: word(9), dst: word(1), ports: ports(80, 4000), state: splice_state::ESTABLISHED, ..read(&[]) };
        let used = Leg { owner: owner(7, leg_flag::FIN), next: 5, seq_add: 10u32.wrapping_neg(), ..common };
        let idle = Leg { owner: owner(8, leg_flag::IDLE), next: 6, sent: 600, ..common };
        let leg_key = |last: u8| FlowKey { src: word(last), dst: word(1), ports: ports(8080, 4000), proto: 6 };
        V4::SPLICED.put(&mut memory, &[(key, spliced)]).unwrap();
        V4::LEGS.put(&mut memory, &[(leg_key(101), used), (leg_key(102), idle)]).unwrap();
        let row = Backend { addr: mapped([10, 0, 0, 102]), port: 8080u16.to_be_bytes(), ..Backend::default() };
        BACKENDS.put_one(&mut memory, 8, row).unwrap();
        let to_client = Reset { from: address(9, 80), to: address(1, 4000), seq: 4u32.wrapping_neg(), ack: 1_001 };
        let to_used = Reset { from: address(1, 4000), to: address(101, 8080), seq: 1_051, ack: 5 };
        let to_idle = Reset { from: address(1, 4000), to: address(102, 8080), seq: 600, ack: 6 };
        assert_eq!(resets::<V4>(&memory).unwrap(), (1, vec![to_client, to_used, to_idle]));
        // Before it has a leg: what the node has answered.
        V4::LEGS.delete(&mut memory, &[leg_key(101), leg_key(102)]).unwrap();
        assert_eq!(resets::<V4>(&memory).unwrap(), (1, vec![Reset { seq: 77, ..to_client }]));
    }

    #[test]
    fn resets_are_well_formed() {
        for (from, to) in [("10.9.9.9:80", "10.1.0.2:40001"), ("[fd09::9]:80", "[fd01::2]:40001")] {
            let reset = Reset { from: from.parse().unwrap(), to: to.parse().unwrap(), seq: 0xffff_fff0, ack: 0x0102_0304 };
            let bytes = packet(&reset);
            let seen = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = seen.transport else { panic!("no TCP") };
            assert_eq!((tcp.source_port(), tcp.destination_port()), (reset.from.port(), reset.to.port()));
            assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (reset.seq, reset.ack));
            assert!(tcp.rst() && tcp.ack() && !tcp.syn() && !tcp.fin());
            let (sum, wanted) = match seen.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header();
                    assert_eq!((header.source_addr(), header.destination_addr()), (v4(from), v4(to)));
                    (tcp.checksum(), tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap())
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header();
                    (tcp.checksum(), tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(sum, wanted);
        }
    }

    fn v4(text: &str) -> Ipv4Addr {
        match text.parse::<SocketAddr>().unwrap().ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address}"),
        }
    }
}
