//! Packets that the node sends back itself: TCP resets, ICMP errors, echo replies. TC only; a packet with options or extension headers, or
//! one that cannot be resized, is dropped instead.

use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field,
    network::Answer,
    packet::{ETHERNET, Ip, Parsed, checksum, ports, tcp},
    place,
    verdict::Verdict,
};
use splitter_common::abi::*;

/// Hop limit of answers.
const HOPS: u8 = 64;
const TCP_HEADER: u32 = 20;
/// Bytes of the refused packet's transport header that an ICMP error quotes: a whole TCP header without options, or UDP's.
const QUOTED_TCP: u32 = 20;
const QUOTED_UDP: u32 = 8;
/// Bytes of IPv6's fragment header.
const FRAGMENT_HEADER: u32 = 8;

/// ICMP errors that a CPU sends in a second (of 2^30 ns), but those about sizes, which every sender needs (RFC 1812, 4.3.2.8; RFC 4443, 2.4).
const ERRORS: u32 = 1_000;

/// ICMP errors; what is below is an MTU.
pub mod error {
    /// Nobody serves the port.
    pub const PORT: u32 = 1 << 16;
    /// Nobody serves the protocol.
    pub const PROTOCOL: u32 = 2 << 16;
    /// The hop limit ends here.
    pub const EXPIRED: u32 = 3 << 16;
}

/// Resets the sender's connection (RFC 9293, 3.10.7.1).
#[inline(never)]
pub fn reset<F: Answer, P: Packet, E: Env>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let l4 = ETHERNET + F::HEADER;
    if P::XDP {
        return Verdict::PASS;
    }
    let old = if p.flags & tcp::RST != 0 || p.l4 as usize != l4 { None } else { packet.read::<20>(l4) };
    let Some(old) = old else { return unanswerable(env) };
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
pub fn become_reset<F: Answer, P: Packet, E: Env>(packet: &mut P, env: &E, p: &Parsed<F>) -> u32 {
    let l4 = ETHERNET + F::HEADER;
    if p.flags & tcp::RST != 0 {
        return 1;
    }
    let header = if p.l4 as usize == l4 { packet.read::<20>(l4) } else { None };
    let Some(mut header) = header else {
        env.count(Reason::Unanswerable);
        return 0;
    };
    [header[12], header[13]] = [5 << 4, tcp::RST | tcp::ACK];
    [header[14], header[15], header[16], header[17], header[18], header[19]] = [0; 6];
    let pending = packet.checksum_pending(l4 + 16);
    let pseudo = pseudo_header::<F>(&p.key, TCP, TCP_HEADER);
    let sum = if pending { checksum::fold(pseudo) } else { !checksum::fold(pseudo + checksum::sum(&header)) };
    [header[16], header[17]] = (sum as u16).to_ne_bytes();
    let written = packet.resize(l4 as u32 + TCP_HEADER) && F::set_payload_length(packet, TCP_HEADER) && packet.write(l4, &header);
    if !written {
        env.count(Reason::WriteFailed);
    }
    written as u32
}

