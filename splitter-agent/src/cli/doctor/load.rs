//! `splitter doctor --load`: every kernel program by itself, and what the full report says of them together.

use super::{
    super::{
        out::{self, Output, Style},
        show,
    },
    Check, Verdict,
};
use anyhow::{Context, Result};
use serde::Serialize;
use splitter_datapath::trial::{Attach, Trial, Tried, run as attempt};
use std::{process::ExitCode, time::Instant};

/// One program. `log` holds the verifier's last lines when it is refused.
#[derive(Serialize)]
struct Program<'a> {
    name: &'a str,
    accepted: bool,
    verified_instructions: Option<u32>,
    cause: Option<&'a str>,
    log: &'a [String],
}

/// The trial for scripts.
#[derive(Serialize)]
struct Report<'a> {
    verdict: Verdict,
    /// `uname -r`.
    kernel: &'a str,
    accepted: usize,
    refused: usize,
    /// Why no program could be tried.
    error: Option<&'a str>,
    /// `tcx`, `clsact`, `none` or `unknown`.
    attach: &'static str,
    attach_error: Option<&'a str>,
    milliseconds: u64,
    programs: Vec<Program<'a>>,
}

/// A trial, and how long it took.
pub struct Timed {
    pub trial: Trial,
    pub milliseconds: u64,
}

pub fn run() -> Timed {
    let begin = Instant::now();
    let trial = attempt();
    Timed { trial, milliseconds: begin.elapsed().as_millis() as u64 }
}

/// Prints all programs; fails when one is refused, or none could be tried.
pub fn print(output: Output) -> Result<ExitCode> {
    let timed = std::thread::spawn(run).join().ok().context("the trial ended by itself")?;
    let report = report(&timed);
    show(output, &report, |report| text(report, out::colour()))?;
    Ok(if report.verdict == Verdict::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(timed: &Timed) -> Report<'_> {
    let Timed { trial, milliseconds } = timed;
    let tried = trial.programs.as_deref().unwrap_or_default();
    // Where nothing could be tried nothing is known to be good.
    let refused = tried.iter().filter(|program| program.refusal.is_some()).count();
    let (attach, attach_error) = match &trial.attach {
        Attach::Tcx => ("tcx", None),
        Attach::Clsact => ("clsact", None),
        Attach::Neither(error) => ("none", Some(error.as_str())),
        Attach::Unknown(error) => ("unknown", Some(error.as_str())),
    };
    Report {
        verdict: if refused > 0 || trial.programs.is_err() { Verdict::Fail } else { kernel(trial).verdict },
        kernel: &trial.release,
        accepted: tried.len() - refused,
        refused,
        error: trial.programs.as_ref().err().map(String::as_str),
        attach,
        attach_error,
        milliseconds: *milliseconds,
        programs: tried.iter().map(program).collect(),
    }
}

fn program(tried: &Tried) -> Program<'_> {
    let refusal = tried.refusal.as_ref();
    Program {
        name: &tried.name,
        accepted: refusal.is_none(),
        verified_instructions: tried.verified_instructions,
        cause: refusal.map(|refusal| refusal.cause.as_str()),
        log: refusal.map_or(&[], |refusal| &refusal.log),
    }
}

fn text(report: &Report<'_>, colour: bool) -> String {
    let mut text = String::new();
    for program in &report.programs {
        let walked = program.verified_instructions.map_or(String::new(), |walked| format!("{walked} instructions verified"));
        let (word, style) = if program.accepted { ("ok  ", Style::Green) } else { ("fail", Style::Red) };
        let line = format!("{}  {:<16}{}", style.paint(word, colour), program.name, program.cause.unwrap_or(&walked));
        text += line.trim_end();
        text.push('\n');
        for line in program.log {
            text += &format!("{:22}{line}\n", "");
        }
    }
    if let Some(error) = report.error {
        text += &format!("{}  {error}\n", Style::Red.paint("fail", colour));
    }
    let attach = match report.attach_error {
        None => report.attach.to_owned(),
        Some(error) => format!("{}: {error}", report.attach),
    };
    text + &format!(
        "Linux {}: {} accepted, {} refused, in {} ms; attach: {attach}\n",
        report.kernel, report.accepted, report.refused, report.milliseconds
    )
}

/// The full report's lines about the kernel: how programs get to packets, and whether it takes them.
pub fn checks(timed: &Timed) -> Vec<Check> {
    vec![kernel(&timed.trial), programs(timed)]
}

