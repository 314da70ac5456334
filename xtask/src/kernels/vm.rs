//! Boots a kernel under QEMU and reads the rows that the guest writes to its second serial port; the first is the console, kept as a log.

use super::image::Image;
use crate::{artifact, step};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use splitter_lab::{cleanup, lab::Process, pace};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// How long a kernel under KVM may take to reach its first program.
const UNDER_KVM: Duration = Duration::from_secs(30);
/// What QEMU says when the processor beneath cannot run the guest after all.
const KVM_FAILS: &str = "KVM internal error";
/// Lines of the console that are shown when the guest ends early.
const TAIL: usize = 25;

/// One guest.
pub struct Guest<'a> {
    pub image: &'a Image,
    /// The archive of its root.
    pub root: &'a Path,
    /// Names the logs.
    pub purpose: &'a str,
    pub processors: u32,
    /// Mebibytes.
    pub memory: u32,
    /// For everything, from power on to power off.
    pub patience: Duration,
}

/// How the guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By QEMU's translator: ten to thirty times slower.
    Tcg,
}

impl Accelerator {
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG",
        }
    }

    /// See [`pace`].
    fn slowness(self) -> u32 {
        match self {
            Accelerator::Kvm => 1,
            Accelerator::Tcg => 4,
        }
    }
}

/// Boots the guest, tells each of its rows at once, and returns when it has switched itself off: how it was run, and the exit status of its job.
///
/// # Errors
/// When it does not come up, does not end in time, or ends before its job: with the end of its console.
pub fn boot(guest: &Guest, mut tell: impl FnMut(Value) -> Result<()>) -> Result<(Accelerator, i64)> {
    // What the first guest found out holds for those after it.
    static WITHOUT_KVM: OnceLock<()> = OnceLock::new();
    if WITHOUT_KVM.get().is_none() {
        match kvm() {
            Ok(()) => {
                if let Some(status) = run(guest, Accelerator::Kvm, &mut tell)? {
                    return Ok((Accelerator::Kvm, status));
                }
                if WITHOUT_KVM.set(()).is_ok() {
                    step::say("         /dev/kvm is there, but cannot run a guest: going on with TCG, which is slower");
                }
            }
            Err(error) => {
                if WITHOUT_KVM.set(()).is_ok() {
                    step::say(format_args!("         no KVM ({error:#}): going on with TCG, which is slower"));
                }
            }
        }
    }
    let status = run(guest, Accelerator::Tcg, &mut tell)?;
    Ok((Accelerator::Tcg, status.context("TCG needs no KVM")?))
}

/// Whether the kernel makes virtual machines. Only a boot shows that they run.
fn kvm() -> Result<()> {
    use std::os::fd::AsRawFd;
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?;
    // SAFETY: takes a number, gives a descriptor that is ours.
    let vm = splitter_lab::poll::check(unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM as _, 0) }).context("KVM_CREATE_VM")?;
    // SAFETY: nobody else has it.
    unsafe { libc::close(vm) };
    Ok(())
}

/// Files of one guest.
struct Logs {
    /// What its kernel and its programs say.
    console: PathBuf,
    rows: PathBuf,
    /// What QEMU says.
    qemu: PathBuf,
}

/// Where a guest's console is kept.
pub fn console(image: &Image, purpose: &str) -> Result<PathBuf> {
    log(image, purpose, "console")
}

fn log(image: &Image, purpose: &str, what: &str) -> Result<PathBuf> {
    Ok(step::log_dir()?.join(format!("kernel-{}-{purpose}-{what}.log", image.series)))
}

impl Logs {
    fn new(guest: &Guest) -> Result<Logs> {
        let log = |what| log(guest.image, guest.purpose, what);
        Ok(Logs { console: log("console")?, rows: log("rows")?, qemu: log("qemu")? })
    }

