//! Logs: to standard error, as text for people or JSON for collectors.
//!
//! Owns the subscriber. Nothing is logged per packet or per connection.

use clap::ValueEnum;
use std::io::{self, IsTerminal};
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Starts logging; once a process.
pub fn start(format: Format, level: Level) {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_target(level >= LevelFilter::DEBUG);
    match format {
        // journald and terminals stamp lines themselves or have a person in front of them; files need the time.
        Format::Text => builder.with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
}
