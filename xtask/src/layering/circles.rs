//! Circles of files inside a crate: files that import each other, straight or by way of others. That a file imports those that it lies under is no
//! part of one: `x/y.rs` may use `x.rs` and be used by it.
//!
//! Reads paths out of the text, follows re-exports, and leaves out tests. What macros make it cannot see.

use super::{line_of, without_comments};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// `a::b::c`.
type Names = Vec<String>;

/// A file of a crate as its imports see it.
#[derive(Debug, Default)]
struct File {
    /// Path, for people.
    path: String,
    uses: Vec<Use>,
}

/// A path that a file names.
#[derive(Debug)]
struct Use {
    path: Names,
    /// What the file calls it (`*`: all names of a module); empty for a path in the middle of the code.
    name: String,
    /// Handed on to others, and no use by itself.
    public: bool,
    line: usize,
}

/// Files of a crate by module path; the crate's root has the empty one.
#[derive(Debug, Default)]
pub struct Crate(BTreeMap<Names, File>);

impl Crate {
    /// Adds a file; `name` is relative to the crate's `src`.
    pub fn add(&mut self, name: &str, path: &str, text: &str) {
        let Some(module) = module_of(name) else { return };
        let code = without_tests(&without_comments(text));
        self.0.insert(module, File { path: path.into(), uses: paths(&code) });
    }

    /// One complaint for each circle that is not among `known`, which names its files or their folders.
    pub fn circles(&self, known: &[&[&str]]) -> Vec<String> {
        let edges = self.edges();
        let mut complaints = Vec::new();
        let mut seen = BTreeSet::new();
        for start in self.0.keys() {
            let circle: BTreeSet<&Names> =
                reached(&edges, start).into_iter().filter(|other| reached(&edges, other).contains(start)).collect();
            if circle.len() < 2 || !seen.insert(circle.clone()) {
                continue;
            }
            let files: Vec<&str> = circle.iter().map(|module| self.0[*module].path.as_str()).collect();
            if known.iter().any(|known| files.iter().all(|file| known.iter().any(|known| file.starts_with(known)))) {
                continue;
            }
            let ties = edges.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
            let ties: Vec<String> =
                ties.map(|((from, to), line)| format!("  {}:{line} imports {}", self.0[from].path, self.0[to].path)).collect();
            complaints.push(format!("a circle of {} files:\n{}", circle.len(), ties.join("\n")));
        }
        complaints
    }

    /// Who imports whom, with the first line that does. What a module imports of those that it lies in is left out.
    fn edges(&self) -> BTreeMap<(Names, Names), usize> {
        let mut edges = BTreeMap::new();
        for (module, file) in &self.0 {
            for used in file.uses.iter().filter(|used| !used.public) {
                for target in self.resolve(module, &used.path, 0) {
                    if !module.starts_with(&target) {
                        edges.entry((module.clone(), target)).or_insert(used.line);
                    }
                }
            }
        }
        edges
    }

    /// The modules whose files define what a path in `module` names; none for other crates.
    fn resolve(&self, module: &Names, path: &[String], depth: usize) -> Vec<Names> {
        let (mut at, mut rest) = match path.first().map(String::as_str) {
            Some("crate") => (Names::new(), &path[1..]),
            Some("self") => (module.clone(), &path[1..]),
            Some("super") => (module.clone(), path),
            Some(first) if self.0.contains_key(&child(module, first)) => (module.clone(), path),
            _ => return Vec::new(),
        };
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "super" => drop(at.pop()),
                _ if self.0.contains_key(&child(&at, first)) => at = child(&at, first),
                // An item of this module, or one that it hands on.
                name => return self.item(&at, name, depth),
            }
            rest = others;
        }
        vec![at]
    }

    fn item(&self, at: &Names, name: &str, depth: usize) -> Vec<Names> {
        let handed_on = self.0.get(at).into_iter().flat_map(|file| &file.uses).filter(|used| used.name == name && name != "*" && depth < 4);
        let found: Vec<Names> = handed_on.flat_map(|used| self.resolve(at, &used.path, depth + 1)).filter(|target| target != at).collect();
        if found.is_empty() { vec![at.clone()] } else { found }
    }
}

fn child(module: &Names, name: &str) -> Names {
    let mut child = module.clone();
    child.push(name.into());
    child
}

