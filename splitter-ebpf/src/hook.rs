//! [`Packet`] for the two hooks, and their entry points.

use crate::maps::Kernel;
use aya_ebpf::{
    EbpfContext,
    bindings::*,
    helpers::generated::*,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use core::mem::{size_of, zeroed};
use splitter_common::{
    abi::{V4, V6},
    http::{HEAD_LIMIT, HeadText, Loop},
};
use splitter_ebpf::{
    bytes::{COPY, Packet, Route, RouteQuery, Window, opaque},
    env::Tables,
    field,
    lb::{self, Carries},
    network::Network,
    packet::{self, ETHERNET, checksum, http::BpfLoop},
    place, splice,
    verdict::{Action, Verdict},
};

/// Leaves the packet to the next program (TCX_NEXT, TC_ACT_UNSPEC).
const TC_NEXT: i32 = -1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16 and stable kernels since): the address change must not reach `skb->csum`.
const F_IPV6: u64 = 1 << 7;
/// Longest headers that the pipeline reads directly: Ethernet, IPv6, TCP with options.
const LINEAR: u32 = 14 + 40 + 60;

/// `EGRESS`: seen on its way out of the node.
struct Skb<const EGRESS: bool>(TcContext);
struct Frame(XdpContext);

/// Bytes of the shortest packet that is worth a head of its own.
const UNSHARED_FROM: u32 = 1_000;

/// A view of `N` bytes at `at`, or `None` behind the end.
#[inline(always)]
fn window<'a, const N: usize>(data: usize, end: usize, at: usize) -> Option<Window<'a, N>> {
    let start = data + at;
    // SAFETY: checked against the frame's end; the verifier checks it again.
    if start + N > end { None } else { Some(unsafe { Window::new(start as *mut u8) }) }
}