/// Tells the sender why its packet goes no further (RFC 792, RFC 1191, RFC 4443, RFC 8201). `what`: the largest packet that fits, or one of [`mod@error`].
#[inline(never)]
pub fn error<F: Answer, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, what: u32) -> Verdict {
    if what < error::PORT {
        env.count(Reason::FragmentationNeeded);
    } else if what == error::EXPIRED {
        env.count(Reason::TtlExpired);
    }
    let Some(quoted) = quotable(p).filter(|_| what < error::PORT || F::answerable(&p.key.src)) else { return unanswerable(env) };
    if what >= error::PORT && limited(env) {
        return Verdict::DROP;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    let key = place!(scratch.quoted);
    *key = p.key;
    if what == error::EXPIRED {
        // A hop on the way names itself; the VIP is what comes behind it.
        key.dst = node_address(packet, env, &p.key);
    }
    let written = packet.resize(ETHERNET as u32 + quoted)
        && packet.insert_after_link(F::ERROR)
        && F::turn_round(packet, key, F::ICMP, F::ERROR - F::HEADER as u32 + quoted)
        && F::error_header(packet, key, what, quoted);
    if !written {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    Verdict::back(packet.ifindex())
}

/// The end of a packet that cannot be answered.
#[inline(always)]
fn unanswerable<E: Env>(env: &E) -> Verdict {
    env.count(Reason::Unanswerable);
    Verdict::DROP
}

/// Bytes of a packet that an error quotes; `None`: it cannot be answered.
#[inline(always)]
fn quotable<F: Answer>(p: &Parsed<F>) -> Option<u32> {
    // IPv6's first fragment is quoted with its fragment header; later ones are not: their sender would not know them again.
    let l4 = (ETHERNET + F::HEADER) as u32;
    if p.l4 != l4 && !(F::IPV6 && p.first_fragment.is_some() && p.l4 == l4 + FRAGMENT_HEADER) {
        return None;
    }
    let quoted = p.l4 - ETHERNET as u32 + if p.is_tcp() { QUOTED_TCP } else { QUOTED_UDP };
    (quoted <= p.ip_len).then_some(quoted)
}

/// The node's address where a packet came in; the packet's own destination where it has none.
#[inline(never)]
fn node_address<F: Answer, P: Packet, E: Env>(packet: &mut P, env: &E, key: &FlowKey<F>) -> F::Words {
    let Some(iface) = env.iface(packet.ifindex()) else { return key.dst };
    let found = F::address(iface);
    if found.as_ref().iter().all(|word| *word == 0) { key.dst } else { found }
}

/// Whether this CPU has sent as many errors as a second may have.
#[inline(never)]
fn limited<E: Env>(env: &E) -> bool {
    let Some(sent) = env.errors() else { return true };
    let second = (env.now() >> 30) as u32;
    let [before, count] = sent.get();
    let count = if before == second { count } else { 0 };
    if count >= ERRORS {
        env.count(Reason::ErrorsLimited);
        return true;
    }
    sent.set([second, count + 1]);
    false
}

/// Answers an echo request. The caller has seen that it is one.
#[inline(never)]
pub fn echo<F: Answer, P: Packet, E: Env>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let at = ETHERNET + F::HEADER;
    let old = if p.l4 as usize != at || !F::answerable(&p.key.src) { None } else { packet.read::<4>(at) };
    let Some(old) = old else { return unanswerable(env) };
    let [request, reply] = F::ECHO;
    let difference = checksum::difference(u16::from_ne_bytes([request, 0]) as u32, u16::from_ne_bytes([reply, 0]) as u32);
    let [a, b] = (checksum::apply(u16::from_ne_bytes([old[2], old[3]]), checksum::fold(difference))).to_ne_bytes();
    let length = p.ip_len.wrapping_sub(F::HEADER as u32);
    if !packet.write(at, &[reply, 0, a, b]) || !F::turn_round(packet, &p.key, F::ICMP, length) {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    env.count(Reason::VipPing);
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
    if quoted > 56 {
        sum += checksum::sum(&packet.read::<12>(at + 48)?);
    }
    if quoted == 56 || quoted == 68 {
        // With a fragment header.
        sum += checksum::sum(&packet.read::<8>(at + quoted as usize - 8)?);
    }
    Some(sum)
}

/// Turns the link header round.
#[inline(never)]
pub fn turn_link<P: Packet>(packet: &mut P) -> bool {
    let (Some(dst), Some(src)) = (packet.read::<6>(0), packet.read::<6>(6)) else { return false };
    packet.write(0, &src) && packet.write(6, &dst)
}

impl Answer for V4 {
    const ERROR: u32 = 28;
    const ICMP: u8 = 1;
    const ECHO: [u8; 2] = [8, 0];

    #[inline(always)]
    fn address(iface: Ref<Iface>) -> [u32; 1] {
        [u32::from_ne_bytes(field!(iface.addr4))]
    }
    #[inline(always)]
    fn answerable(words: &[u32; 1]) -> bool {
        let first = words[0].to_ne_bytes()[0];
        first != 0 && first != 127 && first < 224
    }

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
    fn error_header<P: Packet>(packet: &mut P, _key: &FlowKey<V4>, what: u32, quoted: u32) -> bool {
        let at = ETHERNET + 20;
        let [m0, m1] = (what as u16).to_be_bytes();
        let (kind, code) = match what {
            error::PORT => (3, 3),
            error::PROTOCOL => (3, 2),
            error::EXPIRED => (11, 0),
            // Destination unreachable, fragmentation needed and DF set.
            _ => (3, 4),
        };
        let mut icmp = [kind, code, 0, 0, 0, 0, m0, m1];
        let Some(sum) = quoted_sum(packet, at + 8, quoted) else { return false };
        [icmp[2], icmp[3]] = (!checksum::fold(checksum::sum(&icmp) + sum) as u16).to_ne_bytes();
        packet.write(at, &icmp)
    }
}

impl Answer for V6 {
    const ERROR: u32 = 48;
    const ICMP: u8 = 58;
    const ECHO: [u8; 2] = [128, 129];

    #[inline(always)]
    fn address(iface: Ref<Iface>) -> [u32; 4] {
        V6::words(&field!(iface.addr6))
    }
    #[inline(always)]
    fn answerable(words: &[u32; 4]) -> bool {
        words[0].to_ne_bytes()[0] != 0xff && words.iter().any(|word| *word != 0)
    }

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
    fn error_header<P: Packet>(packet: &mut P, key: &FlowKey<V6>, what: u32, quoted: u32) -> bool {
        let at = ETHERNET + 40;
        let (kind, code, word) = match what {
            error::PORT => (1, 4, 0),
            // A parameter problem, whose place is the next header.
            error::PROTOCOL => (4, 1, 6),
            error::EXPIRED => (3, 0, 0),
            _ => (2, 0, what),
        };
        let [m0, m1, m2, m3] = u32::to_be_bytes(word);
        let mut icmp = [kind, code, 0, 0, m0, m1, m2, m3];
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
