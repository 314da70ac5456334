//! Moving TCP numbers from one side of a splice to the other: sequence, acknowledgement, SACK blocks (RFC 2018), window and
//! timestamps (RFC 7323).

use super::segment::STAMPS_LAYOUT;
use crate::{
    bytes::{Packet, Window},
    nat::Renumber,
    packet::{checksum, tcp},
};

/// What is added, modulo 2^32, and how far the window is shifted (negative: right). `CLIENT`: whose segment it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers<const CLIENT: bool> {
    pub seq: u32,
    pub ack: u32,
    pub shift: i32,
    /// To TSecr of a client, to TSval of a backend: clients' clocks go through as they are.
    pub stamp: u32,
}

impl<const CLIENT: bool> Renumber for Numbers<CLIENT> {
    #[inline(always)]
    fn apply<P: Packet>(&self, packet: &mut P, l4: u32) -> u64 {
        let Some(mut w) = packet.window::<20>(l4 as usize) else { return 0 };
        let mut difference = 0;
        let (seq, ack) = (w.load::<u32, 4>(), w.load::<u32, 8>());
        if self.seq != 0 {
            let new = u32::from_be(seq).wrapping_add(self.seq).to_be();
            w.store::<u32, 4>(new);
            difference += checksum::difference(seq, new);
        }
        if self.ack != 0 && w.load::<u8, 13>() & tcp::ACK != 0 {
            let new = u32::from_be(ack).wrapping_add(self.ack).to_be();
            w.store::<u32, 8>(new);
            difference += checksum::difference(ack, new);
        }
        if CLIENT {
            difference += not_urgent(&mut w);
        }
        let window = w.load::<u16, 14>();
        if self.shift != 0 && window != 0 {
            let new = scaled(u16::from_be(window), self.shift).to_be();
            w.store::<u16, 14>(new);
            difference += !window as u64 + new as u64;
        }
        // Shorter options are neither timestamps nor SACK.
        let header = w.load::<u8, 12>() >> 2 & 0x3c;
        if header >= 32 {
            difference += self.options(packet, l4 as usize + 20, header > 32);
        }
        difference
    }
}

/// Takes the urgent pointer from a client's segment (RFC 9293, 3.1; RFC 6093): a backend's system takes the byte that it points at out of the data, and
/// would read another head than was read here.
#[inline(always)]
fn not_urgent(w: &mut Window<'_, 20>) -> u64 {
    let (flags, pointer) = (w.load::<u8, 13>(), w.load::<u16, 18>());
    if flags & tcp::URG == 0 && pointer == 0 {
        return 0;
    }
    let old: u16 = w.load::<u16, 12>();
    w.store::<u8, 13>(flags & !tcp::URG);
    w.store::<u16, 18>(0);
    let new: u16 = w.load::<u16, 12>();
    !old as u64 + new as u64 + !pointer as u64
}

impl<const CLIENT: bool> Numbers<CLIENT> {
    /// The layouts that every common stack sends are known: two NOPs and the timestamps, two NOPs and SACK, or one behind the other.
    #[inline(always)]
    fn options<P: Packet>(&self, packet: &mut P, at: usize, more: bool) -> u64 {
        let Some(mut w) = packet.window::<12>(at) else { return 0 };
        if w.load::<[u8; 4], 0>() != STAMPS_LAYOUT {
            return if self.ack != 0 { sack(packet, at, self.ack) } else { 0 };
        }
        let mut difference = 0;
        if self.stamp != 0 {
            let old = if CLIENT { w.load::<u32, 8>() } else { w.load::<u32, 4>() };
            let new = u32::from_be(old).wrapping_add(self.stamp).to_be();
            if CLIENT {
                w.store::<u32, 8>(new);
            } else {
                w.store::<u32, 4>(new);
            }
            difference += checksum::difference(old, new);
        }
        if self.ack != 0 && more {
            difference += sack(packet, at + 12, self.ack);
        }
        difference
    }
}

/// A window as the other side scales it, rounded down.
#[inline(always)]
const fn scaled(window: u16, shift: i32) -> u16 {
    let window = window as u32;
    let new = if shift >= 0 { window << (shift & 15) } else { window >> (-shift & 15) };
    if new > 0xffff { 0xffff } else { new as u16 }
}

/// Moves the edges of SACK blocks, when the options at `at` are two NOPs and SACK.
#[inline(always)]
fn sack<P: Packet>(packet: &mut P, at: usize, add: u32) -> u64 {
    let Some(w) = packet.window::<4>(at) else { return 0 };
    let [_, _, kind, len] = w.load::<[u8; 4], 0>();
    if kind != 5 || len < 10 {
        return 0;
    }
    let edges = (len as u32 - 2) / 4;
    let mut difference = 0;
    let mut i = 0;
    while i < 8 {
        if i >= edges {
            break;
        }
        let Some(mut w) = packet.window::<4>(at + 4 + 4 * i as usize) else { break };
        let old = w.load::<u32, 0>();
        let new = u32::from_be(old).wrapping_add(add).to_be();
        w.store::<u32, 0>(new);
        difference += checksum::difference(old, new);
        i += 1;
    }
    difference
}
