//! Why the kernel did not take a program or a map: the real cause, from the error number, the verifier's log and what this process may do.
//!
//! Names no release that would do better: what a kernel can do does not follow from its number, distributions change it.

use super::{causes, object::Definition};
use aya::{EbpfError, maps::MapError, programs::ProgramError};
use std::{ffi::CStr, fmt, io};

/// Lines of the verifier's log that are kept: the last ones say what it stumbled over.
const LOG_LINES: usize = 12;

/// A program that the kernel does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub program: String,
    /// As `uname -r` prints it.
    pub release: String,
    pub cause: String,
    /// Last lines of the verifier's log; empty when it wrote none.
    pub log: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} refuses the program {}: {}", self.release, self.program, self.cause)?;
        if !self.log.is_empty() {
            write!(f, "\nlast lines of the verifier's log:")?;
            self.log.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        }
        Ok(())
    }
}

impl Refusal {
    /// Of an error of loading `program`.
    pub fn of(program: &str, error: &ProgramError) -> Self {
        let (cause, log) = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                (why(io_error, &log, &lacking()), tail(&log))
            }
            other => (causes(other), Vec::new()),
        };
        Self { program: program.into(), release: release(), cause, log }
    }
}

/// Why the object's maps could not be made, or the object not be read.
pub fn of_object(error: &EbpfError, definitions: &[Definition]) -> String {
    let EbpfError::MapError(MapError::CreateError { name, io_error }) = error else { return causes(error) };
    let what = match definitions.iter().find(|definition| definition.name == *name) {
        Some(map) => format!(
            "{name} (type {}, keys of {} bytes, values of {}, flags {:#x})",
            map.kind_name(),
            map.key_size,
            map.value_size,
            map.flags
        ),
        None => name.clone(),
    };
    let cause = match io_error.raw_os_error() {
        Some(libc::EPERM) => forbidden(&lacking()),
        Some(libc::EINVAL) => format!("{io_error}: it does not know this type or these flags, or sets limits to sizes"),
        _ => io_error.to_string(),
    };
    format!("cannot make the map {what}: {cause}")
}

/// Helpers that the programs call, for kernels that have not even their names.
const HELPERS: [(&str, &str); 8] = [
    ("39", "bpf_skb_pull_data"),
    ("69", "bpf_fib_lookup"),
    ("118", "bpf_jiffies64"),
    ("152", "bpf_redirect_neigh"),
    ("155", "bpf_redirect_peer"),
    ("181", "bpf_loop"),
    ("189", "bpf_xdp_load_bytes"),
    ("190", "bpf_xdp_store_bytes"),
];

/// `lacking`: capabilities that are needed and not held.
fn why(error: &io::Error, log: &str, lacking: &[&str]) -> String {
    if !lacking.is_empty() && matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
        return forbidden(lacking);
    }
    if let Some(helper) = missing_helper(log) {
        return format!("this kernel has no helper {helper} for programs of this type");
    }
    match (complaint(log), error.raw_os_error()) {
        (Some(line), _) => line.to_owned(),
        (None, Some(libc::EPERM)) => forbidden(lacking),
        (None, _) => format!("{error}; the verifier wrote no log"),
    }
}

fn forbidden(lacking: &[&str]) -> String {
    if lacking.is_empty() {
        return "not permitted, although CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are held: a seccomp filter, a security module, kernel \
                lockdown or a user namespace forbids bpf(2)"
            .into();
    }
    format!("not permitted: this process lacks {}", lacking.join(", "))
}

/// The helper that the log says is not there.
fn missing_helper(log: &str) -> Option<String> {
    const MARKS: [&str; 4] = ["cannot use helper ", "unknown func ", "invalid func ", "kernel subsystem misconfigured func "];
    let line = complaint(log)?;
    let token = MARKS.iter().find_map(|mark| line.split_once(mark)?.1.split_whitespace().next())?;
    let (name, number) = token.split_once('#').unwrap_or((token, ""));
    let known = HELPERS.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    Some(if name == "unknown" { known.map_or_else(|| format!("number {number}"), str::to_owned) } else { name.to_owned() })
}

/// The line that says what is wrong: the last one before the figures.
fn complaint(log: &str) -> Option<&str> {
    const FIGURES: [&str; 4] = ["processed ", "verification time ", "stack depth ", "mark_precise:"];
    log.lines().map(str::trim).rfind(|line| !line.is_empty() && !FIGURES.iter().any(|figure| line.starts_with(figure)))
}

