//! YAML text -> trees whose every node knows its line and column.
//!
//! Owns the syntax: documents, duplicate keys, nesting limit, refusal of anchors and tags. Knows nothing of policies.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use std::borrow::Cow;

/// Deepest nesting accepted; a policy needs 6.
const MAX_DEPTH: usize = 32;

/// A position, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub line: u32,
    pub column: u32,
}

impl At {
    /// Where errors about a file as a whole point.
    pub const START: At = At { line: 1, column: 1 };
}

#[derive(Debug)]
pub struct Node<'a> {
    pub at: At,
    pub kind: Kind<'a>,
}

#[derive(Debug)]
pub enum Kind<'a> {
    /// Nothing, `~` or `null`.
    Null,
    /// `plain`: written without quotes, so it may be a number or a boolean.
    Scalar {
        text: Cow<'a, str>,
        plain: bool,
    },
    List(Vec<Node<'a>>),
    /// In the order of the text; keys are unique.
    Map(Vec<Entry<'a>>),
}

#[derive(Debug)]
pub struct Entry<'a> {
    pub key: Cow<'a, str>,
    pub at: At,
    pub value: Node<'a>,
}

/// What is wrong with the text, and where.
#[derive(Debug)]
pub struct SyntaxError {
    pub at: At,
    pub message: String,
}

/// Hands on each non-empty document as soon as it is read (a large policy is never in memory as trees) and returns every error found:
/// after a syntax error reading goes on at the next `---`.
pub fn documents<'a>(text: &'a str, take: impl FnMut(Node<'a>)) -> Vec<SyntaxError> {
    // A byte order mark is legal before the first document.
    documents_at(text.strip_prefix('\u{feff}').unwrap_or(text), 0, take)
}

/// The same for a part of a text that begins after so many lines.
pub fn documents_at<'a>(text: &'a str, mut skipped: u32, mut take: impl FnMut(Node<'a>)) -> Vec<SyntaxError> {
    let mut errors = Vec::new();
    let mut rest = text;
    loop {
        let mut reader = Reader { parser: Parser::new_from_str(rest), skipped, depth: 0, document: 1, errors: &mut errors };
        let Err(error) = reader.stream(&mut take) else { break };
        let broken = reader.document;
        // The parser looks ahead: what is wrong at the very start of a document may be found twice.
        if errors.last().is_none_or(|last| last.at != error.at) {
            errors.push(error);
        }
        let Some((at, lines)) = next_document(rest, broken) else { break };
        rest = &rest[at..];
        skipped += lines;
    }
    errors
}

/// Byte offset and number of lines before the first `---` that follows line `line` (from 1) of `text`.
fn next_document(text: &str, line: u32) -> Option<(usize, u32)> {
    let mut offset = 0;
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let number = index as u32 + 1;
        if number > line && is_marker(content) {
            return Some((offset, number - 1));
        }
        offset += content.len();
    }
    None
}

/// Whether a line begins a document.
fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Parts of a text, each from a `---` to the next, with the number of lines before it. `None` when it cannot be cut without being read:
/// directives and explicit ends of documents concern their neighbours.
pub fn parts(text: &str) -> Option<Vec<(u32, &str)>> {
    let (mut parts, mut begin, mut lines) = (Vec::new(), 0, 0);
    if text.starts_with(['%', '\u{feff}'])
        || text.contains("\n%")
        || text.starts_with("...")
        || text.contains("\n...")
        || text.contains('\r')
    {
        return None;
    }
    let mut add = |end: usize, next: usize| {
        let part = &text[begin..end];
        parts.push((lines, part));
        lines += part.bytes().filter(|byte| *byte == b'\n').count() as u32;
        begin = next;
    };
    for (at, _) in text.match_indices("\n---") {
        if is_marker(&text[at + 1..]) {
            add(at + 1, at + 1);
        }
    }
    add(text.len(), text.len());
    Some(parts)
}

struct Reader<'a, 'e> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Lines before the parser's text.
    skipped: u32,
    depth: usize,
    /// Line of the parser's text where the document being read begins.
    document: u32,
    errors: &'e mut Vec<SyntaxError>,
}

