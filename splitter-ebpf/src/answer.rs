//! Packets that the node sends back itself: TCP resets and "packet too big". TC only; a packet with options or extension headers, or
//! one that cannot be resized, is dropped instead.

use crate::{
    bytes::Packet,
    env::Env,
    packet::{ETHERNET, Ip, Parsed, checksum, ports, tcp},
    verdict::Verdict,
};
use splitter_common::abi::*;

/// Hop limit of answers.
const HOPS: u8 = 64;
const TCP_HEADER: u32 = 20;
/// Bytes of the refused packet's transport header that an ICMP error quotes: a whole TCP header without options, or UDP's.
const QUOTED_TCP: u32 = 20;
const QUOTED_UDP: u32 = 8;

/// How the answers of one IP version look.
pub trait Answer: Ip {
    /// Writes link and network header of a packet back to the sender of this one; `payload` bytes follow.
    fn turn_round<P: Packet>(packet: &mut P, key: &FlowKey<Self>, proto: u8, payload: u32) -> bool
    where
        Self: Sized;
    /// Writes the length of what follows the network header.
    fn set_payload_length<P: Packet>(packet: &mut P, payload: u32) -> bool
    where
        Self: Sized;
    /// Bytes that an ICMP error puts before the quoted packet: network and ICMP header.
    const ERROR: u32;
    /// Writes the ICMP header behind the network header; `quoted` bytes of the old packet follow it.
    fn error_header<P: Packet>(packet: &mut P, key: &FlowKey<Self>, mtu: u32, quoted: u32) -> bool
    where
        Self: Sized;
    const ICMP: u8;
}

/// Resets the sender's connection (RFC 9293, 3.10.7.1).
#[inline(never)]
pub fn reset<F: Answer, P: Packet, E: Env>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let l4 = ETHERNET + F::HEADER;
    if P::XDP {
        return Verdict::PASS;
    }
    if p.flags & tcp::RST != 0 || p.l4 as usize != l4 {
        return Verdict::DROP;
    }
    let Some(old) = packet.read::<20>(l4) else { return Verdict::DROP };
    let seq = u32::from_be_bytes([old[4], old[5], old[6], old[7]]);
    let header = (old[12] >> 4) as u32 * 4;
    let payload = p.ip_len.wrapping_sub(F::HEADER as u32 + header);
    let in_sequence = (p.flags & tcp::SYN != 0) as u32 + (p.flags & tcp::FIN != 0) as u32;
    let mut new = [0u8; 20];
    [new[0], new[1]] = [old[2], old[3]];
    [new[2], new[3]] = [old[0], old[1]];
    if p.flags & tcp::ACK != 0 {
        [new[4], new[5], new[6], new[7]] = [old[8], old[9], old[10], old[11]];
        new[13] = tcp::RST;
    } else {
        [new[8], new[9], new[10], new[11]] = seq.wrapping_add(payload).wrapping_add(in_sequence).to_be_bytes();
        new[13] = tcp::RST | tcp::ACK;
    }
    new[12] = 5 << 4;
    let pending = packet.checksum_pending(l4 + 16);
    let pseudo = pseudo_header::<F>(&p.key, TCP, TCP_HEADER);
    let sum = if pending { checksum::fold(pseudo) } else { !checksum::fold(pseudo + checksum::sum(&new)) };
    [new[16], new[17]] = (sum as u16).to_ne_bytes();
    let written = packet.resize(l4 as u32 + TCP_HEADER) && F::turn_round(packet, &p.key, TCP, TCP_HEADER) && packet.write(l4, &new);
    if !written {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    Verdict::back(packet.ifindex())
}

/// Makes a packet the reset of its receiver's connection: no payload, RST in its sequence. 0: it could not be written.
#[inline(never)]
pub fn become_reset<F: Answer, P: Packet>(packet: &mut P, p: &Parsed<F>) -> u32 {
    let l4 = ETHERNET + F::HEADER;
    if p.flags & tcp::RST != 0 {
        return 1;
    }
    if p.l4 as usize != l4 {
        return 0;
    }
    let Some(mut header) = packet.read::<20>(l4) else { return 0 };
    [header[12], header[13]] = [5 << 4, tcp::RST | tcp::ACK];
    [header[14], header[15], header[16], header[17], header[18], header[19]] = [0; 6];
    let pending = packet.checksum_pending(l4 + 16);
    let pseudo = pseudo_header::<F>(&p.key, TCP, TCP_HEADER);
    let sum = if pending { checksum::fold(pseudo) } else { !checksum::fold(pseudo + checksum::sum(&header)) };
    [header[16], header[17]] = (sum as u16).to_ne_bytes();
    let written = packet.resize(l4 as u32 + TCP_HEADER) && F::set_payload_length(packet, TCP_HEADER) && packet.write(l4, &header);
    written as u32
}

