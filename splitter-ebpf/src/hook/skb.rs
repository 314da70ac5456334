//! A packet at TC.

use super::{route, window};
use aya_ebpf::{EbpfContext, bindings::*, helpers::generated::*, programs::TcContext};
use splitter_common::http::{HEAD_LIMIT, HeadText, Loop};
use splitter_ebpf::{
    bytes::{COPY, Packet, Route, RouteQuery, Window, opaque, within},
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
    fn clone_to(&mut self, ifindex: u32) -> bool {
        // SAFETY: own context.
        unsafe { bpf_clone_redirect(self.raw(), ifindex, 0) == 0 }
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

/// See [`Packet::sum`]. `bpf_csum_diff` takes 512 bytes at a time before Linux 6.13, and whole words.
#[inline(never)]
fn sum(text: &HeadText, offset: u32, len: u32) -> u64 {
    const PIECE: u32 = 512;
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
