//! Readiness by epoll, with nanosecond timeouts: the loop under the server and the load generator. Level-triggered.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// What to wait for, or what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    pub const READ: Interest = Interest(libc::EPOLLIN as u32);
    pub const WRITE: Interest = Interest(libc::EPOLLOUT as u32);
    /// Nothing but errors and hang-ups, which always come.
    pub const NONE: Interest = Interest(0);
}

/// One ready descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The token it was added with.
    pub token: u64,
    bits: u32,
}

impl Event {
    /// Readable, or ended: a read tells which.
    pub fn readable(&self) -> bool {
        self.bits & (libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0
    }

    /// Writable, or failed: a write tells which.
    pub fn writable(&self) -> bool {
        self.bits & (libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0
    }
}

pub struct Poll {
    fd: OwnedFd,
    buffer: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Poll { fd: unsafe { OwnedFd::from_raw_fd(fd) }, buffer: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    fn control(&self, operation: i32, fd: RawFd, interest: Interest, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.0, u64: token };
        // SAFETY: the event lives through the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }

    /// A closed descriptor leaves by itself.
    pub fn add(&self, fd: &impl AsRawFd, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), interest, token)
    }

    pub fn modify(&self, fd: &impl AsRawFd, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), interest, token)
    }

    /// Waits for events or the timeout (`None`: for ever) and puts them into `events`.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().min(i64::MAX as u64) as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut ready = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both structures live through the call.
        let polled = unsafe { libc::ppoll(&mut ready, 1, timeout, std::ptr::null()) };
        match check(polled) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        // SAFETY: the buffer has room for as many events as we say.
        let got = check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.buffer.as_mut_ptr(), self.buffer.len() as i32, 0) })?;
        events.extend(self.buffer[..got as usize].iter().map(|event| Event { token: event.u64, bits: event.events }));
        Ok(())
    }
}

/// The result of a system call, or errno.
pub fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
