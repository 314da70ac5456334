//! What the scanner carries from round to round: [`Scan`], its phases, and [`Head`], which owns a round. The phases themselves lie in the
//! other files.
//!
//! State lies in memory that the caller provides (the kernel: a map), because the verifier then takes every value for unknown and sees the
//! second round as equal to the third.

use super::{HeadText, verdict, words};
use crate::abi::{Addr, HttpName, HttpPredicate, HttpRules, MAX_HTTP_NAMES, MAX_PREDICATES};

/// Rounds after which a response is not read any further: a head of 16 KB that is no attack needs less than half.
pub const ROUNDS: u32 = 16_384;
/// The same of a request, each time that it is read on: so many, and one for each five bytes of it, since a parameter of a query may be as short. Outsiders choose what costs a round.
pub const ROUNDS_AT_LEAST: u32 = 128;
pub const BYTES_PER_ROUND: u32 = 5;

/// A part of the text.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub at: u32,
    pub end: u32,
}

impl Span {
    #[inline(always)]
    pub fn len(self) -> u32 {
        self.end.wrapping_sub(self.at)
    }
}

/// Scratch memory of [`super::request()`] and [`super::response()`]. Its contents before a call do not matter, nor do they after it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Bits of the field names that are looked at.
    pub(super) filter: u64,
    /// First eight bytes of the name at hand: folded, or as they are.
    pub(super) first: u64,
    pub(super) facts: u64,
    pub(super) key: u64,
    pub(super) length: u64,
    /// Length of the text.
    pub(super) len: u32,
    /// [`phase`] constant.
    pub(super) phase: u32,
    /// Where the search of the phase goes on.
    pub(super) at: u32,
    /// Start of the line at hand or, once that has been read, of the next one.
    pub(super) line: u32,
    pub(super) method: Span,
    pub(super) target: Span,
    pub(super) path: Span,
    pub(super) name: Span,
    pub(super) value: Span,
    /// The rest of a cookie string or of a query.
    pub(super) pairs: Span,
    /// [`crate::abi::http_subject`] of the name at hand.
    pub(super) subject: u32,
    /// Index in the rules' names.
    pub(super) index: u32,
    /// The same of the search for subjects of the request line, and the first one that has not been seen to.
    pub(super) line_index: u32,
    pub(super) wanted: u32,
    /// Predicates that are left for the value at hand.
    pub(super) predicate: u32,
    pub(super) last: u32,
    /// Bytes of the value (or name) that have been compared (or hashed).
    pub(super) offset: u32,
    /// [`phase`] that follows the names and predicates; that follows the pairs.
    pub(super) after: u32,
    pub(super) after_pairs: u32,
    /// [`seen`] bits.
    pub(super) seen: u32,
    /// Status code of a response.
    pub(super) status: u32,
    pub(super) head_len: u32,
    /// [`verdict`] constant.
    pub(super) verdict: u32,
    /// [`phase`] in which the scan stopped for want of bytes, and goes on.
    pub(super) resume: u32,
    /// Bytes for which rounds were given.
    pub(super) new: u32,
    pub(super) pad: u32,
}

impl Scan {
    /// Nothing has been read: a scan that goes on from here begins.
    pub const fn is_fresh(&self) -> bool {
        self.len == 0
    }
    /// What was read is forgotten.
    pub fn forget(&mut self) {
        self.len = 0;
    }
}

/// What a head has shown so far.
pub mod seen {
    pub const HOST: u32 = 1;
    pub const LENGTH: u32 = 2;
    pub const CODING: u32 = 4;
    pub const KEY: u32 = 8;
    /// The field at hand passed the filter.
    pub const HIT: u32 = 16;
    pub const HTTP_1_0: u32 = 32;
}

