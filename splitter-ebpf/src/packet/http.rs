//! The head scanner's loop in the kernel. The scanner itself is `splitter_common::http`.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use splitter_common::http::Loop;

/// `bpf_loop` (Linux 5.17).
pub enum BpfLoop {}

impl Loop for BpfLoop {
    #[inline(always)]
    fn repeat<F: FnMut(u32) -> bool>(rounds: u32, mut f: F) {
        // SAFETY: the kernel hands the pointer to `round` back as it got it, and only during the call.
        unsafe { bpf_loop(rounds, round::<F> as *mut c_void, (&raw mut f).cast(), 0) };
    }
}

/// One round, called by the kernel; 1 ends the loop.
unsafe extern "C" fn round<F: FnMut(u32) -> bool>(i: u32, f: *mut c_void) -> i64 {
    // SAFETY: `repeat` passed a pointer to its closure, which lives on its stack until the loop has ended.
    unsafe { (*f.cast::<F>())(i) as i64 }
}
