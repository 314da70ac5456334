//! Benchmark only: restores the test packet, turns to the next flow, and tail-calls the program that is measured. PROG_TEST_RUN repeats on
//! one buffer, which the measured program has rewritten. Never attached to an interface.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::xdp_action,
        macros::{classifier, map, xdp},
        maps::{Array, ProgramArray},
        programs::{TcContext, XdpContext},
    };

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
