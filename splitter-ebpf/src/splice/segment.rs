//! What the splice reads of a TCP header (RFC 9293, 3.1), and its options.

use crate::{
    bytes::{Packet, within},
    env::KernelLoop,
    packet::{ETHERNET, Ip, Parsed, tcp},
    state::Stamps,
};
use splitter_common::{
    abi::{LOCAL_SCALE, tcp_option},
    http::Loop,
};

/// A TCP segment. Numbers in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    /// Offset of the payload from the link header, and its length.
    pub at: u32,
    pub len: u32,
    /// As it stands in the header: not scaled.
    pub window: u16,
    /// FIN, SYN, RST, PSH, ACK.
    pub flags: u8,
    /// Length of the header, bytes.
    pub header: u8,
}

impl Segment {
    /// `None`: the header is impossible or not in reach.
    #[inline(always)]
    pub fn read<F: Ip, P: Packet>(packet: &mut P, p: &Parsed<F>) -> Option<Self> {
        let l4 = within::<1024>(p.l4)?;
        let w = packet.window::<20>(l4 as usize)?;
        let header = w.load::<u8, 12>() >> 2 & 0x3c;
        let at = l4 + header as u32;
        let end = p.ip_len + ETHERNET as u32;
        if header < 20 || at > end {
            return None;
        }
        let (seq, ack, window) = (w.load::<u32, 4>(), w.load::<u32, 8>(), w.load::<u16, 14>());
        Some(Self {
            seq: u32::from_be(seq),
            ack: u32::from_be(ack),
            at,
            len: end - at,
            window: u16::from_be(window),
            flags: p.flags,
            header,
        })
    }

    /// Sequence number after the payload; a FIN is one more.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len)
    }
    #[inline(always)]
    pub const fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
    /// A SYN that opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

/// What the option begins with, behind two NOPs: how RFC 7323, appendix A, has it laid out, and how all common stacks send it behind
/// the handshake.
pub const STAMPS_LAYOUT: [u8; 4] = [1, 1, 8, 10];

impl Stamps {
    /// Of a segment behind the handshake. `None`: it has none.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &mut P, segment: &Segment) -> Option<Self> {
        if segment.header < 32 {
            return None;
        }
        let options = segment.at.wrapping_sub(segment.header as u32).wrapping_add(20);
        if options > 1024 {
            return None;
        }
        let w = packet.window::<12>(options as usize)?;
        if w.load::<[u8; 4], 0>() != STAMPS_LAYOUT {
            return None;
        }
        let (val, ecr) = (w.load::<u32, 4>(), w.load::<u32, 8>());
        Some(Self { val: u32::from_be(val), ecr: u32::from_be(ecr) })
    }
}

/// Whether `a` comes after `b` in sequence space.
#[inline(always)]
pub const fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Farthest that data lies from what was seen: the largest window that clients are told, 8 MB. A backend's data may be farther behind.
pub const REACH: u32 = 0xffff << LOCAL_SCALE;

/// Whether a number lies at most [`REACH`] before or behind another one.
#[inline(always)]
pub const fn is_near(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).wrapping_add(REACH) <= 2 * REACH
}

/// With the options of a SYN, as [`options`] has them: the segment continues a handshake. See [`super::cookie::open`].
pub const OPENS: u32 = 1 << 31;

/// Options of a SYN: maximum segment size in the low half (0: not said), window scale in bits 16 to 19, [`tcp_option`] bits above 24. Timestamps,
/// when there are any, go to `stamps`.
#[inline(never)]
pub fn options<P: Packet>(packet: &mut P, segment: &Segment, stamps: &mut Stamps) -> u32 {
    let (start, end) = (segment.at.wrapping_sub(segment.header as u32), segment.header as u32);
    let (mut at, mut found) = (20, 0u32);
    KernelLoop::repeat(16, |_| {
        if at >= end {
            return true;
        }
        // The last option may end the packet: no more is read than it has.
        let place = start.wrapping_add(at) as usize;
        let Some([kind, len]) = packet.read::<2>(place) else { return true };
        if kind == 1 {
            at += 1;
            return false;
        }
        if kind == 0 || len < 2 {
            return true;
        }
        match kind {
            2 => {
                let Some(size) = packet.read::<2>(place + 2) else { return true };
                found |= u16::from_be_bytes(size) as u32;
            }
            3 => {
                let Some([scale]) = packet.read::<1>(place + 2) else { return true };
                found |= (tcp_option::SCALE as u32) << 24 | (if scale > 14 { 14 } else { scale as u32 }) << 16;
            }
            4 => found |= (tcp_option::SACK as u32) << 24,
            8 => {
                let Some(option) = packet.read::<8>(place + 2) else { return true };
                let [v0, v1, v2, v3, e0, e1, e2, e3] = option;
                *stamps = Stamps { val: u32::from_be_bytes([v0, v1, v2, v3]), ecr: u32::from_be_bytes([e0, e1, e2, e3]) };
                found |= (tcp_option::STAMPS as u32) << 24;
            }
            _ => {}
        }
        at += len as u32;
        false
    });
    found
}
