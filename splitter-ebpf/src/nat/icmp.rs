//! ICMP errors that quote a translated packet (RFC 5508, 4.2): addresses, ports and checksums inside are those that the receiver knows
//! again; then the error goes the way that data goes, past the stack: a firewall there has seen nothing of what it is about. Both ways: from
//! the backend's side to the client, from the client's side to the backend.

use crate::{
    answer::swapped,
    bytes::{Packet, opaque},
    env::{Env, Note, Table, Tables},
    field,
    lb::{find_nexthop, translation_of, unreachable},
    network::{IcmpError, Network},
    packet::{Ip, Parsed, Rewrite, checksum, parse::FRAGMENT},
    place, splice,
    state::Translation,
    verdict::Verdict,
};
use splitter_common::{
    abi::*,
    filter::{self, Role},
};

/// No sum of differences is this large.
const FAILED: u64 = u64::MAX;

/// An ICMP packet. `CONTINUE`: it is no error about a packet of ours.
#[inline(never)]
pub fn error<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let at = opaque(p.l4);
    if P::XDP || at > 1024 {
        return Verdict::CONTINUE;
    }
    let Some(icmp) = packet.read::<4>(at as usize) else { return Verdict::CONTINUE };
    if !F::is_error(icmp[0]) {
        return Verdict::CONTINUE;
    }
    let Some(scratch) = env.scratch() else { return Verdict::CONTINUE };
    let (key, t) = (place!(scratch.quoted), place!(scratch.translation));
    let Some(l4) = F::quoted(packet, at as usize + 8, key) else { return Verdict::CONTINUE };
    if F::refuses(icmp[0], icmp[1]) && key.proto == TCP as u32 && splice::opens::<F, P, E>(env, key) {
        field!(scratch.read = l4);
        return Verdict::UNREACHABLE;
    }
    if owner_of(env, key, t) == 0 {
        return Verdict::CONTINUE;
    }
    if t.nexthop == VIA_STACK as u32 && t.reverse != P::EGRESS {
        // On its way through the stack, which knows what it is about; it is translated where the flow is.
        return Verdict::PASS;
    }
    if F::refuses(icmp[0], icmp[1]) && t.reverse && unreachable(packet, env, key, t) != 0 {
        return Verdict::DROP;
    }
    let old_checksum = u16::from_ne_bytes([icmp[2], icmp[3]]);
    let mut delta = translate(packet, p, key, t, at | l4 << 16);
    if delta != FAILED && key.proto == TCP as u32 {
        delta = renumber(packet, l4, delta, field!(scratch.renumber));
    }
    if delta == FAILED {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    let new = checksum::apply(old_checksum, checksum::fold(delta));
    packet.write(at as usize + 2, &new.to_ne_bytes());
    env.count(Reason::IcmpTranslated);
    if env.speaks() {
        env.note(Note::Icmp, 0, (icmp[0] as u32) << 8 | icmp[1] as u32);
    }
    send(packet, env, p, t)
}

