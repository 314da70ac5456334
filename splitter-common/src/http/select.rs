//! Names and predicates of the rules: what a field, a pair or the request line makes true. Every match compares all bytes.

use super::{
    Head,
    state::{name, phase, predicate, seen},
    words,
};
use crate::{
    abi::{HttpName, HttpPredicate, HttpRules, http_match, http_subject},
    barrier::{forget, recall},
    decide,
};

/// Bytes of a key that are hashed in one round.
const HASHED: u32 = 16;
/// Names that are looked at in one round.
const TRIED: u32 = 8;
/// Bytes that are compared in one round.
const COMPARED: u32 = 32;

impl<const RESPONSE: bool> Head<'_, RESPONSE> {
    #[inline(always)]
    pub(super) fn select(&mut self, mut phase: u32) -> u32 {
        let Some(rules) = self.rules else { return phase };
        if phase == phase::NAMES {
            phase = self.names(rules);
        }
        if phase == phase::NAME_REST {
            phase = self.name_rest(rules);
        }
        if phase == phase::HASH {
            phase = self.hash();
        }
        if phase == phase::PREDICATES {
            phase = self.predicates(rules);
        }
        phase
    }

    /// The phase that was to follow.
    #[inline(always)]
    pub(super) fn follow(&mut self, after: u32) -> u32 {
        if after == phase::NAME { self.next_line() } else { after }
    }

    /// The next subject of the request line: the query once, then the path, the method and the source.
    #[inline(always)]
    pub(super) fn subjects(&mut self) -> u32 {
        let Some(rules) = self.rules else { return self.next_line() };
        let wanted = self.scan.wanted;
        let mut i = self.scan.line_index;
        let mut rounds = 0;
        while rounds < TRIED {
            if i >= rules.name_count as u32 || name(rules, i).subject as u32 >= wanted {
                break;
            }
            i += 1;
            rounds += 1;
        }
        let i = forget(&mut self.scan.line_index, i);
        if i >= rules.name_count as u32 {
            return self.next_line();
        }
        let found = name(rules, i);
        let subject = found.subject;
        if (subject as u32) < wanted {
            return phase::SUBJECTS;
        }
        self.scan.line_index = i + 1;
        if subject == http_subject::QUERY {
            self.scan.wanted = http_subject::PATH as u32;
            self.scan.subject = http_subject::QUERY as u32;
            self.scan.at = self.scan.pairs.at;
            self.scan.after_pairs = phase::SUBJECTS;
            return phase::PAIR;
        }
        self.scan.value = if subject == http_subject::METHOD { self.scan.method } else { self.scan.path };
        self.scan.after = phase::SUBJECTS;
        self.expect(found);
        if subject == http_subject::SOURCE { phase::SOURCE } else { phase::PREDICATES }
    }

    /// Sets the predicates of a name up.
    #[inline(always)]
    fn expect(&mut self, name: &HttpName) {
        self.scan.predicate = name.first as u32;
        self.scan.last = name.first as u32 + name.count as u32;
        self.scan.offset = 0;
    }

    /// One predicate on the client's network.
    #[inline(always)]
    pub(super) fn source(&mut self) -> u32 {
        let (i, Some(rules)) = (self.scan.predicate, self.rules) else { return phase::SUBJECTS };
        if i >= self.scan.last {
            return phase::SUBJECTS;
        }
        self.scan.predicate = i + 1;
        let wanted = predicate(rules, i);
        let (bits, at) = (wanted.len as u32, wanted.at as u32);
        // SAFETY: an address has 16 bytes.
        let ours = unsafe { [crate::barrier::load::<0>(self.client.as_ptr()), crate::barrier::load::<8>(self.client.as_ptr())] };
        let high = (ours[0] ^ words::pool_word(&rules.pool, at)).swap_bytes() & leading(bits);
        let low = (ours[1] ^ words::pool_word(&rules.pool, at + 8)).swap_bytes() & leading(bits.saturating_sub(64));
        if high | low == 0 {
            self.scan.facts |= 1 << (i & 63);
        }
        phase::SOURCE
    }

    /// The name at hand among those of its kind.
    #[inline(always)]
    fn names(&mut self, rules: &HttpRules) -> u32 {
        let (subject, first) = (recall(&self.scan.subject), recall(&self.scan.first));
        let len = recall(&self.scan.name.end).wrapping_sub(recall(&self.scan.name.at));
        let mut i = recall(&self.scan.index);
        let mut rounds = 0;
        let mut found = false;
        while rounds < TRIED {
            if i >= rules.name_count as u32 {
                break;
            }
            let candidate = name(rules, i);
            if candidate.len as u32 == len
                && candidate.subject as u32 == subject
                && words::pool_word(&rules.pool, candidate.at as u32) & words::below(len) == first
            {
                found = true;
                break;
            }
            i += 1;
            rounds += 1;
        }
        let i = forget(&mut self.scan.index, i);
        if found {
            self.scan.offset = 8;
            return phase::NAME_REST;
        }
        if i < rules.name_count as u32 {
            return phase::NAMES;
        }
        let after = self.scan.after;
        self.follow(after)
    }

    /// The rest of the name; then what is expected of its value.
    #[inline(always)]
    fn name_rest(&mut self, rules: &HttpRules) -> u32 {
        let index = self.scan.index;
        let candidate = name(rules, index);
        let (len, offset) = (self.scan.name.len(), self.scan.offset);
        if offset < len {
            let header = self.scan.subject == http_subject::HEADER as u32;
            if !same(self.text, self.scan.name.at + offset, rules, candidate.at as u32 + offset, len - offset, header) {
                self.scan.index = index + 1;
                return phase::NAMES;
            }
            if len - offset > COMPARED {
                self.scan.offset = offset + COMPARED;
                return phase::NAME_REST;
            }
        }
        self.expect(candidate);
        let keyed = index == rules.key_name as u32 && self.scan.seen & seen::KEY == 0 && self.scan.value.len() > 0;
        if keyed {
            self.scan.key = decide::VALUE_START;
            self.scan.seen |= seen::KEY;
            phase::HASH
        } else {
            phase::PREDICATES
        }
    }

    /// Hashes the value at hand.
    #[inline(always)]
    fn hash(&mut self) -> u32 {
        let (value, offset) = (self.scan.value, self.scan.offset);
        let mut key = self.scan.key;
        let mut i = 0;
        while i < HASHED {
            if offset + i >= value.len() {
                break;
            }
            key = decide::value_step(key, self.byte(value.at + offset + i));
            i += 1;
        }
        self.scan.offset = offset + HASHED;
        if offset + HASHED < value.len() {
            self.scan.key = key;
            return phase::HASH;
        }
        self.scan.key = decide::value_key(key);
        self.scan.offset = 0;
        phase::PREDICATES
    }

    /// Whether the value at hand has the length that a match needs, and ends its segment there.
    #[inline(always)]
    fn fits(&self, kind: u8, len: u32) -> bool {
        let value = self.scan.value;
        let longer = kind == http_match::PREFIX || kind == http_match::SEGMENT && self.byte(value.at + len) == b'/';
        value.len() == len || value.len() > len && longer
    }

    /// One predicate on the value at hand, 32 bytes of it.
    #[inline(always)]
    fn predicates(&mut self, rules: &HttpRules) -> u32 {
        let i = self.scan.predicate;
        if i >= self.scan.last {
            let after = self.scan.after;
            return self.follow(after);
        }
        let HttpPredicate { at, len, kind } = *predicate(rules, i);
        let (value, offset, len) = (self.scan.value, self.scan.offset, len as u32);
        self.scan.predicate = i + 1;
        self.scan.offset = 0;
        if kind != http_match::PRESENT {
            if !self.fits(kind, len) || !same(self.text, value.at + offset, rules, at as u32 + offset, len - offset, false) {
                return phase::PREDICATES;
            }
            if len - offset > COMPARED {
                self.scan.predicate = i;
                self.scan.offset = offset + COMPARED;
                return phase::PREDICATES;
            }
        }
        self.scan.facts |= 1 << (i & 63);
        phase::PREDICATES
    }
}

/// The highest bits of a word.
#[inline(always)]
fn leading(bits: u32) -> u64 {
    if bits == 0 {
        0
    } else if bits >= 64 {
        u64::MAX
    } else {
        u64::MAX << (64 - bits)
    }
}

/// Whether the first `len` bytes, at most [`COMPARED`], are the same in the text and the pool; `lower`: the text's case left out.
#[inline(always)]
fn same(text: &super::HeadText, at: u32, rules: &HttpRules, pool: u32, len: u32, lower: bool) -> bool {
    let mut i = 0;
    while i < COMPARED {
        if i >= len {
            break;
        }
        let word = words::word(text, at + i);
        let word = if lower { words::lower(word) } else { word };
        if (word ^ words::pool_word(&rules.pool, pool + i)) & words::below(len - i) != 0 {
            return false;
        }
        i += 8;
    }
    true
}
