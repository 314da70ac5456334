//! What differs between IPv4 and IPv6: where addresses lie and how they are written.

use super::{ETHERNET, checksum};
use crate::bytes::Packet;
use splitter_common::abi::{Addr, Family, V4, V6, mapped};

/// New addresses of a packet that is rewritten.
#[derive(Clone, Copy)]
pub struct Rewrite<'a, F: Family> {
    pub old_src: &'a F::Words,
    pub old_dst: &'a F::Words,
    pub src: &'a F::Words,
    pub dst: &'a F::Words,
    /// Link header: destination, then source; `None` leaves it, and the hop limit too: the stack will forward.
    pub macs: Option<[u32; 3]>,
}

/// One IP version.
pub trait Ip: Family {
    /// Length of the header without options, bytes.
    const HEADER: usize;

    fn mapped(words: &Self::Words) -> Addr;
    /// The inverse; the address must be of this family.
    fn words(addr: &Addr) -> Self::Words;
    /// For [`crate::bytes::RouteQuery`].
    fn query(words: &Self::Words) -> [u32; 4];
    /// Whether the header's own checksum holds.
    fn header_holds<P: Packet>(packet: &mut P) -> bool;
    /// TTL or hop limit.
    fn hop_limit<P: Packet>(packet: &mut P) -> u8;
    /// Whether routers must not cut this packet.
    fn dont_fragment<P: Packet>(packet: &mut P) -> bool;
    /// Writes addresses, header checksum, hop limit and link header. The transport checksum is the caller's.
    fn rewrite<P: Packet>(packet: &mut P, rewrite: &Rewrite<'_, Self>) -> bool
    where
        Self: Sized;
    /// One's complement difference that replacing one address by another makes.
    fn difference(old: &Self::Words, new: &Self::Words) -> u64;
}

impl Ip for V4 {
    const HEADER: usize = 20;

    #[inline(always)]
    fn mapped(words: &[u32; 1]) -> Addr {
        mapped(words[0].to_ne_bytes())
    }
    #[inline(always)]
    fn words(addr: &Addr) -> [u32; 1] {
        [u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]])]
    }
    #[inline(always)]
    fn query(words: &[u32; 1]) -> [u32; 4] {
        [words[0], 0, 0, 0]
    }
    #[inline(always)]
    fn header_holds<P: Packet>(packet: &mut P) -> bool {
        let Some(w) = packet.window::<34>(0) else { return false };
        let mut sum = w.load::<u32, 14>() as u64 + w.load::<u32, 18>() as u64 + w.load::<u32, 22>() as u64;
        sum += w.load::<u32, 26>() as u64 + w.load::<u32, 30>() as u64;
        let options = (w.load::<u8, 14>() & 15).wrapping_sub(5) as usize;
        let mut i = 0;
        while i < 10 {
            if i >= options {
                break;
            }
            let Some(w) = packet.window::<4>(34 + 4 * i) else { return false };
            sum += w.load::<u32, 0>() as u64;
            i += 1;
        }
        checksum::fold(sum) == 0xffff
    }
    #[inline(always)]
    fn hop_limit<P: Packet>(packet: &mut P) -> u8 {
        packet.window::<34>(0).map_or(0, |w| w.load::<u8, 22>())
    }
    #[inline(always)]
    fn dont_fragment<P: Packet>(packet: &mut P) -> bool {
        packet.window::<34>(0).is_none_or(|w| w.load::<u8, 20>() & 0x40 != 0)
    }
    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, r: &Rewrite<'_, V4>) -> bool {
        let Some(mut w) = packet.window::<34>(0) else { return false };
        let mut delta = V4::difference(r.old_src, r.src) + V4::difference(r.old_dst, r.dst);
        if let Some(macs) = r.macs {
            w.store::<u32, 0>(macs[0]);
            w.store::<u32, 4>(macs[1]);
            w.store::<u32, 8>(macs[2]);
            w.store::<u8, 22>(w.load::<u8, 22>().wrapping_sub(1));
            // The TTL is the first byte of its 16-bit word; minus one in one's complement.
            delta += !u16::from_ne_bytes([1, 0]) as u64;
        }
        let old: u16 = w.load::<u16, 24>();
        w.store::<u16, 24>(checksum::apply(old, checksum::fold(delta)));
        w.store::<u32, 26>(r.src[0]);
        w.store::<u32, 30>(r.dst[0]);
        true
    }
    #[inline(always)]
    fn difference(old: &[u32; 1], new: &[u32; 1]) -> u64 {
        checksum::difference(old[0], new[0])
    }
}

impl Ip for V6 {
    const HEADER: usize = 40;

    #[inline(always)]
    fn mapped(words: &[u32; 4]) -> Addr {
        // SAFETY: both are sixteen bytes without padding. (Taken apart, LLVM would keep sixteen bytes on the stack.)
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(*words) }
    }
    #[inline(always)]
    fn words(addr: &Addr) -> [u32; 4] {
        // SAFETY: as in `mapped`; every bit pattern is a value.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(*addr) }
    }
    #[inline(always)]
    fn query(words: &[u32; 4]) -> [u32; 4] {
        *words
    }
    #[inline(always)]
    fn header_holds<P: Packet>(_packet: &mut P) -> bool {
        true
    }
    #[inline(always)]
    fn hop_limit<P: Packet>(packet: &mut P) -> u8 {
        packet.window::<54>(0).map_or(0, |w| w.load::<u8, 21>())
    }
    #[inline(always)]
    fn dont_fragment<P: Packet>(_packet: &mut P) -> bool {
        true
    }
    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, r: &Rewrite<'_, V6>) -> bool {
        const { assert!(ETHERNET == 14) };
        let Some(mut w) = packet.window::<54>(0) else { return false };
        if let Some(macs) = r.macs {
            w.store::<u32, 0>(macs[0]);
            w.store::<u32, 4>(macs[1]);
            w.store::<u32, 8>(macs[2]);
            w.store::<u8, 21>(w.load::<u8, 21>().wrapping_sub(1));
        }
        w.store::<u32, 22>(r.src[0]);
        w.store::<u32, 26>(r.src[1]);
        w.store::<u32, 30>(r.src[2]);
        w.store::<u32, 34>(r.src[3]);
        w.store::<u32, 38>(r.dst[0]);
        w.store::<u32, 42>(r.dst[1]);
        w.store::<u32, 46>(r.dst[2]);
        w.store::<u32, 50>(r.dst[3]);
        true
    }
    #[inline(always)]
    fn difference(old: &[u32; 4], new: &[u32; 4]) -> u64 {
        checksum::difference(old[0], new[0])
            + checksum::difference(old[1], new[1])
            + checksum::difference(old[2], new[2])
            + checksum::difference(old[3], new[3])
    }
}
