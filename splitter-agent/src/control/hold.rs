//! One agent for a directory of pins and for a state directory: a lock on each, held for life.
//!
//! The lock is flock(2)'s: it goes with the process, however that ends. That of the pins is on the directory itself, since a bpffs holds no files;
//! it counts for all who see this bpffs, in whatever mount namespace. The state directory has a file for it, `agent.lock`, with the holder's pid.

use anyhow::{Context, Result, anyhow, bail};
use splitter_datapath::DatapathError;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// An agent that is ending is waited for this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// An agent that was asked to end has this long.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);
const LOCK: &str = "agent.lock";

/// The right to be the agent of these directories; ends when it is dropped.
#[derive(Debug)]
pub struct Hold {
    pins: Pins,
    _state: File,
}

/// Who has what we want.
#[derive(Debug)]
struct Held {
    /// `the pins in DIR`.
    what: String,
    pid: Option<u32>,
}

impl Held {
    fn holder(&self) -> String {
        match self.pid {
            Some(pid) => format!("another agent (pid {pid})"),
            None => "another agent (of another pid namespace: `lsns -t pid` lists them)".into(),
        }
    }
}

impl Hold {
    /// Takes both, with patience for an agent that is ending.
    ///
    /// # Errors
    /// When another agent lives on one of them (it is named by its pid), or a directory cannot be made or is not on a bpffs.
    pub async fn take(pins: Option<&Path>, state: &Path) -> Result<Self> {
        let pins = splitter_datapath::directory(pins, true)?;
        let (begin, mut said) = (Instant::now(), false);
        loop {
            let held = match Pins::take(&pins)? {
                Err(held) => held,
                Ok(pins) => match lock_state(state)? {
                    Ok(state) => return Ok(Self { pins, _state: state }),
                    Err(held) => held,
                },
            };
            let (what, holder) = (&held.what, held.holder());
            if begin.elapsed() >= PATIENCE {
                bail!("{holder} holds {what}: stop it first, or give this one its own --pins, --state, --admin and --metrics");
            }
            if !std::mem::replace(&mut said, true) {
                tracing::info!("{holder} holds {what}: waiting up to {} s for its end", PATIENCE.as_secs());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the directory of pins is still the one that is held. One that was removed and made anew is taken again.
    ///
    /// # Errors
    /// When it cannot be made, or another agent was faster.
    pub(super) fn renew(&mut self) -> Result<()> {
        if self.pins.is_there() {
            return Ok(());
        }
        match Pins::take(&self.pins.path)? {
            Ok(pins) => self.pins = pins,
            Err(held) => bail!("{} was removed, and {} holds it now", self.pins.path.display(), held.holder()),
        }
        Ok(())
    }
}

/// The lock on a directory of pins.
#[derive(Debug)]
struct Pins {
    path: PathBuf,
    directory: File,
}

impl Pins {
    /// Makes the directory if need be.
    fn take(path: &Path) -> Result<Result<Self, Held>, DatapathError> {
        let failed = |cause| DatapathError::Pins { path: path.into(), cause };
        loop {
            splitter_datapath::make_pins(path)?;
            let directory = File::open(path).map_err(failed)?;
            if let Err(pid) = lock(&directory).map_err(failed)? {
                return Ok(Err(Held { what: format!("the pins in {}", path.display()), pid }));
            }
            let pins = Self { path: path.into(), directory };
            // It may have been removed before it was locked.
            if pins.is_there() {
                return Ok(Ok(pins));
            }
        }
    }

    fn is_there(&self) -> bool {
        let identity = |m: fs::Metadata| (m.dev(), m.ino());
        match (fs::metadata(&self.path), self.directory.metadata()) {
            (Ok(found), Ok(held)) => identity(found) == identity(held),
            _ => false,
        }
    }
}

fn lock_state(directory: &Path) -> Result<Result<File, Held>> {
    let made = DirBuilder::new().recursive(true).mode(0o750).create(directory);
    made.with_context(|| format!("cannot make the state directory {}", directory.display()))?;
    let path = directory.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => anyhow!("cannot lock {}: it is a symbolic link: remove it", path.display()),
        _ => anyhow!("cannot lock {}: {error}", path.display()),
    })?;
    let Err(pid) = lock(&file).with_context(|| format!("cannot lock {}", path.display()))? else {
        // For people and for the message of the next one; the lock counts, not the number.
        let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        noted.with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Ok(file));
    };
    let mut text = String::new();
    let noted = file.rewind().and_then(|()| file.read_to_string(&mut text)).ok().and_then(|_| text.trim().parse().ok());
    Ok(Err(Held { what: format!("the state in {}", directory.display()), pid: noted.or(pid) }))
}

