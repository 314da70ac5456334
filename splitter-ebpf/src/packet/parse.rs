//! From a frame to [`Parsed`]: every way in which a packet can be short, odd or not ours ends here, with a reason.

use super::{ETHERNET, ICMP, ICMPV6, Ip, Parsed, tcp};
use crate::{
    bytes::{Packet, opaque},
    env::{Env, Tables},
};
use splitter_common::abi::*;

/// IPv6 extension headers (RFC 8200, 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// Extension headers that are read, and the farthest transport header.
const MAX_EXTENSIONS: u32 = 6;
const MAX_L4: u32 = 1024;

/// What a frame is.
pub enum Kind {
    /// TCP or UDP: `Parsed` was filled.
    Transport,
    /// ICMP: `Parsed` was filled, but for ports.
    Icmp,
    /// Nothing of ours.
    Other,
    /// Passed, for a reason that was counted only if it is worth it.
    Odd(Reason),
}

/// IPv4 (RFC 791).
#[inline(always)]
pub fn ipv4<P: Packet, E: Env>(packet: &mut P, env: &E, out: &mut Parsed<V4>) -> Kind {
    let len = packet.len();
    let Some(w) = packet.window::<34>(0) else { return Kind::Odd(Reason::Truncated) };
    let first: u8 = w.load::<u8, 14>();
    let header = (first as u32 & 15) * 4;
    if first >> 4 != 4 || header < 20 {
        return Kind::Odd(Reason::Malformed);
    }
    let total = u16::from_be(w.load::<u16, 16>()) as u32;
    let proto: u8 = w.load::<u8, 23>();
    let fragment: u16 = w.load::<u16, 20>() & 0x3fffu16.to_be();
    out.key.src = [w.load::<u32, 26>()];
    out.key.dst = [w.load::<u32, 30>()];
    out.key.proto = proto as u32;
    out.flags = 0;
    out.fragment = fragment != 0;
    out.first_fragment = None;
    // A total length of 0 is a BIG TCP packet (Linux 6.3): the frame's length counts.
    out.ip_len = if total == 0 { len - ETHERNET as u32 } else { total };
    if out.ip_len + ETHERNET as u32 > len || out.ip_len < header {
        return Kind::Odd(Reason::Truncated);
    }
    out.l4 = ETHERNET as u32 + header;
    if proto != TCP && proto != UDP {
        return if proto == ICMP && fragment == 0 { Kind::Icmp } else { Kind::Other };
    }
    if fragment != 0 {
        let id = w.load::<u16, 18>() as u32;
        return fragmented(packet, env, out, id, fragment & 0x1fffu16.to_be() == 0);
    }
    transport(packet, out)
}

/// IPv6 (RFC 8200).
#[inline(always)]
pub fn ipv6<P: Packet, E: Env>(packet: &mut P, env: &E, out: &mut Parsed<V6>) -> Kind {
    let len = packet.len();
    let Some(w) = packet.window::<54>(0) else { return Kind::Odd(Reason::Truncated) };
    if w.load::<u8, 14>() >> 4 != 6 {
        return Kind::Odd(Reason::Malformed);
    }
    let payload = u16::from_be(w.load::<u16, 18>()) as u32;
    let next: u8 = w.load::<u8, 20>();
    out.key.src = [w.load::<u32, 22>(), w.load::<u32, 26>(), w.load::<u32, 30>(), w.load::<u32, 34>()];
    out.key.dst = [w.load::<u32, 38>(), w.load::<u32, 42>(), w.load::<u32, 46>(), w.load::<u32, 50>()];
    out.flags = 0;
    out.fragment = false;
    out.first_fragment = None;
    // A payload length of 0 is a jumbogram (RFC 2675) or a BIG TCP packet: the frame's length counts.
    out.ip_len = if payload == 0 { len - ETHERNET as u32 } else { payload + 40 };
    if out.ip_len + ETHERNET as u32 > len {
        return Kind::Odd(Reason::Truncated);
    }
    out.l4 = 54;
    out.key.proto = next as u32;
    if next == TCP || next == UDP {
        return transport(packet, out);
    }
    if next == ICMPV6 {
        return Kind::Icmp;
    }
    if next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != DESTINATION {
        return Kind::Other;
    }
    let mut place = Extension { next, at: 54, fragment_id: 0, fragment: 0 };
    if extensions(packet, &mut place) == 0 {
        return Kind::Odd(Reason::ExtensionHeader);
    }
    out.l4 = place.at;
    out.key.proto = place.next as u32;
    out.fragment = place.fragment != 0;
    if place.next != TCP && place.next != UDP {
        return if place.next == ICMPV6 && place.fragment == 0 { Kind::Icmp } else { Kind::Other };
    }
    if out.fragment {
        return fragmented(packet, env, out, place.fragment_id, place.fragment & 0xfff8 == 0);
    }
    transport(packet, out)
}

