//! `cargo xtask`: set-up, build, demonstration, tests. Dispatch only; compiles in seconds because it knows nothing of the agent's crates.
//!
//! The alias runs cargo without `--quiet`, at the price of its two lines ("Finished", "Running"): a cargo that waits for the lock of another one says
//! so on standard error, and nothing else would. What is run from here writes to logs; [`step`] says at once when that is waiting.

mod aarch64;
mod artifact;
mod budget;
mod demo;
mod kernels;
mod layering;
mod object;
mod proof;
mod setup;
mod step;
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
cargo xtask proof              the HTTP tests with 100,000 requests each, and the root tests on older kernels, and
                               a check for aarch64; keeps the figures in bench/results (half an hour)
cargo xtask bench [CASE] [--quick] [--json]
                               the benchmarks; a full run keeps its rows in bench/results
cargo xtask verifier [--update]
                               sizes and verified instructions of the kernel programs against docs/verifier-budget.json
cargo xtask kernels [--load-only [--update] [--object FILE]] [--kernel 6.1|6.12]...
                               Debian's 6.1 and 6.12, booted under QEMU: every program loaded, and the root tests run inside
cargo xtask aarch64            the agent and its kernel programs checked by the compiler for aarch64 (minutes)
cargo xtask lab up|list|down [NAME]|sweep
                               the network alone until Ctrl-C; labs left running by `demo --keep`
cargo xtask help               this";

fn main() -> ExitCode {
    let result = dispatch(&std::env::args().skip(1).collect::<Vec<_>>());
    splitter_bench::cleanup::yield_to_signal();
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
        ["proof"] => proof::run(),
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
        ["aarch64"] => aarch64::run(),
        ["lab", ..] => splitter_bench::lab::command(&arguments[1..]),
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