/// Tells the sender the largest packet that fits (RFC 1191, RFC 8201).
#[inline(never)]
pub fn too_big<F: Answer, P: Packet, E: Env>(packet: &mut P, env: &E, p: &Parsed<F>, mtu: u32) -> Verdict {
    env.count(Reason::FragmentationNeeded);
    if p.l4 as usize != ETHERNET + F::HEADER {
        return Verdict::DROP;
    }
    let quoted = F::HEADER as u32 + if p.is_tcp() { QUOTED_TCP } else { QUOTED_UDP };
    let written = packet.resize(ETHERNET as u32 + quoted)
        && packet.insert_after_link(F::ERROR)
        && F::turn_round(packet, &p.key, F::ICMP, F::ERROR - F::HEADER as u32 + quoted)
        && F::error_header(packet, &p.key, mtu, quoted);
    if !written {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    Verdict::back(packet.ifindex())
}

/// Sum of the pseudo-header of an answer: the addresses change places, which a sum does not see.
#[inline(always)]
fn pseudo_header<F: Ip>(key: &FlowKey<F>, proto: u8, len: u32) -> u64 {
    let words = |words: &F::Words| words.as_ref().iter().map(|word| *word as u64).sum::<u64>();
    words(&key.src) + words(&key.dst) + (proto as u16).to_be() as u64 + (len as u16).to_be() as u64
}

/// Sum of the quoted packet, which stands behind the new headers.
#[inline(never)]
fn quoted_sum<P: Packet>(packet: &mut P, at: usize, quoted: u32) -> Option<u64> {
    let mut sum = checksum::sum(&packet.read::<28>(at)?);
    if quoted > 28 {
        sum += checksum::sum(&packet.read::<12>(at + 28)?);
    }
    if quoted > 40 {
        sum += checksum::sum(&packet.read::<8>(at + 40)?);
    }
    if quoted > 48 {
        sum += checksum::sum(&packet.read::<12>(at + 48)?);
    }
    Some(sum)
}

/// Turns the link header round.
#[inline(never)]
fn turn_link<P: Packet>(packet: &mut P) -> bool {
    let (Some(dst), Some(src)) = (packet.read::<6>(0), packet.read::<6>(6)) else { return false };
    packet.write(0, &src) && packet.write(6, &dst)
}

impl Answer for V4 {
    const ERROR: u32 = 28;
    const ICMP: u8 = 1;

    #[inline(always)]
    fn set_payload_length<P: Packet>(packet: &mut P, payload: u32) -> bool {
        let (Some(length), Some(sum)) = (packet.read::<2>(16), packet.read::<2>(24)) else { return false };
        let new = ((20 + payload) as u16).to_be_bytes();
        let difference = checksum::difference(u16::from_ne_bytes(length) as u32, u16::from_ne_bytes(new) as u32);
        let sum = checksum::apply(u16::from_ne_bytes(sum), checksum::fold(difference));
        packet.write(16, &new) && packet.write(24, &sum.to_ne_bytes())
    }

    #[inline(never)]
    fn turn_round<P: Packet>(packet: &mut P, key: &FlowKey<V4>, proto: u8, payload: u32) -> bool {
        let [len0, len1] = ((20 + payload) as u16).to_be_bytes();
        let [s0, s1, s2, s3] = key.dst[0].to_ne_bytes();
        let [d0, d1, d2, d3] = key.src[0].to_ne_bytes();
        let mut ip = [0x45, 0, len0, len1, 0, 0, 0x40, 0, HOPS, proto, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
        [ip[10], ip[11]] = (!checksum::fold(checksum::sum(&ip)) as u16).to_ne_bytes();
        turn_link(packet) && packet.write(ETHERNET, &ip)
    }

    #[inline(never)]
    fn error_header<P: Packet>(packet: &mut P, _key: &FlowKey<V4>, mtu: u32, quoted: u32) -> bool {
        let at = ETHERNET + 20;
        let [m0, m1] = (mtu as u16).to_be_bytes();
        // Destination unreachable, fragmentation needed and DF set.
        let mut icmp = [3, 4, 0, 0, 0, 0, m0, m1];
        let Some(sum) = quoted_sum(packet, at + 8, quoted) else { return false };
        [icmp[2], icmp[3]] = (!checksum::fold(checksum::sum(&icmp) + sum) as u16).to_ne_bytes();
        packet.write(at, &icmp)
    }
}

impl Answer for V6 {
    const ERROR: u32 = 48;
    const ICMP: u8 = 58;

    #[inline(always)]
    fn set_payload_length<P: Packet>(packet: &mut P, payload: u32) -> bool {
        packet.write(18, &(payload as u16).to_be_bytes())
    }

    #[inline(never)]
    fn turn_round<P: Packet>(packet: &mut P, key: &FlowKey<V6>, proto: u8, payload: u32) -> bool {
        let [len0, len1] = (payload as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, len0, len1, proto, HOPS];
        turn_link(packet)
            && packet.write(ETHERNET, &head)
            && packet.write(ETHERNET + 8, &V6::mapped(&key.dst))
            && packet.write(ETHERNET + 24, &V6::mapped(&key.src))
    }

    #[inline(never)]
    fn error_header<P: Packet>(packet: &mut P, key: &FlowKey<V6>, mtu: u32, quoted: u32) -> bool {
        let at = ETHERNET + 40;
        let [m0, m1, m2, m3] = mtu.to_be_bytes();
        let mut icmp = [2, 0, 0, 0, m0, m1, m2, m3];
        let Some(sum) = quoted_sum(packet, at + 8, quoted) else { return false };
        let pseudo = pseudo_header::<V6>(key, V6::ICMP, quoted + 8);
        [icmp[2], icmp[3]] = (!checksum::fold(pseudo + checksum::sum(&icmp) + sum) as u16).to_ne_bytes();
        packet.write(at, &icmp)
    }
}

/// Both ports of a reply.
#[inline(always)]
pub const fn swapped(word: u32) -> u32 {
    ports(crate::packet::destination_port(word), crate::packet::source_port(word))
}
