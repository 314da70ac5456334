//! A packet at XDP. What the fast path does not do answers that it cannot: TC does it.

use super::{route, window};
use aya_ebpf::{EbpfContext, programs::XdpContext};
use splitter_common::http::HeadText;
use splitter_ebpf::{
    bytes::{Packet, Route, RouteQuery, Vouched, Window, opaque},
    packet::checksum,
};

pub struct Frame(pub XdpContext);

impl Packet for Frame {
    const XDP: bool = true;
    const EGRESS: bool = false;

    #[inline(always)]
    fn window<const N: usize>(&mut self, at: usize) -> Option<Window<'_, N>> {
        window(self.0.data(), self.0.data_end(), at)
    }
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.0.data_end() - self.0.data()) as u32
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { (*self.0.ctx).ingress_ifindex }
    }
    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }
    #[inline(always)]
    fn foreign(&self) -> bool {
        false
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn update_transport_checksum(&mut self, at: usize, addresses: u32, ports: u32, _ipv6: bool, udp: bool) {
        let at = opaque(at as u32) as usize;
        if at > 2048 {
            return;
        }
        let Some(mut w) = self.window::<2>(at) else { return };
        let old: u16 = w.load::<u16, 0>();
        if udp && old == 0 {
            return;
        }
        let new = checksum::apply(old, checksum::fold(addresses as u64 + ports as u64));
        w.store::<u16, 0>(if udp && new == 0 { 0xffff } else { new });
    }
    #[inline(always)]
    fn hop_limit_changed(&mut self) {}
    #[inline(always)]
    fn route(&mut self, query: &RouteQuery) -> Route {
        let ifindex = self.ifindex();
        route(self.0.as_ptr(), ifindex, query)
    }
    #[inline(always)]
    fn on_link(&mut self, _query: &RouteQuery) -> bool {
        false
    }
    #[inline(always)]
    fn write<const N: usize>(&mut self, _at: usize, _bytes: &[u8; N]) -> bool {
        false
    }
    #[inline(always)]
    fn read<const N: usize>(&mut self, at: usize) -> Option<[u8; N]> {
        let at = opaque(at as u32) as usize;
        if at > 2048 {
            return None;
        }
        self.window::<N>(at).map(|w| w.load::<[u8; N], 0>())
    }
    #[inline(always)]
    fn resize(&mut self, _len: u32) -> bool {
        false
    }
    #[inline(always)]
    fn copy_in(&mut self, _at: u32, _text: &mut HeadText, _offset: u32, _len: u32) -> bool {
        false
    }
    #[inline(always)]
    fn copy_out(&mut self, _at: u32, _text: &HeadText, _offset: u32, _len: u32) -> bool {
        false
    }
    #[inline(always)]
    fn sum(_text: &HeadText, _offset: u32, _len: u32) -> u64 {
        0
    }
    #[inline(always)]
    fn sum_frame(&mut self, _text: &mut HeadText, _from: u32, _len: u32) -> u64 {
        0
    }
    #[inline(always)]
    fn clone_to(&mut self, _ifindex: u32) -> bool {
        false
    }
    #[inline(always)]
    fn clone_in(&mut self, _ifindex: u32) -> bool {
        false
    }
    #[inline(always)]
    fn insert_after_link(&mut self, _bytes: u32) -> bool {
        false
    }
    #[inline(always)]
    fn checksum_pending(&mut self, _at: usize) -> bool {
        false
    }
    #[inline(always)]
    fn vouched(&mut self, _at: usize, _unmade: bool) -> Vouched {
        Vouched::Nothing
    }
}
