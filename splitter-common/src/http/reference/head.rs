//! What a request's head should give, by `httparse` and the plainest code: no words, no filter, no state.

use super::Condition;
use crate::{
    abi::{Addr, http_match, http_subject},
    decide,
    http::{RequestHead, framing, verdict},
};
use std::{collections::BTreeSet, vec, vec::Vec};

/// Where the scanner is stricter than `httparse`, which checks the syntax of lines and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A line ends with LF alone.
    BareLineFeed,
    /// More than two empty lines come first.
    EmptyLines,
    /// The target has none of the forms of RFC 9112, 3.2.
    TargetForm,
    /// `PRI` is HTTP/2's (RFC 9113, 3.4).
    PriorKnowledge,
    HostMissing,
    HostTwice,
    HostInvalid,
    LengthTwice,
    LengthMalformed,
    LengthWithCoding,
    CodingTwice,
    CodingUnknown,
    /// `Transfer-Encoding` in HTTP/1.0 (RFC 9112, 6.1).
    CodingTooOld,
}

/// What is expected of the scanner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Head(RequestHead),
    Refused(BTreeSet<Class>),
    /// `httparse` finds an error in the syntax.
    Broken,
    /// The target has bytes above 127 that are no UTF-8. `httparse`, whose target is a `str`, refuses them; the scanner lets them through,
    /// as it does UTF-8: no parser ends anything at such a byte.
    NotText,
    /// A part of HTTP/2's connection preface, or the whole.
    Preface(u8),
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// What the scanner should say of a text. `rules`: conditions with their bits; `key`: the subject and name of the key.
pub fn expected(text: &[u8], rules: &[(u64, Condition)], key: Option<(u8, &[u8])>, client: Addr) -> Expected {
    let start = [&b"\r\n\r\n"[..], b"\r\n"].iter().find_map(|empty| text.strip_prefix(*empty)).unwrap_or(text);
    let prior = start.len().min(PREFACE.len());
    if start.starts_with(b"PRI * HTTP/2"[..].get(..prior).unwrap_or(b"PRI * HTTP/2")) && start[..prior] == PREFACE[..prior] && prior > 11 {
        return Expected::Preface(if prior == PREFACE.len() { verdict::PIN } else { verdict::INCOMPLETE });
    }
    let mut space = [httparse::EMPTY_HEADER; 512];
    let mut request = httparse::Request::new(&mut space);
    let status = match request.parse(text) {
        Ok(status) => status,
        Err(_) if target(start).is_some_and(|target| std::str::from_utf8(target).is_err()) => return Expected::NotText,
        Err(_) => return Expected::Broken,
    };
    let len = if let httparse::Status::Complete(len) = status { len } else { text.len() };
    let mut classes = lines(&text[..len], start, text.len() - start.len());
    let mut closed = text[..len].to_vec();
    if status.is_partial() {
        closed.truncate(text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1));
        closed.extend(b"\r\n");
    }
    let mut space = [httparse::EMPTY_HEADER; 512];
    let mut request = httparse::Request::new(&mut space);
    let mut head = RequestHead::default();
    if let Ok(httparse::Status::Complete(_)) = request.parse(&closed) {
        head = fields(&request, &mut classes);
        if request.method == Some("PRI") {
            classes.insert(Class::PriorKnowledge);
        }
        if status.is_complete() && request.version == Some(1) && !request.headers.iter().any(|h| h.name.eq_ignore_ascii_case("host")) {
            classes.insert(Class::HostMissing);
        }
    }
    if !classes.is_empty() {
        return Expected::Refused(classes);
    }
    if status.is_partial() {
        return Expected::Head(RequestHead::default());
    }
    head.head_len = len as u32;
    for (mask, _) in rules.iter().filter(|(_, condition)| holds(condition, &request, client)) {
        head.facts |= mask;
    }
    let named = key.map(|(subject, name)| Condition::new(subject, name, http_match::PRESENT, b""));
    if let Some(value) = named.and_then(|key| values(&key, &request).into_iter().find(|value| !value.is_empty())) {
        head.key = decide::value_key(value.iter().fold(decide::VALUE_START, |hash, byte| decide::value_step(hash, *byte)));
        head.keyed = 1;
    }
    Expected::Head(head)
}

/// The target, when the space behind it has come, or what there is of it.
fn target(start: &[u8]) -> Option<&[u8]> {
    let line = start.split(|b| *b == b'\r' || *b == b'\n').next()?;
    line.split(|b| *b == b' ').nth(1)
}

/// What the lines themselves show; `start` is behind the empty lines that may come first.
fn lines(text: &[u8], start: &[u8], skipped: usize) -> BTreeSet<Class> {
    let mut classes = BTreeSet::new();
    if (0..text.len()).any(|i| text[i] == b'\n' && (i == 0 || text[i - 1] != b'\r')) {
        classes.insert(Class::BareLineFeed);
    }
    if start.first() == Some(&b'\r') && skipped == 4 {
        classes.insert(Class::EmptyLines);
    }
    let mut words = start.splitn(3, |b| *b == b' ');
    if let (Some(method), Some(target), Some(_)) = (words.next(), words.next(), words.next())
        && !has_form(method, target)
    {
        classes.insert(Class::TargetForm);
    }
    classes
}

