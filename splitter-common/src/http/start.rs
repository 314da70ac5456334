//! The request line (RFC 9112, 3): method, target, version.

use super::{
    Head,
    state::{Span, phase, seen},
    words,
};
use crate::abi::http_subject;

pub(super) const HTTP_1_1: u64 = u64::from_le_bytes(*b"HTTP/1.1");
pub(super) const HTTP_1_0: u64 = u64::from_le_bytes(*b"HTTP/1.0");
/// What the version of an HTTP/2 connection preface says (RFC 9113, 3.4).
const HTTP_2_0: u64 = u64::from_le_bytes(*b"HTTP/2.0");

const PRI: u64 = text(b"PRI");
const CONNECT: u64 = text(b"CONNECT");
const OPTIONS: u64 = text(b"OPTIONS");
const HEAD: u64 = text(b"HEAD");
const HTTP: u64 = text(b"http://");
const HTTPS: u64 = text(b"https://");

/// A text of at most 8 bytes as a word.
pub(super) const fn text(bytes: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = bytes.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | bytes[i] as u64;
    }
    word
}

impl<const RESPONSE: bool> Head<'_, RESPONSE> {
    #[inline(always)]
    pub(super) fn request_line(&mut self, mut phase: u32) -> u32 {
        if phase == phase::START {
            phase = self.start();
        }
        if phase == phase::METHOD {
            phase = self.method();
        }
        if phase == phase::TARGET {
            phase = self.target();
        }
        if phase == phase::AUTHORITY {
            phase = self.authority();
        }
        if phase == phase::VERSION {
            phase = self.version();
        }
        if phase == phase::QUESTION {
            phase = self.question();
        }
        if phase == phase::SUBJECTS {
            phase = self.subjects();
        }
        if phase == phase::SOURCE {
            phase = self.source();
        }
        phase
    }

    /// Up to two empty lines may come first (RFC 9112, 2.2).
    #[inline(always)]
    fn start(&mut self) -> u32 {
        let at = self.scan.at;
        if at >= self.scan.len {
            return self.incomplete(phase::START);
        }
        if self.byte(at) != b'\r' {
            self.scan.method.at = at;
            return phase::METHOD;
        }
        if at >= 4 {
            return self.refuse();
        }
        if at + 1 >= self.scan.len {
            return self.incomplete(phase::START);
        }
        if self.byte(at + 1) != b'\n' {
            return self.refuse();
        }
        self.scan.at = at + 2;
        phase::START
    }

    #[inline(always)]
    fn method(&mut self) -> u32 {
        let from = self.scan.at;
        let at = words::name_end(self.text, from);
        if at >= self.scan.len {
            return self.incomplete(phase::METHOD);
        }
        if at - from >= words::SHORT {
            self.scan.at = at;
            return phase::METHOD;
        }
        let byte = self.byte(at);
        if byte == b' ' && at > self.scan.method.at {
            self.scan.method.end = at;
            self.scan.target.at = at + 1;
            self.scan.at = at + 1;
            return phase::TARGET;
        }
        if !words::is_token(byte) {
            return self.refuse();
        }
        self.scan.at = at + 1;
        phase::METHOD
    }

    /// The target ends at a space: one, no more, and no other blank byte.
    #[inline(always)]
    fn target(&mut self) -> u32 {
        let from = self.scan.at;
        let at = words::blank(self.text, from);
        if at >= self.scan.len {
            return self.incomplete(phase::TARGET);
        }
        if at - from >= words::LONG {
            self.scan.at = at;
            return phase::TARGET;
        }
        if self.byte(at) != b' ' || at == self.scan.target.at {
            return self.refuse();
        }
        self.scan.target.end = at;
        self.scan.path = self.scan.target;
        self.form()
    }

    /// Which of the four forms the target has (RFC 9112, 3.2).
    #[inline(always)]
    fn form(&mut self) -> u32 {
        let target = self.scan.target;
        let first = self.byte(target.at);
        if first == b'/' || self.is_connect() {
            return phase::VERSION;
        }
        if first == b'*' && target.len() == 1 {
            let method = self.first(self.scan.method);
            return if method == OPTIONS || method == PRI { phase::VERSION } else { self.refuse() };
        }
        let scheme = words::folded(self.first(target));
        if scheme & words::below(7) == HTTP {
            self.scan.at = target.at + 7;
        } else if scheme == HTTPS {
            self.scan.at = target.at + 8;
        } else {
            return self.refuse();
        }
        self.scan.path.at = self.scan.at;
        phase::AUTHORITY
    }

    /// The authority of an absolute target: the path begins behind it.
    #[inline(always)]
    fn authority(&mut self) -> u32 {
        let (from, end) = (self.scan.at, self.scan.target.end);
        let found = words::either(self.text, from, b'/', b'?');
        if found < end && found - from >= words::LONG {
            self.scan.at = found;
            return phase::AUTHORITY;
        }
        let at = if found < end { found } else { end };
        let byte = self.byte(at);
        if at <= self.scan.path.at {
            return self.refuse();
        }
        // An empty path is `/` (RFC 9112, 3.2.1): the scheme has one.
        self.scan.path = if byte == b'/' && at < self.scan.target.end {
            Span { at, end: self.scan.target.end }
        } else {
            Span { at: self.scan.path.at - 1, end: self.scan.path.at }
        };
        phase::VERSION
    }

    #[inline(always)]
    fn version(&mut self) -> u32 {
        let at = self.scan.target.end + 1;
        let have = self.scan.len.wrapping_sub(at);
        let mask = words::below(have);
        let word = words::word(self.text, at) & mask;
        let preface = word == HTTP_2_0 & mask && self.first(self.scan.method) == PRI && self.byte(self.scan.target.at) == b'*';
        if !preface && word != HTTP_1_1 & mask && word != HTTP_1_0 & mask {
            return self.refuse();
        }
        if have < 8 {
            return self.incomplete(phase::VERSION);
        }
        if have > 8 && self.byte(at + 8) != b'\r' || have > 9 && self.byte(at + 9) != b'\n' {
            return self.refuse();
        }
        if have < 10 {
            return self.incomplete(phase::VERSION);
        }
        if preface {
            return self.pin();
        }
        if self.scan.method.len() == 3 && self.first(self.scan.method) == PRI {
            return self.refuse();
        }
        if word == HTTP_1_0 {
            self.scan.seen |= seen::HTTP_1_0;
        }
        self.scan.line = at + 10;
        self.scan.at = self.scan.path.at;
        self.scan.line_index = 0;
        self.scan.wanted = http_subject::QUERY as u32;
        let named = self.rules.is_some_and(|rules| rules.name_count != 0);
        if named { phase::QUESTION } else { self.next_line() }
    }

    /// The first question mark of the target parts path and query.
    #[inline(always)]
    fn question(&mut self) -> u32 {
        let (from, end) = (self.scan.at, self.scan.target.end);
        let at = words::either(self.text, from, b'?', b'?');
        if at < end && at - from >= words::LONG {
            self.scan.at = at;
            return phase::QUESTION;
        }
        let end_of_path = if at < end { at } else { end };
        if self.scan.path.end > end_of_path {
            self.scan.path.end = end_of_path;
        }
        self.scan.pairs = Span { at: end_of_path + 1, end };
        phase::SUBJECTS
    }

    #[inline(always)]
    pub(super) fn is_connect(&self) -> bool {
        self.scan.method.len() == 7 && self.first(self.scan.method) == CONNECT
    }

    #[inline(always)]
    pub(super) fn is_head(&self) -> bool {
        self.scan.method.len() == 4 && self.first(self.scan.method) == HEAD
    }
}
