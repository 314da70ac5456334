//! Typed reading of YAML nodes: the first thing wrong with each is reported at its place, and reading goes on.
//!
//! Owns the wording of "unknown field", "missing" and "must be"; knows no field of a policy by itself.

use super::{
    At, Diagnostic, Report,
    yaml::{Entry, Kind, Node},
};

/// Where findings go, and about what.
pub struct Context<'r> {
    pub path: &'r str,
    /// `TrafficSplit checkout`.
    pub object: Option<String>,
    pub report: &'r mut Report,
}

impl Context<'_> {
    pub fn error(&mut self, at: At, message: impl Into<String>) {
        let found = self.diagnostic(at, message.into());
        self.report.errors.push(found);
    }

    pub fn warn(&mut self, at: At, message: impl Into<String>) {
        let found = self.diagnostic(at, message.into());
        self.report.warnings.push(found);
    }

    fn diagnostic(&self, at: At, message: String) -> Diagnostic {
        Diagnostic { path: self.path.to_owned(), at, object: self.object.clone(), message }
    }

    /// The object's fields; unknown ones are reported. `what` names it in messages: `spec.versions[0]`.
    pub fn fields<'n>(&mut self, node: &'n Node<'n>, what: &str, known: &'static [&'static str]) -> Option<Fields<'n>> {
        let Kind::Map(entries) = &node.kind else {
            let list = known.join(", ");
            self.error(node.at, format!("{what} must be an object with the fields {list}, not {}", kind(node)));
            return None;
        };
        for entry in entries {
            if !known.contains(&entry.key.as_ref()) {
                let hint = suggestion(&entry.key, known);
                self.error(entry.at, format!("unknown field `{}` in {what}; {hint}", entry.key));
            }
        }
        Some(Fields { at: node.at, entries })
    }

    /// The field's value, or an error where the object stands.
    pub fn required<'n>(&mut self, fields: &Fields<'n>, name: &str, what: &str, example: &str) -> Option<&'n Node<'n>> {
        match fields.entry(name) {
            Some(entry) if matches!(entry.value.kind, Kind::Null) => {
                self.error(entry.at, format!("{what} has no value; write for example `{example}`"));
                None
            }
            Some(entry) => Some(&entry.value),
            None => {
                self.error(fields.at, format!("{what} is missing; add for example `{example}`"));
                None
            }
        }
    }

    pub fn list<'n>(&mut self, node: &'n Node<'n>, what: &str) -> Option<&'n [Node<'n>]> {
        match &node.kind {
            Kind::List(items) => Some(items),
            _ => {
                self.error(node.at, format!("{what} must be a list, not {}; begin each item with `- `", kind(node)));
                None
            }
        }
    }

    pub fn string<'n>(&mut self, node: &'n Node<'n>, what: &str) -> Option<&'n str> {
        match &node.kind {
            Kind::Scalar { text, plain: true } if resolves(text) => {
                self.error(node.at, format!("{what} must be a string, and YAML reads {text} as another type; quote it: \"{text}\""));
                None
            }
            Kind::Scalar { text, plain: true } if old_type(text).is_some() => {
                let other = old_type(text).unwrap_or_default();
                let message = format!("{what} must be a string, and readers of YAML 1.1 take {text} for {other}; quote it: \"{text}\"");
                self.error(node.at, message);
                None
            }
            Kind::Scalar { text, .. } => Some(text),
            _ => {
                self.error(node.at, format!("{what} must be a string, not {}", kind(node)));
                None
            }
        }
    }

    /// A whole number in decimal digits.
    pub fn number(&mut self, node: &Node<'_>, what: &str, min: u32, max: u32) -> Option<u32> {
        let range = format!("a whole number from {min} to {max}");
        let Kind::Scalar { text, plain } = &node.kind else {
            self.error(node.at, format!("{what} must be {range}, not {}", kind(node)));
            return None;
        };
        let value = text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        match value {
            Some(value) if !plain => {
                self.error(node.at, format!("{what} must be {range}, not a string; remove the quotes: {value}"));
                None
            }
            Some(value) if text.len() > 1 && text.starts_with('0') => {
                let octal = u64::from_str_radix(text, 8).map_or_else(|_| "a string".to_owned(), |octal| format!("{octal} (octal)"));
                self.error(
                    node.at,
                    format!("{what} must be {range} without leading zeros: readers of YAML 1.1 take {text} for {octal}; write {value}"),
                );
                None
            }
            Some(value) if (u64::from(min)..=u64::from(max)).contains(&value) => Some(value as u32),
            _ if text.ends_with('%') => {
                self.error(node.at, format!("{what} must be {range}, not `{text}`; remove the %: only the proportions count"));
                None
            }
            _ => {
                self.error(node.at, format!("{what} must be {range}, not `{text}`"));
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node<'_>, what: &str) -> Option<bool> {
        match &node.kind {
            Kind::Scalar { text, plain: true } if text == "true" => Some(true),
            Kind::Scalar { text, plain: true } if text == "false" => Some(false),
            _ => {
                self.error(node.at, format!("{what} must be true or false, not {}", kind(node)));
                None
            }
        }
    }

    /// One of some words.
    pub fn word<'n, T: Copy>(&mut self, node: &'n Node<'n>, what: &str, words: &[(&'static str, T)]) -> Option<T> {
        // Not by `string`: a word that is known is meant, whatever else YAML takes it for, and of an unknown one the known ones are of more help.
        let text = match &node.kind {
            Kind::Scalar { text, plain } if !plain || !resolves(text) => text.as_ref(),
            _ => self.string(node, what)?,
        };
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*found);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        self.error(node.at, format!("{what} cannot be `{text}`; {}", suggestion(text, &known)));
        None
    }
}

