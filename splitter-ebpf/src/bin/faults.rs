//! Tests and benchmarks only: a link that loses packets at random, doubles them, and sends them another way, for kernels without netem. Never
//! part of the agent.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        helpers::generated::{bpf_get_prandom_u32, bpf_redirect},
        macros::{classifier, map},
        maps::{Array, PerCpuArray},
        programs::TcContext,
    };

    const PASS: i32 = -1;
    const SHOT: i32 = 2;

    /// Of a thousand packets: how many are lost, doubled, and sent another way; then the index of the interface that is this way.
    #[map]
    static FAULTS: Array<u32> = Array::with_max_entries(4, 0);

    /// Packets seen, lost, doubled.
    #[map]
    static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

    /// Mark of a packet's double, which meets this program too.
    const DOUBLE: u32 = 0x000d_0b1e;

    fn count(index: u32) {
        if let Some(value) = LOSSES.get_ptr_mut(index) {
            // SAFETY: the value is there and belongs to this CPU.
            unsafe { *value += 1 };
        }
    }

    fn fault(index: u32) -> u32 {
        FAULTS.get(index).copied().unwrap_or(0)
    }

    #[classifier]
    pub fn fault_tc(ctx: TcContext) -> i32 {
        // SAFETY: the context is live.
        if unsafe { (*ctx.skb.skb).mark } == DOUBLE {
            return PASS;
        }
        count(0);
        // SAFETY: a helper without arguments.
        let mut dice = unsafe { bpf_get_prandom_u32() } % 1_000;
        let (lost, doubled, late, way) = (fault(0), fault(1), fault(2), fault(3));
        if dice < lost {
            count(1);
            return SHOT;
        }
        dice -= lost;
        if dice < doubled {
            count(2);
            ctx.set_mark(DOUBLE);
            // SAFETY: the context is live.
            let own = unsafe { (*ctx.skb.skb).ifindex };
            // One that cannot be doubled goes alone.
            let _ = ctx.clone_redirect(own, 0);
            ctx.set_mark(0);
            return PASS;
        }
        dice -= doubled;
        if dice < late {
            // SAFETY: a helper that takes numbers.
            return unsafe { bpf_redirect(way, 0) } as i32;
        }
        PASS
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
