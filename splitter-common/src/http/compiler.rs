//! Rules of a service -> [`HttpRules`]: conditions become predicates with bits, each stored once, names and values share a pool.
//!
//! Pure and deterministic: equal rules in equal order give equal bytes on every node. Userspace only.

use super::name_bit;
use crate::abi::{HTTP_POOL, HttpName, HttpPredicate, HttpRule, HttpRules, MAX_HTTP_NAMES, MAX_HTTP_RULES, MAX_PREDICATES, http_subject};
use std::{borrow::Cow, fmt};

/// One condition before it has a bit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Predicate<'a> {
    /// `http_subject` constant.
    pub subject: u8,
    /// Of a header, cookie or query parameter, in any case; else empty. At most `HTTP_TEXT_LIMIT` bytes.
    pub name: Cow<'a, [u8]>,
    /// `http_match` constant.
    pub kind: u8,
    /// Empty for `PRESENT`; of a source network its 16 bytes. At most `HTTP_TEXT_LIMIT` bytes.
    pub value: Cow<'a, [u8]>,
    /// As [`HttpPredicate::len`].
    pub len: u8,
}

/// What no longer fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Rules,
    Predicates,
    Names,
    Pool,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Rules => write!(f, "{MAX_HTTP_RULES} rules"),
            Limit::Predicates => write!(f, "{MAX_PREDICATES} different conditions"),
            Limit::Names => write!(f, "{MAX_HTTP_NAMES} different names of headers, cookies and query parameters"),
            Limit::Pool => write!(f, "{HTTP_POOL} bytes of names and values together"),
        }
    }
}

type Name = (u8, Vec<u8>);

/// Collects rules and says at once when one no longer fits.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    names: Vec<Name>,
    /// Index in `names`, and the predicate.
    predicates: Vec<(usize, Predicate<'static>)>,
    /// Indices in `predicates`.
    rules: Vec<(Vec<usize>, u32)>,
    key: Option<usize>,
    /// Different texts, in the order of their first use.
    texts: Vec<Vec<u8>>,
    text_bytes: usize,
}

