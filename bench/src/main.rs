//! `splitter-bench`: the lab's programs. Dispatch only.

use anyhow::{Result, bail};
use splitter_bench::{lab, serve};

const USAGE: &str = "splitter-bench serve --listen ADDR:PORT --name NAME ...   an HTTP/1.1 (and UDP) server that names itself
splitter-bench lab up|list|down|sweep                      the network alone, and labs left running";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve::run(&serve::Options::parse(arguments)?),
        Some("lab") => lab::command(&arguments.collect::<Vec<_>>()),
        #[cfg(feature = "kernel")]
        Some("cost") => cost(arguments),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}\n\n{}\n\n{}", serve::USAGE, lab::USAGE);
            Ok(())
        }
        _ => bail!("usage:\n{USAGE}"),
    }
}

/// `splitter-bench cost OBJECTS [--quick] [ROW]`: rows as JSON lines; OBJECTS is the folder of the built kernel objects.
#[cfg(feature = "kernel")]
fn cost(arguments: impl Iterator<Item = String>) -> Result<()> {
    use splitter_bench::kernel::{PROGRAM_COST, SERVICE_SCALE, measure};
    let (flags, words): (Vec<_>, Vec<_>) = arguments.partition(|word| word.starts_with("--"));
    let (objects, row) = (words.first().map(std::path::PathBuf::from), words.get(1));
    let Some(objects) = objects else { bail!("usage: splitter-bench cost OBJECTS [--quick] [ROW]") };
    for (name, cases) in [("program-cost", &PROGRAM_COST[..]), ("service-scale", &SERVICE_SCALE[..])] {
        let cases: Vec<_> = cases.iter().filter(|case| row.is_none_or(|row| row == case.name || row == name)).copied().collect();
        for row in measure(name, &cases, &objects, flags.iter().any(|flag| flag == "--quick"))? {
            println!("{row}");
        }
    }
    Ok(())
}
