//! The command line: grammar, dispatch and exit codes (0 done, 1 failed, 2 usage).
//!
//! Owns what users type and see. Knows the node only through the admin API, but for `agent`, `detach` and what `doctor` reads.

mod args;
mod check;
mod doctor;
mod explain;
mod flows;
mod out;
mod parse;
mod rollout;
mod status;
mod table;
mod top;
mod weight;

use crate::{admin::client::Client, app, control, telemetry};
use anyhow::{Context, Result};
use args::{Agent, Cli, Command, Timestamps};
use clap::{CommandFactory, Parser};
use out::Output;
use std::process::ExitCode;

/// Parses the arguments and does what they say.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) if out::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("splitter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let Cli { admin, command } = cli;
    let client = Client::new(&admin);
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Agent(agent) => block_on(serve(agent, admin)).map(done),
        Command::Check { path, output } => check::run(&path, output.is_json()),
        Command::Status { service, output } => block_on(status::run(&client, service.as_deref(), output)).map(done),
        Command::Weight { service, weights, dry_run, output } => {
            block_on(weight::run(&client, &service, weights, dry_run, output)).map(done)
        }
        Command::Rollout { command } => block_on(rollout::run(&client, command)).map(done),
        Command::Explain(explain) => block_on(explain::run(&client, explain)).map(done),
        Command::Flows { service, output } => block_on(flows::run(&client, service.as_deref(), output)).map(done),
        Command::Top { service, interval, iterations } => {
            block_on(top::run(&client, service.as_deref(), interval.into(), iterations)).map(done)
        }
        Command::Doctor { policy, output } => block_on(doctor::run(&client, policy.as_deref(), output)),
        Command::Detach { pins } => {
            let removed = control::detach(pins.as_deref())?;
            match removed.len() {
                0 => out::print("nothing to remove: no program, link or map of splitter is on this host\n").map(done),
                _ => out::print(&(removed.join("\n") + "\n")).map(done),
            }
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "splitter", &mut script);
            out::print(&String::from_utf8_lossy(&script)).map(done)
        }
    }
}

async fn serve(agent: Agent, admin: std::path::PathBuf) -> Result<()> {
    telemetry::start_log(agent.log, agent.log_level);
    app::run(app::Options {
        policy: agent.policy,
        interfaces: agent.interface,
        xdp: agent.xdp.into(),
        admin,
        metrics: agent.metrics,
        state: agent.state,
        pins: agent.pins,
        max_flows: agent.max_flows,
        timestamps: agent.timestamps == Timestamps::Auto,
    })
    .await
}

/// One thread: the agent's work is small, and every further thread costs memory.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(future)
}

/// Prints a value as a table or as JSON.
fn show<T: serde::Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    if output.is_json() { out::print(&(serde_json::to_string_pretty(value)? + "\n")) } else { out::print(&table(value)) }
}
