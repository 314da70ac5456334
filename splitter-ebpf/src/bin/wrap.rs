//! Benchmark only: restores the test packet, turns to the next flow, and tail-calls the program that is measured. PROG_TEST_RUN repeats on
//! one buffer, which the measured program has rewritten. Never attached to an interface.
//!
//! The reference programs do the least that any translation must: what they cost is the machine's part of what the real ones cost.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{BPF_F_PSEUDO_HDR, TC_ACT_OK, xdp_action},
        helpers::generated::{bpf_l4_csum_replace, bpf_redirect},
        macros::{classifier, map, xdp},
        maps::{Array, LruHashMap, ProgramArray},
        programs::{TcContext, XdpContext},
    };
    use splitter_ebpf::packet::checksum;

    const TCP: u32 = 6;

    /// The packet, and where in it the client's address counts up.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Cycle {
        /// As on the wire.
        packet: [u32; 24],
        /// First client address's last word, host order; packet `i` comes from `first + i`.
        first: u32,
        flows: u32,
        next: u32,
        /// 1: IPv6.
        ipv6: u32,
        /// The same for the VIP: last word of the first, number of VIPs, whose turn it is.
        vip: u32,
        vips: u32,
        next_vip: u32,
        pad: u32,
    }

    #[map]
    static CYCLE: Array<Cycle> = Array::with_max_entries(1, 0);
    #[map]
    static TARGET_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);
    #[map]
    static TARGET_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// Flows of the reference programs, of the same sizes as the real tables': addresses, ports, protocol to the new last word of the
    /// destination, ports, and the interface.
    #[map]
    static REFERENCE4: LruHashMap<[u32; 4], [u32; 4]> = LruHashMap::with_max_entries(1_024, 0);
    #[map]
    static REFERENCE6: LruHashMap<[u32; 10], [u32; 7]> = LruHashMap::with_max_entries(1_024, 0);

    /// Writes the packet in the widths in which it will be read: otherwise loads wait for the stores. The packet lies in the map two bytes
    /// off, so that its 4-byte words are the headers'.
    #[inline(always)]
    fn restore<const WORDS: usize>(data: usize, end: usize, cycle: *const Cycle, at: (usize, usize), values: (u32, u32)) -> bool {
        if data + 2 + WORDS * 4 > end {
            return false;
        }
        // SAFETY: bounds checked; the map value has 24 words.
        unsafe {
            let from = (&raw const (*cycle).packet).cast::<u8>();
            core::ptr::write_volatile(data as *mut u16, core::ptr::read_volatile(from.add(2).cast::<u16>()));
            let mut i = 0;
            while i < WORDS {
                let word = core::ptr::read_volatile(from.add(4 + 4 * i).cast::<u32>());
                core::ptr::write_volatile((data + 2 + 4 * i) as *mut u32, word);
                i += 1;
            }
            core::ptr::write_volatile((data + at.0) as *mut u32, values.0.to_be());
            core::ptr::write_volatile((data + at.1) as *mut u32, values.1.to_be());
            // Checksums are right for the first flow's addresses (RFC 1624); a whole word each, as above.
            let [client, vip] = [(*cycle).first.to_be(), (*cycle).vip.to_be()];
            let change = checksum::fold(checksum::difference(client, values.0.to_be()) + checksum::difference(vip, values.1.to_be()));
            let half = |at: usize| core::ptr::read_volatile(from.add(2 + at).cast::<u16>());
            let mended = |at: usize| checksum::apply(half(at), change) as u32;
            if WORDS == 15 {
                let word = half(22) as u32 | mended(24) << 16;
                core::ptr::write_volatile((data + 22) as *mut u32, word);
            }
            let at = if WORDS == 15 { 50 } else { 70 };
            core::ptr::write_volatile((data + at) as *mut u32, mended(at));
        }
        true
    }

    #[inline(always)]
    fn prepare(data: usize, end: usize) -> bool {
        let Some(cycle) = CYCLE.get_ptr_mut(0) else { return false };
        // SAFETY: the map value is there; nothing else runs during a test run.
        unsafe {
            let now = (*cycle).next;
            (*cycle).next = if now + 1 >= (*cycle).flows { 0 } else { now + 1 };
            let vip = (*cycle).next_vip;
            (*cycle).next_vip = if vip + 1 >= (*cycle).vips { 0 } else { vip + 1 };
            let values = ((*cycle).first + now, (*cycle).vip + vip);
            if (*cycle).ipv6 != 0 {
                restore::<19>(data, end, cycle, (34, 50), values)
            } else {
                restore::<15>(data, end, cycle, (26, 30), values)
            }
        }
    }

    #[classifier]
    pub fn wrap_tc(ctx: TcContext) -> i32 {
        if prepare(ctx.data(), ctx.data_end()) {
            // SAFETY: the agent's program array; falls through when the slot is empty.
            let _ = unsafe { TARGET_TC.tail_call(&ctx, 0) };
        }
        -2
    }

    #[xdp]
    pub fn wrap_xdp(ctx: XdpContext) -> u32 {
        if prepare(ctx.data(), ctx.data_end()) {
            // SAFETY: as above.
            let _ = unsafe { TARGET_XDP.tail_call(&ctx, 0) };
        }
        xdp_action::XDP_ABORTED
    }

    #[classifier]
    pub fn empty_tc(_ctx: TcContext) -> i32 {
        0
    }

    #[xdp]
    pub fn empty_xdp(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    /// A word of the packet, in the width in which it was written.
    ///
    /// # Safety
    /// The four bytes lie inside the packet.
    #[inline(always)]
    unsafe fn word(data: usize, at: usize) -> u32 {
        // SAFETY: the caller checked the bounds.
        unsafe { core::ptr::read_volatile((data + at) as *const u32) }
    }

    #[inline(always)]
    fn is_ipv4(data: usize, end: usize) -> bool {
        // SAFETY: bounds checked.
        data + 14 <= end && unsafe { core::ptr::read_volatile((data + 12) as *const u16) } == 0x0800u16.to_be()
    }

    /// The flow of a TCP packet without options: new last word of the destination, new ports, interface.
    #[inline(always)]
    fn lookup4(data: usize, end: usize) -> Option<[u32; 3]> {
        if data + 54 > end {
            return None;
        }
        // SAFETY: bounds checked; values stay allocated while the program runs (RCU).
        unsafe {
            let value = REFERENCE4.get_ptr([word(data, 26), word(data, 30), word(data, 34), TCP])?;
            Some([(*value)[0], (*value)[1], (*value)[2]])
        }
    }

    #[inline(always)]
    fn lookup6(data: usize, end: usize) -> Option<[u32; 3]> {
        if data + 74 > end {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            let mut key = [TCP; 10];
            let mut i = 0;
            while i < 9 {
                key[i] = word(data, 22 + 4 * i);
                i += 1;
            }
            let value = REFERENCE6.get_ptr(key)?;
            Some([(*value)[0], (*value)[1], (*value)[2]])
        }
    }

    /// One lookup, two checksum helpers, a redirect.
    #[classifier]
    pub fn reference_tc(ctx: TcContext) -> i32 {
        let (data, end) = (ctx.data(), ctx.data_end());
        let (value, at) = if is_ipv4(data, end) { (lookup4(data, end), 50) } else { (lookup6(data, end), 70) };
        let Some(value) = value else { return TC_ACT_OK as i32 };
        // SAFETY: own context; size 0 means that `to` is a difference.
        unsafe {
            bpf_l4_csum_replace(ctx.skb.skb, at, 0, value[0] as u64, BPF_F_PSEUDO_HDR as u64);
            bpf_l4_csum_replace(ctx.skb.skb, at, 0, value[1] as u64, 0);
            bpf_redirect(value[2], 0) as i32
        }
    }

    /// One lookup, address, ports, checksum and MACs written, a redirect.
    #[xdp]
    pub fn reference_xdp(ctx: XdpContext) -> u32 {
        let (data, end) = (ctx.data(), ctx.data_end());
        let value = if is_ipv4(data, end) {
            let value = lookup4(data, end);
            if let Some(value) = value {
                // SAFETY: `lookup4` found 54 bytes.
                unsafe { rewrite::<30>(data, end, value) };
            }
            value
        } else {
            let value = lookup6(data, end);
            if let Some(value) = value {
                // SAFETY: `lookup6` found 74 bytes.
                unsafe { rewrite::<50>(data, end, value) };
            }
            value
        };
        match value {
            // SAFETY: a helper without pointers.
            Some(value) => unsafe { bpf_redirect(value[2], 0) as u32 },
            None => xdp_action::XDP_PASS,
        }
    }

    /// Writes as a translation would: `ADDRESS` is where the destination's last word lies, ports and checksum follow.
    ///
    /// # Safety
    /// `data..end` is the packet.
    #[inline(always)]
    unsafe fn rewrite<const ADDRESS: usize>(data: usize, end: usize, value: [u32; 3]) {
        if data + ADDRESS + 24 > end {
            return;
        }
        let write = |at: usize, word: u32| {
            // SAFETY: bounds checked, `at` is at most 20 above the address.
            unsafe { core::ptr::write_volatile((data + at) as *mut u32, word) }
        };
        write(2, value[0]);
        write(6, value[1]);
        // SAFETY: bounds checked; the MACs' first and last two bytes.
        unsafe {
            core::ptr::write_volatile(data as *mut u16, value[0] as u16);
            core::ptr::write_volatile((data + 10) as *mut u16, value[1] as u16);
        }
        write(ADDRESS, value[0]);
        write(ADDRESS + 4, value[1]);
        write(ADDRESS + 20, value[1]);
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
