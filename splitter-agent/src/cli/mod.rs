//! The command line: grammar, dispatch and exit codes (0 done, 1 failed, 2 usage).
//!
//! Owns what users type and see. Knows the node only through the admin API, but for `agent`, `detach` and what `doctor` reads.

mod args;
mod check;
mod complete;
mod doctor;
mod drill;
mod explain;
mod flows;
mod follow;
mod help;
mod out;
mod parse;
mod rollout;
mod status;
mod table;
mod top;
mod trace;
mod weight;

use crate::{app, control, telemetry};
use anyhow::{Context, Result};
use args::{Agent, Cli, Command, RolloutCommand, Timestamps};
use clap::FromArgMatches;
use clap_complete::CompleteEnv;
use out::Output;
use splitter_api::client::Client;
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Parses the arguments and does what they say.
pub fn run() -> ExitCode {
    CompleteEnv::with_factory(help::command).var(complete::VARIABLE).bin("splitter").complete();
    // What clap refuses ends here, with exit code 2.
    let cli = Cli::from_arg_matches(&help::command().get_matches()).unwrap_or_else(|error| error.exit());
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) if out::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Who does not listen is not told.
            let _ = writeln!(io::stderr(), "splitter: {}", out::printable_lines(&told(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes; a cause that was told already is not told again.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let Cli { admin, command } = cli;
    // What comes from the agent is shown as it is only as JSON, which `show` makes safe.
    let client = Client::new(&admin).filtered(out::printable_json);
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Agent(agent) => serve(agent, admin).map(done),
        Command::Check { path, output } => check::run(&path, output.is_json()),
        Command::Status(status) => block_on(status::run(&client, status)).map(done),
        // Nothing in it can command a terminal: the writer quotes what might.
        Command::Policy { services } => out::print(&block_on(client.verbatim().policy(&services))?.yaml).map(done),
        Command::Weight { service, weights, dry_run, output } => {
            block_on(weight::run(&client, &service, weights, dry_run, output)).map(done)
        }
        Command::Rollout { command: RolloutCommand::Status(view) } => block_on(follow::run(&client, view)),
        Command::Rollout { command } => block_on(rollout::run(&client, command)).map(done),
        Command::Explain(explain) => block_on(explain::run(&client, explain)).map(done),
        Command::Flows(flows) => block_on(flows::run(&client, flows)).map(done),
        Command::Trace(trace) => block_on(trace::run(&client, trace)).map(done),
        Command::Top(options) => block_on(top::run(&client, options)).map(done),
        Command::Doctor { load: true, output, .. } => doctor::load(output),
        Command::Doctor { policy, output, .. } => block_on(doctor::run(&client, policy.as_deref(), output)),
        Command::Detach { pins, force } => {
            let pid = if force { control::stop(pins.as_deref())? } else { None };
            if let Some(pid) = pid {
                out::print(&format!("agent (pid {pid}) stopped\n"))?;
            }
            let removed = control::detach(pins.as_deref())?;
            match removed.len() {
                0 => out::print("nothing to remove: no program, link or map of splitter is on this host\n").map(done),
                _ => out::print(&(removed.join("\n") + "\n")).map(done),
            }
        }
        Command::Completions { shell } => complete::script(shell).map(done),
    }
}

fn serve(agent: Agent, admin: std::path::PathBuf) -> Result<()> {
    let level = if agent.debug_programs { agent.log_level.max(telemetry::Level::Debug) } else { agent.log_level };
    telemetry::start_log(agent.log, level);
    let options = app::Options {
        policy: agent.policy,
        resolvers: agent.resolver,
        interfaces: agent.interface,
        xdp: agent.xdp.into(),
        admin,
        metrics: agent.metrics,
        state: agent.state,
        pins: agent.pins,
        max_flows: agent.max_flows,
        path: agent.path.into(),
        timestamps: agent.timestamps == Timestamps::Auto,
        debug_programs: agent.debug_programs,
        keep_capabilities: agent.keep_capabilities,
    };
    app::prepare(&options)?;
    block_on(app::run(options))
}

/// One thread: the agent's work is small, and every further thread costs memory.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(future)
}

/// The client for a command with this format.
fn in_format(client: &Client, output: Output) -> Client {
    if output.is_json() { client.verbatim() } else { client.clone() }
}

/// Prints a value as a table or as JSON.
fn show<T: serde::Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    if output.is_json() { out::print(&out::json(value, true)?) } else { out::print(&table(value)) }
}
