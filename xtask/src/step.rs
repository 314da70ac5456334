//! Running a long command: its output goes to a log, a line shows that it lives, and its end or its failure.

use anyhow::{Context, Result, bail};
use splitter_lab::lab::Process;
use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Seek, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Lines of a failed command's output that are shown.
const TAIL: usize = 80;

/// Prints a line about what happens, on standard error.
pub fn say(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Where logs go: `target/xtask`.
pub fn log_dir() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(crate::root()?.join("target"), PathBuf::from);
    let dir = target.join("xtask");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Programs that only the tests need, outside the system's folders.
pub fn tools() -> Result<PathBuf> {
    Ok(log_dir()?.join("tools"))
}

/// Runs a command to its end; returns what it wrote to standard output and standard error, interleaved.
///
/// # Errors
/// When it fails: the end of its output is shown first, and the error names the log.
pub fn run(title: &str, command: &mut Command) -> Result<String> {
    let (succeeded, log, path) = attempt(title, command)?;
    if succeeded {
        return Ok(log);
    }
    let lines: Vec<&str> = log.lines().filter(|line| !is_message(line)).collect();
    say(lines[lines.len().saturating_sub(TAIL)..].join("\n"));
    bail!("{title} failed; the whole output is in {}", path.display());
}

/// The same without judging: whether it succeeded, its output, its log.
pub fn attempt(title: &str, command: &mut Command) -> Result<(bool, String, PathBuf)> {
    let slug: String = title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = log_dir()?.join(format!("{slug}.log"));
    let mut log = new_log(&path).with_context(|| format!("cannot write {}", path.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let mut ticker = Ticker::new(title);
    let process = Process::spawn_group(title, command)?;
    let status = loop {
        if let Some(status) = process.exited() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
        ticker.tick(&path);
    };
    process.kill();
    ticker.end(status.success());
    let mut output = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut output)?;
    Ok((status.success(), String::from_utf8_lossy(&output).into_owned(), path))
}

/// A file of its own, also when another run in the same folder has one of the same name and is not done with it.
fn new_log(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => File::options().read(true).append(true).create(true).open(path),
    }
}

struct Ticker<'a> {
    title: &'a str,
    start: Instant,
    next: Duration,
    tty: bool,
    /// When the log is looked at next for a lock that is waited for.
    look: Duration,
    waits: bool,
}

impl Ticker<'_> {
    fn new(title: &str) -> Ticker<'_> {
        let tty = std::io::stderr().is_terminal();
        if !tty {
            say(format_args!("[  ..  ] {title}"));
        }
        Ticker { title, start: Instant::now(), next: Duration::ZERO, tty, look: Duration::ZERO, waits: false }
    }

    /// On a terminal one line redrawn twice a second; else a line every half minute, so that a log shows life, and one when it begins to wait.
    fn tick(&mut self, log: &Path) {
        let elapsed = self.start.elapsed();
        if !self.tty && elapsed >= self.look {
            self.look = elapsed + Duration::from_secs(1);
            let last = last_line(log, 120);
            let waits = is_waiting(&last);
            if waits && !self.waits {
                say(format_args!("[{:>4} s] {}: {last}", elapsed.as_secs(), self.title));
            }
            self.waits = waits;
        }
        if elapsed < self.next {
            return;
        }
        let seconds = elapsed.as_secs();
        if self.tty {
            self.next = elapsed + Duration::from_millis(500);
            eprint!("\r\x1b[K[{seconds:>4} s] {}  \x1b[2m{}\x1b[0m", self.title, last_line(log, 90usize.saturating_sub(self.title.len())));
            // A terminal that is gone is no reason to stop.
            let _ = std::io::stderr().flush();
        } else {
            self.next = elapsed + Duration::from_secs(30);
            if seconds > 0 {
                say(format_args!("[{seconds:>4} s] {}: {}", self.title, last_line(log, 80)));
            }
        }
    }

    fn end(&self, success: bool) {
        let clear = if self.tty { "\r\x1b[K" } else { "" };
        let mark = if success { "  ok  " } else { "FAILED" };
        say(format_args!("{clear}[{mark}] {} ({:.1} s)", self.title, self.start.elapsed().as_secs_f64()));
    }
}

/// Cargo waits for another cargo.
fn is_waiting(line: &str) -> bool {
    line.starts_with("Blocking waiting for file lock")
}

/// Cargo's messages for programs stand among those for people.
fn is_message(line: &str) -> bool {
    line.starts_with("{\"reason\":")
}

fn last_line(log: &Path, width: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(20_000)..]).into_owned();
    text.lines()
        .rfind(|line| !line.trim().is_empty() && !is_message(line))
        .map_or(String::new(), |line| line.trim().chars().take(width).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_do_not_write_into_one_log() {
        let path = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut first = new_log(&path).unwrap();
        first.write_all(b"first").unwrap();
        new_log(&path).unwrap().write_all(b"second").unwrap();
        first.write_all(b" goes on").unwrap();
        let mut read = String::new();
        first.rewind().unwrap();
        first.read_to_string(&mut read).unwrap();
        assert_eq!((read.as_str(), fs::read_to_string(&path).unwrap().as_str()), ("first goes on", "second"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_last_line_is_for_people() {
        let path = std::env::temp_dir().join(format!("xtask-step-{}", std::process::id()));
        fs::write(&path, "   Compiling x v1\n{\"reason\":\"compiler-artifact\"}\n\n").unwrap();
        assert_eq!(last_line(&path, 11), "Compiling x");
        fs::write(&path, "    Blocking waiting for file lock on build directory\n").unwrap();
        assert!(is_waiting(&last_line(&path, 120)) && !is_waiting("Compiling x"));
        fs::remove_file(&path).unwrap();
    }
}
