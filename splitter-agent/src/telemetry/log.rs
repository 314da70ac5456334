//! Logs: to standard error, as text for people or JSON for collectors.
//!
//! Owns the subscriber. Nothing is logged per packet or per connection.

use clap::ValueEnum;
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Standard error, whoever reads it: when nobody does any more, the line is lost and the agent goes on.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // An error would be reported on standard error, which ends a program that cannot write there.
        let _ = io::stderr().write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    let builder = tracing_subscriber::fmt().with_writer(|| Stderr).with_max_level(level).with_target(level >= LevelFilter::DEBUG);
    match format {
        // journald and terminals stamp lines themselves or have a person in front of them; files need the time.
        Format::Text => builder.with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
}
