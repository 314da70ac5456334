//! What this kernel's verifier says of every program of an object: nothing is attached, nothing stays.

use super::maps::scratch_pins;
use crate::verdict::Verdict;
use anyhow::{Context, Result};
use aya::{
    EbpfLoader,
    programs::{Program, ProgramError},
};
use std::{fs, path::Path};

/// Lines of a refused program's log that are told, from its end.
const TAIL: usize = 25;

/// Loads every program of an object, one after the other; `tell` hears of each at once.
///
/// # Errors
/// When the object cannot be read, or its maps not be made. A refused program is a verdict and no error.
pub fn verify(object: &Path, mut tell: impl FnMut(&Verdict) -> Result<()>) -> Result<()> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let (pins, _guard) = scratch_pins()?;
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .default_map_pin_directory(&pins)
        .load(&bytes)
        .with_context(|| format!("the maps of {} cannot be made", object.display()))?;
    for (name, program) in ebpf.programs_mut() {
        tell(&judge(name, program))?;
    }
    Ok(())
}

fn judge(name: &str, program: &mut Program) -> Verdict {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    let mut verdict = Verdict { program: name.to_owned(), ok: loaded.is_ok(), ..Verdict::default() };
    match loaded.and_then(|()| program.info()) {
        Ok(info) => verdict.verified = info.verified_instruction_count(),
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            (verdict.error, verdict.log) = (Some(io_error.to_string()), tail(&verifier_log.to_string()));
        }
        Err(error) => verdict.error = Some(error.to_string()),
    }
    verdict
}

fn tail(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| line.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_kept() {
        let log: String = (0..60).map(|i| format!("{i}: (b7) r0 = 0\n\n")).collect();
        let kept = tail(&log);
        assert_eq!((kept.len(), kept[0].as_str(), kept[TAIL - 1].as_str()), (TAIL, "35: (b7) r0 = 0", "59: (b7) r0 = 0"));
        assert_eq!(tail("\n"), Vec::<String>::new());
    }
}
