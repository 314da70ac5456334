//! The benchmarks: which there are, what they are asked for, and how their rows look. One module a case; [`run`] calls them in order.
//!
//! A row is one figure of one subject, with a ratio to a baseline that was measured in the same run: figures of two machines are compared by
//! their ratios. Needs root; everything but the command line needs the feature `kernel`.

#[cfg(feature = "kernel")]
mod crowd;
#[cfg(feature = "kernel")]
mod head;
#[cfg(feature = "kernel")]
mod http;
#[cfg(feature = "kernel")]
mod l4;
#[cfg(feature = "kernel")]
mod policy;
#[cfg(feature = "kernel")]
mod program;
#[cfg(feature = "kernel")]
mod record;
#[cfg(feature = "kernel")]
mod rollout;
#[cfg(feature = "kernel")]
mod rows;
#[cfg(feature = "kernel")]
mod synthetic;
#[cfg(feature = "kernel")]
mod weight;
#[cfg(feature = "kernel")]
mod wrk;

#[cfg(feature = "kernel")]
pub use rows::{Row, Rows, Samples, table};

use std::{fmt, path::PathBuf};

/// Names and what they tell.
pub const CASES: [(&str, &str); 10] = [
    ("program-cost", "nanoseconds a packet inside the kernel programs, by PROG_TEST_RUN, beside a minimal reference program"),
    ("service-scale", "the same at 1, 1,000 and 40,000 services"),
    ("head-scan", "nanoseconds a byte of the HTTP head scanner in the kernel"),
    ("weight-latency", "from `splitter weight` to the first connection with the new weight, at 1 and 40,000 services"),
    ("policy-scale", "loading and re-applying a policy of 40,000 services, memory of the agent and of a flow"),
    ("http", "requests split one by one: plain routing, splitter, HAProxy and nginx with the same split"),
    (
        "http-crowd",
        "a burst of 1,000 new connections beside plain routing; latency of one service while 10,000 half heads are held on another",
    ),
    ("l4", "requests a second, CPU and latency through the node: plain routing, splitter, nft and iptables DNAT"),
    ("rollout", "how soon a bad canary is taken back, how often a good one, time to 100%; simulated and live"),
    ("judge-cost", "CPU of the judge with 1,000 rollouts, and how often it looks"),
];

/// What a user chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// One of [`CASES`]; all without.
    pub case: Option<&'static str>,
    pub quick: bool,
    pub json: bool,
}

/// A command line that is not understood. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nusage: bench [CASE] [--quick] [--json]; the cases are", self.0)?;
        let lines: Vec<String> = CASES.iter().map(|(name, what)| format!("  {name:16} {what}")).collect();
        write!(f, "{}", lines.join("\n"))
    }
}

impl std::error::Error for Usage {}

impl Choice {
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Choice, Usage> {
        let mut choice = Choice::default();
        for word in words {
            match word {
                "--quick" => choice.quick = true,
                "--json" => choice.json = true,
                _ if word.starts_with('-') => return Err(Usage(format!("unknown option {word}"))),
                _ if choice.case.is_some() => return Err(Usage(format!("one case at a time, or none for all: {word} is too many"))),
                _ => match CASES.iter().find(|(name, _)| *name == word) {
                    Some((name, _)) => choice.case = Some(name),
                    None => return Err(Usage(format!("no case {word:?}"))),
                },
            }
        }
        Ok(choice)
    }

    /// The command line that [`Choice::parse`] reads back.
    pub fn arguments(&self) -> Vec<&'static str> {
        let flags = [self.quick.then_some("--quick"), self.json.then_some("--json")];
        self.case.into_iter().chain(flags.into_iter().flatten()).collect()
    }
}

/// Where things are.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The agent's program.
    pub splitter: PathBuf,
    /// Folder of the kernel objects.
    pub objects: PathBuf,
    /// Where a full run writes its rows; nowhere without.
    pub results: Option<PathBuf>,
    /// The revision that is measured.
    pub revision: String,
}

/// Runs what was chosen; rows go to standard output, progress to standard error.
#[cfg(feature = "kernel")]
pub fn run(choice: &Choice, place: &Place) -> anyhow::Result<()> {
    use anyhow::{Context, ensure};
    ensure!(splitter_lab::lab::is_root(), "the benchmarks make network namespaces and load kernel programs: run them as root");
    let _lock = record::alone()?;
    for (name, _) in CASES.iter().filter(|(name, _)| choice.case.is_none_or(|case| case == *name)) {
        let conditions = record::Conditions::read()?;
        if let Some(warning) = conditions.warning() {
            rows::say(format_args!("{name}: {warning}"));
        }
        let mut rows = Rows::new(name);
        let began = std::time::Instant::now();
        let result = match *name {
            "program-cost" => program::cost(place, choice.quick, &mut rows),
            "service-scale" => program::scale(place, choice.quick, &mut rows),
            "head-scan" => head::run(place, choice.quick, &mut rows),
            "weight-latency" => weight::run(place, choice.quick, &mut rows),
            "policy-scale" => policy::run(place, choice.quick, &mut rows),
            "http" => http::run(place, choice.quick, &mut rows),
            "http-crowd" => crowd::run(place, choice.quick, &mut rows),
            "rollout" => rollout::run(place, choice.quick, &mut rows),
            "judge-cost" => rollout::cost(place, choice.quick, &mut rows),
            _ => l4::run(place, choice.quick, &mut rows),
        };
        result.with_context(|| format!("the case {name} failed"))?;
        rows::say(format_args!("{name}: {} rows in {:.0} s", rows.rows().len(), began.elapsed().as_secs_f64()));
        if choice.json {
            rows.rows().iter().try_for_each(|row| serde_json::to_string(row).map(|line| println!("{line}")))?;
        } else {
            print!("{}", table(rows.rows()));
        }
        if let (false, Some(folder)) = (choice.quick, &place.results) {
            let path = record::write(folder, name, &place.revision, &conditions, rows.rows())?;
            rows::say(format_args!("{name}: written to {}", path.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_back() {
        for words in [vec![], vec!["l4"], vec!["policy-scale", "--quick", "--json"], vec!["--json"]] {
            let choice = Choice::parse(words.iter().copied()).unwrap();
            assert_eq!(choice.arguments(), words);
        }
    }

    #[test]
    fn a_wrong_choice_lists_the_cases() {
        for words in [vec!["l5"], vec!["l4", "policy-scale"], vec!["--slow"]] {
            let usage = Choice::parse(words.iter().copied()).unwrap_err().to_string();
            assert!(CASES.iter().all(|(name, _)| usage.contains(name)), "{usage}");
        }
    }
}