/// The holder when somebody else has it, if the kernel tells.
fn lock(file: &File) -> io::Result<Result<(), Option<u32>>> {
    for _ in 0..5 {
        // SAFETY: no pointers; the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Ok(()));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        match holder(file) {
            // It may just have gone.
            None => std::thread::sleep(Duration::from_millis(10)),
            pid => return Ok(Err(pid)),
        }
    }
    Ok(Err(None))
}

/// Who holds a lock, as the kernel lists it; only processes of this pid namespace.
fn holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    find_holder(&fs::read_to_string("/proc/locks").ok()?, wanted.dev(), wanted.ino())
}

/// Lines are `1: FLOCK  ADVISORY  WRITE 1234 00:1b:5678 0 EOF` (proc_locks(5)); those who wait have an arrow behind the number.
fn find_holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    locks.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, _, pid, found, ..] if found == place => pid.parse().ok(),
        _ => None,
    })
}

/// Refuses while an agent lives on these pins. What it returns keeps agents away.
pub(super) fn vacant(pins: &Path) -> Result<Option<impl Sized>> {
    match with_lock(pins)? {
        Err(held) => bail!(
            "{} lives on {}: stop it first, or let `splitter detach --force` stop it",
            held.holder().replacen("another", "an", 1),
            held.what
        ),
        Ok(lock) => Ok(lock),
    }
}

/// Asks the agent of these pins to end, and waits for it; its pid when there was one.
///
/// # Errors
/// When it cannot be asked, or does not end.
pub(super) fn stop(pins: &Path) -> Result<Option<u32>> {
    let (begin, mut asked) = (Instant::now(), None);
    loop {
        let held = match with_lock(pins)? {
            Ok(_) => return Ok(asked),
            Err(held) => held,
        };
        let pid = held.pid.with_context(|| format!("{} lives on {}: stop it where it runs", held.holder(), held.what))?;
        if asked.replace(pid) != Some(pid) {
            ask_to_end(pid, pins)?;
        }
        if begin.elapsed() > STOP_PATIENCE {
            bail!("the agent (pid {pid}) did not end within {} s of SIGTERM: look at its log", STOP_PATIENCE.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

fn with_lock(pins: &Path) -> Result<Result<Option<File>, Held>> {
    let directory = match File::open(pins) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Err(error).with_context(|| format!("cannot use {}", pins.display())),
    };
    let locked = lock(&directory).with_context(|| format!("cannot lock {}", pins.display()))?;
    Ok(locked.map(|()| Some(directory)).map_err(|pid| Held { what: format!("the pins in {}", pins.display()), pid }))
}

/// SIGTERM to the holder, and to nobody who got its number meanwhile.
fn ask_to_end(pid: u32, pins: &Path) -> Result<()> {
    let process = |flags: libc::c_long| {
        // SAFETY: no pointers (pidfd_open(2)).
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), flags) };
        // SAFETY: the kernel has just made this descriptor for us.
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
    };
    let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
    let process = match process(0) {
        Ok(process) => process,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot reach the agent (pid {pid})")),
    };
    match with_lock(pins)? {
        Err(held) if held.pid == Some(pid) => {}
        _ => return Ok(()),
    }
    // SAFETY: no information is passed with the signal (pidfd_send_signal(2)).
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGTERM, std::ptr::null::<libc::c_void>(), 0) };
    match (sent, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, error) if gone(&error) => Ok(()),
        (_, error) => Err(error).with_context(|| format!("cannot stop the agent (pid {pid})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (File::open(folder.path()).unwrap(), File::open(folder.path()).unwrap());
        lock(&first).unwrap().unwrap();
        assert!(lock(&second).unwrap().is_err(), "a directory is locked like a file");
        let locks = "1: FLOCK  ADVISORY  WRITE 41 00:1b:5678 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 42 00:1b:5679 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 43 00:1b:5679 0 EOF\n3: FLOCK  ADVISORY  WRITE 44 00:1b:5679 0 EOF\n";
        assert_eq!(find_holder(locks, libc::makedev(0, 0x1b), 5679), Some(44));
        assert_eq!(find_holder(locks, libc::makedev(1, 0x1b), 5679), None);
        drop(first);
        lock(&second).unwrap().unwrap();
    }

    #[test]
    fn a_state_directory_has_one_agent_and_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = lock_state(&state).unwrap().ok().unwrap();
        let held = lock_state(&state).unwrap().err().unwrap();
        assert_eq!((held.pid, held.what), (Some(std::process::id()), format!("the state in {}", state.display())));
        drop(first);
        assert!(lock_state(&state).unwrap().is_ok());
        fs::remove_file(state.join(LOCK)).unwrap();
        std::os::unix::fs::symlink("/dev/null", state.join(LOCK)).unwrap();
        let error = format!("{:#}", lock_state(&state).unwrap_err());
        assert!(error.contains("agent.lock: it is a symbolic link: remove it"), "{error}");
    }
}
