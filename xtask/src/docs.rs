//! Documentation of the code: `cargo doc` without a warning, and in each crate's first file a row about every module, so that a reader finds the way.

use crate::{artifact, step};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};

/// Links that lead nowhere, in the documentation of what is private too.
pub fn build() -> Result<()> {
    let mut command = artifact::cargo()?;
    // Programs have no documentation of their own; those that are all there is of a package are of one file each.
    command.args(["doc", "--workspace", "--lib", "--no-deps", "--document-private-items", "--all-features", "--locked"]);
    step::run("documentation", command.env("RUSTDOCFLAGS", "-D warnings")).map(drop)
}

/// Complains about modules that the first file of their package says nothing of.
pub fn maps() -> Result<String> {
    let metadata = artifact::metadata(&[])?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let (mut complaints, mut modules, mut files) = (Vec::new(), 0, 0);
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let Some(path) = first_file(package) else { continue };
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let declared = declared(&text);
        let rows = rows(&text);
        (modules, files) = (modules + declared.len(), files + 1);
        let missing = declared.into_iter().filter(|module| !rows.contains(module));
        complaints.extend(
            missing.map(|module| format!("{path}: its documentation has no row about `{module}` (`| `{module}` | what it does |`)")),
        );
    }
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(format!("{modules} modules in {files} packages"))
}

/// Of the library, or of the only program.
fn first_file(package: &Value) -> Option<&str> {
    let targets = package["targets"].as_array()?;
    let of = |kind: &str| targets.iter().find(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind)));
    let path = of("lib").or_else(|| of("bin"))?["src_path"].as_str()?;
    Path::new(path).exists().then_some(path)
}

/// Modules that a file declares, but for those of its tests.
fn declared(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut tests = false;
    for line in text.lines() {
        let words: Vec<&str> = line.trim_end_matches(" {").trim_end_matches(';').split(' ').collect();
        match words[..] {
            ["mod", name] | [_, "mod", name] if !tests && line.ends_with([';', '{']) && !line.starts_with(' ') => found.push(name),
            _ => {}
        }
        tests = line.trim() == "#[cfg(test)]" || tests && line.starts_with("#[");
    }
    found
}

/// Names in code marks in the first column of tables. A list would not do: `- [`name`]: text` is the definition of a link.
fn rows(text: &str) -> Vec<&str> {
    let documentation = text.lines().map_while(|line| line.strip_prefix("//!"));
    let heads = documentation.filter_map(|line| line.trim().strip_prefix("| ")?.split_once('|')).map(|(head, _)| head);
    heads.flat_map(|head| head.split('`').skip(1).step_by(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
//! What it is. See `prose`.
//!
//! | [`one`] | this |
//! | `two`, [`three`] | `four` |
//!
//! | `five` | `six` |

pub mod one;
mod two;
pub(crate) mod three {
    mod inner;
}
mod four;
mod five;
#[cfg(test)]
#[path = \"x.rs\"]
mod tests;
#[cfg(feature = \"x\")]
pub mod six;
";

    #[test]
    fn the_repositorys_modules_have_their_rows() {
        maps().unwrap();
    }

    #[test]
    fn modules_without_a_row_are_found() {
        assert_eq!(declared(TEXT), ["one", "two", "three", "four", "five", "six"]);
        assert_eq!(rows(TEXT), ["one", "two", "three", "five"]);
        assert_eq!(rows("//! - `a`: this\n//! `b` | that\n\n//! | `c` | no more |"), Vec::<&str>::new());
    }
}
