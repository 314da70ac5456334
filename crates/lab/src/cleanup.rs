//! What must be undone whatever ends the process: actions that run once, on drop, on a panic, or on SIGINT, SIGTERM and SIGHUP.
//!
//! SIGKILL cannot be caught: [`crate::lab::sweep`] removes what it left at the next start.

use std::{
    os::fd::RawFd,
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

type Action = Box<dyn FnOnce() + Send>;

static ACTIONS: Mutex<Vec<(u64, Action)>> = Mutex::new(Vec::new());
static STOPPING: AtomicBool = AtomicBool::new(false);
/// Write end of the pipe from the signal handler to its thread.
static PIPE: AtomicI32 = AtomicI32::new(-1);

fn actions() -> MutexGuard<'static, Vec<(u64, Action)>> {
    ACTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a signal asked the process to end: long work should stop and nothing new be made.
pub fn stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// When a signal is being served, waits for it to end the process: a thread that only sees its tools vanish must not end it before. Call it
/// before leaving `main`.
pub fn yield_to_signal() {
    while stopping() && std::thread::current().name() != Some(THREAD) {
        std::thread::park();
    }
}

/// Serves the signals.
const THREAD: &str = "cleanup";

/// Runs its action when dropped, or when a signal ends the process; never twice.
#[must_use = "the action runs when this is dropped"]
pub struct Guard {
    id: u64,
}

impl Guard {
    /// Installs the signal handlers with the first guard. Actions of a signal run newest first.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Guard {
        static NEXT: Mutex<u64> = Mutex::new(0);
        install();
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        actions().push((*next, Box::new(action)));
        Guard { id: *next }
    }

    /// Forgets the action: somebody else is responsible from now on.
    pub fn disarm(self) {
        drop(take(self.id));
    }
}

fn take(id: u64) -> Option<Action> {
    let mut actions = actions();
    let position = actions.iter().position(|(other, _)| *other == id)?;
    Some(actions.remove(position).1)
}

impl Drop for Guard {
    fn drop(&mut self) {
        yield_to_signal();
        if let Some(action) = take(self.id) {
            action();
        }
    }
}

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe; the descriptor is never closed; the buffer is one byte on this stack.
    unsafe { libc::write(PIPE.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut pipe: [RawFd; 2] = [-1; 2];
        // SAFETY: the array has room for the two descriptors.
        let made = unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) };
        assert_eq!(made, 0, "pipe: {}", std::io::Error::last_os_error());
        PIPE.store(pipe[1], Ordering::SeqCst);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the handler only calls write; SA_RESTART keeps other system calls whole.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        let serve = move || {
            let mut signal = 0u8;
            // SAFETY: the buffer is one byte; the descriptor is never closed.
            while unsafe { libc::read(pipe[0], (&raw mut signal).cast(), 1) } != 1 {}
            STOPPING.store(true, Ordering::SeqCst);
            eprintln!("\ninterrupted: cleaning up");
            while let Some((_, action)) = { actions().pop() } {
                action();
            }
            std::process::exit(128 + i32::from(signal));
        };
        let spawned = std::thread::Builder::new().name(THREAD.into()).spawn(serve);
        assert!(spawned.is_ok(), "no thread for the signals: {spawned:?}");
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, atomic::AtomicU32};

    #[test]
    fn runs_once_on_drop_and_not_when_disarmed() {
        let count = Arc::new(AtomicU32::new(0));
        let add = |count: &Arc<AtomicU32>| {
            let count = count.clone();
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        let first = Guard::new(add(&count));
        let second = Guard::new(add(&count));
        second.disarm();
        assert_eq!(count.load(Ordering::SeqCst), 0);
        drop(first);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}
