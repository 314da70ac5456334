//! A packet at TC.

use super::{on_link, route, window};
use aya_ebpf::{EbpfContext, bindings::*, helpers::generated::*, programs::TcContext};
use splitter_common::http::{HEAD_LIMIT, HeadText, Loop};
use splitter_ebpf::{
    bytes::{COPY, Packet, Route, RouteQuery, Vouched, Window, opaque, within},
    packet::{self, ETHERNET, http::BpfLoop},
};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16 and stable kernels since): the address change must not reach `skb->csum`.
const F_IPV6: u64 = 1 << 7;
/// Bytes of the shortest packet that is worth a head of its own.
const UNSHARED_FROM: u32 = 1_000;

/// `EGRESS`: seen on its way out of the node.
pub struct Skb<const EGRESS: bool>(pub TcContext);

impl<const EGRESS: bool> Skb<EGRESS> {
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }
}

impl<const OUT: bool> Packet for Skb<OUT> {
    const XDP: bool = false;
    const EGRESS: bool = OUT;

    #[inline(always)]
    fn window<const N: usize>(&mut self, at: usize) -> Option<Window<'_, N>> {
        window(self.0.data(), self.0.data_end(), at)
    }
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len()
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { (*self.raw()).ifindex }
    }
    #[inline(always)]
    fn came_by(&self) -> u32 {
        // SAFETY: the context's own fields.
        unsafe { if OUT { (*self.raw()).ingress_ifindex } else { (*self.raw()).ifindex } }
    }
    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: the context's own field.
        unsafe { (*self.raw()).vlan_present != 0 }
    }
    #[inline(always)]
    fn foreign(&self) -> bool {
        // SAFETY: the context's own field; PACKET_HOST is 0.
        !OUT && unsafe { (*self.raw()).pkt_type != 0 }
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { (*self.raw()).gso_size }
    }
    #[inline(always)]
    fn update_transport_checksum(&mut self, at: usize, addresses: u32, ports: u32, ipv6: bool, udp: bool) {
        // TC packets may carry an unfinished checksum: only the helper knows what to do (see `skb->ip_summed`).
        let udp = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let pseudo = udp | BPF_F_PSEUDO_HDR as u64;
        // SAFETY: own context; size 0 means that `to` is a difference.
        unsafe {
            if !ipv6 || bpf_l4_csum_replace(self.raw(), at as u32, 0, addresses as u64, pseudo | F_IPV6) != 0 {
                bpf_l4_csum_replace(self.raw(), at as u32, 0, addresses as u64, pseudo);
            }
            if ports != 0 && ports != 0xffff {
                bpf_l4_csum_replace(self.raw(), at as u32, 0, ports as u64, udp);
            }
        }
    }
    #[inline(always)]
    fn hop_limit_changed(&mut self) {
        // The hop limit is the second byte of its 16-bit word; minus one in one's complement. SAFETY: own context.
        unsafe { bpf_csum_update(self.raw(), !u16::from_ne_bytes([0, 1]) as u32) };
    }
    #[inline(always)]
    fn route(&mut self, query: &RouteQuery) -> Route {
        let ifindex = self.ifindex();
        route(self.0.as_ptr(), ifindex, query)
    }
    #[inline(always)]
    fn on_link(&mut self, query: &RouteQuery) -> bool {
        let ifindex = self.ifindex();
        on_link(self.0.as_ptr(), ifindex, query)
    }
    #[inline(always)]
    fn write<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        // SAFETY: own context, N readable bytes.
        unsafe { bpf_skb_store_bytes(self.raw().cast(), at as u32, bytes.as_ptr().cast(), N as u32, BPF_F_RECOMPUTE_CSUM as u64) == 0 }
    }
    #[inline(always)]
    fn read<const N: usize>(&mut self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: own context, N writable bytes.
        let result = unsafe { bpf_skb_load_bytes(self.raw().cast(), at as u32, bytes.as_mut_ptr().cast(), N as u32) };
        (result == 0).then_some(bytes)
    }
    #[inline(always)]
    fn resize(&mut self, len: u32) -> bool {
        // SAFETY: own context.
        len == self.len() || unsafe { bpf_skb_change_tail(self.raw(), len, 0) == 0 }
    }
    #[inline(always)]
    fn copy_in(&mut self, at: u32, text: &mut HeadText, offset: u32, len: u32) -> bool {
        let offset = opaque(offset) & (HEAD_LIMIT - 1);
        let Some(len) = within::<COPY>(len) else { return false };
        // SAFETY: the offset is masked, and the text has room of COPY bytes behind its limit.
        unsafe {
            let to = text.as_mut_ptr().add(offset as usize);
            bpf_skb_load_bytes(self.raw().cast(), at, to.cast(), len) == 0
        }
    }
    #[inline(always)]
    fn copy_out(&mut self, at: u32, text: &HeadText, offset: u32, len: u32) -> bool {
        let offset = opaque(offset) & (HEAD_LIMIT - 1);
        let Some(len) = within::<COPY>(len) else { return false };
        // SAFETY: as in `copy_in`.
        unsafe {
            let from = text.as_ptr().add(offset as usize);
            bpf_skb_store_bytes(self.raw().cast(), at, from.cast(), len, BPF_F_RECOMPUTE_CSUM as u64) == 0
        }
    }
    #[inline(always)]
    fn sum(text: &HeadText, offset: u32, len: u32) -> u64 {
        sum(text, offset, len)
    }
    #[inline(always)]
    fn sum_frame(&mut self, text: &mut HeadText, from: u32, len: u32) -> u64 {
        let (mut sum, mut done) = (0u64, 0u32);
        BpfLoop::repeat((1 << 16) / PIECE, |_| {
            let left = len.wrapping_sub(done);
            if done >= len {
                return true;
            }
            let Some(piece) = within::<PIECE>(if left > PIECE { PIECE } else { left }) else { return true };
            let at = from.wrapping_add(done);
            // SAFETY: own context; a text is longer than a piece and a word; no `from` at all.
            unsafe {
                let to = text.as_mut_ptr();
                // What fills the last word up.
                to.add(opaque(piece) as usize & (2 * PIECE as usize - 1)).cast::<[u8; 4]>().write_unaligned([0; 4]);
                if bpf_skb_load_bytes(self.raw().cast(), at, to.cast(), piece) != 0 {
                    return true;
                }
                let Some(words) = within::<PIECE>(opaque(piece + 3) & !3) else { return true };
                sum += bpf_csum_diff(core::ptr::null_mut(), 0, to.cast(), words, 0) as u32 as u64;
            }
            done += piece;
            false
        });
        sum
    }
    #[inline(always)]
    fn clone_to(&mut self, ifindex: u32) -> bool {
        // SAFETY: own context.
        unsafe { bpf_clone_redirect(self.raw(), ifindex, 0) == 0 }
    }
    #[inline(always)]
    fn clone_in(&mut self, ifindex: u32) -> bool {
        // SAFETY: own context.
        unsafe { bpf_clone_redirect(self.raw(), ifindex, BPF_F_INGRESS as u64) == 0 }
    }
    #[inline(always)]
    fn insert_after_link(&mut self, bytes: u32) -> bool {
        // SAFETY: own context.
        unsafe { bpf_skb_adjust_room(self.raw(), bytes as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0) == 0 }
    }
    #[inline(always)]
    fn checksum_pending(&mut self, at: usize) -> bool {
        // A change that is not of the pseudo-header leaves an unfinished checksum alone, and only that.
        let before = self.read::<2>(at);
        // SAFETY: own context.
        unsafe { bpf_l4_csum_replace(self.raw(), at as u32, 0, 1, 0) };
        before == self.read::<2>(at)
    }
    #[inline(always)]
    fn vouched(&mut self, at: usize, unmade: bool) -> Vouched {
        if unmade && self.is_unmade(at) {
            return Vouched::Right;
        }
        // SAFETY: own context; they change nothing (Linux 5.8, 4.9).
        let (level, sum) = unsafe { (bpf_csum_level(self.raw(), BPF_CSUM_LEVEL_QUERY as u64), bpf_csum_update(self.raw(), 0)) };
        if level >= 0 {
            return Vouched::Right;
        }
        if sum >= 0 {
            return Vouched::Sum(sum as u32);
        }
        if !unmade && self.is_unmade(at) { Vouched::Right } else { Vouched::Nothing }
    }
}

