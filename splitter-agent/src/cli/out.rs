//! Standard output: format, colour, pipes that close early, and what must not reach a terminal.

use anyhow::Result;
use clap::ValueEnum;
use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For scripts; the keys are stable
    Json,
}

impl Output {
    pub fn is_json(self) -> bool {
        self == Self::Json
    }
}

pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Whether the reader of our output went away: `splitter flows | head` is no failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Colour only for eyes: on a terminal and without NO_COLOR (no-color.org).
pub fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Characters that a terminal obeys instead of showing them: C0, DEL and C1 controls, separators of lines, and those that turn the direction
/// of writing, which would show a name as another.
fn commands(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(out: &mut String, c: char) {
    // Writing to a string does not fail.
    let _ = match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if u32::from(c) <= 0xff => write!(out, "\\x{:02x}", u32::from(c)),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// Text that somebody else chose (a policy's author, a gate's command), as it can be shown: what a terminal would obey is written out as `\x1b`.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if commands(c) { escape(&mut out, c) } else { out.push(c) }
    }
    out
}

/// As [`printable`], but lines stay lines.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// As [`printable`] for every string of a JSON text, before it is read: all that comes from the agent passes here on its way to a terminal.
pub fn printable_json(body: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(body);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let code = chars.clone().skip(1).take(4).collect::<String>();
                let Some(next) = chars.next() else { break };
                let command = match next {
                    'n' => Some('\n'),
                    'r' => Some('\r'),
                    't' => Some('\t'),
                    'b' => Some('\u{8}'),
                    'f' => Some('\u{c}'),
                    'u' => u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).filter(|c| commands(*c)),
                    _ => None,
                };
                match command {
                    Some(command) => {
                        if next == 'u' {
                            chars.nth(3);
                        }
                        // The backslash itself is escaped in JSON.
                        out.push('\\');
                        escape(&mut out, command);
                    }
                    None => out.extend([c, next]),
                }
            }
            // Inside of strings no others stand as they are; between tokens a line may end.
            c if c > '\u{7e}' && commands(c) => {
                out.push('\\');
                escape(&mut out, c);
            }
            c => out.push(c),
        }
    }
    out.into_bytes()
}

/// JSON for standard output: characters that a terminal obeys are written as JSON's own escapes, so that the values stay what they are.
pub fn json(value: &impl serde::Serialize, pretty: bool) -> Result<String> {
    let text = if pretty { serde_json::to_string_pretty(value)? } else { serde_json::to_string(value)? };
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c > '\u{7e}' && commands(c) {
            write!(out, "\\u{:04x}", u32::from(c))?;
        } else {
            out.push(c);
        }
    }
    Ok(out + "\n")
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Plain,
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

impl Style {
    pub fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
        };
        if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\x1b[2J\x07\u{9b}31m\x7f\u{202e}b\nc\\d\"ü";
    const SHOWN: &str = "a\\x1b[2J\\x07\\x9b31m\\x7f\\u{202e}b\\nc\\d\"ü";

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        assert_eq!(printable(EVIL), SHOWN);
        assert_eq!(printable("shop/checkout ▁█ 例"), "shop/checkout ▁█ 例");
        assert_eq!(printable_lines("a\nb\x1b"), "a\nb\\x1b");
    }

    #[test]
    fn strings_of_json_are_escaped_before_they_are_read() {
        let value = serde_json::json!({EVIL: [EVIL, "plain \\n", 1.5, null]});
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let read: serde_json::Value = serde_json::from_slice(&printable_json(text.as_bytes())).unwrap();
            assert_eq!(read, serde_json::json!({SHOWN: [SHOWN, "plain \\n", 1.5, null]}));
        }
        assert_eq!(printable_json(br#""\u001b\u00fc\ud83d\ude00""#), br#""\\x1b\u00fc\ud83d\ude00""#);
        assert_eq!(printable_json(b"\"\\"), b"\"", "a text that breaks off does no harm");
    }

    #[test]
    fn json_keeps_its_values_and_is_safe_to_show() {
        let text = json(&EVIL, true).unwrap();
        assert!(!text.trim_end().chars().any(commands), "{text:?}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), EVIL);
    }
}