/// An object's entries; its fields were checked against the known ones.
pub struct Fields<'n> {
    pub at: At,
    entries: &'n [Entry<'n>],
}

impl<'n> Fields<'n> {
    pub fn entry(&self, name: &str) -> Option<&'n Entry<'n>> {
        self.entries.iter().find(|e| e.key == name)
    }

    /// The value when the field stands there and is not null.
    pub fn optional(&self, name: &str) -> Option<&'n Node<'n>> {
        self.entry(name).map(|e| &e.value).filter(|n| !matches!(n.kind, Kind::Null))
    }
}

/// What a node is, for messages.
pub fn kind(node: &Node<'_>) -> String {
    match &node.kind {
        Kind::Null => "nothing".to_owned(),
        Kind::Scalar { text, .. } => format!("`{text}`"),
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "an object".to_owned(),
    }
}

/// Whether the core schema of YAML 1.2 gives a plain scalar another type than string.
fn resolves(text: &str) -> bool {
    let boolean = matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE");
    boolean || text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && text.parse::<f64>().is_ok()
}

/// What YAML 1.1 makes of a plain scalar that is a string in YAML 1.2 (yaml.org/type): many tools, and what reads a manifest for a cluster,
/// still go by it.
fn old_type(text: &str) -> Option<&'static str> {
    const BOOLEANS: [&str; 12] = ["yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"];
    let digits = |text: &str, radix: u32| text.chars().any(|c| c.is_digit(radix)) && text.chars().all(|c| c == '_' || c.is_digit(radix));
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |prefix: &str, radix| number.strip_prefix(prefix).is_some_and(|rest| digits(rest, radix));
    // Minutes and seconds of base 60: 22:30 is 1350.
    let sixty = |text: &str| {
        let mut parts = text.split(':');
        let first = parts.next().is_some_and(|first| first.starts_with(|c: char| c.is_ascii_digit()) && digits(first, 10));
        let rest: Vec<&str> = parts.collect();
        let below = |part: &&str| matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
        first && !rest.is_empty() && rest.iter().all(below)
    };
    match text {
        _ if BOOLEANS.contains(&text) => Some("a boolean"),
        _ if radix("0x", 16) || radix("0b", 2) || radix("0o", 8) => Some("a number"),
        _ if number.contains('_') && number.starts_with(|c: char| c.is_ascii_digit()) && digits(number, 10) => Some("a number"),
        _ if sixty(number) => Some("a number of base 60"),
        _ if is_date(text) => Some("a date"),
        _ => None,
    }
}

/// `2026-11-30`.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let shape = parts.iter().map(|part| part.len()).collect::<Vec<_>>() == [4, 2, 2];
    shape && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

/// `did you mean` for the one nearest known word, else all of them.
pub fn suggestion(word: &str, known: &[&str]) -> String {
    let mut near: Vec<_> = known.iter().map(|k| (distance(&word.to_lowercase(), &k.to_lowercase()), *k)).collect();
    near.sort_unstable();
    match near[..] {
        [] => "none is known here".to_owned(),
        [(distance, nearest), ref rest @ ..]
            if distance <= nearest.len().div_ceil(3).min(3) && rest.first().is_none_or(|next| next.0 > distance) =>
        {
            format!("did you mean `{nearest}`?")
        }
        _ => format!("known here: {}", known.join(", ")),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) between two words: optimal string alignment.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_name_the_nearest_word() {
        let known = ["frontends", "versions", "splitBy", "mode"];
        assert_eq!(suggestion("frontend", &known), "did you mean `frontends`?");
        assert_eq!(suggestion("splitby", &known), "did you mean `splitBy`?");
        assert_eq!(suggestion("vresions", &known), "did you mean `versions`?");
        assert_eq!(suggestion("replicas", &known), "known here: frontends, versions, splitBy, mode");
    }

    #[test]
    fn plain_numbers_and_booleans_are_not_strings() {
        for text in ["1", "-1", "1.5", ".5", "1e3", "true", "False"] {
            assert!(resolves(text), "{text}");
        }
        for (text, other) in [
            ("yes", "a boolean"),
            ("NO", "a boolean"),
            ("On", "a boolean"),
            ("off", "a boolean"),
            ("0x1F", "a number"),
            ("0o17", "a number"),
            ("1_000", "a number"),
            ("22:30", "a number of base 60"),
            ("2026-11-30", "a date"),
        ] {
            assert!(!resolves(text) && old_type(text) == Some(other), "{text}");
        }
        for text in [
            "y",
            "none",
            "once",
            "10.2.1.2:8080",
            "10.9.9.9",
            "fd01::2",
            "1:2:3:4:5:6:7:8a",
            "22:60",
            "v_1",
            "0x",
            "2026-11",
            "10.1.7.0/24",
        ] {
            assert_eq!(old_type(text), None, "{text}");
        }
        for text in ["v1", "10.1.1.1", "10.1.1.1:80", "yes", "nan", "inf", "-", "1a"] {
            assert!(!resolves(text), "{text}");
        }
    }
}
