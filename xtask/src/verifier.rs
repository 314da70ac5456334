//! The verifier budget: instructions of each kernel program, and how many the verifier walked, against docs/verifier-budget.json.

use crate::{
    artifact::Programs,
    budget::{self, Budget},
    object::Object,
};
use anyhow::{Context, Result, ensure};
use splitter_lab::{
    agent::Site,
    lab::{Lab, Options},
    poll::check,
};
use std::{
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// The kernel cuts program names.
const NAME: usize = 15;

/// Refuses the object when it must not ship; compares with the budget, or rewrites it. Returns a line a program.
pub fn run(programs: &Programs, update: bool) -> Result<String> {
    let object = Object::parse(&fs::read(&programs.object).with_context(|| format!("cannot read {}", programs.object.display()))?)?;
    let complaints = object.complaints();
    ensure!(complaints.is_empty(), "the kernel object is refused:\n{}", complaints.join("\n"));
    let verified = verified_instructions(&programs.splitter)?;
    ensure!(verified.len() >= 2, "the kernel holds only {verified:?} of the object's programs");
    let series = budget::own_series()?;
    let mut budget = if update { Budget::read_or_empty()? } else { Budget::read()? };
    budget.retain(|name| object.programs.iter().any(|(program, _)| program == name));
    let (mut lines, mut complaints) = (Vec::new(), Vec::new());
    for (name, instructions) in &object.programs {
        let cut: String = name.chars().take(NAME).collect();
        let walked = verified.iter().find(|(loaded, _)| *loaded == cut).map(|(_, walked)| *walked);
        let stack = object.stack(name).unwrap_or_default();
        let mut figures = vec![(vec!["instructions"], *instructions as u64), (vec!["stack"], u64::from(stack))];
        if let Some(walked) = walked {
            complaints.extend(budget::too_far(name, &series, walked));
            // A kernel that nobody has recorded has its limit only.
            if update || budget.knows(&series) {
                figures.push((vec!["verified", &series], walked));
            }
        }
        for (figure, value) in figures {
            if update {
                budget.set(name, &figure, value);
            } else {
                complaints.extend(budget.complaint(name, &figure, value));
            }
        }
        let walked = walked.map_or("not loaded".into(), |walked| format!("{walked} verified on {series}"));
        lines.push(format!("{name}: {instructions} instructions, {stack} bytes of stack, {walked}"));
    }
    ensure!(complaints.is_empty(), "{}\n(if the growth is worth it: `cargo xtask verifier --update`)", complaints.join("\n"));
    if update {
        budget.write()?;
        lines.insert(0, format!("wrote {}", budget::FILE));
    }
    Ok(lines.join("\n"))
}

/// Runs an agent in an empty lab, with every program attached, and asks the kernel.
fn verified_instructions(splitter: &Path) -> Result<Vec<(String, u64)>> {
    let lab = Lab::with("verifier", Options { backends: 1, ..Options::default() })?;
    let policy = crate::demo::policy(&lab, &[("v1", 1, &[1])]);
    let mut site = Site::new(splitter, &lab.node, &policy)?;
    (site.xdp, site.interfaces) = ("generic", vec!["c0:uplink", "b*"]);
    let agent = site.start(2)?;
    let programs = programs_held_by(agent.pid())?;
    agent.kill();
    site.detach()?;
    site.remove()?;
    lab.remove()?;
    Ok(programs.into_iter().map(|program| (program.name, program.verified)).collect())
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Loaded {
    pub id: u32,
    pub name: String,
    pub verified: u64,
}

/// Programs behind the pins (of links or of themselves) under a folder, one each.
pub fn programs_of(pins: &Path) -> Result<Vec<Loaded>> {
    let mut ids = Vec::new();
    collect(pins, &mut ids)?;
    describe_programs(ids)
}

/// Programs that a process holds open: also those that are only reached by tail call.
fn programs_held_by(pid: u32) -> Result<Vec<Loaded>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        ids.extend(text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    describe_programs(ids)
}

fn describe_programs(mut ids: Vec<u32>) -> Result<Vec<Loaded>> {
    ids.sort_unstable();
    ids.dedup();
    let mut programs = Vec::new();
    for id in ids {
        let fd = program(id)?.with_context(|| format!("program {id} vanished"))?;
        let verified = fdinfo(&fd, "verified_insns:")?.context("this kernel (before 5.16) does not tell the verified instructions")?;
        programs.push(Loaded { id, name: name(&fd)?, verified });
    }
    Ok(programs)
}

fn collect(dir: &Path, ids: &mut Vec<u32>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, ids)?;
        } else if let Some(id) = fdinfo(&pinned(&path)?, "prog_id:")? {
            ids.push(id as u32);
        }
    }
    Ok(())
}

fn fdinfo(fd: &OwnedFd, field: &str) -> Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    Ok(text.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().parse()).transpose()?)
}

const PROG_GET_FD_BY_ID: i64 = 13;
const OBJ_GET: i64 = 7;
const OBJ_GET_INFO_BY_FD: i64 = 15;

/// The bpf system call with an attribute of 64-bit words.
fn bpf(command: i64, mut attribute: [u64; 2]) -> io::Result<i32> {
    // SAFETY: the attribute lives through the call, and pointers in it are the callers' to keep alive.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute)) } as i32)
}

fn pinned(path: &Path) -> Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(OBJ_GET, [text.as_ptr() as u64, 0]).with_context(|| format!("cannot open the pin {}", path.display()))?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A program by id, or `None` when there is none.
pub fn program(id: u32) -> Result<Option<OwnedFd>> {
    match bpf(PROG_GET_FD_BY_ID, [u64::from(id), 0]) {
        // SAFETY: as above.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open program {id}")),
    }
}

fn name(fd: &OwnedFd) -> Result<String> {
    // `struct bpf_prog_info` up to its name, at byte 64.
    let mut info = [0u8; 80];
    let words = (info.len() as u64) << 32 | fd.as_raw_fd() as u64;
    bpf(OBJ_GET_INFO_BY_FD, [words, info.as_mut_ptr() as u64]).context("cannot read a program's name")?;
    Ok(String::from_utf8_lossy(info[64..].split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}
