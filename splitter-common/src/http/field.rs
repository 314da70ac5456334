//! Field lines (RFC 9112, 5), and the fields that the scanner reads of every head.

use super::{
    Head,
    start::text,
    state::{Span, is_blank, phase, seen},
    verdict, words,
};
use crate::{
    abi::http_subject,
    barrier::{forget, opaque},
};

const HOST: u64 = text(b"host");
const COOKIE: u64 = text(b"cookie");
pub(super) const CONTENT_LENGTH: [u64; 2] = [text(b"content-"), text(b"length")];
pub(super) const TRANSFER_ENCODING: [u64; 2] = [text(b"transfer"), text(b"-encodin")];
pub(super) const CHUNKED: u64 = text(b"chunked");

/// Bits of the fields that decide where a message ends.
pub(super) const FRAMING: u64 = super::name_bit(b"content-length") | super::name_bit(b"transfer-encoding");
/// Bits of the fields that are read of every request.
pub(super) const ALWAYS: u64 = FRAMING | super::name_bit(b"host");

/// Lines that are passed over in one round: a round costs as much as 16 bytes.
const LINES: u32 = 8;
/// Carriage return and line feed.
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");

/// Most digits of a `Content-Length`: what surely fits in 64 bits.
pub(super) const DIGITS: u32 = 19;

