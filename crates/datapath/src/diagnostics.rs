//! What the programs tell of themselves (`--debug-programs`), into the agent's log.
//!
//! On a thread of its own: aya-log reads until nothing is left, and programs may tell faster than a log is written.

use super::{DatapathError, causes};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use splitter_common::{abi::Reason, decide::salt};
use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

/// Of aya-log.
pub const RING: &str = "AYA_LOGS";
/// How soon the reader ends after its programs, milliseconds.
const LOOK: i32 = 500;

/// The reader of the programs' lines; it ends with this.
pub struct Diagnostics(Arc<AtomicBool>);

impl Diagnostics {
    /// Reads what programs tell that were loaded to tell.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let names = Names(ebpf.programs().map(|(name, _)| (salt(name.as_bytes()) as u32, name.to_owned())).collect());
        let failed = |cause: String| DatapathError::Map { path: RING.into(), cause };
        let mut lines = EbpfLogger::init_with_logger(ebpf, names).map_err(|error| failed(causes(&error)))?;
        let over = Arc::<AtomicBool>::default();
        let seen = over.clone();
        let read = move || {
            while !seen.load(Relaxed) {
                if let Err(error) = wait(&lines) {
                    tracing::error!(%error, "what the programs tell cannot be read any more");
                    return;
                }
                lines.flush();
            }
        };
        let reader = thread::Builder::new().name("splitter-debug".into()).stack_size(256 << 10).spawn(read);
        reader.map_err(|error| failed(error.to_string()))?;
        Ok(Self(over))
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Returns when there are lines, or after [`LOOK`].
fn wait(lines: &impl AsRawFd) -> io::Result<()> {
    let mut ring = libc::pollfd { fd: lines.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which `lines` keeps open.
    match unsafe { libc::poll(&raw mut ring, 1, LOOK) } {
        -1 => Err(io::Error::last_os_error()).or_else(|error| if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }),
        _ => Ok(()),
    }
}

/// Programs by their numbers in lines.
struct Names(HashMap<u32, String>);

impl Names {
    /// A line's program, and what it tells.
    fn split<'a>(&'a self, line: &'a str) -> (&'a str, &'a str) {
        let parts = line.split_once('|').and_then(|(number, text)| Some((self.0.get(&number.parse().ok()?)?.as_str(), text)));
        parts.unwrap_or(("?", line))
    }
}

/// A text whose reason, which comes last, has its name.
fn named(text: &str) -> Cow<'_, str> {
    let named = || {
        let (before, number) = text.rsplit_once(" reason ")?;
        let number = number.parse::<u32>().ok()?;
        let reason = Reason::ALL.iter().find(|reason| **reason as u32 == number)?;
        Some(format!("{before} reason {}", reason.name()))
    };
    named().map_or(Cow::Borrowed(text), Cow::Owned)
}

impl Log for Names {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        let (program, text) = self.split(&line);
        tracing::debug!(program, "{}", named(text));
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_their_programs() {
        let names = Names(HashMap::from([(salt(b"splitter_tc") as u32, "splitter_tc".to_owned())]));
        let line = format!("{}|service 1: nobody serves, reason 8", salt(b"splitter_tc") as u32);
        assert_eq!(names.split(&line), ("splitter_tc", "service 1: nobody serves, reason 8"));
        assert_eq!(names.split("5|x"), ("?", "5|x"));
        assert_eq!(names.split("x"), ("?", "x"));
    }

    #[test]
    fn reasons_have_their_names() {
        assert_eq!(named("service 1: nobody serves, reason 8"), "service 1: nobody serves, reason no_backend");
        assert_eq!(named("service 1: nobody serves, reason 250"), "service 1: nobody serves, reason 250");
        assert_eq!(named("service 1: a response came, status 8"), "service 1: a response came, status 8");
    }
}
