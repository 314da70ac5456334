//! `splitter-bench`: the lab's programs. Dispatch only.

use anyhow::{Result, bail};
use splitter_bench::{lab, serve};

const USAGE: &str = "splitter-bench serve --listen ADDR:PORT --name NAME ...   an HTTP/1.1 (and UDP) server that names itself
splitter-bench lab list|sweep|down [NAME]                 kept labs: list, stop; sweep removes leftovers";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve::run(&serve::Options::parse(arguments)?),
        Some("lab") => lab::command(&arguments.collect::<Vec<_>>()),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}\n\n{}", serve::USAGE);
            Ok(())
        }
        _ => bail!("usage:\n{USAGE}"),
    }
}
