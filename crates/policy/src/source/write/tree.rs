//! A tree of YAML, and its text. Owns quoting and layout; knows nothing of policies.

use std::net::Ipv4Addr;

/// Columns that a collection on one line may take.
const WIDTH: usize = 96;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// As it is to stand: a number, a word, a duration.
    Word(String),
    /// Quoted where it could be read as something else.
    Text(String),
    List(Vec<Tree>),
    /// In this order.
    Map(Vec<(String, Tree)>),
}

/// A map that is put together: what is as it is by default has no line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<(String, Tree)>);

impl Map {
    pub fn put(&mut self, key: &str, value: impl Into<Option<Tree>>) {
        self.0.extend(value.into().map(|value| (key.to_owned(), value)));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Map> for Tree {
    fn from(map: Map) -> Self {
        Self::Map(map.0)
    }
}

pub fn word(word: impl ToString) -> Tree {
    Tree::Word(word.to_string())
}

pub fn text(text: impl ToString) -> Tree {
    Tree::Text(text.to_string())
}

pub fn texts(items: &[String]) -> Tree {
    Tree::List(items.iter().map(text).collect())
}

/// `{KEY: VALUE}`.
pub fn one(key: &str, value: Tree) -> Tree {
    Tree::Map(vec![(key.to_owned(), value)])
}

/// A list, unless it is empty.
pub fn list(items: impl IntoIterator<Item = Tree>) -> Option<Tree> {
    let items: Vec<Tree> = items.into_iter().collect();
    (!items.is_empty()).then_some(Tree::List(items))
}

/// The document's text. Below the second level, what fits on a line stands on one.
pub fn document(tree: &Tree) -> String {
    let mut out = String::new();
    block(tree, 0, &mut out);
    out
}

fn block(tree: &Tree, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let Tree::Map(entries) = tree else { return };
    for (key, value) in entries {
        out.push_str(&format!("{indent}{}:", quoted(key)));
        match value {
            Tree::List(items) if !fits(value, depth) => {
                out.push('\n');
                items.iter().for_each(|item| self::item(item, depth + 1, out));
            }
            Tree::Map(entries) if !entries.is_empty() && (depth == 0 || !fits(value, depth)) => {
                out.push('\n');
                block(value, depth + 1, out);
            }
            _ => out.push_str(&format!(" {}\n", flow(value))),
        }
    }
}

/// An item of a list, with its dash.
fn item(tree: &Tree, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match tree {
        Tree::Map(entries) if !entries.is_empty() && !fits(tree, depth) => {
            let mut inner = String::new();
            block(tree, depth + 1, &mut inner);
            out.push_str(&format!("{indent}- {}", inner.trim_start()));
        }
        _ => out.push_str(&format!("{indent}- {}\n", flow(tree))),
    }
}

/// Whether a collection stands on one line: short, and not more than one in another.
fn fits(tree: &Tree, depth: usize) -> bool {
    let plain = |tree: &Tree| match tree {
        Tree::List(items) => items.iter().all(|item| matches!(item, Tree::Word(_) | Tree::Text(_))),
        Tree::Map(entries) => entries.len() < 2,
        _ => true,
    };
    let shallow = match tree {
        Tree::List(_) => plain(tree),
        Tree::Map(entries) => entries.iter().all(|(_, value)| plain(value)),
        _ => true,
    };
    shallow && 2 * depth + flow(tree).chars().count() <= WIDTH
}

fn flow(tree: &Tree) -> String {
    match tree {
        Tree::Word(word) => word.clone(),
        Tree::Text(text) => quoted(text),
        Tree::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Tree::Map(entries) => {
            let entries: Vec<_> = entries.iter().map(|(key, value)| format!("{}: {}", quoted(key), flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Words that some reader of YAML takes for something else than a string.
const TYPED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

/// A string as it is where every reader takes it for one, else in double quotes (YAML 1.2.2, 7.3.1).
fn quoted(text: &str) -> String {
    // An address of IPv4, or a network: no reader takes that for a number.
    let address = text.split('/').next().is_some_and(|address| address.parse::<Ipv4Addr>().is_ok());
    let plain = (address || text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/'))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !TYPED.contains(&&*text.to_ascii_lowercase());
    if plain {
        return text.to_owned();
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if is_odd(c) => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// No printable character of YAML, or one that breaks a line, or turns its direction where it is shown.
fn is_odd(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{a0}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::yaml::{Kind, documents};
    use proptest::prelude::*;

    #[test]
    fn strings_are_quoted_where_a_reader_may_err() {
        for (given, written) in [
            ("v1", "v1"),
            ("/sys/fs/cgroup", "/sys/fs/cgroup"),
            ("X-Canary", "X-Canary"),
            ("10.9.9.9", "10.9.9.9"),
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("fd00::/8", "\"fd00::/8\""),
            ("1.5", "\"1.5\""),
            ("", "\"\""),
            ("Off", "\"Off\""),
            ("a: b", "\"a: b\""),
            ("say \"x\\y\"\n", "\"say \\\"x\\\\y\\\"\\n\""),
            ("\u{85}\u{7f}ü", "\"\\u0085\\u007fü\""),
        ] {
            assert_eq!(quoted(given), written);
        }
    }

    #[test]
    fn short_collections_stand_on_a_line() {
        let mut map = Map::default();
        map.put("a", one("b", one("c", texts(&["d".into()]))));
        map.put("none", None);
        map.put("e", list([one("f", word(1)), Tree::Map(vec![("g".into(), word("30s")), ("h".into(), texts(&vec!["x y".into(); 30]))])]));
        let text = document(&map.into());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..5], ["a:", "  b: {c: [d]}", "e:", "  - {f: 1}", "  - g: 30s"]);
        assert_eq!((lines[5], lines[6], lines.len()), ("    h:", "      - \"x y\"", 36));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever characters a string has, the reader finds the same one, and takes it for a string.
        #[test]
        fn every_string_is_read_as_it_was(key in ".*", value in ".*") {
            let tree = Tree::Map(vec![(key.clone(), text(&value)), (format!("{key}x"), texts(&[value.clone(), key.clone()]))]);
            let written = document(&tree);
            let mut found = Vec::new();
            let errors = documents(&written, |node| {
                let Kind::Map(entries) = node.kind else { panic!("{written}") };
                for entry in entries {
                    match entry.value.kind {
                        Kind::Scalar { text, .. } => found.push((entry.key.to_string(), text.to_string())),
                        Kind::List(items) => found.extend(items.into_iter().map(|item| match item.kind {
                            Kind::Scalar { text, .. } => (entry.key.to_string(), text.to_string()),
                            other => panic!("{other:?}"),
                        })),
                        other => panic!("{other:?}"),
                    }
                }
            });
            prop_assert!(errors.is_empty(), "{written}");
            let other = format!("{key}x");
            prop_assert_eq!(found, [(key.clone(), value.clone()), (other.clone(), value), (other, key)]);
        }
    }
}