impl Compiler {
    /// Adds a rule behind those that are there; `version` is a version's id.
    ///
    /// # Errors
    /// The limit that the service would exceed; then nothing is added.
    pub fn rule<'a>(&mut self, conditions: impl IntoIterator<Item = Predicate<'a>>, version: u32) -> Result<(), Limit> {
        self.or_nothing(|compiler| {
            let indices = conditions.into_iter().map(|condition| compiler.predicate(condition)).collect();
            compiler.rules.push((indices, version));
        })
    }

    /// Says whose value is the key of `splitBy`; `subject` is `HEADER` or `COOKIE`.
    ///
    /// # Errors
    /// As [`Compiler::rule`].
    pub fn key(&mut self, subject: u8, name: &[u8]) -> Result<(), Limit> {
        self.or_nothing(|compiler| compiler.key = Some(compiler.name(subject, name)))
    }

    /// Takes back what was added when it does not fit.
    fn or_nothing(&mut self, add: impl FnOnce(&mut Self)) -> Result<(), Limit> {
        let before = (self.names.len(), self.predicates.len(), self.rules.len(), self.key, self.texts.len(), self.text_bytes);
        add(self);
        self.within().inspect_err(|_| {
            self.names.truncate(before.0);
            self.predicates.truncate(before.1);
            self.rules.truncate(before.2);
            self.key = before.3;
            self.texts.truncate(before.4);
            self.text_bytes = before.5;
        })
    }

    fn within(&self) -> Result<(), Limit> {
        let checks = [
            (self.rules.len() > MAX_HTTP_RULES, Limit::Rules),
            (self.predicates.len() > MAX_PREDICATES, Limit::Predicates),
            (self.names.len() > MAX_HTTP_NAMES, Limit::Names),
            (self.text_bytes > HTTP_POOL, Limit::Pool),
        ];
        checks.iter().find(|(beyond, _)| *beyond).map_or(Ok(()), |(_, limit)| Err(*limit))
    }

    fn name(&mut self, subject: u8, name: &[u8]) -> usize {
        let name = if subject == http_subject::HEADER { name.to_ascii_lowercase() } else { name.to_vec() };
        let wanted = (subject, name);
        if let Some(known) = self.names.iter().position(|known| *known == wanted) {
            return known;
        }
        self.text(&wanted.1);
        self.names.push(wanted);
        self.names.len() - 1
    }

    fn predicate(&mut self, predicate: Predicate<'_>) -> usize {
        let name = self.name(predicate.subject, &predicate.name);
        let same = |(known, p): &(usize, Predicate<'static>)| {
            *known == name && (p.kind, p.len) == (predicate.kind, predicate.len) && p.value == predicate.value
        };
        if let Some(known) = self.predicates.iter().position(same) {
            return known;
        }
        self.text(&predicate.value);
        let Predicate { subject, kind, len, value, .. } = predicate;
        let owned = Predicate { subject, name: Cow::Borrowed(&[]), kind, value: Cow::Owned(value.into_owned()), len };
        self.predicates.push((name, owned));
        self.predicates.len() - 1
    }

    fn text(&mut self, text: &[u8]) {
        if !text.is_empty() && self.texts.iter().all(|known| known != text) {
            self.text_bytes += text.len();
            self.texts.push(text.to_vec());
        }
    }

    /// The map's value; `None` when there is no rule and no key, so that none is needed.
    pub fn finish(&self) -> Option<Box<HttpRules>> {
        if self.rules.is_empty() && self.key.is_none() {
            return None;
        }
        let mut out = Box::new(HttpRules::empty());
        (out.rule_count, out.name_count) = (self.rules.len() as u8, self.names.len() as u8);
        (out.predicate_count, out.pool_len) = (self.predicates.len() as u8, self.text_bytes as u32);
        let mut at = 0;
        for text in &self.texts {
            out.pool[at..at + text.len()].copy_from_slice(text);
            at += text.len();
        }
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by_key(|index| (self.names[*index].0, *index));
        let (mut bits, mut next) = (vec![0u32; self.predicates.len()], 0u8);
        for (position, index) in order.into_iter().enumerate() {
            let (subject, name) = &self.names[index];
            let first = next;
            for (i, (_, p)) in self.predicates.iter().enumerate().filter(|(_, (owner, _))| *owner == index) {
                out.predicates[usize::from(next)] = HttpPredicate { at: self.place(&p.value), len: p.len, kind: p.kind };
                bits[i] = u32::from(next);
                next += 1;
            }
            let len = name.len() as u8;
            out.names[position] = HttpName { at: self.place(name), len, subject: *subject, first, count: next - first, pad: 0 };
            out.name_filter |= filter(*subject, name);
            if self.key == Some(index) {
                out.key_name = position as u8;
            }
        }
        for (rule, (conditions, version)) in out.rules.iter_mut().zip(&self.rules) {
            let mask = conditions.iter().fold(0, |mask, i| mask | 1u64 << bits[*i]);
            *rule = HttpRule { mask, version: *version, pad: 0 };
        }
        out.id = id(&out);
        Some(out)
    }

    /// Where a text begins in the pool.
    fn place(&self, text: &[u8]) -> u16 {
        let before = self.texts.iter().take_while(|known| *known != text);
        if text.is_empty() { 0 } else { before.map(Vec::len).sum::<usize>() as u16 }
    }
}

/// Bits of `name_filter` that a name needs.
fn filter(subject: u8, name: &[u8]) -> u64 {
    match subject {
        http_subject::COOKIE => name_bit(name) | name_bit(b"cookie"),
        http_subject::HEADER | http_subject::QUERY => name_bit(name),
        _ => 0,
    }
}