fn kernel(trial: &Trial) -> Check {
    const NAME: &str = "kernel";
    let release = &trial.release;
    match &trial.attach {
        Attach::Tcx => Check::ok(NAME, format!("{release}, with links of TCX")),
        Attach::Clsact => Check::ok(NAME, format!("{release} has no links of TCX; filters of clsact work and are used instead")),
        Attach::Neither(error) => Check::fail(
            NAME,
            format!("{release} has no links of TCX, and {error}"),
            "modprobe sch_ingress cls_bpf; where these modules are missing, install the kernel's package of further modules",
        ),
        Attach::Unknown(error) => {
            Check::warn(NAME, format!("{release}; how programs can be attached could not be tried: {error}"), "run doctor as root")
        }
    }
}

fn programs(timed: &Timed) -> Check {
    const NAME: &str = "programs";
    let trial = &timed.trial;
    let tried = match &trial.programs {
        Ok(tried) => tried,
        Err(error) if error.contains("not permitted") => {
            return Check::warn(
                NAME,
                format!("not tried: {error}"),
                "run doctor as root, or with the capabilities of deploy/splitter.service",
            );
        }
        Err(error) => {
            return Check::fail(NAME, format!("Linux {}: {error}", trial.release), "splitter doctor --load -o json, for a report");
        }
    };
    let refused: Vec<_> = tried.iter().filter_map(|program| program.refusal.as_ref()).collect();
    match refused.first() {
        None => Check::ok(NAME, format!("all {} load (for trial: nothing is attached)", tried.len())),
        Some(first) => Check::fail(
            NAME,
            format!("Linux {} refuses {} of {}: {}: {}", trial.release, refused.len(), tried.len(), first.program, first.cause),
            "splitter doctor --load shows each one with the verifier's last lines",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_datapath::Refusal;

    fn tried(name: &str, cause: Option<&str>) -> Tried {
        let refusal = cause.map(|cause| Refusal {
            program: name.into(),
            release: "6.1.0-18".into(),
            cause: cause.into(),
            log: vec!["12: (0f) r1 += r2".into(), cause.into()],
        });
        Tried { name: name.into(), verified_instructions: refusal.is_none().then_some(1_200), refusal }
    }

    fn timed(programs: Result<Vec<Tried>, String>, attach: Attach) -> Timed {
        Timed { trial: Trial { release: "6.1.0-18".into(), programs, attach }, milliseconds: 9 }
    }

    #[test]
    fn a_refused_program_is_shown_with_its_cause_and_log() {
        let timed = timed(Ok(vec![tried("good", None), tried("bad", Some("R1 is unbounded"))]), Attach::Clsact);
        let shown = text(&report(&timed), false);
        assert!(shown.contains("ok    good            1200 instructions verified\nfail  bad             R1 is unbounded\n"), "{shown}");
        assert!(shown.contains("12: (0f) r1 += r2\n"), "{shown}");
        assert!(shown.ends_with("Linux 6.1.0-18: 1 accepted, 1 refused, in 9 ms; attach: clsact\n"), "{shown}");
        let json = serde_json::to_value(report(&timed)).unwrap();
        assert_eq!(json["verdict"], "fail");
        assert_eq!(json["programs"][0]["verified_instructions"], 1_200);
        assert_eq!(json["programs"][1]["log"][1], "R1 is unbounded");
        let check = programs(&timed);
        assert_eq!((check.verdict, check.found.as_str()), (Verdict::Fail, "Linux 6.1.0-18 refuses 1 of 2: bad: R1 is unbounded"));
    }

    #[test]
    fn the_way_to_packets_is_judged_by_what_was_tried() {
        let verdict = |attach| kernel(&timed(Ok(Vec::new()), attach).trial).verdict;
        assert_eq!(verdict(Attach::Tcx), Verdict::Ok);
        assert_eq!(verdict(Attach::Clsact), Verdict::Ok);
        assert_eq!(verdict(Attach::Neither("clsact cannot be had".into())), Verdict::Fail);
        assert_eq!(verdict(Attach::Unknown("no rights".into())), Verdict::Warn);
    }

    #[test]
    fn without_rights_it_says_so() {
        let denied = "cannot make the map CONFIG: not permitted: this process lacks CAP_BPF".to_owned();
        let timed = timed(Err(denied.clone()), Attach::Unknown(denied));
        assert!(programs(&timed).found.contains("lacks CAP_BPF"));
        assert!(text(&report(&timed), false).contains("lacks CAP_BPF"));
        assert_eq!(report(&timed).verdict, Verdict::Fail);
    }
}