/// `bpf_fib_lookup` with the routing that a forwarded packet gets (Linux 4.18).
#[inline(always)]
fn route(ctx: *mut core::ffi::c_void, ifindex: u32, query: &RouteQuery) -> Route {
    // SAFETY: plain C struct; zero is a valid value of every field.
    let mut fib: bpf_fib_lookup = unsafe { zeroed() };
    fib.family = if query.ipv6 { AF_INET6 } else { AF_INET };
    fib.l4_protocol = query.proto;
    fib.ifindex = ifindex;
    // Any length that fits makes the kernel report the route's MTU.
    fib.__bindgen_anon_1.tot_len = 1;
    if query.ipv6 {
        fib.__bindgen_anon_3.ipv6_src = query.src;
        fib.__bindgen_anon_4.ipv6_dst = query.dst;
    } else {
        fib.__bindgen_anon_3.ipv4_src = query.src[0];
        fib.__bindgen_anon_4.ipv4_dst = query.dst[0];
    }
    // SAFETY: `ctx` is this program's context; the struct is as long as said.
    let result = unsafe { bpf_fib_lookup(ctx, &mut fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64 {
        // SAFETY: the last twelve bytes are the addresses: source, then destination.
        let macs =
            unsafe { core::ptr::from_ref(&fib).cast::<u8>().add(size_of::<bpf_fib_lookup>() - 12).cast::<[u16; 6]>().read_unaligned() };
        let word = |a: u16, b: u16| if cfg!(target_endian = "little") { a as u32 | (b as u32) << 16 } else { (a as u32) << 16 | b as u32 };
        let macs = [word(macs[3], macs[4]), word(macs[5], macs[0]), word(macs[1], macs[2])];
        // SAFETY: on success the kernel writes the MTU there.
        return Route::Found { ifindex: fib.ifindex, macs, mtu: unsafe { fib.__bindgen_anon_1.mtu_result } };
    }
    if result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        return Route::NoNeighbour { ifindex: fib.ifindex };
    }
    Route::Stack
}

/// See [`Packet::sum`]. `bpf_csum_diff` takes 512 bytes at a time before Linux 6.13, and whole words.
#[inline(never)]
fn sum(text: &HeadText, offset: u32, len: u32) -> u64 {
    const PIECE: u32 = 512;
    let (mut sum, mut done) = (0u64, 0u32);
    BpfLoop::repeat(COPY / PIECE + 1, |_| {
        let left = len.wrapping_sub(done);
        let words = opaque(if left > PIECE { PIECE } else { left & !3 });
        if done >= len || words == 0 || words > PIECE {
            return true;
        }
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

impl<const EGRESS: bool> Skb<EGRESS> {
    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
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
        let (offset, len) = (opaque(offset) & (HEAD_LIMIT - 1), opaque(len));
        // SAFETY: the offset is masked, and the text has room of COPY bytes behind its limit.
        len != 0
            && len <= COPY
            && unsafe {
                let to = text.as_mut_ptr().add(offset as usize);
                bpf_skb_load_bytes(self.raw().cast(), at, to.cast(), len) == 0
            }
    }
    #[inline(always)]
    fn copy_out(&mut self, at: u32, text: &HeadText, offset: u32, len: u32) -> bool {
        let (offset, len) = (opaque(offset) & (HEAD_LIMIT - 1), opaque(len));
        // SAFETY: as in `copy_in`.
        len != 0
            && len <= COPY
            && unsafe {
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
    fn clone_to(&mut self, _ifindex: u32) -> bool {
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
}

/// Slots of `TC_CALLS` and `XDP_CALLS` that hold the programs for IPv6.
const IPV6_CALL: u32 = 0;
const IPV6_EGRESS_CALL: u32 = 1;
/// First slots of those that hold the splice's programs: eight for IPv4, eight for IPv6, at egress again; not all are in use.
const TC_SPLICE_CALLS: u32 = 2;
const XDP_SPLICE_CALLS: u32 = 1;

/// Which of the splice's programs goes on; `None`: the verdict is an action. The step is left in the scratch memory.
#[inline(always)]
fn splice_call<F: Network>(verdict: Verdict, egress: bool) -> Option<u32>
where
    Kernel: Tables<F>,
{
    let program = match verdict.action() {
        Action::SpliceClient => 0,
        Action::SpliceServer => 1,
        Action::Step | Action::Over(_) | Action::Reset | Action::TooBig(_) => {
            let scratch = Tables::<F>::scratch(&Kernel)?;
            field!(scratch.step = verdict);
            2
        }
        Action::Again => 3,
        Action::Read => 4,
        _ => return None,
    };
    Some(program | (F::IPV6 as u32) << 3 | (egress as u32) << 4)
}

/// Acts on a verdict, or goes on in another program.
#[inline(always)]
fn go_on<F: Network, const EGRESS: bool>(packet: Skb<EGRESS>, verdict: Verdict) -> i32
where
    Kernel: Tables<F>,
{
    if let Some(call) = splice_call::<F>(verdict, EGRESS) {
        // SAFETY: the agent fills the slots before it attaches a program; an empty one passes the packet.
        let _ = unsafe { crate::maps::TC_CALLS.tail_call(&packet.0, TC_SPLICE_CALLS + call) };
        return TC_NEXT;
    }
    act::<EGRESS>(packet.raw(), verdict)
}

/// TC ingress, the complete path: IPv4 here, IPv6 by tail call.
#[classifier]
pub fn splitter_tc(ctx: TcContext) -> i32 {
    classify::<false>(ctx)
}

/// TC ingress of IPv6. Reached from `splitter_tc` only.
#[classifier]
pub fn splitter_tc6(ctx: TcContext) -> i32 {
    classify6::<false>(ctx)
}

/// TC egress: connections of the node's own processes, and replies of backends that are such processes. What the ingress program has
/// translated is nobody's any more and passes.
#[classifier]
pub fn splitter_out(ctx: TcContext) -> i32 {
    classify::<true>(ctx)
}

/// TC egress of IPv6. Reached from `splitter_out` only.
#[classifier]
pub fn splitter_out6(ctx: TcContext) -> i32 {
    classify6::<true>(ctx)
}

/// Whether headers that the pipeline reads may lie behind the linear part. Pulling costs more than its copy: the new head is no page
/// fragment, and a socket's receive queue does not merge packets with payload in such a head (`skb_try_coalesce`). They fill the window
/// sooner, and connections whose window has not grown yet crawl. TCP sends heads without payload, so a packet whose linear part ends after
/// plain IPv4 and TCP headers stays as it is.
#[inline(always)]
fn headers_outside(data: usize, end: usize) -> bool {
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
fn unshare(skb: *mut __sk_buff) {
    // SAFETY: own context. A failure leaves the packet as it was: it can be sent like that.
    unsafe {
        // What is linear is copied by the receiver anyway.
        if (*skb).len >= UNSHARED_FROM && (*skb).data_end - (*skb).data < (*skb).len {
            bpf_skb_change_head(skb, 0, 0);
        }
    }
}

#[inline(always)]
fn classify<const EGRESS: bool>(ctx: TcContext) -> i32 {
    if headers_outside(ctx.data(), ctx.data_end()) {
        let len = ctx.len();
        if (ctx.data_end() - ctx.data()) < len as usize {
            let _ = ctx.pull_data(if len < LINEAR { len } else { LINEAR });
        }
    }
    let mut packet = Skb::<EGRESS>(ctx);
    match lb::carries(&mut packet, &Kernel) {
        Carries::Ipv4 => {
            let verdict = lb::ipv4(&mut packet, &Kernel);
            go_on::<V4, EGRESS>(packet, verdict)
        }
        Carries::Ipv6 => {
            let call = if EGRESS { IPV6_EGRESS_CALL } else { IPV6_CALL };
            // SAFETY: the agent fills the slot before it attaches the program; an empty one passes the packet.
            let _ = unsafe { crate::maps::TC_CALLS.tail_call(&packet.0, call) };
            TC_NEXT
        }
        Carries::Other => TC_NEXT,
    }
}

#[inline(always)]
fn classify6<const EGRESS: bool>(ctx: TcContext) -> i32 {
    let mut packet = Skb::<EGRESS>(ctx);
    let verdict = lb::ipv6(&mut packet, &Kernel);
    go_on::<V6, EGRESS>(packet, verdict)
}

macro_rules! splice_programs {
    ($($name:ident $family:ty, $egress:literal, $run:path;)*) => { $(
        #[doc = "A part of the splice, for a packet that another program has read: see `splice_call`."]
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let Some(scratch) = Tables::<$family>::scratch(&Kernel) else { return TC_NEXT };
            let mut packet = Skb::<$egress>(ctx);
            let verdict = $run(&mut packet, &Kernel, place!(scratch.parsed));
            let action = go_on::<$family, $egress>(packet, verdict);
            // No other program goes on.
            splice::release::<$family, _>(&Kernel);
            action
        }
    )* };
}
splice_programs! {
    http_client4 V4, false, splice::client;
    http_server4 V4, false, splice::server;
    http_steps4 V4, false, splice::steps;
    http_layer4_4 V4, false, lb::layer4;
    http_read4 V4, false, splice::read;
    http_client6 V6, false, splice::client;
    http_server6 V6, false, splice::server;
    http_steps6 V6, false, splice::steps;
    http_layer4_6 V6, false, lb::layer4;
    http_read6 V6, false, splice::read;
    out_client4 V4, true, splice::client;
    out_server4 V4, true, splice::server;
    out_steps4 V4, true, splice::steps;
    out_layer4_4 V4, true, lb::layer4;
    out_read4 V4, true, splice::read;
    out_client6 V6, true, splice::client;
    out_server6 V6, true, splice::server;
    out_steps6 V6, true, splice::steps;
    out_layer4_6 V6, true, lb::layer4;
    out_read6 V6, true, splice::read;
}

#[inline(always)]
fn act<const EGRESS: bool>(skb: *mut __sk_buff, verdict: Verdict) -> i32 {
    // SAFETY: helpers without pointers.
    unsafe {
        match verdict.action() {
            Action::Drop => TC_ACT_SHOT as i32,
            Action::Redirect(ifindex) => bpf_redirect(ifindex, 0) as i32,
            Action::RedirectPeer(ifindex) => {
                unshare(skb);
                bpf_redirect_peer(ifindex, 0) as i32
            }
            Action::Neighbour(ifindex) => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32,
            Action::Return(ifindex) => bpf_redirect(ifindex, if EGRESS { BPF_F_INGRESS as u64 } else { 0 }) as i32,
            _ => TC_NEXT,
        }
    }
}

/// XDP, the fast path: packets of known flows on interfaces that deliver final checksums. The rest goes on to TC untouched.
#[xdp]
pub fn splitter_xdp(ctx: XdpContext) -> u32 {
    let mut packet = Frame(ctx);
    match lb::carries(&mut packet, &Kernel) {
        Carries::Ipv4 => {
            let verdict = lb::ipv4(&mut packet, &Kernel);
            go_on_xdp::<V4>(packet, verdict)
        }
        Carries::Ipv6 => {
            // SAFETY: as in `splitter_tc`.
            let _ = unsafe { crate::maps::XDP_CALLS.tail_call(&packet.0, IPV6_CALL) };
            xdp_action::XDP_PASS
        }
        Carries::Other => xdp_action::XDP_PASS,
    }
}

/// XDP of IPv6. Reached from `splitter_xdp` only.
#[xdp]
pub fn splitter_xdp6(ctx: XdpContext) -> u32 {
    let mut packet = Frame(ctx);
    let verdict = lb::ipv6(&mut packet, &Kernel);
    go_on_xdp::<V6>(packet, verdict)
}

/// As [`go_on`].
#[inline(always)]
fn go_on_xdp<F: Network>(packet: Frame, verdict: Verdict) -> u32
where
    Kernel: Tables<F>,
{
    if let Some(call) = splice_call::<F>(verdict, false) {
        // SAFETY: as in `go_on`. Most slots stay empty here: TC has all programs.
        let _ = unsafe { crate::maps::XDP_CALLS.tail_call(&packet.0, XDP_SPLICE_CALLS + call) };
        return xdp_action::XDP_PASS;
    }
    match verdict.action() {
        Action::Drop => xdp_action::XDP_DROP,
        // SAFETY: a helper without pointers.
        Action::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        _ => xdp_action::XDP_PASS,
    }
}

macro_rules! splice_xdp_programs {
    ($($name:ident $family:ty, $run:path;)*) => { $(
        #[doc = "As the TC programs, for established flows."]
        #[xdp]
        pub fn $name(ctx: XdpContext) -> u32 {
            let Some(scratch) = Tables::<$family>::scratch(&Kernel) else { return xdp_action::XDP_PASS };
            let mut packet = Frame(ctx);
            let verdict = $run(&mut packet, &Kernel, place!(scratch.parsed));
            go_on_xdp::<$family>(packet, verdict)
        }
    )* };
}
splice_xdp_programs! {
    xdp_client4 V4, splice::client;
    xdp_server4 V4, splice::server;
    xdp_layer4_4 V4, lb::layer4;
    xdp_client6 V6, splice::client;
    xdp_server6 V6, splice::server;
    xdp_layer4_6 V6, lb::layer4;
}

/// The clock of the flow tables, for the agent, which runs this by PROG_TEST_RUN: its result is `jiffies`, truncated. Never attached.
#[classifier]
pub fn splitter_clock(_ctx: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() as i32 }
}
