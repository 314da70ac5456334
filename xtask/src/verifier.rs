//! The verifier budget: instructions of each kernel program, and how many the verifier walked, against docs/verifier-budget.json.

use crate::{artifact::Programs, object::Object, root};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use splitter_bench::{
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

const BUDGET: &str = "docs/verifier-budget.json";
/// Growth beyond the recorded figure that fails.
const TOLERANCE: f64 = 1.10;
/// The kernel cuts program names.
const NAME: usize = 15;

/// Refuses the object when it must not ship; compares with the budget, or rewrites it. Returns a line a program.
pub fn run(programs: &Programs, update: bool) -> Result<String> {
    let object = Object::parse(&fs::read(&programs.object).with_context(|| format!("cannot read {}", programs.object.display()))?)?;
    let complaints = object.complaints();
    ensure!(complaints.is_empty(), "the kernel object is refused:\n{}", complaints.join("\n"));
    let verified = verified_instructions(&programs.splitter)?;
    let mut found = Map::new();
    for (name, instructions) in &object.programs {
        let cut: String = name.chars().take(NAME).collect();
        let walked = verified.iter().find(|(loaded, _)| *loaded == cut).map(|(_, walked)| *walked);
        found.insert(name.clone(), json!({"instructions": instructions, "stack": object.stack(name), "verified": walked}));
    }
    ensure!(verified.len() >= 2, "the kernel holds only {verified:?} of the object's programs");
    let path = root()?.join(BUDGET);
    if update {
        fs::write(&path, serde_json::to_string_pretty(&json!({"programs": found}))? + "\n")?;
        return Ok(format!("wrote {BUDGET}\n{}", describe(&found)));
    }
    let text = fs::read_to_string(&path).with_context(|| format!("no {BUDGET}; `cargo xtask verifier --update` writes it"))?;
    let budget: Value = serde_json::from_str(&text).with_context(|| format!("{BUDGET} is not JSON"))?;
    let exceeded = exceeded(&budget["programs"], &found);
    if !exceeded.is_empty() {
        bail!("{}\n(if the growth is worth it: `cargo xtask verifier --update`)", exceeded.join("\n"));
    }
    Ok(describe(&found))
}

fn describe(found: &Map<String, Value>) -> String {
    let line = |(name, figures): (&String, &Value)| {
        let walked = figures["verified"].as_u64().map_or("not loaded".into(), |walked| format!("{walked} verified"));
        format!("{name}: {} instructions, {} bytes of stack, {walked}", figures["instructions"], figures["stack"])
    };
    found.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What is above its budget, or has none.
fn exceeded(budget: &Value, found: &Map<String, Value>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, figures) in found {
        for figure in ["instructions", "verified"] {
            let Some(value) = figures[figure].as_u64() else { continue };
            match budget[name][figure].as_u64() {
                None => complaints.push(format!("{name}: {figure} has no budget in {BUDGET}")),
                Some(limit) if value as f64 > limit as f64 * TOLERANCE => {
                    complaints.push(format!("{name}: {figure} grew from {limit} to {value}, more than 10%"));
                }
                Some(_) => {}
            }
        }
    }
    complaints
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(instructions: u64, verified: u64) -> Map<String, Value> {
        Map::from_iter([("tc".to_owned(), json!({"instructions": instructions, "verified": verified}))])
    }

    #[test]
    fn growth_beyond_a_tenth_and_missing_budgets_fail() {
        let budget = json!({"tc": {"instructions": 100, "verified": 1000}});
        assert_eq!(exceeded(&budget, &found(110, 900)), Vec::<String>::new());
        assert_eq!(exceeded(&budget, &found(111, 1101)).len(), 2);
        assert_eq!(exceeded(&json!({}), &found(1, 1)).len(), 2);
    }
}
