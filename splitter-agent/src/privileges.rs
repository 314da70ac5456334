//! What the agent keeps of root: three capabilities, as under its unit, so that whoever takes it over gets no more than the network.

use std::io;

/// A capability by its number (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(u32, &'static str);

const SETPCAP: u32 = 8;
pub const NET_ADMIN: Capability = Capability(12, "CAP_NET_ADMIN");
/// To reach a bpffs through `/proc/1/root`.
pub const SYS_PTRACE: Capability = Capability(19, "CAP_SYS_PTRACE");
pub const PERFMON: Capability = Capability(38, "CAP_PERFMON");
pub const BPF: Capability = Capability(39, "CAP_BPF");

/// What loading, attaching and reading takes.
pub const NEEDED: [Capability; 3] = [NET_ADMIN, PERFMON, BPF];

/// More than there will be soon; the kernel says where they end.
const MOST: u32 = 64;
/// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 bits.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities but these, also for programs that are started later (hooks and commands of rollouts). To be called before there are
/// threads: each has capabilities of its own. Returns whether there was something to give up.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub fn keep_only(kept: &[Capability]) -> io::Result<bool> {
    let mut sets = read()?;
    let before = word(&sets, |sets| sets.permitted);
    let keep = kept.iter().fold(0u64, |bits, capability| bits | 1 << capability.0);
    if before & !keep == 0 {
        return Ok(false);
    }
    // Root that starts a program gets what is bounded, whatever it had itself.
    if word(&sets, |sets| sets.effective) & 1 << SETPCAP != 0 {
        for number in (0..MOST).filter(|number| keep & 1 << number == 0) {
            // SAFETY: no pointers. A number that the kernel does not know is refused, and means nothing.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        }
    }
    for (sets, keep) in sets.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        sets.permitted &= keep;
        sets.effective = sets.permitted;
        sets.inheritable &= keep;
    }
    let mut header = Header { version: VERSION, pid: 0 };
    // SAFETY: both are as long as the version says.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read() -> io::Result<[Sets; 2]> {
    let (mut header, mut sets) = (Header { version: VERSION, pid: 0 }, [Sets::default(); 2]);
    // SAFETY: both are as long as the version says.
    match unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } {
        0 => Ok(sets),
        _ => Err(io::Error::last_os_error()),
    }
}

fn word(sets: &[Sets; 2], of: fn(&Sets) -> u32) -> u64 {
    u64::from(of(&sets[0])) | u64::from(of(&sets[1])) << 32
}

/// For a log line.
pub fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(|capability| capability.1).collect::<Vec<_>>().join(", ")
}
