//! Tests only: a link that loses packets at random, for kernels without netem. Never part of the agent.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        helpers::generated::bpf_get_prandom_u32,
        macros::{classifier, map},
        maps::PerCpuArray,
        programs::TcContext,
    };

    /// One packet of so many is lost.
    const ONE_OF: u32 = 100;
    const PASS: i32 = -1;
    const SHOT: i32 = 2;

    /// Packets seen, packets dropped.
    #[map]
    static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

    #[inline(always)]
    fn count(index: u32) {
        if let Some(value) = LOSSES.get_ptr_mut(index) {
            // SAFETY: the value is there and belongs to this CPU.
            unsafe { *value += 1 };
        }
    }

    #[classifier]
    pub fn drop_tc(_ctx: TcContext) -> i32 {
        count(0);
        // SAFETY: a helper without arguments.
        if unsafe { bpf_get_prandom_u32() } % ONE_OF != 0 {
            return PASS;
        }
        count(1);
        SHOT
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