/// [`HttpRules::id`]: FNV-1a (Fowler, Noll, Vo).
fn id(rules: &HttpRules) -> u64 {
    let names = rules.names.iter().flat_map(|name| [name.at as u8, (name.at >> 8) as u8, name.len, name.subject, name.first, name.count]);
    let predicates = rules.predicates.iter().flat_map(|p| [p.at as u8, (p.at >> 8) as u8, p.len, p.kind]);
    let counts = [rules.key_name, rules.name_count, rules.predicate_count];
    let bytes = names.chain(predicates).chain(counts).chain(rules.pool);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::http_match;

    fn header<'a>(name: &'a str, value: &'a str) -> Predicate<'a> {
        let (name, value) = (Cow::Borrowed(name.as_bytes()), Cow::Borrowed(value.as_bytes()));
        Predicate { subject: http_subject::HEADER, name, kind: http_match::EXACT, len: value.len() as u8, value }
    }

    fn cookie<'a>(name: &'a str, value: &'a str) -> Predicate<'a> {
        Predicate { subject: http_subject::COOKIE, ..header(name, value) }
    }

    #[test]
    fn equal_conditions_share_a_bit_and_equal_texts_their_bytes() {
        let mut compiler = Compiler::default();
        compiler.rule([cookie("canary", "always")], 7).unwrap();
        compiler.rule([header("X-Canary", "always"), header("X-User", "a")], 8).unwrap();
        compiler.rule([header("x-CANARY", "always")], 9).unwrap();
        compiler.key(http_subject::HEADER, b"X-User").unwrap();
        let rules = compiler.finish().unwrap();
        assert_eq!((rules.rule_count, rules.name_count, rules.predicate_count), (3, 3, 3));
        let subjects: Vec<u8> = rules.names[..3].iter().map(|name| name.subject).collect();
        assert_eq!(subjects, [http_subject::HEADER, http_subject::HEADER, http_subject::COOKIE]);
        let text = |at: u16, len: u8| std::str::from_utf8(&rules.pool[usize::from(at)..usize::from(at) + usize::from(len)]).unwrap();
        let names: Vec<&str> = rules.names[..3].iter().map(|name| text(name.at, name.len)).collect();
        assert_eq!(names, ["x-canary", "x-user", "canary"]);
        assert_eq!(rules.pool_len as usize, "canaryalwaysx-canaryx-usera".len());
        assert_eq!(rules.rules[..3].iter().map(|r| (r.mask, r.version)).collect::<Vec<_>>(), [(0b100, 7), (0b011, 8), (0b001, 9)]);
        assert_eq!(rules.key_name, 1);
        assert_eq!(text(rules.predicates[2].at, rules.predicates[2].len), "always");
    }

    #[test]
    fn a_key_alone_needs_a_value_and_nothing_needs_none() {
        let mut compiler = Compiler::default();
        assert!(compiler.finish().is_none());
        compiler.key(http_subject::COOKIE, b"uid").unwrap();
        let rules = compiler.finish().unwrap();
        assert_eq!((rules.rule_count, rules.name_count, rules.key_name, rules.names[0].count), (0, 1, 0, 0));
    }

    #[test]
    fn what_does_not_fit_is_named_and_not_added() {
        let mut compiler = Compiler::default();
        for i in 0..16 {
            let values: Vec<String> = (0..4).map(|j| format!("{i}-{j}")).collect();
            compiler.rule(values.iter().map(|value| header("x-a", value)), 1).unwrap();
        }
        let before = compiler.finish();
        assert_eq!(compiler.rule([header("x-a", "one more")], 1), Err(Limit::Predicates));
        assert_eq!(compiler.finish(), before);
        (16..MAX_HTTP_RULES).for_each(|_| compiler.rule([header("x-a", "0-0")], 1).unwrap());
        assert_eq!(compiler.rule([header("x-a", "0-0")], 1), Err(Limit::Rules));
        let mut compiler = Compiler::default();
        for i in 0..MAX_HTTP_NAMES {
            compiler.rule([header(&format!("x-{i}"), "1")], 1).unwrap();
        }
        let before = compiler.finish();
        assert_eq!(compiler.key(http_subject::COOKIE, b"uid"), Err(Limit::Names));
        assert_eq!(compiler.finish(), before);
        let mut compiler = Compiler::default();
        let long = |i: usize| format!("{i:0255}");
        (0..16).for_each(|i| compiler.rule([header("x", &long(i))], 1).unwrap());
        let before = compiler.finish();
        assert_eq!(compiler.rule([header("x", &long(16)), header("y", "1")], 1), Err(Limit::Pool));
        assert_eq!(compiler.finish(), before);
        compiler.rule([header("x", &long(0))], 1).unwrap();
    }
}