/// Sends a translated error on; what the stack has to route, deliver or refuse goes there. At egress it is on its way already.
#[inline(never)]
fn send<F: Network, P: Packet, E: Env>(packet: &mut P, env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> Verdict {
    if P::EGRESS || t.nexthop == VIA_STACK as u32 || F::hop_limit(packet) <= 1 {
        return Verdict::PASS;
    }
    find_nexthop(packet, env, p.key.proto, t);
    let (mut macs, mut verdict) = ([0; 3], Verdict::neighbour(t.neighbour));
    if t.nexthop != 0 {
        let Some(hop) = env.nexthop(t.nexthop) else { return Verdict::PASS };
        let hop = hop.get();
        if hop.ifindex == 0 || hop.mtu != 0 && p.ip_len > hop.mtu as u32 {
            return Verdict::PASS;
        }
        macs = hop.macs;
        let peer = hop.flags as u32 & iface_flag::PEER != 0;
        verdict = if peer { Verdict::redirect_peer(hop.ifindex) } else { Verdict::redirect(hop.ifindex) };
    } else if t.neighbour == 0 {
        return Verdict::PASS;
    }
    // The addresses are written.
    let rewrite = Rewrite { old_src: &t.src, old_dst: &t.dst, src: &t.src, dst: &t.dst, macs: Some(macs) };
    if !F::rewrite(packet, &rewrite) {
        return Verdict::PASS;
    }
    if F::IPV6 {
        packet.hop_limit_changed();
    }
    verdict
}

/// Finds the flow that the quoted packet belongs to, and its translation.
#[inline(never)]
fn owner_of<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, t: &mut Translation<F>) -> u32 {
    let test = |role, words: &F::Words, port| {
        let (word, bits) = filter::bits(role, words.as_ref(), port, key.proto as u8);
        env.filter_word(word) & bits == bits
    };
    if !test(Role::Backend, &key.src, crate::packet::source_port(key.ports))
        && !test(Role::Frontend, &key.dst, crate::packet::destination_port(key.ports))
    {
        return 0;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    field!(scratch.renumber = 0);
    t.nexthop = 0;
    if key.proto == TCP as u32 && splice::quoted(env, key, t) != 0 {
        return 1;
    }
    let table = if key.proto == TCP as u32 { Table::Tcp } else { Table::Udp };
    let flow = match env.flow(table, key) {
        Some(flow) => flow.get(),
        None => match env.half(key) {
            Some(half) => field!(half.flow),
            None => match env.flow(Table::Closing, key) {
                Some(flow) => flow.get(),
                None => return 0,
            },
        },
    };
    translation_of(env, key, &flow, t) as u32
}

/// Moves the quoted sequence number to the receiver's side of a splice: it tells by it that the error is genuine (RFC 5927, 4.1).
#[inline(always)]
fn renumber<P: Packet>(packet: &mut P, l4: u32, delta: u64, add: u32) -> u64 {
    let at = opaque(l4) as usize + 4;
    if add == 0 || at > 1200 {
        return delta;
    }
    let Some(old) = packet.read::<4>(at) else { return FAILED };
    let new = u32::from_be_bytes(old).wrapping_add(add).to_be_bytes();
    if !packet.write(at, &new) {
        return FAILED;
    }
    delta + checksum::difference(u32::from_ne_bytes(old), u32::from_ne_bytes(new))
}

/// Rewrites everything but the ICMP checksum; answers what that adds to it, or [`FAILED`].
#[inline(never)]
fn translate<F: IcmpError, P: Packet>(packet: &mut P, p: &Parsed<F>, key: &FlowKey<F>, t: &mut Translation<F>, places: u32) -> u64 {
    rewrite(packet, p, key, t, (places & 0xffff) as usize, (places >> 16) as usize).unwrap_or(FAILED)
}

#[inline(always)]
fn rewrite<F: IcmpError, P: Packet>(
    packet: &mut P,
    p: &Parsed<F>,
    key: &FlowKey<F>,
    t: &mut Translation<F>,
    at: usize,
    l4: usize,
) -> Option<u64> {
    // `key` and `t` are turned round: the quoted packet went the other way.
    let (old_ports, new_ports) = (swapped(key.ports), swapped(t.ports));
    let mut delta = F::write_quoted(packet, at + 8, key, t)?;
    delta += checksum::difference(old_ports, new_ports);
    if !packet.write(l4, &new_ports.to_ne_bytes()) {
        return None;
    }
    if key.proto == UDP as u32
        && let Some(old) = packet.read::<2>(l4 + 6)
        && old != [0, 0]
    {
        let addresses = F::difference(&key.src, &t.src) + F::difference(&key.dst, &t.dst);
        let old = u16::from_ne_bytes(old);
        let new = checksum::apply(old, checksum::fold(addresses + checksum::difference(old_ports, new_ports)));
        delta += checksum::difference(old as u32, new as u32);
        if !packet.write(l4 + 6, &new.to_ne_bytes()) {
            return None;
        }
    }
    // The sender is named as the receiver knows it, unless it is a router on the way.
    if p.key.src != key.src {
        t.src = p.key.src;
    }
    Some(delta + F::write_outer(packet, &p.key, t)?)
}

impl IcmpError for V4 {
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem.
        matches!(kind, 3 | 11 | 12)
    }
    #[inline(always)]
    fn refuses(kind: u8, code: u8) -> bool {
        // All but fragmentation needed.
        kind == 3 && code != 4
    }
    #[inline(never)]
    fn quoted<P: Packet>(packet: &mut P, at: usize, key: &mut FlowKey<V4>) -> Option<u32> {
        let ip = packet.read::<20>(at)?;
        let header = (ip[0] & 15) as usize * 4;
        let proto = ip[9];
        if ip[0] >> 4 != 4 || header < 20 || (ip[6] & 0x1f, ip[7]) != (0, 0) || (proto != TCP && proto != UDP) {
            return None;
        }
        let ports = u32::from_ne_bytes(packet.read::<4>(at + header)?);
        let src = [u32::from_ne_bytes([ip[16], ip[17], ip[18], ip[19]])];
        let dst = [u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]])];
        *key = FlowKey { src, dst, ports: swapped(ports), proto: proto as u32 };
        Some((at + header) as u32)
    }
    #[inline(never)]
    fn write_quoted<P: Packet>(packet: &mut P, at: usize, key: &FlowKey<V4>, t: &Translation<V4>) -> Option<u64> {
        let addresses = V4::difference(&key.src, &t.src) + V4::difference(&key.dst, &t.dst);
        let old = u16::from_ne_bytes(packet.read::<2>(at + 10)?);
        let new = checksum::apply(old, checksum::fold(addresses));
        let written = packet.write(at + 10, &new.to_ne_bytes())
            && packet.write(at + 12, &t.dst[0].to_ne_bytes())
            && packet.write(at + 16, &t.src[0].to_ne_bytes());
        written.then_some(addresses + checksum::difference(old as u32, new as u32))
    }
    #[inline(always)]
    fn write_outer<P: Packet>(packet: &mut P, old: &FlowKey<V4>, t: &Translation<V4>) -> Option<u64> {
        let (src, dst) = (&t.src, &t.dst);
        let sum = u16::from_ne_bytes(packet.read::<2>(24)?);
        let new = checksum::apply(sum, checksum::fold(V4::difference(&old.src, src) + V4::difference(&old.dst, dst)));
        let written =
            packet.write(24, &new.to_ne_bytes()) && packet.write(26, &src[0].to_ne_bytes()) && packet.write(30, &dst[0].to_ne_bytes());
        // ICMP has no pseudo-header.
        written.then_some(0)
    }
}

