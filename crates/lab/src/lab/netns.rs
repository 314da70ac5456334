//! One named network namespace: made and removed through `ip`, entered by setns so that bpffs and every other mount stay as they are.

use crate::cleanup;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

const DIR: &str = "/run/netns";

/// A handle to a namespace; cheap to clone. Does not own it: [`super::Lab`] removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes a namespace with loopback up.
    pub(super) fn create(name: &str) -> Result<Namespace> {
        ensure!(!cleanup::stopping(), "the process is ending");
        ip(&["netns", "add", name])?;
        let namespace = Namespace::open(name)?;
        namespace.batch("link set lo up\n")?;
        Ok(namespace)
    }

    /// Opens an existing one.
    pub fn open(name: &str) -> Result<Namespace> {
        let path = Path::new(DIR).join(name);
        let file = File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))?;
        Ok(Namespace { name: name.into(), file: Arc::new(file) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// For `nsenter --net=PATH`.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs a closure in a thread of this namespace and returns its value. A panic goes on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered (needs root).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().with_context(|| format!("cannot enter the namespace {}", self.name))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into this namespace for good: for threads that the caller made for it.
    pub fn enter(&self) -> io::Result<()> {
        enter(self.file.as_raw_fd())
    }

    /// A command that runs in this namespace, in its own process group: a Ctrl-C at the terminal reaches only us, and we clean up in order.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.clone();
        command.process_group(0);
        // SAFETY: setns is async-signal-safe, and nothing else runs between fork and exec.
        unsafe { command.pre_exec(move || enter(file.as_raw_fd())) };
        command
    }

    /// Runs lines of `ip -batch` here.
    pub fn batch(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(NO_IP)?;
        child.stdin.take().context("ip has no standard input")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip -n {} -batch: {}\nin: {lines}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Writes a sysctl of this namespace; `name` as in `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.sysctls(&[(name, value)])
    }

    /// Writes several sysctls in order.
    pub fn sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in values {
                fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("cannot set {name} to {value}"))?;
            }
            Ok(())
        })?
    }

    /// Processes that live in this namespace, our own threads aside.
    pub fn pids(&self) -> Vec<i32> {
        self.file.metadata().map(|own| pids_in(own.ino())).unwrap_or_default()
    }
}

const NO_IP: &str = "cannot run ip (Debian: apt-get install iproute2)";

fn enter(fd: i32) -> io::Result<()> {
    // SAFETY: the descriptor is a namespace file that the caller keeps open.
    match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pids_in(inode: u64) -> Vec<i32> {
    let own = std::process::id() as i32;
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<i32>().ok();
    let inside = |pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode);
    entries.filter_map(pid).filter(|pid| *pid != own).filter(inside).collect()
}

/// Names of all named namespaces.
pub(super) fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Kills what runs in a namespace, and waits a second at most until it is gone.
pub(super) fn kill_all(name: &str) {
    let Ok(namespace) = Namespace::open(name) else { return };
    for pid in namespace.pids() {
        // SAFETY: plain system call; the pid was just seen inside a namespace of ours.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    for _ in 0..200 {
        // A zombie has left its namespace: its parent may take its time.
        if namespace.pids().is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Kills what runs in a namespace and removes it. Nothing happens when it does not exist.
pub(super) fn remove(name: &str) -> Result<()> {
    kill_all(name);
    if Path::new(DIR).join(name).exists() { ip(&["netns", "del", name]) } else { Ok(()) }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context(NO_IP)?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
