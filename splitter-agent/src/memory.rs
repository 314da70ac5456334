//! The allocator of a process that is small, but holds much for moments: while a policy is read, or a status of many services written. At
//! 40,000 services 106 MB are resident (`bench policy-scale`).

/// All threads share one heap, so that what one frees another can use. To be called before there are threads.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets parameters of the allocator (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what was freed. To be called after something large is done: it goes through the whole heap.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions; it only returns free pages to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
}
