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
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}\n\n{}\n\n{}", serve::USAGE, lab::USAGE);
            Ok(())
        }
        _ => bail!("usage:\n{USAGE}"),
    }
}