fn reached<'a>(edges: &'a BTreeMap<(Names, Names), usize>, start: &'a Names) -> BTreeSet<&'a Names> {
    let (mut found, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(module) = open.pop() {
        for (from, to) in edges.keys() {
            if from == module && found.insert(to) {
                open.push(to);
            }
        }
    }
    found
}

/// `a/b.rs` and `a/b/mod.rs` are `a::b`; none for tests and programs of their own.
fn module_of(name: &str) -> Option<Names> {
    let path = Path::new(name.strip_suffix(".rs")?);
    let mut module: Names = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.iter().any(|part| part == "tests" || part == "bin") {
        return None;
    }
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    Some(module)
}

/// Up to the tests at the end.
fn without_tests(code: &str) -> String {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().into()
}

/// Every path of `use` and every one that begins with `crate`, `self` or `super`.
fn paths(code: &str) -> Vec<Use> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let statement = code[at + 4..].split(';').next().unwrap_or_default();
        let mut names = Vec::new();
        tree(&Names::new(), statement, &mut names);
        let before = code[..at].trim_end_matches(|c: char| c != '\n');
        let public = code[before.len()..at].trim_start().starts_with("pub");
        found.extend(names.into_iter().map(|(name, path)| Use { path, name, public, line: line_of(code, at) }));
    }
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let text: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
            let path: Names = text.split("::").filter(|part| !part.is_empty()).map(Into::into).collect();
            found.push(Use { path, name: String::new(), public: false, line: line_of(code, at) });
        }
    }
    found
}

/// The paths of `a::{b, c::{self, d as e}, f::*}` below `prefix`, with the names that they get.
fn tree(prefix: &Names, text: &str, found: &mut Vec<(String, Names)>) {
    let text = text.trim();
    let head = text.split('{').next().unwrap_or_default();
    let mut path = prefix.clone();
    let (plain, name) = head.split_once(" as ").unwrap_or((head, ""));
    path.extend(plain.split("::").map(str::trim).filter(|part| !part.is_empty()).map(String::from));
    let Some(group) = text.strip_prefix(head).and_then(|rest| rest.strip_prefix('{')) else {
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        let last = path.last().cloned().unwrap_or_default();
        found.push((if name.is_empty() { last } else { name.trim().into() }, path));
        return;
    };
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                if !group[begin..at].trim().is_empty() {
                    tree(&path, &group[begin..at], found);
                }
                begin = at + 1;
                if c == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Crate {
        let mut all = Crate::default();
        files.iter().for_each(|(name, text)| all.add(name, name, text));
        all
    }

    #[test]
    fn circles_are_found() {
        for files in [
            &[("lib.rs", "mod a;\nmod b;"), ("a.rs", "use super::b::X;"), ("b.rs", "fn f() { crate::a::g() }")][..],
            // By way of a third, of names that are handed on, and of groups.
            &[
                ("lib.rs", "mod a;\nmod b;\nmod c;\npub use c::{self, Y as Z};"),
                ("a/mod.rs", "use crate::{\n    b::{self, X},\n};"),
                ("b.rs", "use super::Z;"),
                ("c.rs", "use super::a::*;"),
            ],
            &[("a/mod.rs", "fn f() { b::g() }\nuse self::b::g;"), ("a/b.rs", "use super::super::c::X;"), ("c.rs", "use crate::a::Y;")],
        ] {
            let complaints = of(files).circles(&[]);
            assert_eq!(complaints.len(), 1, "{files:?}: {complaints:?}");
            let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
            // Those that are known are let be.
            assert!(of(files).circles(&[&names]).is_empty(), "{files:?}");
        }
        let complaints = of(&[("lib.rs", ""), ("a.rs", "\nuse super::b::X;"), ("b.rs", "use super::a;")]).circles(&[]);
        assert_eq!(complaints, ["a circle of 2 files:\n  a.rs:2 imports b.rs\n  b.rs:1 imports a.rs"]);
    }

    #[test]
    fn what_is_none_passes() {
        for files in [
            // Parent and child.
            &[
                ("lib.rs", "mod a;\nuse a::X;"),
                ("a.rs", "mod b;\npub use b::Y;\nuse crate::Z;"),
                ("a/b.rs", "use super::X;\nuse crate::Z;"),
            ][..],
            // Tests see everything; comments and other crates are nobody.
            &[
                ("lib.rs", "mod a;\nmod b;"),
                ("a.rs", "use super::b::X;"),
                ("b.rs", "// use super::a;\nuse a_crate::a;\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}"),
                ("b/tests.rs", "use crate::a;"),
            ],
            // What is handed on is of whoever defines it, and no use by itself.
            &[("a/mod.rs", "mod b;\npub(crate) use b::X;"), ("a/b.rs", "use crate::c::Z;"), ("c.rs", "use crate::a::Y;")],
            &[("lib.rs", "mod a;\nmod b;\npub use a::X;"), ("a.rs", ""), ("b.rs", "use super::X;\nuse std::a;")],
        ] {
            assert_eq!(of(files).circles(&[]), Vec::<String>::new(), "{files:?}");
        }
    }
}
