//! Cost of the kernel programs by PROG_TEST_RUN: loads the object, fills its maps by hand, runs packets through it. Root only.
//!
//! What a test run hides: driver, buffers, the redirect itself. What it shows: the program alone, without noise of the network.

mod cost;
mod head;
mod maps;
mod verify;

pub use cost::{Case, Cost, Setting, run};
pub use head::{Part, Scanner, padded};
pub use maps::{Load, Node, backend, client, vip};
pub use verify::verify;

/// The last CPU: the first one serves more interrupts.
pub fn pin_to_one_cpu() {
    let last = std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
    // SAFETY: a zeroed set is valid; the calling thread only. A machine that refuses is measured unpinned.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(last, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
