//! `cargo xtask`: set-up, build, demonstration, tests. Dispatch only; compiles in seconds because it knows nothing of the agent's crates.
//!
//! The alias runs cargo without `--quiet`, at the price of its two lines ("Finished", "Running"): a cargo that waits for the lock of another one says
//! so on standard error, and nothing else would. What is run from here writes to logs; [`step`] says at once when that is waiting.
//!
//! | module | what it does |
//! |---|---|
//! | `setup` | what has to be installed, from a fresh Debian 12 on |
//! | `artifact` | calling cargo, and where it puts what it built |
//! | `step` | a long command: its log, a line that shows life, its end |
//! | `test` | all that CI runs, from cheap to dear |
//! | `layering` | who may import whom; what stands at the top of the repository |
//! | `docs` | the code's documentation, and a row about every module |
//! | `supply` | licences, sources and versions of what comes from others |
//! | `msrv` | the oldest compiler |
//! | `aarch64` | the other processor, by the compiler |
//! | `fuzz` | random input for what outsiders can send |
//! | `object` | what must not be in the kernel object |
//! | `verifier`, `budget` | what the programs cost the verifier, against docs/verifier-budget.json |
//! | `kernels` | other kernels, booted |
//! | `demo` | a canary release before your eyes |
//! | `proof` | the HTTP tests at length |
//! | `record` | the demonstration as a moving picture; the README's plot |

mod aarch64;
mod artifact;
mod budget;
mod demo;
mod docs;
mod fuzz;
mod kernels;
mod layering;
mod msrv;
mod object;
mod proof;
mod record;
mod setup;
mod step;
mod supply;
mod test;
mod verifier;

use anyhow::{Context, Result, bail};
use splitter_bench::cases::{Choice, Usage};
use std::{path::PathBuf, process::ExitCode};

const USAGE: &str = "\
cargo xtask setup              install what the build and the tests need (Debian 12, root)
cargo xtask build              set up, then build the agent and the lab in release
cargo xtask demo [--json] [--keep]
                               a canary release before your eyes: lab, agent, traffic, weight changes, a kill, a verdict
cargo xtask test               everything that CI runs
cargo xtask proof [TEST]...    the HTTP tests with 100,000 requests each, and the root tests on older kernels;
                               keeps the figures in bench/results (an hour). With names: these tests only
cargo xtask bench [CASE] [--quick] [--json]
                               the benchmarks; a full run keeps its rows in bench/results
cargo xtask verifier [--update]
                               sizes and verified instructions of the kernel programs against docs/verifier-budget.json
cargo xtask kernels [--load-only [--update] [--object FILE]] [--kernel 6.1|6.12]...
                               Debian's 6.1 and 6.12, booted under QEMU: every program loaded, and the root tests run inside
cargo xtask record             the demonstration recorded: docs/demo.svg
cargo xtask plot               the README's plot of bench/results: docs/numbers.svg
cargo xtask fuzz [TARGET]... [--seconds N]
                               random input, guided by coverage, for what outsiders can send: each target N seconds (60)
cargo xtask aarch64            the agent and its kernel programs checked by the compiler for aarch64 (minutes)
cargo xtask lab up|list|down [NAME]|sweep
                               the network alone until Ctrl-C; labs left running by `demo --keep`
cargo xtask help               this";

fn main() -> ExitCode {
    let result = dispatch(&std::env::args().skip(1).collect::<Vec<_>>());
    splitter_lab::cleanup::yield_to_signal();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["setup"] => setup::run(setup::Purpose::Test),
        ["build"] => {
            setup::run(setup::Purpose::Build)?;
            artifact::build_release().map(|programs| println!("{}\n{}", programs.splitter.display(), programs.bench.display()))
        }
        ["demo", ref flags @ ..] => demo::run(flags),
        ["test"] => test::run(),
        ["proof", ref tests @ ..] if tests.iter().all(|test| !test.starts_with('-')) => proof::run(tests),
        ["bench", ref rest @ ..] => {
            let choice = Choice::parse(rest.iter().copied())?;
            setup::run(setup::Purpose::Bench)?;
            artifact::bench(&choice)
        }
        ["verifier", ref flags @ ..] if matches!(flags, [] | ["--update"]) => {
            setup::run(setup::Purpose::Build)?;
            println!("{}", verifier::run(&artifact::build_release()?, !flags.is_empty())?);
            Ok(())
        }
        ["kernels", ref rest @ ..] => kernels::run(rest),
        ["record"] => record::run(),
        ["plot"] => record::plot(),
        ["aarch64"] => aarch64::run(),
        ["fuzz", ref rest @ ..] => fuzz::run(rest),
        ["lab", ..] => splitter_lab::lab::command(&arguments[1..]),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => bail!("what to do?\n{USAGE}"),
        _ => bail!("unknown: {}\n{USAGE}", words.join(" ")),
    }
}

/// The repository: where cargo runs us now, which is not where it compiled us when worktrees share a target folder.
fn root() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map(PathBuf::from).context("xtask stands in the repository")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_alias_hides_nothing() {
        let config = std::fs::read_to_string(super::root().unwrap().join(".cargo/config.toml")).unwrap();
        let alias = config.lines().find_map(|line| line.strip_prefix("xtask = ")).expect("an alias");
        assert!(!alias.contains("-q"), "{alias}: nobody would see that cargo waits for a lock");
    }
}
