//! A pseudo terminal with a program on it, as a person sits before it.
#![allow(dead_code)]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub struct Pty {
    master: File,
    slave: OwnedFd,
    /// All that was written to the terminal so far.
    pub seen: String,
}

impl Pty {
    pub fn open(columns: u16, rows: u16) -> Pty {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: every pointer is to a local of the right type, or null where that is allowed.
        let result = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null_mut(), &size) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        // SAFETY: openpty succeeded: both are open and belong to nobody else.
        unsafe { Pty { master: File::from_raw_fd(master), slave: OwnedFd::from_raw_fd(slave), seen: String::new() } }
    }

    /// Starts a program with this as its controlling terminal.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        // SAFETY: setsid and ioctl are async-signal-safe, and descriptor 0 is the terminal by then.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command.spawn().expect("the program starts")
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the pointer is to a local.
        assert_eq!(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }

    pub fn write(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("keys are taken");
    }

    /// Whether lines are edited and echoed, as a shell wants it.
    pub fn is_cooked(&self) -> bool {
        // SAFETY: a termios of zeros is valid, and filled by the call.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and the pointer is to a local.
        assert_eq!(unsafe { libc::tcgetattr(self.slave.as_raw_fd(), &mut modes) }, 0);
        modes.c_lflag & (libc::ICANON | libc::ECHO) == libc::ICANON | libc::ECHO
    }

    /// Reads what comes within a time.
    fn read(&mut self, wait: Duration) {
        let mut poll = libc::pollfd { fd: self.master.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, a local.
        if unsafe { libc::poll(&mut poll, 1, wait.as_millis() as i32) } > 0 {
            let mut bytes = [0; 65536];
            let count = self.master.read(&mut bytes).unwrap_or(0);
            self.seen += &String::from_utf8_lossy(&bytes[..count]);
        }
    }

    /// Reads until a text was written since the last call; panics when it does not come.
    pub fn expect(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            if Instant::now() > end {
                let first = self.seen.char_indices().rev().nth(3_000).map_or(0, |(at, _)| at);
                panic!("{text:?} is not in what was seen; its end is {:?}", &self.seen[first..]);
            }
            self.read(Duration::from_millis(100));
        }
    }

    /// Reads until the program has ended; its exit code, none by a signal.
    pub fn wait(&mut self, child: &mut Child) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.read(Duration::from_millis(20));
            if let Some(status) = child.try_wait().expect("a child") {
                self.read(Duration::from_millis(20));
                return status.code();
            }
            if Instant::now() > end {
                let _ = child.kill();
                panic!("it does not end; last seen: {:?}", self.seen);
            }
        }
    }
}
