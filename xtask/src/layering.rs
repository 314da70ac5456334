//! Who may import whom, and what stands at the top of the repository: checked on the text of the sources, with comments taken out.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Modules of the agent that may use a crate (a path prefix under `splitter-agent/src`). Everybody may use what is not listed.
const CRATES: &[(&str, &[&str])] = &[
    ("aya", &["datapath"]),
    ("aya_obj", &["datapath"]),
    ("aya_log", &["datapath"]),
    ("kube", &["source/kube"]),
    ("ratatui", &["cli"]),
    ("rustls", &["proxy"]),
    ("hyper", &["proxy", "admin", "telemetry", "cli", "outside"]),
    ("hyper_util", &["proxy", "admin", "telemetry", "cli", "outside"]),
    ("jiff", &["source", "control/rollouts"]),
];

/// Modules that may import only these of the agent's others.
const MODULES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("observed", &[]),
    ("source", &["model"]),
    ("plan", &["model"]),
    ("datapath", &["plan", "model", "observed"]),
    ("reconcile", &["plan", "datapath", "model", "observed"]),
    ("rollout", &["model", "observed"]),
    ("outside", &["model", "observed"]),
    ("telemetry", &["observed", "model", "control"]),
];

/// Words that a module must not contain.
const WORDS: &[(&str, &[&str])] =
    &[("rollout", &["Instant::now", "SystemTime::now", "tokio::time"]), ("plan", &["Instant::now", "SystemTime::now"])];

const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".github",
    ".gitignore",
    ".gitlab-ci.yml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-GPL",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "bench",
    "clippy.toml",
    "deploy",
    "docs",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "splitter-agent",
    "splitter-common",
    "splitter-ebpf",
    "xtask",
];

/// Checks the repository; returns how many files were read.
pub fn run(root: &Path) -> Result<usize> {
    let source = root.join("splitter-agent/src");
    let mut files = Vec::new();
    collect(&source, &mut files)?;
    let mut complaints = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&source)?.to_string_lossy().into_owned();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        complaints.extend(check(&name, &text).into_iter().map(|complaint| format!("splitter-agent/src/{complaint}")));
    }
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().context("cannot run git")?;
    complaints.extend(strangers(&String::from_utf8_lossy(&listed.stdout)));
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(files.len())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// Tracked entries at the top that the layout does not know.
fn strangers(listed: &str) -> Vec<String> {
    let mut tops: Vec<&str> = listed.split('\0').filter_map(|path| path.split('/').next()).filter(|top| !top.is_empty()).collect();
    tops.dedup();
    tops.into_iter()
        .filter(|top| !TOP.contains(top))
        .map(|top| format!("{top}: not part of the layout at the top of the repository"))
        .collect()
}

/// Complaints about one file of the agent, `name` relative to its `src`.
fn check(name: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let module = name.split('/').next().unwrap_or(name).trim_end_matches(".rs");
    let inside = |prefix: &str| name == format!("{prefix}.rs") || name.starts_with(&format!("{prefix}/"));
    let mut complaints = Vec::new();
    for (krate, allowed) in CRATES {
        if let Some(line) = uses_crate(&code, krate)
            && !allowed.iter().any(|prefix| inside(prefix))
        {
            complaints.push(format!("{name}:{line}: only {} may use {krate}", allowed.join(", ")));
        }
    }
    let allowed = MODULES.iter().find(|(owner, _)| *owner == module).map(|(_, allowed)| *allowed);
    for (line, import) in imports(&code) {
        if allowed.is_some_and(|allowed| import != module && !allowed.contains(&import.as_str())) {
            complaints.push(format!("{name}:{line}: {module} must not import {import}"));
        }
    }
    for (owner, words) in WORDS.iter().filter(|(owner, _)| *owner == module) {
        for word in *words {
            if let Some(at) = code.find(word) {
                complaints.push(format!("{name}:{}: {owner} must not use {word}: time is given to it", line_of(&code, at)));
            }
        }
    }
    complaints
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The text with line comments blanked; strings that hold `//` lose their end, which no rule here minds.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// First line on which the crate is named as a path's root.
fn uses_crate(code: &str, krate: &str) -> Option<usize> {
    code.match_indices(krate)
        .map(|(at, _)| at)
        .find(|at| {
            let (before, after) = (&code[..*at], &code[at + krate.len()..]);
            let root = !before.ends_with(|c: char| is_word(c) || c == ':' || c == '.' || c == '"');
            let imported = before.trim_end().ends_with("use") || before.trim_end().ends_with("extern crate");
            root && (after.starts_with("::") || imported && !after.starts_with(is_word))
        })
        .map(|at| line_of(code, at))
}

/// Modules named behind `crate::`, in groups too, with their lines.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| is_word(c) || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => group_roots(group),
            None => vec![rest.chars().take_while(|c| is_word(*c)).collect()],
        };
        // Types and functions of the crate's root are not modules.
        let modules = names.into_iter().filter(|name| name.starts_with(|c: char| c.is_lowercase()));
        found.extend(modules.map(|name| (line_of(code, at), name)));
    }
    found
}

/// First names of the entries of `{a::b, c::{d, e}, f}`, its opening brace taken off.
fn group_roots(group: &str) -> Vec<String> {
    let (mut depth, mut roots, mut current) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => roots.push(std::mem::take(&mut current)),
            _ if depth == 0 => current.push(c),
            _ => {}
        }
    }
    roots.push(current);
    roots.iter().map(|entry| entry.trim().chars().take_while(|c| is_word(*c)).collect::<String>()).filter(|root| !root.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_found_with_their_place() {
        for (name, text, complaint) in [
            ("cli/mod.rs", "// fine: aya::Ebpf\nuse aya::Ebpf;\n", "cli/mod.rs:2: only datapath may use aya"),
            ("app.rs", "fn f() { let _ = aya::Ebpf::load(b\"\"); }", "app.rs:1: only datapath may use aya"),
            ("model/mod.rs", "use crate::source::file;", "model/mod.rs:1: model must not import source"),
            (
                "plan/mod.rs",
                "use crate::{\n    model::Policy,\n    datapath::{Map, Link},\n};",
                "plan/mod.rs:1: plan must not import datapath",
            ),
            ("rollout/step.rs", "let now = Instant::now();", "rollout/step.rs:1: rollout must not use Instant::now: time is given to it"),
            ("source/file.rs", "use kube::Api;", "source/file.rs:1: only source/kube may use kube"),
        ] {
            assert_eq!(check(name, text), [complaint], "{text}");
        }
    }

    #[test]
    fn good_lines_pass() {
        for (name, text) in [
            ("datapath/maps.rs", "use aya::maps::Map;\nuse crate::plan::Image;"),
            ("source/kube.rs", "use kube::Api;\nuse crate::model::{Policy, Service};"),
            ("source/mod.rs", "mod kube;\npub use self::kube::watch;"),
            ("plan/mod.rs", "use crate::model::Policy; let aya = 1; let s = \"aya::x\";"),
            ("app.rs", "use crate::{control::Control, source, cli};"),
            ("model/mod.rs", "/// Not aya::Pod, nor crate::plan.\nuse crate::model::cidr::Cidr;"),
        ] {
            assert_eq!(check(name, text), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn strangers_at_the_top_are_refused() {
        assert_eq!(strangers("Cargo.toml\0docs/adr/1.md\0docs/x.md\0"), Vec::<String>::new());
        assert_eq!(strangers("scratch/x\0").len(), 1);
    }
}