/// Where a walk along the extension headers stands.
struct Extension {
    next: u8,
    at: u32,
    fragment_id: u32,
    /// Offset and flags of the fragment header in host order, with a bit set when there is one.
    fragment: u32,
}

/// Walks to the transport header. 0: too many headers, or too far.
#[inline(never)]
fn extensions<P: Packet>(packet: &mut P, place: &mut Extension) -> u32 {
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        if place.next != HOP_BY_HOP && place.next != ROUTING && place.next != FRAGMENT && place.next != DESTINATION {
            return 1;
        }
        if place.at > MAX_L4 {
            return 0;
        }
        let Some(header) = packet.read::<8>(place.at as usize) else { return 0 };
        if place.next == FRAGMENT {
            let offset = u16::from_be_bytes([header[2], header[3]]) as u32;
            place.fragment = offset | 1 << 16;
            place.fragment_id = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            place.at += 8;
            // An atomic fragment (RFC 6946) is a whole datagram.
            if offset & 0xfff9 == 0 {
                place.fragment = 0;
            } else if offset & 0xfff8 != 0 {
                // What follows is the middle of something: the next header is the transport's.
                place.next = header[0];
                return 1;
            }
        } else {
            place.at += (header[1] as u32 + 1) * 8;
        }
        place.next = header[0];
        i += 1;
    }
    0
}

/// Ports and flags.
#[inline(always)]
fn transport<F: Ip, P: Packet>(packet: &mut P, out: &mut Parsed<F>) -> Kind {
    let l4 = opaque(out.l4);
    if l4 > MAX_L4 {
        return Kind::Odd(Reason::ExtensionHeader);
    }
    if out.key.proto == TCP as u32 {
        let Some(w) = packet.window::<20>(l4 as usize) else { return Kind::Odd(Reason::Truncated) };
        out.key.ports = w.load::<u32, 0>();
        out.flags = w.load::<u8, 13>() & (tcp::FIN | tcp::SYN | tcp::RST | tcp::PSH | tcp::ACK);
    } else {
        let Some(w) = packet.window::<8>(l4 as usize) else { return Kind::Odd(Reason::Truncated) };
        out.key.ports = w.load::<u32, 0>();
    }
    Kind::Transport
}

/// A fragment: the first has the ports and leaves them for the others. Order is not restored: a later fragment that overtakes the
/// first is not ours to hold back.
#[inline(always)]
fn fragmented<F: Ip, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, out: &mut Parsed<F>, id: u32, first: bool) -> Kind {
    if first {
        if let Kind::Odd(reason) = transport(packet, out) {
            return Kind::Odd(reason);
        }
        out.first_fragment = Some(id);
        return Kind::Transport;
    }
    let key = FragmentKey::<F> { src: out.key.src, dst: out.key.dst, id, proto: out.key.proto };
    out.key.ports = 0;
    let Some(ports) = env.fragment(&key) else { return Kind::Odd(Reason::FragmentUnknown) };
    out.key.ports = ports;
    out.l4 = 0;
    Kind::Transport
}