    fn tail(&self) -> String {
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (qemu, console) = (text(&self.qemu), text(&self.console));
        let lines: Vec<&str> = qemu.lines().chain(console.lines()).map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// `None`: KVM cannot run it.
fn run(guest: &Guest, accelerator: Accelerator, tell: &mut impl FnMut(Value) -> Result<()>) -> Result<Option<i64>> {
    let title = guest.image.title();
    let logs = Logs::new(guest)?;
    let process = Process::spawn("qemu", &mut command(guest, accelerator, &logs)?)?;
    let begin = Instant::now();
    let mut rows = Rows::default();
    let (mut up, mut status) = (false, None);
    loop {
        let ended = process.exited();
        // Read after the look at the process: what it wrote last is not missed.
        for row in rows.read(&logs.rows)? {
            if row["up"].is_string() {
                up = true;
            } else if let Some(end) = row["end"].as_i64() {
                status = Some(end);
            } else {
                tell(row)?;
            }
        }
        if ended.is_some() || begin.elapsed() > guest.patience {
            break;
        }
        if accelerator == Accelerator::Kvm && !up {
            let failed = fs::read_to_string(&logs.qemu).unwrap_or_default().contains(KVM_FAILS);
            if failed || begin.elapsed() > UNDER_KVM {
                return Ok(None);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let late = process.exited().is_none();
    process.kill();
    if cleanup::stopping() {
        bail!("interrupted");
    }
    match status {
        Some(status) => Ok(Some(status)),
        None if accelerator == Accelerator::Kvm && !up => Ok(None),
        None if late => bail!("{title}: not done within {:?}; the end of {}:\n{}", guest.patience, logs.console.display(), logs.tail()),
        None => bail!("{title}: ended before its work was done; the end of {}:\n{}", logs.console.display(), logs.tail()),
    }
}

fn command(guest: &Guest, accelerator: Accelerator, logs: &Logs) -> Result<Command> {
    let qemu = artifact::find_program("qemu-system-x86_64").context("no qemu-system-x86_64 (Debian: qemu-system-x86)")?;
    let mut command = Command::new(qemu);
    let (acceleration, processor) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg", "max"),
    };
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", acceleration, "-cpu", processor]);
    command.args(["-smp", &guest.processors.to_string(), "-m", &guest.memory.to_string()]);
    for path in [&logs.console, &logs.rows] {
        File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        command.arg("-serial").arg(format!("file:{}", path.display()));
    }
    command.arg("-kernel").arg(&guest.image.vmlinuz).arg("-initrd").arg(guest.root);
    // A kernel that panics ends, instead of waiting for somebody to look at it. What it does not know it hands to the first program as a variable.
    let line = format!("console=ttyS0 quiet panic=-1 rdinit=/init {}={}", pace::SLOWNESS, accelerator.slowness());
    command.args(["-append", &line]);
    let log = File::create(&logs.qemu)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// Complete lines of the file that have not been read yet.
#[derive(Default)]
struct Rows {
    read: usize,
}

impl Rows {
    fn read(&mut self, path: &Path) -> Result<Vec<Value>> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let new = bytes.get(self.read..).unwrap_or_default();
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.read += whole;
        parse(&String::from_utf8_lossy(&new[..whole]))
    }
}

/// The rows in whole lines of the serial port, which ends them like a terminal.
fn parse(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("the guest wrote no row but {line:?}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_once_and_whole() {
        let path = std::env::temp_dir().join(format!("xtask-rows-{}", std::process::id()));
        fs::write(&path, "{\"up\":\"6.1\"}\r\n{\"progr").unwrap();
        let mut rows = Rows::default();
        assert_eq!(rows.read(&path).unwrap(), [serde_json::json!({"up": "6.1"})]);
        assert_eq!(rows.read(&path).unwrap(), Vec::<Value>::new());
        fs::write(&path, "{\"up\":\"6.1\"}\r\n{\"program\":\"x\"}\r\n\r\n").unwrap();
        assert_eq!(rows.read(&path).unwrap(), [serde_json::json!({"program": "x"})]);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_row_is_an_error_that_shows_it() {
        assert!(parse("{\"end\":0}\nsh: job: not found\n").unwrap_err().to_string().contains("job: not found"));
    }
}
