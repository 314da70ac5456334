//! The trial of the programs, and what the agent says when the kernel refuses one.

use crate::{Node, inside};
use splitter_datapath::{
    objects::SPLITTER,
    trial::{self, Attach},
};
use std::{os::unix::fs::PermissionsExt, process::Command};

/// The object with another call in `splitter_clock`, whose two instructions are "call helper 118; exit".
fn broken(helper: u32) -> Vec<u8> {
    let call = |helper: u32| [&[0x85, 0, 0, 0][..], &helper.to_le_bytes(), &[0x95]].concat();
    let mut object = SPLITTER.to_vec();
    let (old, new) = (call(118), call(helper));
    let places: Vec<usize> = (0..object.len() - old.len()).filter(|at| object[*at..].starts_with(&old)).collect();
    assert_eq!(places.len(), 1, "the clock's instructions are not what this test takes them for");
    object[places[0]..places[0] + new.len()].copy_from_slice(&new);
    object
}

#[test]
fn this_kernel_takes_every_program_and_nothing_stays() {
    let node = Node::new("trial");
    let trial = inside(&node.lab.node, trial::run);
    let programs = trial.programs.expect("programs can be tried");
    assert!(programs.len() > 30, "{} programs", programs.len());
    for program in &programs {
        assert_eq!(program.refusal, None);
        assert!(program.verified_instructions.is_some_and(|walked| walked > 0), "{program:?}");
    }
    assert!(matches!(trial.attach, Attach::Tcx | Attach::Clsact), "{:?}", trial.attach);
    assert!(!node.pins.exists(), "pins were made in {}", node.pins.display());
}

#[test]
fn a_refused_program_is_named_with_the_verifiers_words() {
    let node = Node::new("refused");
    let trial = inside(&node.lab.node, || trial::run_object(&broken(9_999)));
    let programs = trial.programs.expect("programs can be tried");
    let refused: Vec<_> = programs.iter().filter_map(|program| program.refusal.as_ref()).collect();
    assert_eq!(refused.iter().map(|refusal| refusal.program.as_str()).collect::<Vec<_>>(), ["splitter_clock"]);
    let refusal = refused[0];
    assert_eq!(refusal.cause, "this kernel has no helper number 9999 for programs of this type");
    assert!(refusal.log.iter().any(|line| line.contains("unknown#9999")), "{refusal:?}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(refusal.to_string().starts_with(&format!("Linux {} refuses the program splitter_clock: ", release.trim())), "{refusal}");
    // The others are tried all the same.
    assert!(programs.iter().filter(|program| program.refusal.is_none()).all(|program| program.verified_instructions.is_some()));
}

#[test]
fn a_missing_capability_is_named_and_no_release() {
    // A copy: the build's folder may be root's alone.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("a folder for everybody");
    let copy = folder.path().join("splitter");
    // By a process of its own: a test that forks while this one holds the copy open for writing would keep it from being run (ETXTBSY).
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_splitter")).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    for (held, lacking) in [("-all", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"), ("-all,+bpf,+net_admin", "CAP_PERFMON")] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--clear-groups", "--inh-caps", held, "--ambient-caps", held]).arg(&copy);
        let output = command.args(["doctor", "--load", "-o", "json"]).output().expect("setpriv runs");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        assert_eq!((output.status.code(), &report["verdict"]), (Some(1), &serde_json::json!("fail")), "{report}");
        let text = report.to_string();
        assert!(text.contains(&format!("not permitted: this process lacks {lacking}\"")), "{text}");
    }
}
