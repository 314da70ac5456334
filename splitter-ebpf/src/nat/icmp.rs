//! ICMP errors that quote a translated packet (RFC 5508, 4.2): addresses, ports and checksums inside are those that the receiver knows
//! again; then the stack routes the error on. Both ways: from the backend's side to the client, from the client's side to the backend.

use crate::{
    answer::swapped,
    bytes::{Packet, opaque},
    env::{Env, Note, Table, Tables},
    field,
    lb::{Translation, translation_of, unreachable},
    network::Network,
    packet::{Ip, Parsed, checksum},
    place, splice,
    verdict::Verdict,
};
use splitter_common::{
    abi::*,
    filter::{self, Role},
};

/// No sum of differences is this large.
const FAILED: u64 = u64::MAX;

/// How ICMP errors of one IP version look.
pub trait IcmpError: Ip {
    fn is_error(kind: u8) -> bool;
    /// Whether the error says that the addressee cannot be reached, whatever the size of the packet.
    fn refuses(kind: u8, code: u8) -> bool;
    /// Fills the key of the quoted packet, turned round; answers where its transport header lies, `None` when it is not TCP or UDP.
    fn quoted<P: Packet>(packet: &mut P, at: usize, key: &mut FlowKey<Self>) -> Option<u32>
    where
        Self: Sized;
    /// Writes the quoted network header's addresses; answers what that adds to the ICMP checksum.
    fn write_quoted<P: Packet>(packet: &mut P, at: usize, key: &FlowKey<Self>, t: &Translation<Self>) -> Option<u64>
    where
        Self: Sized;
    /// Writes the outer addresses; answers what that adds to the ICMP checksum.
    fn write_outer<P: Packet>(packet: &mut P, old: &FlowKey<Self>, t: &Translation<Self>) -> Option<u64>
    where
        Self: Sized;
}

/// An ICMP packet whose header is at `at`.
#[inline(never)]
pub fn error<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, at: u32) -> Verdict {
    let at = opaque(at);
    if P::XDP || at > 1024 {
        return Verdict::PASS;
    }
    let Some(icmp) = packet.read::<4>(at as usize) else { return Verdict::PASS };
    if !F::is_error(icmp[0]) {
        return Verdict::PASS;
    }
    let Some(scratch) = env.scratch() else { return Verdict::PASS };
    let (key, t) = (place!(scratch.quoted), place!(scratch.translation));
    let Some(l4) = F::quoted(packet, at as usize + 8, key) else { return Verdict::PASS };
    if F::refuses(icmp[0], icmp[1]) && key.proto == TCP as u32 && splice::opens(env, key) {
        field!(scratch.read = l4);
        return Verdict::UNREACHABLE;
    }
    if owner_of(env, key, t) == 0 {
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
    Verdict::PASS
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
        let proto = head[6];
        if head[0] >> 4 != 6 || (proto != TCP && proto != UDP) {
            return None;
        }
        let dst = V6::words(&packet.read::<16>(at + 8)?);
        let src = V6::words(&packet.read::<16>(at + 24)?);
        let ports = u32::from_ne_bytes(packet.read::<4>(at + 40)?);
        *key = FlowKey { src, dst, ports: swapped(ports), proto: proto as u32 };
        Some((at + 40) as u32)
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
