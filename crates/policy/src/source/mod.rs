//! Sources of policy: objects ([`PolicySource`]: a YAML file or a folder of them), addresses for their names ([`EndpointSource`]: DNS), and what both
//! say together ([`follow`]) -> model.
//!
//! Owns reading, decoding, checking and watching; says what is wrong with line and column. Knows nothing of the kernel, of the admin
//! API or of what happens to the policy. Any error in objects refuses them all: half a policy is never handed on.

mod check;
mod decode;
pub mod dns;
mod draft;
mod fields;
mod files;
pub mod follow;
mod http;
mod known;
mod lookup;
mod network;
pub mod resolve;
mod rollout;
mod rules;
mod text;
mod tls;
pub mod watch;
mod write;
mod yaml;

use crate::model::Policy;
pub use network::{cidr, duration};
use resolve::{Found, Query};
use std::{collections::BTreeSet, fmt, path::Path, sync::Arc};
pub use write::write;
pub use yaml::At;

/// One finding in a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub path: String,
    pub at: At,
    /// `TrafficSplit checkout`, when it is about an object.
    pub object: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.path, self.at.line, self.at.column)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// What a source says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The policy, or at least one error, in the order of the files.
    pub result: Result<Policy, Vec<Diagnostic>>,
    pub warnings: Vec<Diagnostic>,
}

/// Where objects come from.
pub trait PolicySource: Send {
    /// What the source says when it says something new, the first time at once; `None` when it has ended. May be dropped and called again.
    fn next(&mut self) -> impl Future<Output = Option<Outcome>> + Send;
}

/// Where the addresses of names come from.
pub trait EndpointSource: Send {
    /// What is looked up from now on, and nothing else.
    fn want(&mut self, queries: &BTreeSet<Query>);
    /// What is known of all that is wanted.
    fn found(&self) -> Found;
    /// Returns when [`EndpointSource::found`] says something else than before; never when nothing is wanted. May be dropped and called again.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Reads a file, or the `*.yaml` and `*.yml` of a folder.
pub fn load(path: &Path) -> Outcome {
    outcome(path, &files::read(path))
}

/// What one file's content says; pure.
pub fn read(name: &str, content: &[u8]) -> Outcome {
    outcome(Path::new(name), &files::Snapshot::of(name, content))
}

/// Reads the same file again and again: what did not change since the last time is not read anew.
#[derive(Debug, Default)]
pub struct Rereader(known::Known);

impl Rereader {
    /// As [`read`].
    pub fn read(&mut self, name: &str, content: &[u8]) -> Outcome {
        self.0.outcome(Path::new(name), &files::Snapshot::of(name, content))
    }
}

/// Decodes what was read; pure.
fn outcome(path: &Path, snapshot: &files::Snapshot) -> Outcome {
    let mut report = Report { errors: snapshot.errors.clone(), warnings: Vec::new() };
    let mut drafts = Vec::new();
    let mut emptied = false;
    for file in &snapshot.files {
        let text = match std::str::from_utf8(&file.content) {
            Ok(text) => text,
            Err(error) => {
                report.errors.push(not_utf8(&file.name, &file.content, error.valid_up_to()));
                continue;
            }
        };
        let mut found = 0;
        let errors = yaml::documents(text, |document| {
            found += 1;
            emptied |= decode::document(&file.name, &document, &mut drafts, &mut report);
        });
        found += errors.len();
        let at = |e: yaml::SyntaxError| Diagnostic { path: file.name.clone(), at: e.at, object: None, message: e.message };
        report.errors.extend(errors.into_iter().map(at));
        if found == 0 && snapshot.files.len() > 1 {
            nothing_in(&file.name, text, &mut report);
        }
    }
    if drafts.is_empty() && !emptied && report.errors.is_empty() {
        report.errors.push(nothing_at_all(path, &snapshot.files));
    }
    check::across(&drafts, &mut report);
    let Report { mut errors, mut warnings } = report;
    warnings.sort_by(|a, b| (&a.path, a.at).cmp(&(&b.path, b.at)));
    if errors.is_empty() {
        let mut services: Vec<_> = drafts.into_iter().filter_map(|draft| draft.service).map(Arc::new).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        return Outcome { result: Ok(Policy { services }), warnings };
    }
    errors.sort_by(|a, b| (&a.path, a.at).cmp(&(&b.path, b.at)));
    Outcome { result: Err(errors), warnings }
}

/// Findings so far.
#[derive(Default)]
struct Report {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

/// Why a source without a single object is no policy: it is missing, as if its path were.
fn nothing_at_all(path: &Path, files: &[files::File]) -> Diagnostic {
    const AND_SO: &str = "a policy that says nothing removes nothing; to remove all services use an explicit empty list: a document \
                          `kind: TrafficSplitList` with `items: []`";
    let (name, message) = match files {
        [] => (path.display().to_string(), format!("this folder is empty: it has no *.yaml and no *.yml, and {AND_SO}")),
        [file] if file.content.trim_ascii().is_empty() => {
            (file.name.clone(), format!("this file is empty, as after a write that was cut short, and {AND_SO}"))
        }
        [file] => (file.name.clone(), format!("no TrafficSplit found here, and {AND_SO}")),
        _ => (path.display().to_string(), format!("no TrafficSplit found in the {} files of this folder, and {AND_SO}", files.len())),
    };
    Diagnostic { path: name, at: At::START, object: None, message }
}

/// One of several files says nothing: an error when it is blank (a write that was cut short looks like this), else a warning.
fn nothing_in(path: &str, text: &str, report: &mut Report) {
    let blank = text.trim().is_empty();
    let message = if blank {
        "this file is empty, as after a write that was cut short; write its TrafficSplits again, or delete the file to remove them"
    } else {
        "this file holds no object, only comments; delete it if that is meant"
    };
    let found = Diagnostic { path: path.to_owned(), at: At::START, object: None, message: message.to_owned() };
    if blank { report.errors.push(found) } else { report.warnings.push(found) }
}

fn not_utf8(path: &str, content: &[u8], valid: usize) -> Diagnostic {
    let before = &content[..valid];
    let line = before.iter().filter(|b| **b == b'\n').count() as u32 + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() as u32 + 1;
    let message = "not UTF-8 text: save the file as UTF-8".to_owned();
    Diagnostic { path: path.to_owned(), at: At { line, column }, object: None, message }
}

#[cfg(test)]
mod documents;
#[cfg(test)]
mod tests;