impl<const OUT: bool> Skb<OUT> {
    /// As [`Packet::checksum_pending`], for a packet that goes on as it is.
    #[inline(always)]
    fn is_unmade(&mut self, at: usize) -> bool {
        let Some(before) = self.read::<2>(at) else { return false };
        // SAFETY: as there.
        unsafe { bpf_l4_csum_replace(self.raw(), at as u32, 0, 1, 0) };
        if self.read::<2>(at) == Some(before) {
            return true;
        }
        // SAFETY: own context, two readable bytes; the kernel's own sum has not changed either.
        unsafe { bpf_skb_store_bytes(self.raw().cast(), at as u32, before.as_ptr().cast(), 2, 0) };
        false
    }
}

/// Whether headers that the pipeline reads may lie behind the linear part. Pulling costs more than its copy: the new head is no page
/// fragment, and a socket's receive queue does not merge packets with payload in such a head (`skb_try_coalesce`). They fill the window
/// sooner, and connections whose window has not grown yet crawl. TCP sends heads without payload, so a packet whose linear part ends after
/// plain IPv4 and TCP headers stays as it is.
#[inline(always)]
pub fn headers_outside(data: usize, end: usize) -> bool {
    const NO_OPTIONS: u8 = 0x45;
    if data + ETHERNET + 60 <= end {
        return false;
    }
    let Some(w) = window::<{ ETHERNET + 40 }>(data, end, 0) else { return true };
    w.load::<u16, 12>() != packet::ETHERTYPE_IPV4 || w.load::<u8, 14>() != NO_OPTIONS
}

