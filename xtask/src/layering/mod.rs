//! Who may import whom inside a crate, and what stands at the top of the repository: checked on the text of the sources, with comments taken out.
//! Who may import whom between crates is in their `Cargo.toml`, and the compiler's to keep.

mod circles;

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The agent: what the compiler does not hold there, by module.
const AGENT: &str = "splitter-agent/src/";

/// Modules of the agent that may use a crate (a path prefix). Everybody may use what is not listed.
const CRATES: &[(&str, &[&str])] = &[
    ("ratatui", &["cli"]),
    ("rustls", &["proxy"]),
    ("hyper", &["proxy", "admin", "telemetry", "cli", "outside"]),
    ("hyper_util", &["proxy", "admin", "telemetry", "cli", "outside"]),
    ("jiff", &["control/rollouts"]),
];

/// Modules that may import only these of the agent's others.
const MODULES: &[(&str, &[&str])] =
    &[("plan", &[]), ("datapath", &["plan"]), ("reconcile", &["plan", "datapath"]), ("outside", &[]), ("telemetry", &["control"])];

/// Words that the files of a folder must not contain.
const WORDS: &[(&str, &[&str])] = &[
    ("crates/rollout/", &["Instant::now", "SystemTime::now", "tokio::time"]),
    ("crates/datapath/src/plan/", &["Instant::now", "SystemTime::now"]),
];

/// The crates' sources.
const SOURCES: &[&str] = &[
    "bench/src",
    "crates/api/src",
    "crates/datapath/src",
    "crates/lab/src",
    "crates/policy/src",
    "crates/proxy/src",
    "crates/rollout/src",
    "splitter-agent/src",
    "splitter-common/src",
    "splitter-ebpf/src",
    "xtask/src",
];

/// Circles that are there still: each lies within these files, or files below these folders.
const CIRCLES: &[&[&str]] = &[
    &["splitter-agent/src/admin/"],
    &[
        "splitter-agent/src/cli/args.rs",
        "splitter-agent/src/cli/complete.rs",
        "splitter-agent/src/cli/status.rs",
        "splitter-agent/src/cli/top/rows.rs",
    ],
    &["splitter-agent/src/cli/doctor/"],
    &["splitter-agent/src/cli/top/"],
    &["splitter-agent/src/control/"],
    &["splitter-ebpf/src/"],
    &["xtask/src/demo/", "xtask/src/verifier.rs"],
    &["xtask/src/kernels/", "xtask/src/proof.rs"],
];

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
    "crates",
    "deny.toml",
    "deploy",
    "docs",
    "fuzz",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "splitter-agent",
    "splitter-common",
    "splitter-ebpf",
    "xtask",
];

/// Checks the repository; returns how many files were read.
pub fn run(root: &Path) -> Result<usize> {
    let mut files = Vec::new();
    collect(&root.join(AGENT), &mut files)?;
    collect(&root.join("crates"), &mut files)?;
    let mut complaints = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        complaints.extend(check(&file.strip_prefix(root)?.to_string_lossy(), &text));
    }
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().context("cannot run git")?;
    complaints.extend(circles(root)?);
    complaints.extend(strangers(&String::from_utf8_lossy(&listed.stdout)));
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(files.len())
}

/// Complaints about circles of files, in any crate.
fn circles(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for folder in SOURCES {
        let (mut files, mut krate) = (Vec::new(), circles::Crate::default());
        let source = root.join(folder);
        collect(&source, &mut files)?;
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            krate.add(&file.strip_prefix(&source)?.to_string_lossy(), &file.strip_prefix(root)?.to_string_lossy(), &text);
        }
        complaints.extend(krate.circles(CIRCLES));
    }
    Ok(complaints)
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

/// Complaints about one file, `path` relative to the repository.
fn check(path: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let mut complaints = path.strip_prefix(AGENT).map_or_else(Vec::new, |name| of_agent(path, name, &code));
    for (folder, words) in WORDS.iter().filter(|(folder, _)| path.starts_with(folder)) {
        for word in *words {
            if let Some(at) = code.find(word) {
                complaints.push(format!("{path}:{}: nothing in {folder} may use {word}: time is given to it", line_of(&code, at)));
            }
        }
    }
    complaints
}

/// Complaints about one file of the agent, `name` relative to its `src`.
fn of_agent(path: &str, name: &str, code: &str) -> Vec<String> {
    let module = name.split('/').next().unwrap_or(name).trim_end_matches(".rs");
    let inside = |prefix: &str| name == format!("{prefix}.rs") || name.starts_with(&format!("{prefix}/"));
    let mut complaints = Vec::new();
    for (krate, allowed) in CRATES {
        if let Some(line) = uses_crate(code, krate)
            && !allowed.iter().any(|prefix| inside(prefix))
        {
            complaints.push(format!("{path}:{line}: only {} may use {krate}", allowed.join(", ")));
        }
    }
    let allowed = MODULES.iter().find(|(owner, _)| *owner == module).map(|(_, allowed)| *allowed);
    for (line, import) in imports(code) {
        if allowed.is_some_and(|allowed| import != module && !allowed.contains(&import.as_str())) {
            complaints.push(format!("{path}:{line}: {module} must not import {import}"));
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
            ("admin/mod.rs", "// fine: ratatui::Frame\nuse ratatui::Frame;\n", "admin/mod.rs:2: only cli may use ratatui"),
            ("app.rs", "fn f() { let _ = ratatui::init(b\"\"); }", "app.rs:1: only cli may use ratatui"),
            ("outside/mod.rs", "use crate::control::file;", "outside/mod.rs:1: outside must not import control"),
            (
                "telemetry/log.rs",
                "use crate::{\n    control::Control,\n    cli::{Map, Link},\n};",
                "telemetry/log.rs:1: telemetry must not import cli",
            ),
            ("control/file.rs", "use jiff::Zoned;", "control/file.rs:1: only control/rollouts may use jiff"),
        ] {
            assert_eq!(check(&format!("{AGENT}{name}"), text), [format!("{AGENT}{complaint}")], "{text}");
        }
    }

    #[test]
    fn the_judge_has_no_clock() {
        let complaints = check("crates/rollout/src/step.rs", "\nlet now = Instant::now();");
        assert_eq!(complaints, ["crates/rollout/src/step.rs:2: nothing in crates/rollout/ may use Instant::now: time is given to it"]);
        assert_eq!(check("crates/policy/src/source/watch.rs", "let now = Instant::now();"), Vec::<String>::new());
    }

    #[test]
    fn good_lines_pass() {
        for (name, text) in [
            ("telemetry/log.rs", "use splitter_datapath::Hook;\nuse crate::control::Control;"),
            ("control/rollouts/freeze.rs", "use jiff::Zoned;\nuse crate::outside::{State, Word};"),
            ("cli/mod.rs", "mod jiff;\npub use self::jiff::watch;"),
            ("telemetry/mod.rs", "use splitter_policy::model::Policy; let jiff = 1; let s = \"jiff::x\";"),
            ("app.rs", "use crate::{control::Control, telemetry, cli};"),
            ("outside/mod.rs", "/// Not jiff::Zoned, nor crate::control.\nuse crate::outside::value::Value;"),
        ] {
            assert_eq!(check(&format!("{AGENT}{name}"), text), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn this_repository_is_in_order() {
        run(&crate::root().unwrap()).unwrap();
    }

    #[test]
    fn strangers_at_the_top_are_refused() {
        assert_eq!(strangers("Cargo.toml\0docs/adr/1.md\0docs/x.md\0"), Vec::<String>::new());
        assert_eq!(strangers("scratch/x\0").len(), 1);
    }
}