impl<const RESPONSE: bool> Head<'_, RESPONSE> {
    /// Lines in which nothing is special: passed over in a few instructions. Whatever else a line may be is left to [`Self::field_name`] and
    /// [`Self::field_value`]. A line's end is looked for from its beginning, so that the processor need not know where the name ends.
    #[inline(always)]
    pub(super) fn plain_lines(&mut self, phase: u32) -> u32 {
        let mut line = self.scan.at;
        if phase != phase::NAME || line != self.scan.line {
            return phase;
        }
        let mut lines = 0;
        while lines < LINES {
            if !self.plain_name(line) {
                break;
            }
            let end = forget(&mut self.scan.at, words::line_end(self.text, line));
            if words::two(self.text, end) != CRLF {
                // What stands behind the text is not read: the rest of the line may come yet.
                if end.wrapping_sub(line) == words::LONG && (self.scan.len.wrapping_sub(end) as i32) >= 0 {
                    return phase::VALUE;
                }
                break;
            }
            // The difference, and not both: comparing positions would tell the verifier about them, and keep it from seeing that the loop's
            // states are equal.
            if (self.scan.len.wrapping_sub(end) as i32) < 2 {
                break;
            }
            line = end.wrapping_add(opaque(2));
            self.scan.line = line;
            if self.scan.seen & seen::HIT != 0 {
                self.scan.at = line;
                return self.value_ends(end);
            }
            lines += 1;
        }
        self.scan.at = line;
        phase::NAME
    }

    /// Whether a line's name has nothing special about it; notes it when it is looked at.
    #[inline(always)]
    fn plain_name(&mut self, line: u32) -> bool {
        if RESPONSE {
            return self.says_nothing_of_framing(line);
        }
        let at = forget(&mut self.scan.offset, words::name_end(self.text, line));
        if at.wrapping_sub(line) == 0 || self.byte(at) != b':' {
            return false;
        }
        self.named(line, at);
        true
    }

    /// Notes the name at hand when it is looked at.
    #[inline(always)]
    fn named(&mut self, line: u32, end: u32) {
        let first = words::folded(words::word(self.text, line)) & words::below(end - line);
        if self.scan.filter & words::bit(first, end - line) != 0 {
            self.scan.name = Span { at: line, end };
            self.scan.value.at = end + 1;
            self.scan.first = first;
            self.scan.seen |= seen::HIT;
        }
    }

    /// The value at hand is looked at.
    #[inline(always)]
    fn value_ends(&mut self, end: u32) -> u32 {
        self.scan.seen &= !seen::HIT;
        self.scan.value.end = end;
        if self.byte(self.scan.value.at) == b' ' {
            self.scan.value.at += 1;
        }
        phase::FIELD
    }

    /// The name up to its colon; the empty line ends the head.
    #[inline(always)]
    pub(super) fn field_name(&mut self) -> u32 {
        let from = self.scan.at;
        if RESPONSE && from == self.scan.line && self.says_nothing_of_framing(from) {
            // Read up to its end, with its value: what a response's other lines are called is between the backend and its client.
            return phase::VALUE;
        }
        let at = words::name_end(self.text, from);
        if at >= self.scan.len {
            return self.incomplete(phase::NAME);
        }
        if at - from >= words::SHORT {
            self.scan.at = at;
            return phase::NAME;
        }
        let line = self.scan.line;
        let byte = self.byte(at);
        if byte == b':' && at > line {
            self.named(line, at);
            self.scan.at = at + 1;
            return phase::VALUE;
        }
        if byte == b'\r' && at == line {
            return self.empty_line(at);
        }
        // A blank here is a folded line, or one before the colon.
        if !words::is_token(byte) {
            return self.refuse();
        }
        self.scan.at = at + 1;
        phase::NAME
    }

    /// Whether a line surely is none of the fields that frame a message: neither in one way of reading nor, folded or broken, in another.
    #[inline(always)]
    fn says_nothing_of_framing(&self, line: u32) -> bool {
        let first = words::folded(words::word(self.text, line));
        first != CONTENT_LENGTH[0] && first != TRANSFER_ENCODING[0] && words::is_token(self.byte(line))
    }

    #[inline(always)]
    fn empty_line(&mut self, at: u32) -> u32 {
        if at + 1 >= self.scan.len {
            return self.incomplete(phase::NAME);
        }
        if self.byte(at + 1) != b'\n' {
            return self.refuse();
        }
        self.scan.head_len = at + 2;
        self.scan.verdict = verdict::COMPLETE as u32;
        phase::DONE
    }

    /// The value up to the end of its line, which is CR LF and nothing else.
    #[inline(always)]
    pub(super) fn field_value(&mut self) -> u32 {
        let from = self.scan.at;
        let at = words::control(self.text, from);
        if at >= self.scan.len {
            return self.incomplete(phase::VALUE);
        }
        if at - from >= words::LONG {
            self.scan.at = at;
            return phase::VALUE;
        }
        if self.byte(at) != b'\r' {
            return self.refuse();
        }
        if at + 1 >= self.scan.len {
            return self.incomplete(phase::VALUE);
        }
        if self.byte(at + 1) != b'\n' {
            return self.refuse();
        }
        self.scan.line = at + 2;
        self.scan.at = at + 2;
        if self.scan.seen & seen::HIT == 0 {
            return phase::NAME;
        }
        self.value_ends(at)
    }

    /// Takes blanks from the ends of the value (RFC 9110, 5.5), as many as a round passes over; `false` when there are none.
    #[inline(always)]
    pub(super) fn trimmed(&mut self) -> bool {
        let value = self.scan.value;
        if value.at >= value.end {
            return false;
        }
        if is_blank(self.byte(value.at)) {
            let at = forget(&mut self.scan.offset, words::not_blank(self.text, value.at));
            self.scan.value.at = if at < value.end { at } else { value.end };
            return true;
        }
        if is_blank(self.byte(value.end - 1)) {
            // The value begins with something else: its blanks end before that.
            let words = if value.len() > 32 { words::blank_words(self.text, value.end) } else { 0 };
            self.scan.value.end = value.end - if words == 0 { 1 } else { words };
            return true;
        }
        false
    }

    /// Whether the name at hand, folded, is one of 9 to 16 letters and dashes.
    #[inline(always)]
    pub(super) fn is(&self, name: [u64; 2], len: u32) -> bool {
        self.scan.name.len() == len
            && self.scan.first == name[0]
            && words::folded(words::word(self.text, self.scan.name.at + 8)) & words::below(len - 8) == name[1]
    }

    #[inline(always)]
    pub(super) fn is_content_length(&self) -> bool {
        self.is(CONTENT_LENGTH, 14)
    }

    #[inline(always)]
    pub(super) fn is_transfer_encoding(&self) -> bool {
        self.scan.name.len() == 17
            && self.scan.first == TRANSFER_ENCODING[0]
            && words::folded(words::word(self.text, self.scan.name.at + 8)) == TRANSFER_ENCODING[1]
            && self.byte(self.scan.name.at + 16) | 0x20 == b'g'
    }

    /// Whether the value is `chunked`, alone (RFC 9112, 7).
    #[inline(always)]
    pub(super) fn is_chunked(&self) -> bool {
        self.scan.value.len() == 7 && words::folded(self.first(self.scan.value)) & words::below(7) == CHUNKED
    }

    /// Reads a number of 1 to 19 digits into `length`; `false` for anything else.
    #[inline(always)]
    pub(super) fn number(&mut self) -> bool {
        let value = self.scan.value;
        if value.len() == 0 || value.len() > DIGITS {
            return false;
        }
        let mut number = 0u64;
        let mut i = 0;
        while i < DIGITS {
            if i >= value.len() {
                break;
            }
            let digit = self.byte(value.at + i).wrapping_sub(b'0');
            if digit > 9 {
                return false;
            }
            number = number.wrapping_mul(10).wrapping_add(digit as u64);
            i += 1;
        }
        self.scan.length = number;
        true
    }

    /// A line of a request that passed the filter.
    #[inline(always)]
    pub(super) fn request_field(&mut self) -> u32 {
        if self.trimmed() {
            return phase::FIELD;
        }
        self.scan.after = phase::NAME;
        let (first, len) = (self.scan.first, self.scan.name.len());
        let before = self.scan.seen;
        if len == 4 && first == HOST {
            self.scan.seen = before | seen::HOST;
            self.scan.at = self.scan.value.at;
            return if before & seen::HOST != 0 { self.refuse() } else { phase::HOST };
        }
        if len == 6 && first == COOKIE {
            self.scan.after = phase::COOKIES;
        } else if self.is_content_length() {
            self.scan.seen = before | seen::LENGTH;
            if before & (seen::LENGTH | seen::CODING) != 0 || !self.number() {
                return self.refuse();
            }
        } else if self.is_transfer_encoding() {
            self.scan.seen = before | seen::CODING;
            if before & (seen::LENGTH | seen::CODING | seen::HTTP_1_0) != 0 || !self.is_chunked() {
                return self.refuse();
            }
        }
        self.select_field()
    }

    /// The value of `Host` may be empty (RFC 9110, 7.2), but holds nothing that ends a host elsewhere.
    #[inline(always)]
    pub(super) fn host(&mut self) -> u32 {
        let (from, end) = (self.scan.at, self.scan.value.end);
        let at = words::host_end(self.text, from);
        if at >= end {
            return self.select_field();
        }
        if at - from >= words::SHORT {
            self.scan.at = at;
            return phase::HOST;
        }
        if !words::is_host(self.byte(at)) {
            return self.refuse();
        }
        self.scan.at = at + 1;
        phase::HOST
    }

    /// To the names of the rules, when they may have this one.
    #[inline(always)]
    fn select_field(&mut self) -> u32 {
        let first = self.scan.first;
        let bit = words::bit(first, self.scan.name.len());
        match self.rules {
            Some(rules) if rules.name_filter & bit != 0 => {
                self.scan.first = words::lower(self.first(self.scan.name));
                self.scan.subject = http_subject::HEADER as u32;
                self.scan.index = 0;
                phase::NAMES
            }
            _ => self.next_line(),
        }
    }
}