impl IcmpError for V6 {
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        matches!(kind, 1..=4)
    }
    #[inline(always)]
    fn refuses(kind: u8, _code: u8) -> bool {
        kind == 1
    }
    #[inline(never)]
    fn quoted<P: Packet>(packet: &mut P, at: usize, key: &mut FlowKey<V6>) -> Option<u32> {
        let head = packet.read::<8>(at)?;
        let (mut proto, mut ports) = (head[6], at + 40);
        if head[0] >> 4 != 6 {
            return None;
        }
        if proto == FRAGMENT {
            // Of a datagram in fragments the first one, which has the ports; receivers know no other again either.
            let fragment = packet.read::<8>(ports)?;
            if (fragment[2], fragment[3] & 0xf8) != (0, 0) {
                return None;
            }
            proto = fragment[0];
            ports += 8;
        }
        if proto != TCP && proto != UDP {
            return None;
        }
        let dst = V6::words(&packet.read::<16>(at + 8)?);
        let src = V6::words(&packet.read::<16>(at + 24)?);
        let word = u32::from_ne_bytes(packet.read::<4>(ports)?);
        *key = FlowKey { src, dst, ports: swapped(word), proto: proto as u32 };
        Some(ports as u32)
    }
    #[inline(never)]
    fn write_quoted<P: Packet>(packet: &mut P, at: usize, key: &FlowKey<V6>, t: &Translation<V6>) -> Option<u64> {
        let written = packet.write(at + 8, &V6::mapped(&t.dst)) && packet.write(at + 24, &V6::mapped(&t.src));
        written.then_some(V6::difference(&key.src, &t.src) + V6::difference(&key.dst, &t.dst))
    }
    #[inline(always)]
    fn write_outer<P: Packet>(packet: &mut P, old: &FlowKey<V6>, t: &Translation<V6>) -> Option<u64> {
        let (src, dst) = (&t.src, &t.dst);
        let written = packet.write(22, &V6::mapped(src)) && packet.write(38, &V6::mapped(dst));
        // ICMPv6 has a pseudo-header.
        written.then_some(V6::difference(&old.src, src) + V6::difference(&old.dst, dst))
    }
}
