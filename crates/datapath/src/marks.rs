//! The map `MOVED`, seen without a system call: which versions' trials were counted since it was last looked at.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

/// Bytes from one entry of an array to the next: the kernel rounds values up.
const STRIDE: usize = 8;

/// The array's memory, shared with the kernel programs (`BPF_F_MMAPABLE`, Linux 5.5).
#[derive(Debug)]
pub(super) struct Marks {
    memory: NonNull<u8>,
    entries: usize,
}

// SAFETY: the memory is the mapping's, which lives as long as this; it is only touched as atomics.
unsafe impl Send for Marks {}
// SAFETY: as above.
unsafe impl Sync for Marks {}

impl Marks {
    /// `map`: an array of u32 with `entries` that can be mapped.
    ///
    /// # Errors
    /// When the kernel does not map it.
    pub(super) fn open(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), entries * STRIDE, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(memory.cast::<u8>()) {
            Some(place) if memory != libc::MAP_FAILED => Ok(Self { memory: place, entries }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Which of the entries from `first` on are marked; none of them is from now on. Entries that are not there count as marked.
    ///
    /// The kernel marks a version on one CPU while it is cleared here on another, and what it counts may be seen later than its mark: who was
    /// marked is to be read now, and once more the next time.
    pub(super) fn take(&self, first: u32, marked: &mut [bool]) {
        for (index, marked) in (first as usize..).zip(marked) {
            *marked = self.entry(index).is_none_or(|entry| {
                let set = entry.load(Ordering::Relaxed) != 0;
                if set {
                    entry.store(0, Ordering::Relaxed);
                }
                set
            });
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Marks a version whose counters were written.
    pub(super) fn set(&self, index: u32) {
        if let Some(entry) = self.entry(index as usize) {
            entry.store(1, Ordering::Release);
        }
    }

    fn entry(&self, index: usize) -> Option<&AtomicU32> {
        // SAFETY: within the mapping, aligned to 8 bytes, and never touched but as an atomic; the kernel programs write whole words.
        (index < self.entries).then(|| unsafe { self.memory.add(index * STRIDE).cast().as_ref() })
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `open`, with this length, and nobody can hold a reference into it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.entries * STRIDE) };
    }
}
