//! What happens at a node, one event after the other, out of a fuzzer's bytes.

use super::{
    lab::{BACKEND_SIDE, BACKENDS, CLIENT_SIDE, End, Lab, client, vip},
    wire,
};
use crate::bytes::Bytes;
use etherparse::{PacketBuilder, TcpOptionElement as Opt};
use splitter_common::abi::{TCP, backend_state, vip_flag};
use splitter_ebpf::bytes::Route;
use std::net::IpAddr;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// What clients and servers say, so that a fuzzer need not find it.
const SAID: [&[u8]; 16] = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 3\r\nuser: bob\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234",
    b"56789",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHo",
    b"st: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhel",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 503 No\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

/// Takes one event, and lets it happen.
pub fn event(lab: &mut Lab, input: &mut Bytes<'_>) {
    match input.byte() % 16 {
        0..=4 => speak(lab, input, true),
        5..=8 => speak(lab, input, false),
        9 => shake_hands(lab, input),
        10 => again(lab, input),
        11 => raw(lab, input),
        12 => lab.maps.pass([1, 4, 200, 1_200, 5_500, 31_000, 130_000, 3_600_000][usize::from(input.byte() & 7)]),
        13 => change(lab, input),
        14 => error(lab, input),
        _ => fragments(lab, input),
    }
}

/// A segment or datagram of a client, or of a backend that was sent something.
fn speak(lab: &mut Lab, input: &mut Bytes<'_>, from_client: bool) {
    let (who, flags, how) = (input.byte(), input.byte(), input.byte());
    let end = if from_client {
        Some(lab.clients[usize::from(who & 3)])
    } else {
        (!lab.servers.is_empty()).then(|| lab.servers[usize::from(who) % lab.servers.len()].1)
    };
    let Some(end) = end else { return };
    let payload = match how & 3 {
        0 => &[],
        1 => SAID[usize::from(input.byte() & 15)],
        2 => input.string(),
        _ => &[b'x'; 1400][..usize::from(input.word()) % 1400],
    };
    let shift = |on: bool, by: u8| if on { i32::from(by as i8) as u32 } else { 0 };
    let seq = end.seq.wrapping_add(shift(how & 4 != 0, if how & 4 != 0 { input.byte() } else { 0 }));
    let ack = end.ack.wrapping_add(shift(how & 8 != 0, if how & 8 != 0 { input.byte() } else { 0 }));
    let options: &[Opt] = match how >> 4 & 3 {
        1 => &[Opt::MaximumSegmentSize(1460), Opt::SelectiveAcknowledgementPermitted, Opt::Noop, Opt::WindowScale(7)],
        2 => &[Opt::Noop, Opt::Noop, Opt::Timestamp(1_000, 5)],
        3 => &[Opt::Noop, Opt::Noop, Opt::SelectiveAcknowledgement((1_000, 2_000), [None; 3])],
        _ => &[],
    };
    let mut bytes = segment(lab, &End { seq, ack, ..end }, flags & 31, payload, options);
    let next = seq.wrapping_add(payload.len() as u32).wrapping_add(u32::from(flags & 1)).wrapping_add(u32::from(flags >> 1 & 1));
    if from_client {
        lab.clients[usize::from(who & 3)].seq = next;
    } else {
        let index = usize::from(who) % lab.servers.len();
        lab.servers[index].1.seq = next;
    }
    if how & 64 != 0 {
        damage(&mut bytes, input);
    }
    lab.put(bytes, if from_client { CLIENT_SIDE } else { BACKEND_SIDE });
}

