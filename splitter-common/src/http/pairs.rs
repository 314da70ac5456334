//! Lists of `name=value`: the `Cookie` field (RFC 6265, 4.2.1) and the query.
//!
//! A cookie is what stands between semicolons, blanks around it left out, quotes kept; one without `=` is none. A parameter is what stands
//! between ampersands; one without `=` has the empty value.

use super::{
    Head,
    state::{Span, is_blank, phase},
    words,
};
use crate::{
    abi::http_subject,
    barrier::{forget, opaque, recall},
};

/// Cookies that are passed over in one round.
const COOKIES: u32 = 4;

impl<const RESPONSE: bool> Head<'_, RESPONSE> {
    #[inline(always)]
    pub(super) fn pairs(&mut self, mut phase: u32) -> u32 {
        if phase == phase::COOKIES {
            phase = self.cookies();
        }
        if phase == phase::PAIR {
            self.plain_cookies();
            phase = self.pair();
        }
        if phase == phase::PAIR_NAME {
            phase = self.pair_name();
        }
        if phase == phase::PAIR_VALUE {
            phase = self.pair_value();
        }
        if phase == phase::PAIR_END {
            phase = self.pair_end();
        }
        phase
    }

    #[inline(always)]
    fn is_cookie(&self) -> bool {
        self.scan.subject == http_subject::COOKIE as u32
    }

    #[inline(always)]
    fn separator(&self) -> u8 {
        if self.is_cookie() { b';' } else { b'&' }
    }

    /// The list is the value of the field at hand.
    #[inline(always)]
    fn cookies(&mut self) -> u32 {
        self.scan.pairs = self.scan.value;
        self.scan.at = self.scan.value.at;
        self.scan.subject = http_subject::COOKIE as u32;
        self.scan.after_pairs = phase::NAME;
        phase::PAIR
    }

    /// Passes over cookies that nobody asks for, each with the semicolon behind it. What else there may be is left to the phases.
    #[inline(always)]
    fn plain_cookies(&mut self) {
        let Some(rules) = self.rules else { return };
        if !self.is_cookie() {
            return;
        }
        let mut at = recall(&self.scan.at);
        let mut cookies = 0;
        while cookies < COOKIES {
            let from = at.wrapping_add((self.byte(at) == b' ') as u32);
            let end = forget(&mut self.scan.offset, words::find(self.text, from, b';'));
            let named = words::find_near(self.text, from, b'=').wrapping_sub(from);
            // Differences for the verifier's sake: see `plain_lines`.
            let len = end.wrapping_sub(from);
            if named >= words::SHORT || len >= words::LONG || (self.scan.pairs.end.wrapping_sub(end) as i32) <= 0 {
                break;
            }
            let word = words::word(self.text, from);
            let first = words::folded(word) & words::below(named);
            if is_blank(word as u8) || rules.name_filter & words::bit(first, named) != 0 {
                break;
            }
            at = end.wrapping_add(opaque(1));
            cookies += 1;
        }
        self.scan.at = at;
    }

    #[inline(always)]
    fn pair(&mut self) -> u32 {
        let mut at = self.scan.at;
        if self.is_cookie() && at < self.scan.pairs.end && self.byte(at) == b' ' {
            at += 1;
        }
        self.scan.at = at;
        if at >= self.scan.pairs.end {
            let after = self.scan.after_pairs;
            return self.follow(after);
        }
        if self.is_cookie() && is_blank(self.byte(at)) {
            self.scan.at = words::not_blank(self.text, at);
            return phase::PAIR;
        }
        self.scan.name.at = at;
        phase::PAIR_NAME
    }

    #[inline(always)]
    fn pair_name(&mut self) -> u32 {
        let (from, end) = (self.scan.at, self.scan.pairs.end);
        let at = words::either(self.text, from, b'=', self.separator());
        if at < end && at - from >= words::LONG {
            self.scan.at = at;
            return phase::PAIR_NAME;
        }
        let at = if at < end { at } else { end };
        self.scan.name.end = at;
        self.scan.at = at + 1;
        if at < end && self.byte(at) == b'=' {
            self.scan.value.at = at + 1;
            return phase::PAIR_VALUE;
        }
        if self.is_cookie() {
            return phase::PAIR;
        }
        self.scan.value = Span { at, end: at };
        phase::PAIR_END
    }

    #[inline(always)]
    fn pair_value(&mut self) -> u32 {
        let (from, end) = (self.scan.at, self.scan.pairs.end);
        let separator = self.separator();
        let at = words::either(self.text, from, separator, separator);
        if at < end && at - from >= words::LONG {
            self.scan.at = at;
            return phase::PAIR_VALUE;
        }
        let at = if at < end { at } else { end };
        self.scan.value.end = at;
        self.scan.at = at + 1;
        phase::PAIR_END
    }

    /// To the names of the rules, when they may have this one.
    #[inline(always)]
    fn pair_end(&mut self) -> u32 {
        let name = self.scan.name;
        let first = self.first(name);
        let folded = words::folded(first) & words::below(name.len());
        let filter = match self.rules {
            Some(rules) => rules.name_filter,
            None => 0,
        };
        if filter & words::bit(folded, name.len()) == 0 {
            return phase::PAIR;
        }
        if self.is_cookie() && self.trimmed() {
            return phase::PAIR_END;
        }
        self.scan.first = first;
        self.scan.index = 0;
        self.scan.after = phase::PAIR;
        phase::NAMES
    }
}
