//! A child process that is killed when its handle goes, or when a signal ends us.

use crate::cleanup::{self, Guard};
use anyhow::{Context, Result, bail, ensure};
use std::{
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A running program: a server, an agent.
pub struct Process {
    name: String,
    pid: u32,
    child: Arc<Mutex<Child>>,
    guard: Option<Guard>,
}

impl Process {
    /// Starts a command, usually one of [`super::Namespace::command`].
    pub fn spawn(name: &str, command: &mut Command) -> Result<Process> {
        ensure!(!cleanup::stopping(), "the process is ending");
        let child = command.spawn().with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        let ours = child.clone();
        let guard = Guard::new(move || kill(&mut ours.lock().unwrap_or_else(PoisonError::into_inner)));
        Ok(Process { name: name.into(), pid, child, guard: Some(guard) })
    }

    /// The same for a program that starts others which must not outlive it, as cargo starts tests: all are asked to end (SIGTERM), so that they
    /// clean up, and killed when they do not.
    pub fn spawn_group(name: &str, command: &mut Command) -> Result<Process> {
        let mut process = Process::spawn(name, command.process_group(0))?;
        let ours = process.child.clone();
        let guard = Guard::new(move || end_group(&mut ours.lock().unwrap_or_else(PoisonError::into_inner)));
        if let Some(single) = process.guard.replace(guard) {
            single.disarm();
        }
        Ok(process)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        if self.exited().is_none() {
            // SAFETY: plain system call; the child is not reaped yet, so the pid is still its own.
            unsafe { libc::kill(self.pid as i32, signal) };
        }
    }

    /// The status, once it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        drop(self.guard.take());
    }

    /// SIGTERM, waits, SIGKILL after `patience`.
    pub fn stop(mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        let status = wait_until(patience, || self.exited());
        drop(self.guard.take());
        status.with_context(|| format!("{} did not end within {patience:?} of SIGTERM", self.name))
    }

    /// Goes on running without us.
    pub fn leave(mut self) -> u32 {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
        self.pid
    }

    /// Waits until `ready` says yes.
    ///
    /// # Errors
    /// When the process ends first, or time is up.
    pub fn wait_ready(&self, patience: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = wait_until(patience, || if ready() { Some(None) } else { self.exited().map(Some) });
        match end {
            Some(None) => Ok(()),
            Some(Some(status)) => bail!("{} ended with {status} before it was ready", self.name),
            None => bail!("{} (pid {}) was not ready within {patience:?}", self.name, self.pid),
        }
    }

    /// Waits until a TCP listener answers, seen from the calling thread's namespace.
    pub fn wait_listening(&self, address: SocketAddr, patience: Duration) -> Result<()> {
        self.wait_ready(patience, || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())
    }
}

/// Polls every 5 ms.
pub(crate) fn wait_until<T>(patience: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if Instant::now() >= end || cleanup::stopping() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(child: &mut Child) {
    // Both fail only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Time to clean up.
const GRACE: Duration = Duration::from_secs(10);

/// Ends a process group whose leader is `child`.
fn end_group(child: &mut Child) {
    // When the leader was reaped already, its number may be another's.
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let group = -(child.id() as i32);
    // SAFETY: plain system call; the number is the group's as long as the leader is not reaped or a member is left.
    let signal = |signal: i32| unsafe { libc::kill(group, signal) };
    signal(libc::SIGTERM);
    let end = Instant::now() + GRACE;
    while Instant::now() < end {
        // Reaped, the leader is no member any more.
        let _ = child.try_wait();
        if signal(0) != 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(libc::SIGKILL);
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program has started goes with it, after it was asked to.
    #[test]
    fn a_group_ends_as_a_whole() {
        let folder = std::env::temp_dir().join(format!("splitter-group-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let note = |name: &str| folder.join(name);
        let inner = format!(
            "trap \"echo asked > {}; exit\" TERM; echo $$ > {}; while :; do sleep 0.05; done",
            note("asked").display(),
            note("pid").display()
        );
        let script = format!("sh -c '{inner}' & wait");
        let process = Process::spawn_group("sh", Command::new("sh").args(["-c", &script])).unwrap();
        let read = |name: &str| std::fs::read_to_string(note(name)).ok().filter(|text| text.ends_with('\n'));
        let grandchild: u32 = wait_until(Duration::from_secs(10), || read("pid")).unwrap().trim().parse().unwrap();
        let lives = || std::path::Path::new(&format!("/proc/{grandchild}/stat")).exists();
        assert!(lives());
        process.kill();
        assert!(wait_until(Duration::from_secs(5), || (!lives()).then_some(())).is_some(), "the grandchild goes on");
        assert_eq!(read("asked").as_deref(), Some("asked\n"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn reports_an_early_end() {
        let process = Process::spawn("false", &mut Command::new("false")).unwrap();
        let error = process.wait_ready(Duration::from_secs(5), || false).unwrap_err().to_string();
        assert!(error.contains("false ended with"), "{error}");
    }

    #[test]
    fn dies_with_its_handle() {
        let process = Process::spawn("sleep", Command::new("sleep").arg("60")).unwrap();
        let path = format!("/proc/{}", process.pid());
        assert!(std::path::Path::new(&path).exists());
        process.kill();
        assert!(!std::path::Path::new(&path).exists());
    }
}