/// Phases, in the order in which a round may run through them.
pub mod phase {
    pub const START: u32 = 0;
    pub const METHOD: u32 = 1;
    pub const TARGET: u32 = 2;
    pub const AUTHORITY: u32 = 3;
    pub const VERSION: u32 = 4;
    pub const REASON: u32 = 5;
    pub const QUESTION: u32 = 6;
    pub const SUBJECTS: u32 = 7;
    pub const SOURCE: u32 = 8;
    pub const NAME: u32 = 9;
    pub const VALUE: u32 = 10;
    pub const FIELD: u32 = 11;
    pub const HOST: u32 = 12;
    pub const COOKIES: u32 = 13;
    pub const PAIR: u32 = 14;
    pub const PAIR_NAME: u32 = 15;
    pub const PAIR_VALUE: u32 = 16;
    pub const PAIR_END: u32 = 17;
    pub const NAMES: u32 = 18;
    pub const NAME_REST: u32 = 19;
    pub const HASH: u32 = 20;
    pub const PREDICATES: u32 = 21;
    pub const DONE: u32 = 22;
}

/// A head under the scanner.
pub struct Head<'a, const RESPONSE: bool> {
    pub text: &'a HeadText,
    pub rules: Option<&'a HttpRules>,
    pub client: &'a Addr,
    pub scan: &'a mut Scan,
}

impl<const RESPONSE: bool> Head<'_, RESPONSE> {
    /// One round: the phases that follow one another, as far as they get. `true`: done.
    #[inline(always)]
    pub fn step(&mut self) -> bool {
        let mut phase = self.scan.phase;
        if phase < phase::NAME {
            phase = if RESPONSE { self.status_line(phase) } else { self.request_line(phase) };
        }
        phase = self.plain_lines(phase);
        if phase == phase::NAME {
            phase = self.field_name();
        }
        if phase == phase::VALUE {
            phase = self.field_value();
        }
        if phase == phase::FIELD {
            phase = if RESPONSE { self.response_field() } else { self.request_field() };
        }
        if !RESPONSE {
            if phase == phase::HOST {
                phase = self.host();
            }
            phase = self.pairs(phase);
            phase = self.select(phase);
        }
        self.scan.phase = phase;
        phase == phase::DONE
    }

    #[inline(always)]
    pub fn byte(&self, at: u32) -> u8 {
        words::byte(self.text, at)
    }

    /// More bytes are needed to go on with a phase, which begins again as it has begun.
    #[inline(always)]
    pub fn incomplete(&mut self, phase: u32) -> u32 {
        if phase == phase::NAME {
            // A name that may have been noted ended behind the text.
            self.scan.seen &= !seen::HIT;
        }
        self.scan.resume = phase;
        self.scan.verdict = verdict::INCOMPLETE as u32;
        phase::DONE
    }

    /// Two parsers could read this in two ways: a request is refused; a response goes on, but its connection is not read any more.
    #[inline(always)]
    pub fn refuse(&mut self) -> u32 {
        self.scan.verdict = if RESPONSE { verdict::PIN } else { verdict::REFUSE } as u32;
        phase::DONE
    }

    #[inline(always)]
    pub fn pin(&mut self) -> u32 {
        self.scan.verdict = verdict::PIN as u32;
        phase::DONE
    }

    /// To the next line.
    #[inline(always)]
    pub fn next_line(&mut self) -> u32 {
        self.scan.at = self.scan.line;
        phase::NAME
    }

    /// The first bytes of a span, zero behind its end.
    #[inline(always)]
    pub fn first(&self, span: Span) -> u64 {
        words::word(self.text, span.at) & words::below(span.len())
    }
}

/// The name of an index.
#[inline(always)]
pub fn name(rules: &HttpRules, index: u32) -> &HttpName {
    // SAFETY: masked to the array's length.
    unsafe { &*rules.names.as_ptr().add((crate::barrier::opaque(index) & (MAX_HTTP_NAMES as u32 - 1)) as usize) }
}

/// The predicate of an index.
#[inline(always)]
pub fn predicate(rules: &HttpRules, index: u32) -> &HttpPredicate {
    // SAFETY: masked to the array's length.
    unsafe { &*rules.predicates.as_ptr().add((crate::barrier::opaque(index) & (MAX_PREDICATES as u32 - 1)) as usize) }
}

/// Space or horizontal tab (RFC 9110, 5.6.3).
#[inline(always)]
pub fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}