impl<'a> Reader<'a, '_> {
    fn stream(&mut self, take: &mut impl FnMut(Node<'a>)) -> Result<(), SyntaxError> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(()),
                Event::DocumentStart(_) => self.document = self.document.max(span.start.line() as u32),
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                event => {
                    let node = self.node(event, span)?;
                    if !matches!(node.kind, Kind::Null) {
                        take(node);
                    }
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn at(&self, span: Span) -> At {
        At { line: span.start.line() as u32 + self.skipped, column: span.start.col() as u32 + 1 }
    }

    fn syntax(&self, error: &ScanError) -> SyntaxError {
        let at = At { line: error.marker().line() as u32 + self.skipped, column: error.marker().col() as u32 + 1 };
        let message =
            format!("this is not YAML: {}; check quotes, brackets and indentation (spaces, no tabs) here and just above", error.info());
        SyntaxError { at, message }
    }

    fn refuse(&self, span: Span, message: &str) -> SyntaxError {
        SyntaxError { at: self.at(span), message: message.to_owned() }
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node<'a>, SyntaxError> {
        let at = self.at(span);
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) | Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                (*anchor, tag.is_some())
            }
            Event::Alias(_) => (1, false),
            _ => (0, false),
        };
        if anchor != 0 {
            return Err(self.refuse(span, "YAML anchors and aliases (&, *) are not accepted: write the value out"));
        }
        if tag {
            return Err(self.refuse(span, "YAML tags (!) are not accepted: write the plain value"));
        }
        if self.depth == MAX_DEPTH {
            return Err(self.refuse(span, "nested too deeply for a policy"));
        }
        self.depth += 1;
        let kind = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                if null { Kind::Null } else { Kind::Scalar { text, plain } }
            }
            Event::SequenceStart(..) => self.list()?,
            Event::MappingStart(..) => self.map()?,
            _ => Kind::Null,
        };
        self.depth -= 1;
        Ok(Node { at, kind })
    }

    fn list(&mut self) -> Result<Kind<'a>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                return Ok(Kind::List(items));
            }
            items.push(self.node(event, span)?);
        }
    }

    fn map(&mut self) -> Result<Kind<'a>, SyntaxError> {
        let mut entries: Vec<Entry<'a>> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd | Event::StreamEnd) {
                return Ok(Kind::Map(entries));
            }
            let key = self.node(event, span)?;
            let at = key.at;
            let Kind::Scalar { text: key, .. } = key.kind else {
                return Err(self.refuse(span, "a key must be a plain word"));
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span)?;
            match entries.iter().find(|e| e.key == key) {
                Some(first) => {
                    let message = format!("`{key}` stands twice in this object (first on line {}): remove one", first.at.line);
                    self.errors.push(SyntaxError { at, message });
                }
                None => entries.push(Entry { key, at, value }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(text: &str) -> (Vec<Node<'_>>, Vec<SyntaxError>) {
        let mut found = Vec::new();
        let errors = super::documents(text, |document| found.push(document));
        (found, errors)
    }

    fn errors(text: &str) -> Vec<(u32, u32, String)> {
        documents(text).1.into_iter().map(|e| (e.at.line, e.at.column, e.message)).collect()
    }

    #[test]
    fn positions_count_from_one_in_characters() {
        let (documents, errors) = documents("é: [1, {k: \"v\"}]\nb:\n  - x\n");
        assert!(errors.is_empty());
        let Kind::Map(entries) = &documents[0].kind else { panic!("{documents:?}") };
        let Kind::List(items) = &entries[0].value.kind else { panic!("{entries:?}") };
        assert_eq!(entries[0].at, At { line: 1, column: 1 });
        assert_eq!(items[1].at, At { line: 1, column: 8 });
        let Kind::Map(inner) = &items[1].kind else { panic!("{items:?}") };
        assert_eq!(inner[0].value.at, At { line: 1, column: 12 });
        assert_eq!(entries[1].at, At { line: 2, column: 1 });
    }

    #[test]
    fn empty_documents_are_skipped() {
        for text in ["", "---\n", "# nothing\n", "---\n# nothing\n---\n...\n", "\u{feff}"] {
            let (documents, errors) = documents(text);
            assert!(documents.is_empty() && errors.is_empty(), "{text:?}: {documents:?} {errors:?}");
        }
    }

    #[test]
    fn reading_goes_on_after_a_broken_document() {
        let (found, errors) = documents("a: [1\n---\nb: 2\n---\nc: \"x\n---\nd: 4\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[1].at.line >= 5 && errors[1].at.line <= 7, "{errors:?}");
        assert_eq!(found[1].at.line, 7);
    }

    #[test]
    fn duplicate_keys_are_refused_where_the_second_stands() {
        let found = errors("a: 1\nb: {c: 1, c: 2}\na: 3\n");
        assert_eq!(found.iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(), [(2, 11), (3, 1)]);
        assert!(found[1].2.contains("first on line 1"), "{found:?}");
    }

    #[test]
    fn anchors_tags_and_depth_are_refused() {
        assert!(errors("a: &x 1\nb: *x\n")[0].2.contains("anchors"));
        assert!(errors("a: !!str 1\n")[0].2.contains("tags"));
        assert!(errors(&"[".repeat(40))[0].2.contains("deeply"));
        assert!(errors("? [a]\n: b\n")[0].2.contains("plain word"));
    }
}
