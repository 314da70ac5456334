//! The `lab` command line of splitter-bench and xtask.

use super::{Lab, Options, Record, kept, sweep};
use crate::cleanup;
use anyhow::{Context, Result, bail};
use std::time::Duration;

pub const USAGE: &str = "lab up            make the network and hold it until Ctrl-C
lab list          labs that were left running
lab down [NAME]   stop them
lab sweep         remove what killed processes left";

/// `lab up | list | down [NAME] | sweep`.
pub fn command(arguments: &[String]) -> Result<()> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up"] => up()?,
        ["list"] => kept().iter().for_each(|record| println!("{}", record.name)),
        ["sweep"] => sweep()?.iter().for_each(|name| println!("removed {name}")),
        ["down", ref names @ ..] => down(names)?,
        _ => bail!("usage:\n{USAGE}"),
    }
    Ok(())
}

fn up() -> Result<()> {
    let lab = Lab::with("hold", Options::default())?;
    for namespace in [&lab.node].into_iter().chain(lab.clients()).chain(lab.backends()) {
        println!("nsenter --net={}", namespace.path().display());
    }
    println!("ready; Ctrl-C removes it");
    while !cleanup::stopping() {
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(lab);
    Ok(())
}

fn down(names: &[&str]) -> Result<()> {
    let labs: Vec<Record> = kept().into_iter().filter(|lab| names.is_empty() || names.contains(&lab.name.as_str())).collect();
    if labs.is_empty() {
        println!("no lab is running");
    }
    for lab in labs {
        let name = lab.name.clone();
        lab.down().with_context(|| format!("{name} did not go down cleanly"))?;
        println!("removed {name}");
    }
    Ok(())
}