fn tail(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

/// `uname -r`.
pub fn release() -> String {
    // SAFETY: plain C struct of characters.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: a struct to write to.
    if unsafe { libc::uname(&mut names) } != 0 {
        return String::from("(unknown)");
    }
    // SAFETY: the kernel ends each field with a zero.
    unsafe { CStr::from_ptr(names.release.as_ptr()) }.to_string_lossy().into_owned()
}

fn lacking() -> Vec<&'static str> {
    missing(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()).unwrap_or_default()
}

/// Capabilities that the agent needs and that `CapEff` of /proc/self/status does not hold (bits of linux/capability.h); `None`: it does not tell.
pub fn missing(status: &str) -> Option<Vec<&'static str>> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let held = u64::from_str_radix(line.trim(), 16).ok()?;
    let has = |bit: u32| held >> bit & 1 == 1;
    let admin = has(21);
    let needed = [("CAP_BPF", has(39) || admin), ("CAP_NET_ADMIN", has(12)), ("CAP_PERFMON", has(38) || admin)];
    Some(needed.iter().filter(|(_, held)| !held).map(|(name, _)| *name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn the_cause_is_what_the_kernel_said() {
        let figures = "processed 17 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n";
        let log = |line: &str| format!("0: R1=ctx() R10=fp0\n0: (b7) r0 = 0\n{line}\n{figures}");
        for (number, log, lacking, cause) in [
            (libc::EINVAL, log("unknown func bpf_loop#181"), &[][..], "this kernel has no helper bpf_loop for programs of this type"),
            (libc::EINVAL, log("invalid func unknown#181"), &[], "this kernel has no helper bpf_loop for programs of this type"),
            (libc::EINVAL, log("invalid func unknown#999"), &[], "this kernel has no helper number 999 for programs of this type"),
            (
                libc::EINVAL,
                log("program of this type cannot use helper bpf_redirect_peer#155"),
                &[],
                "this kernel has no helper bpf_redirect_peer for programs of this type",
            ),
            (libc::EACCES, log("R4 unbounded memory access"), &[], "R4 unbounded memory access"),
            (
                libc::EACCES,
                log("combined stack size of 7 calls is 576. Too large"),
                &[],
                "combined stack size of 7 calls is 576. Too large",
            ),
            (libc::EPERM, String::new(), &["CAP_BPF"], "not permitted: this process lacks CAP_BPF"),
            (libc::EACCES, log("R2 pointer comparison prohibited"), &["CAP_PERFMON"], "not permitted: this process lacks CAP_PERFMON"),
            (libc::ENOMEM, String::new(), &[], "Cannot allocate memory (os error 12); the verifier wrote no log"),
        ] {
            assert_eq!(why(&os(number), &log, lacking), cause, "{log}");
        }
        assert!(why(&os(libc::EPERM), "", &[]).contains("although CAP_BPF"));
    }

    #[test]
    fn maps_are_named_with_their_type() {
        let definitions = crate::object::definitions(crate::objects::SPLITTER);
        let error = |number| {
            let error = MapError::CreateError { name: "TCP4".into(), io_error: os(number) };
            of_object(&EbpfError::MapError(error), &definitions)
        };
        assert!(error(libc::EINVAL).starts_with("cannot make the map TCP4 (type LRU_HASH, keys of "), "{}", error(libc::EINVAL));
        assert!(error(libc::ENOMEM).ends_with("Cannot allocate memory (os error 12)"), "{}", error(libc::ENOMEM));
    }

    #[test]
    fn the_last_lines_are_kept() {
        let log: String = (0..40).map(|line| format!("{line}: (95) exit \n\n")).collect();
        let kept = tail(&log);
        assert_eq!(
            (kept.len(), kept.first().map(String::as_str), kept.last().map(String::as_str)),
            (12, Some("28: (95) exit"), Some("39: (95) exit"))
        );
        let refusal = Refusal { program: "p".into(), release: "6.1".into(), cause: "why".into(), log: vec!["one".into(), "two".into()] };
        assert_eq!(refusal.to_string(), "Linux 6.1 refuses the program p: why\nlast lines of the verifier's log:\n  one\n  two");
    }

    #[test]
    fn capabilities_by_bit() {
        let status = |bits: u64| format!("Name:\tx\nCapEff:\t{bits:016x}\n");
        assert_eq!(missing(&status(1 << 39 | 1 << 38 | 1 << 12)), Some(vec![]));
        assert_eq!(missing(&status(1 << 21 | 1 << 12)), Some(vec![]));
        assert_eq!(missing(&status(1 << 12)), Some(vec!["CAP_BPF", "CAP_PERFMON"]));
        assert_eq!(missing(""), None);
    }
}