fn has_form(method: &[u8], target: &[u8]) -> bool {
    let lower = target.to_ascii_lowercase();
    let authority = [&b"http://"[..], b"https://"].iter().find_map(|scheme| lower.strip_prefix(*scheme));
    match (method, target) {
        (b"CONNECT", _) | (_, [b'/', ..]) | (b"OPTIONS" | b"PRI", b"*") => true,
        _ => authority.is_some_and(|rest| !matches!(rest, [] | [b'/' | b'?', ..])),
    }
}

/// What the fields say together.
fn fields(request: &httparse::Request<'_, '_>, classes: &mut BTreeSet<Class>) -> RequestHead {
    let of = |name: &str| request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value).collect::<Vec<_>>();
    let (hosts, lengths, codings) = (of("host"), of("content-length"), of("transfer-encoding"));
    let mut found = |condition: bool, class: Class| {
        if condition {
            classes.insert(class);
        }
    };
    let host_byte = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(b);
    found(hosts.len() > 1, Class::HostTwice);
    found(!hosts.iter().all(|host| host.iter().all(host_byte)), Class::HostInvalid);
    found(lengths.len() > 1, Class::LengthTwice);
    let number = |value: &&[u8]| (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    found(!lengths.iter().all(number), Class::LengthMalformed);
    found(!lengths.is_empty() && !codings.is_empty(), Class::LengthWithCoding);
    found(codings.len() > 1, Class::CodingTwice);
    found(!codings.iter().all(|coding| coding.eq_ignore_ascii_case(b"chunked")), Class::CodingUnknown);
    found(!codings.is_empty() && request.version == Some(0), Class::CodingTooOld);
    let length = lengths.first().filter(|v| number(v)).and_then(|v| std::str::from_utf8(v).ok()?.parse().ok()).unwrap_or(0);
    let connects = request.method == Some("CONNECT");
    let pinned = length >= 1 << 31 || connects && (length != 0 || !codings.is_empty());
    RequestHead {
        length,
        verdict: if pinned { verdict::PIN } else { verdict::COMPLETE },
        framing: if codings.is_empty() { framing::LENGTH } else { framing::CHUNKED },
        head_method: (request.method == Some("HEAD")).into(),
        connect_method: connects.into(),
        ..RequestHead::default()
    }
}

fn holds(condition: &Condition, request: &httparse::Request<'_, '_>, client: Addr) -> bool {
    if condition.subject == http_subject::SOURCE {
        return (0..usize::from(condition.len)).all(|i| (client[i / 8] ^ condition.value[i / 8]) << (i % 8) & 0x80 == 0);
    }
    values(condition, request).iter().any(|value| match condition.kind {
        http_match::EXACT => *value == condition.value,
        http_match::PREFIX => value.starts_with(&condition.value),
        http_match::SEGMENT => value.strip_prefix(condition.value.as_slice()).is_some_and(|rest| matches!(rest, [] | [b'/', ..])),
        _ => true,
    })
}

/// All values of the name that a condition looks at.
fn values(condition: &Condition, request: &httparse::Request<'_, '_>) -> Vec<Vec<u8>> {
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = |name: &[u8]| request.headers.iter().filter(|h| h.name.as_bytes().eq_ignore_ascii_case(name)).collect::<Vec<_>>();
    let trim = |text: &[u8]| {
        let blank = |b: &u8| *b == b' ' || *b == b'\t';
        let from = text.iter().position(|b| !blank(b)).unwrap_or(text.len());
        let to = text.iter().rposition(|b| !blank(b)).map_or(from, |at| at + 1);
        text[from..to].to_vec()
    };
    let mut values = vec![];
    match condition.subject {
        http_subject::HEADER => values.extend(headers(&condition.name).iter().map(|h| h.value.to_vec())),
        http_subject::COOKIE => {
            for pair in headers(b"cookie").iter().flat_map(|h| h.value.split(|b| *b == b';')) {
                let pair = trim(pair);
                if let Some(at) = pair.iter().position(|b| *b == b'=').filter(|at| pair[..*at] == condition.name) {
                    values.push(trim(&pair[at + 1..]));
                }
            }
        }
        http_subject::QUERY => {
            for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                if name.as_bytes() == condition.name {
                    values.push(value.as_bytes().to_vec());
                }
            }
        }
        http_subject::METHOD => values.push(request.method.unwrap_or_default().as_bytes().to_vec()),
        _ => values.push(bare_path(request.method, path)),
    }
    values
}

/// The path of an absolute target begins behind its authority.
fn bare_path(method: Option<&str>, path: &str) -> Vec<u8> {
    let lower = path.to_ascii_lowercase();
    let scheme = ["http://", "https://"].iter().find(|scheme| lower.starts_with(**scheme) && method != Some("CONNECT"));
    let rest = scheme.map_or(path, |scheme| path[scheme.len()..].find('/').map_or("/", |at| &path[scheme.len() + at..]));
    rest.as_bytes().to_vec()
}