/// Gives a packet a head of its own, which forwarding by the stack does too (`skb_cow` in `ip_forward`). What comes by a veth shares its head
/// with the sender's retransmission queue, and a socket's receive queue merges nothing into a packet with a shared head. Heads that are
/// not shared stay, and small packets are not worth a copy (Linux 4.10).
#[inline(always)]
pub fn unshare(skb: *mut __sk_buff) {
    // SAFETY: own context. A failure leaves the packet as it was: it can be sent like that.
    unsafe {
        // What is linear is copied by the receiver anyway.
        if (*skb).len >= UNSHARED_FROM && (*skb).data_end - (*skb).data < (*skb).len {
            bpf_skb_change_head(skb, 0, 0);
        }
    }
}

/// `bpf_csum_diff` takes 512 bytes at a time before Linux 6.13, and whole words.
const PIECE: u32 = 512;

/// See [`Packet::sum`].
#[inline(never)]
fn sum(text: &HeadText, offset: u32, len: u32) -> u64 {
    let (mut sum, mut done) = (0u64, 0u32);
    BpfLoop::repeat(COPY / PIECE + 1, |_| {
        let left = len.wrapping_sub(done);
        if done >= len {
            return true;
        }
        let Some(words) = within::<PIECE>(if left > PIECE { PIECE } else { left & !3 }) else { return true };
        let at = opaque(offset.wrapping_add(done)) & (HEAD_LIMIT - 1);
        // SAFETY: the offset is masked and the text has room of COPY bytes behind its limit; no `from` at all.
        let piece = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, text.as_ptr().add(at as usize).cast_mut().cast(), words, 0) };
        sum += piece as u32 as u64;
        done += words;
        false
    });
    let mut rest = 0;
    while rest < 3 {
        if done >= len {
            break;
        }
        let at = opaque(offset.wrapping_add(done)) as usize & (HEAD_LIMIT as usize - 1);
        let byte = text[at] as u64;
        sum += if (rest & 1 == 0) == cfg!(target_endian = "little") { byte } else { byte << 8 };
        done += 1;
        rest += 1;
    }
    sum
}