fn segment(lab: &Lab, end: &End, flags: u8, payload: &[u8], options: &[Opt]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (end.me.ip(), end.peer.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
        _ => unreachable!("one family"),
    };
    let mut out = Vec::new();
    if lab.proto != TCP {
        ip.udp(end.me.port(), end.peer.port()).write(&mut out, payload).expect("fits");
        return out;
    }
    let mut tcp = ip.tcp(end.me.port(), end.peer.port(), end.seq, 64_000).options(options).expect("they fit");
    if flags & 1 != 0 {
        tcp = tcp.fin();
    }
    if flags & SYN != 0 {
        tcp = tcp.syn();
    }
    if flags & RST != 0 {
        tcp = tcp.rst();
    }
    if flags & 8 != 0 {
        tcp = tcp.psh();
    }
    if flags & ACK != 0 {
        tcp = tcp.ack(end.ack);
    }
    tcp.write(&mut out, payload).expect("fits");
    out
}

/// A client's handshake, and when a backend is asked for it, the backend's part.
fn shake_hands(lab: &mut Lab, input: &mut Bytes<'_>) {
    let who = usize::from(input.byte() & 3);
    let fresh = lab.clients[who].seq.wrapping_add(250_000);
    lab.clients[who] = End { seq: fresh, ack: 0, ..lab.clients[who] };
    let options = [Opt::MaximumSegmentSize(1460), Opt::SelectiveAcknowledgementPermitted, Opt::Noop, Opt::WindowScale(7)];
    let known = lab.servers.len();
    let syn = segment(lab, &lab.clients[who], SYN, &[], &options);
    lab.put(syn, CLIENT_SIDE);
    lab.clients[who].seq = fresh.wrapping_add(1);
    if lab.servers.len() > known {
        let syn_ack = segment(lab, &lab.servers[0].1, SYN | ACK, &[], &options);
        lab.servers[0].1.seq = lab.servers[0].1.seq.wrapping_add(1);
        lab.put(syn_ack, BACKEND_SIDE);
    }
    let ack = segment(lab, &lab.clients[who], ACK, &[], &[]);
    lab.put(ack, CLIENT_SIDE);
}

/// The last packet once more, damaged or not.
fn again(lab: &mut Lab, input: &mut Bytes<'_>) {
    let Some((mut bytes, side)) = lab.last.clone() else { return };
    damage(&mut bytes, input);
    lab.put(bytes, side);
}

