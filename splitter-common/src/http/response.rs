//! The head of a response: where its body ends. What is broken is passed on, but not read any more.

use super::{
    HEAD_LIMIT, Head, HeadText, Loop, ResponseHead, Scan, field, framing,
    start::{HTTP_1_0, HTTP_1_1},
    state::{ROUNDS, phase, seen},
    verdict, words,
};
use crate::abi::Addr;

/// Reads a response's head in `text[..len]`, as [`super::request()`] does. `answers_head`: the request's method was HEAD.
///
/// 1xx, 204, 304 and answers to HEAD have no body (RFC 9112, 6.3). After 1xx, which is COMPLETE with length 0, another head follows; 101
/// and whatever is not well formed is [`verdict::PIN`].
#[inline(always)]
pub fn response<L: Loop>(text: &HeadText, len: u32, answers_head: bool, scan: &mut Scan, out: &mut ResponseHead) {
    let limited = if len > HEAD_LIMIT { HEAD_LIMIT } else { len };
    *scan = Scan { len: limited, filter: field::FRAMING, verdict: verdict::PIN as u32, ..Scan::default() };
    {
        const NOBODY: &Addr = &[0; 16];
        let mut head = Head::<true> { text, rules: None, client: NOBODY, scan };
        L::repeat(ROUNDS, move |_| head.step());
    }
    *out = ResponseHead { verdict: scan.verdict as u8, status: scan.status as u16, ..ResponseHead::default() };
    if out.verdict == verdict::COMPLETE {
        finish(scan.seen, scan.length, scan.head_len, answers_head, out);
    }
    if out.verdict == verdict::INCOMPLETE && len >= HEAD_LIMIT {
        out.verdict = verdict::TOO_LONG;
    }
}

/// What the lines of a complete head together say; `out.status` is known.
#[inline(always)]
pub(super) fn finish(fields: u32, length: u64, head_len: u32, answers_head: bool, out: &mut ResponseHead) {
    let (chunked, counted) = (fields & seen::CODING != 0, fields & seen::LENGTH != 0);
    let status = out.status;
    let bare = status < 200 || status == 204;
    out.head_len = head_len;
    if status == 101 || bare && (chunked || length != 0) {
        out.verdict = verdict::PIN;
    } else if bare || status == 304 || answers_head {
        out.framing = framing::LENGTH;
    } else if chunked {
        out.framing = framing::CHUNKED;
    } else if counted {
        out.framing = framing::LENGTH;
        out.length = length;
    } else {
        out.framing = framing::CLOSE;
    }
}

impl<const RESPONSE: bool> Head<'_, RESPONSE> {
    /// The status line (RFC 9112, 4): version, three digits, a reason that means nothing.
    #[inline(always)]
    pub(super) fn status_line(&mut self, mut phase: u32) -> u32 {
        if phase == phase::START {
            phase = self.status();
        }
        if phase == phase::REASON {
            phase = self.reason();
        }
        phase
    }

    #[inline(always)]
    fn status(&mut self) -> u32 {
        let have = self.scan.len;
        let mask = words::below(have);
        let word = words::word(self.text, 0) & mask;
        if word != HTTP_1_1 & mask && word != HTTP_1_0 & mask {
            return self.refuse();
        }
        if have < 13 {
            return self.incomplete(phase::START);
        }
        if word == HTTP_1_0 {
            self.scan.seen |= seen::HTTP_1_0;
        }
        let digits = [self.byte(9).wrapping_sub(b'0'), self.byte(10).wrapping_sub(b'0'), self.byte(11).wrapping_sub(b'0')];
        let parted = self.byte(8) == b' ' && (self.byte(12) == b' ' || self.byte(12) == b'\r');
        if !parted || digits[0] > 9 || digits[1] > 9 || digits[2] > 9 || digits[0] == 0 {
            return self.refuse();
        }
        self.scan.status = digits[0] as u32 * 100 + digits[1] as u32 * 10 + digits[2] as u32;
        self.scan.at = 12;
        phase::REASON
    }

    #[inline(always)]
    fn reason(&mut self) -> u32 {
        let from = self.scan.at;
        let at = words::control(self.text, from);
        if at >= self.scan.len {
            return self.incomplete(phase::START);
        }
        if at - from >= words::LONG || self.byte(at) == b'\t' {
            self.scan.at = at + (at - from < words::LONG) as u32;
            return phase::REASON;
        }
        if self.byte(at) != b'\r' {
            return self.refuse();
        }
        if at + 1 >= self.scan.len {
            return self.incomplete(phase::START);
        }
        if self.byte(at + 1) != b'\n' {
            return self.refuse();
        }
        self.scan.line = at + 2;
        self.next_line()
    }

    /// A line that passed the filter: `Content-Length` or `Transfer-Encoding`, or neither.
    #[inline(always)]
    pub(super) fn response_field(&mut self) -> u32 {
        if self.trimmed() {
            return phase::FIELD;
        }
        let before = self.scan.seen;
        if self.is_content_length() {
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
        self.next_line()
    }
}
