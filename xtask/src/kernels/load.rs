//! `--load-only`: every program of the kernel object before each kernel's verifier, and how far it walks.

use super::{
    image::Image,
    root::Root,
    vm::{self, Guest},
};
use crate::{
    budget::{self, Budget},
    step,
};
use anyhow::{Context, Result, bail, ensure};
use splitter_lab::{cleanup::Guard, verdict::Verdict};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Half a minute under TCG on an idle machine; a build beside it takes its share.
const PATIENCE: Duration = Duration::from_secs(240);
const MEMORY: u32 = 1024;

/// What one kernel says of the object.
pub struct Loaded {
    pub title: String,
    pub series: &'static str,
    pub verdicts: Vec<Verdict>,
}

/// Boots a kernel and has it verify the object.
pub fn load(image: &Image, bench: &Path, object: &Path) -> Result<Loaded> {
    let begin = Instant::now();
    let (root, _gone) = archive(image, bench, object)?;
    let guest = Guest { image, root: &root, purpose: "load", processors: 1, memory: MEMORY, patience: PATIENCE };
    let mut verdicts: Vec<Verdict> = Vec::new();
    let (accelerator, status) = vm::boot(&guest, |row| {
        let verdict = serde_json::from_value(row.clone()).with_context(|| format!("odd row {row}"))?;
        verdicts.push(verdict);
        Ok(())
    })?;
    ensure!(status == 0, "{}: the object cannot be loaded at all; see {}", image.title(), vm::console(image, "load")?.display());
    ensure!(!verdicts.is_empty(), "{}: the object holds no program", image.title());
    let (good, all) = (verdicts.iter().filter(|verdict| verdict.ok).count(), verdicts.len());
    let walked = verdicts.iter().filter_map(|verdict| verdict.verified).max().unwrap_or_default();
    let mark = if good == all { "  ok  " } else { "FAILED" };
    step::say(format_args!(
        "[{mark}] {}: {good} of {all} programs load, at most {walked} instructions verified ({:.0} s, {})",
        image.title(),
        begin.elapsed().as_secs_f64(),
        accelerator.name()
    ));
    Ok(Loaded { title: image.title(), series: image.series, verdicts })
}

fn archive(image: &Image, bench: &Path, object: &Path) -> Result<(PathBuf, Guard)> {
    let mut root = Root::new("exec splitter-bench verify /splitter.o\n")?;
    root.program("usr/bin/splitter-bench", bench)?;
    root.file("splitter.o", object)?;
    let path = step::log_dir()?.join(format!("kernel-{}-load-{}.cpio", image.series, std::process::id()));
    let guard = root.write(&path)?;
    Ok((path, guard))
}

/// Judges what the kernels said, or records it.
///
/// # Errors
/// Names every refused program with its kernel and the end of the verifier's log; every figure beyond its budget.
pub fn judge(loaded: &[Loaded], update: bool) -> Result<String> {
    let refused: Vec<String> = loaded.iter().flat_map(refusals).collect();
    if !refused.is_empty() {
        bail!("{}", refused.join("\n"));
    }
    let mut budget = Budget::read()?;
    let complaints = compare(loaded, &mut budget, update);
    ensure!(complaints.is_empty(), "{}\n(if the growth is worth it: `cargo xtask kernels --load-only --update`)", complaints.join("\n"));
    if update {
        budget.write()?;
    }
    let summary = loaded.iter().map(|kernel| format!("{}: {} programs", kernel.title, kernel.verdicts.len()));
    Ok(summary.chain(update.then(|| format!("wrote {}", budget::FILE))).collect::<Vec<_>>().join("\n"))
}

fn refusals(kernel: &Loaded) -> Vec<String> {
    let refused = kernel.verdicts.iter().filter(|verdict| !verdict.ok);
    let text = |verdict: &Verdict| {
        let log: String = verdict.log.iter().map(|line| format!("\n    {line}")).collect();
        format!("{} is refused by {}: {}{log}", verdict.program, kernel.title, verdict.error.as_deref().unwrap_or("no reason given"))
    };
    refused.map(text).collect()
}

fn compare(loaded: &[Loaded], budget: &mut Budget, update: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for kernel in loaded {
        for Verdict { program, verified, .. } in &kernel.verdicts {
            let Some(walked) = verified.map(u64::from) else { continue };
            complaints.extend(budget::too_far(program, kernel.series, walked));
            if update {
                budget.set(program, &["verified", kernel.series], walked);
            } else {
                complaints.extend(budget.complaint(program, &["verified", kernel.series], walked));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_program_is_named_with_its_kernel_and_the_end_of_the_log() {
        let row = r#"{"program":"splitter_tc","ok":false,"error":"Permission denied (os error 13)","log":["13: (85) call","R4 min value is negative"]}"#;
        let good = Verdict { program: "splitter_xdp".into(), ok: true, verified: Some(3), ..Verdict::default() };
        let kernel = Loaded { title: "6.1 (6.1.0-57)".into(), series: "6.1", verdicts: vec![good, serde_json::from_str(row).unwrap()] };
        let expected =
            "splitter_tc is refused by 6.1 (6.1.0-57): Permission denied (os error 13)\n    13: (85) call\n    R4 min value is negative";
        assert_eq!(refusals(&kernel), [expected]);
        assert_eq!(judge(&[kernel], false).unwrap_err().to_string(), expected);
    }
}