/// Writes bytes over a frame, cuts or lengthens it, and may put the checksums right.
fn damage(bytes: &mut Vec<u8>, input: &mut Bytes<'_>) {
    let (how, at) = (input.byte(), usize::from(input.word()));
    let new = input.take(usize::from(how & 7));
    if !bytes.is_empty() {
        let at = at % bytes.len();
        let end = bytes.len().min(at + new.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
    }
    match how >> 4 & 3 {
        1 => bytes.truncate(bytes.len().saturating_sub(usize::from(input.byte()))),
        2 => bytes.extend(std::iter::repeat_n(0x5a, usize::from(input.byte()))),
        _ => {}
    }
    if how & 8 != 0 {
        wire::mend(bytes);
    }
}

/// A frame of any bytes; the addresses may be made those of the lab.
fn raw(lab: &mut Lab, input: &mut Bytes<'_>) {
    let how = input.byte();
    let mut bytes = input.string().to_vec();
    if how & 1 != 0 && bytes.len() >= 14 {
        bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        bytes[12..14].copy_from_slice(if lab.ipv6 { &[0x86, 0xdd] } else { &[8, 0] });
    }
    let (src, dst, at) = match (client(lab.ipv6, 0).ip(), vip(lab.ipv6).ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (src.octets().to_vec(), dst.octets().to_vec(), 26),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (src.octets().to_vec(), dst.octets().to_vec(), 22),
        _ => unreachable!("one family"),
    };
    if how & 2 != 0 && bytes.len() >= at + 2 * src.len() {
        bytes[at..at + src.len()].copy_from_slice(&src);
        bytes[at + src.len()..at + 2 * src.len()].copy_from_slice(&dst);
    }
    if how & 4 != 0 {
        wire::mend(&mut bytes);
    }
    lab.put(bytes, if how & 8 != 0 { BACKEND_SIDE } else { CLIENT_SIDE });
}

/// The agent, the routes or the machine change something.
fn change(lab: &mut Lab, input: &mut Bytes<'_>) {
    const STATES: [u8; 5] =
        [backend_state::NONE, backend_state::READY, backend_state::DRAINING, backend_state::DOWN, backend_state::LEAVING];
    let (what, value) = (input.byte(), input.byte());
    match what % 8 {
        0 | 1 => lab.maps.set_state(u32::from(value) % BACKENDS + 1, STATES[usize::from(value >> 4) % STATES.len()]),
        2 => {
            let (ifindex, macs, mtu) =
                (BACKEND_SIDE, [0x0403_0201, 0x0807_0605, 0x0c0b_0a09], [0, 68, 576, 1_280, 1_500][usize::from(value) % 5]);
            lab.route = Route::Found { ifindex, macs, mtu };
        }
        3 => lab.route = if value & 1 == 0 { Route::Stack } else { Route::NoNeighbour { ifindex: BACKEND_SIDE } },
        4 => lab.maps.set_vip(super::lab::addr(vip(lab.ipv6).ip()), [0, vip_flag::PING, vip_flag::PASS][usize::from(value) % 3]),
        5 => lab.weigh(value),
        6 if value & 1 == 0 => lab.maps.take_all_stashes(value & 2 != 0),
        6 => lab.maps.hold_all_locks(None),
        _ => lab.maps.look(splitter_common::abi::Trace::default()),
    }
}

/// An ICMP error about what came out of the node last, from where that went.
fn error(lab: &mut Lab, input: &mut Bytes<'_>) {
    let (how, kind, code, detail) = (input.byte(), input.byte(), input.byte(), input.word());
    let to_client = how & 1 != 0;
    let Some(out) = lab.out[usize::from(to_client)].clone() else { return };
    let quoted = &out[14..out.len().min(14 + 64 + usize::from(how >> 4) * 8)];
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    let length = (8 + quoted.len()) as u16;
    if lab.ipv6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([58, 64]);
        // From where it went, to where it came from.
        bytes.extend([&out[38..54], &out[22..38]].concat());
        bytes.extend([[1, 2, 3, 4, 128][usize::from(kind) % 5], code, 0, 0, 0, 0]);
    } else {
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((20 + length).to_be_bytes());
        bytes.extend([0, 0, 0, 0, 64, 1, 0, 0]);
        bytes.extend([&out[30..34], &out[26..30]].concat());
        bytes.extend([[3, 11, 12, 8, 0][usize::from(kind) % 5], code, 0, 0, 0, 0]);
    }
    bytes.extend(detail.to_be_bytes());
    bytes.extend(quoted);
    wire::mend(&mut bytes);
    if how & 2 != 0 {
        damage(&mut bytes, input);
    }
    lab.put(bytes, if to_client { CLIENT_SIDE } else { BACKEND_SIDE });
}

/// The last IPv4 packet in two fragments, in either order.
fn fragments(lab: &mut Lab, input: &mut Bytes<'_>) {
    let (how, cut) = (input.byte(), usize::from(input.byte()) * 8);
    let Some((bytes, side)) = lab.last.clone() else { return };
    if lab.ipv6 || bytes.len() < 34 + cut || bytes[14] != 0x45 || cut == 0 {
        return;
    }
    let fragment = |from: usize, to: usize, more: bool| {
        let mut fragment = [&bytes[..34], &bytes[34 + from..34 + to]].concat();
        fragment[16..18].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        fragment[20..22].copy_from_slice(&((from / 8) as u16 | u16::from(more) << 13).to_be_bytes());
        wire::mend(&mut fragment);
        fragment
    };
    let parts = [fragment(0, cut, true), fragment(cut, bytes.len() - 34, false)];
    let order = if how & 1 == 0 { [0, 1] } else { [1, 0] };
    order.into_iter().filter(|part| how & 2 == 0 || *part == 0).for_each(|part| lab.put(parts[part].clone(), side));
    lab.last = Some((bytes, side));
}
