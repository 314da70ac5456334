//! Packets that the node writes itself: the packet in hand becomes another one, whole. TC only.

use super::{
    segment::{STAMPS_LAYOUT, Segment},
    way,
};
use crate::{
    bytes::{Packet, Ref},
    env::{Env, Tables},
    field,
    network::{Answer, Network},
    packet::{ETHERNET, Ip, Parsed, checksum, tcp},
    place,
    state::{Out, Stamps},
    verdict::Verdict,
};
use splitter_common::{abi::*, http::HeadText};

const HEADER: u32 = 20;
/// Options of a SYN: segment size, window scale, SACK permitted, padded.
const SYN_OPTIONS: u32 = 12;

/// Timestamps, with two NOPs before them.
pub const STAMPS: u32 = 12;

/// Turns the packet in hand into `out`, with the link header of an answer to it. 0: it could not be written.
#[inline(never)]
pub fn emit<F: Answer, P: Packet>(packet: &mut P, p: &Parsed<F>, out: &Out<F>, text: &HeadText) -> u32 {
    let l4 = ETHERNET + F::HEADER;
    if p.l4 as usize != l4 {
        return 0;
    }
    let syn = out.flags & tcp::SYN != 0;
    let stamped = out.options & tcp_option::STAMPS != 0;
    let plain = if syn { HEADER + SYN_OPTIONS } else { HEADER };
    let header = if stamped { plain + STAMPS } else { plain };
    let tcp_len = header + out.len;
    let pending = packet.checksum_pending(l4 + 16);
    if !packet.resize(l4 as u32 + tcp_len) {
        return 0;
    }
    // An answer's addresses change places.
    let key = FlowKey::<F> { src: out.dst, dst: out.src, ports: 0, proto: TCP as u32 };
    if !F::turn_round(packet, &key, TCP, tcp_len) {
        return 0;
    }
    let mut sum = words(out.src.as_ref()) + words(out.dst.as_ref()) + (TCP as u16).to_be() as u64 + (tcp_len as u16).to_be() as u64;
    if !pending {
        sum += words(&[out.ports, out.seq.to_be(), out.ack.to_be()]);
        sum += u16::from_ne_bytes([(header << 2) as u8, out.flags]) as u64 + out.window.to_be() as u64;
        if out.len != 0 {
            sum += P::sum(text, out.offset, out.len);
        }
    }
    if syn {
        let options = syn_options(out);
        if !pending {
            sum += checksum::sum(&options);
        }
        if !packet.write(l4 + HEADER as usize, &options) {
            return 0;
        }
    }
    if stamped {
        let option = stamps_option(&out.stamps);
        if !pending {
            sum += checksum::sum(&option);
        }
        if !packet.write(l4 + plain as usize, &option) {
            return 0;
        }
    }
    let sum = checksum::fold(sum);
    if !packet.write(l4, &header_bytes(out, header, if pending { sum } else { !sum })) {
        return 0;
    }
    if out.len == 0 {
        return 1;
    }
    packet.copy_out(l4 as u32 + header, text, out.offset, out.len) as u32
}

#[inline(always)]
fn words(words: &[u32]) -> u64 {
    words.iter().map(|word| *word as u64).sum()
}

#[inline(always)]
fn header_bytes<F: Family>(out: &Out<F>, header: u32, sum: u32) -> [u8; 20] {
    let [p0, p1, p2, p3] = out.ports.to_ne_bytes();
    let [s0, s1, s2, s3] = out.seq.to_be_bytes();
    let [a0, a1, a2, a3] = out.ack.to_be_bytes();
    let [w0, w1] = out.window.to_be_bytes();
    let [c0, c1] = (sum as u16).to_ne_bytes();
    [p0, p1, p2, p3, s0, s1, s2, s3, a0, a1, a2, a3, (header << 2) as u8, out.flags, w0, w1, c0, c1, 0, 0]
}

#[inline(always)]
fn syn_options<F: Family>(out: &Out<F>) -> [u8; 12] {
    let [m0, m1] = out.mss.to_be_bytes();
    let scale = if out.options & tcp_option::SCALE != 0 { [1, 3, 3, out.scale] } else { [1; 4] };
    let sack = if out.options & tcp_option::SACK != 0 { [1, 1, 4, 2] } else { [1; 4] };
    [2, 4, m0, m1, scale[0], scale[1], scale[2], scale[3], sack[0], sack[1], sack[2], sack[3]]
}

#[inline(always)]
fn stamps_option(stamps: &Stamps) -> [u8; 12] {
    let [n0, n1, kind, len] = STAMPS_LAYOUT;
    let [v0, v1, v2, v3] = stamps.val.to_be_bytes();
    let [e0, e1, e2, e3] = stamps.ecr.to_be_bytes();
    [n0, n1, kind, len, v0, v1, v2, v3, e0, e1, e2, e3]
}

/// Fills `out` with an answer to the packet in hand, without payload and timestamps.
#[inline(always)]
pub fn answer_to<F: Ip>(p: &Parsed<F>, out: &mut Out<F>, seq: u32, ack: u32, flags: u8, window: u16) {
    out.src = p.key.dst;
    out.dst = p.key.src;
    out.ports = crate::answer::swapped(p.key.ports);
    (out.seq, out.ack, out.flags, out.window) = (seq, ack, flags, window);
    (out.options, out.offset, out.len) = (0, 0, 0);
}

/// Timestamps of what the node says to a client itself: the other side's clock as the client has last heard it.
#[inline(always)]
pub fn stamp_from<F: Family>(out: &mut Out<F>, entry: Ref<Spliced<F>>) {
    out.options = field!(entry.options) & tcp_option::STAMPS;
    out.stamps = Stamps { val: field!(entry.ts_ecr), ecr: field!(entry.ts_val) };
}

/// An acknowledgement as an answer to the packet in hand. When that has timestamps, they change places: the sender hears of its clock, and
/// of the other side's what it has said that it knows.
#[inline(always)]
pub fn acknowledge<F: Ip, P: Packet>(packet: &mut P, p: &Parsed<F>, segment: &Segment, out: &mut Out<F>, seq: u32, ack: u32, window: u16) {
    answer_to(p, out, seq, ack, tcp::ACK, window);
    if let Some(stamps) = Stamps::read(packet, segment) {
        out.options = tcp_option::STAMPS;
        out.stamps = Stamps { val: stamps.ecr, ecr: stamps.val };
    }
}

/// The packet in hand becomes `scratch.out`, and goes back to its sender (`ANSWER`) or by the way of the translation (`SEND`, `SEND_BEHIND`).
#[inline(never)]
pub fn finish<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, step: Verdict) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::DROP };
    if emit(packet, p, place!(scratch.out), place!(scratch.text)) == 0 {
        env.count(Reason::WriteFailed);
        return Verdict::DROP;
    }
    if step == Verdict::ANSWER {
        return Verdict::back(packet.ifindex());
    }
    if P::EGRESS && place!(scratch.out).dst == p.key.dst {
        return way::on::<F, P, E>(packet, env);
    }
    let verdict = way::send(packet, env, place!(scratch.translation));
    if step == Verdict::SEND_BEHIND { way::behind::<F, P, E>(packet, env, verdict) } else { verdict }
}
