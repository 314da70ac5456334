//! Completion of names: what the running agent has, asked quickly and silently. A completion that waits or complains is worse than none.

use super::{args::DEFAULT_ADMIN, out};
use anyhow::{Context, Result};
use clap_complete::{CompletionCandidate, Shell, env::Shells};
use splitter_api::{ServiceNames, client::Client};
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

/// Longest wait for the agent.
const PATIENCE: Duration = Duration::from_millis(300);
/// Set by the completion scripts: the command line is then completed instead of run.
pub const VARIABLE: &str = "SPLITTER_COMPLETE";

/// Services.
pub fn services(current: &OsStr) -> Vec<CompletionCandidate> {
    let prefix = current.to_string_lossy();
    let names = ask(&words(), &prefix).into_iter().map(|service| service.name);
    names.filter(|name| name.starts_with(&*prefix)).map(CompletionCandidate::new).collect()
}

/// Versions of the service that was named, each with `=` behind it.
pub fn weights(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    if current.contains('=') {
        return Vec::new();
    }
    versions_of(&words())
        .into_iter()
        .map(|name| name + "=")
        .filter(|name| name.starts_with(&*current))
        .map(CompletionCandidate::new)
        .collect()
}

/// Versions of the service that was named, or of all.
pub fn versions(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    versions_of(&words()).into_iter().filter(|name| name.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

/// Prints the script for a shell, which asks this program at each completion.
pub fn script(shell: Shell) -> Result<()> {
    let shells = Shells::builtins();
    let shell = shells.completer(&shell.to_string()).context("this shell is not known")?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "splitter", "splitter", "splitter", &mut script)?;
    out::print(&String::from_utf8_lossy(&script))
}

/// The command line that is completed: what the script gives behind `--`.
fn words() -> Vec<String> {
    let words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

fn versions_of(words: &[String]) -> Vec<String> {
    let service = service_of(words);
    let found = ask(words, service.unwrap_or_default());
    let matching = found.into_iter().filter(|found| service.is_none_or(|name| name == found.name));
    let mut names: Vec<_> = matching.flat_map(|service| service.versions).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Commands whose first word is a service.
const WITH_SERVICE: [&str; 4] = ["weight", "flows", "explain", "trace"];

/// The word behind the command that is neither an option nor an option's value; the last word is still being written.
fn service_of(words: &[String]) -> Option<&str> {
    let begin = words.iter().position(|word| WITH_SERVICE.contains(&word.as_str()))? + 1;
    let end = words.len().saturating_sub(1);
    let mut rest = words.get(begin..end)?.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--dry-run" => {}
            option if option.starts_with('-') => {
                // `--admin=/x` is three words in bash.
                if !option.contains('=') && rest.next().is_some_and(|value| value == "=") {
                    rest.next();
                }
            }
            name => return Some(name),
        }
    }
    None
}

/// The socket that the command line names, in one word or, as bash breaks them, in three.
fn socket_of(words: &[String]) -> PathBuf {
    let given = words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix("--admin") {
        Some("") => words[at + 1..].iter().find(|word| *word != "=").map(PathBuf::from),
        Some(rest) => rest.strip_prefix('=').map(PathBuf::from),
        None => None,
    });
    given.or_else(|| std::env::var_os("SPLITTER_ADMIN").map(PathBuf::from)).unwrap_or_else(|| DEFAULT_ADMIN.into())
}

/// Nothing when nobody answers in time.
fn ask(words: &[String], prefix: &str) -> Vec<ServiceNames> {
    let client = Client::new(&socket_of(words)).filtered(out::printable_json);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let names = runtime.block_on(async { tokio::time::timeout(PATIENCE, client.names(prefix)).await });
    names.ok().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_service_is_found_between_options() {
        for (line, service) in [
            ("splitter weight checkout v", Some("checkout")),
            ("splitter weight --dry-run checkout v1=5 ", Some("checkout")),
            ("splitter --admin /x weight -o json checkout v", Some("checkout")),
            ("splitter weight --admin=/x shop/a ", Some("shop/a")),
            ("splitter weight --admin = /x shop/a ", Some("shop/a")),
            ("splitter flows --version ", None),
            ("splitter weight chec", None),
            ("splitter status a ", None),
        ] {
            assert_eq!(service_of(&split(line)), service, "{line}");
        }
    }

    #[test]
    fn the_socket_is_found_however_the_line_is_broken() {
        for line in ["splitter --admin /x weight ", "splitter weight --admin=/x a", "splitter weight --admin = /x a"] {
            assert_eq!(socket_of(&split(line)), PathBuf::from("/x"), "{line}");
        }
    }
}
