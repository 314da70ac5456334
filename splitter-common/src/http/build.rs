//! Conditions to [`HttpRules`]: names sorted by kind, predicates grouped by name, each stored once.

use super::name_bit;
use crate::abi::{Addr, HTTP_TEXT_LIMIT, HttpName, HttpPredicate, HttpRule, HttpRules, NO_NAME, http_match, http_subject};
use std::{boxed::Box, vec::Vec};

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// [`http_subject`] constant.
    pub subject: u8,
    /// Of a header, a cookie or a parameter.
    pub name: Vec<u8>,
    /// [`http_match`] constant.
    pub kind: u8,
    /// What is compared; of a source network: 16 bytes of address.
    pub value: Vec<u8>,
    /// Of a source network: bits of its prefix, IPv4 counted from 96.
    pub bits: u8,
}

impl Condition {
    /// A condition on anything but the source. Names of headers lose their case.
    pub fn new(subject: u8, name: &[u8], kind: u8, value: &[u8]) -> Self {
        let name = if subject == http_subject::HEADER { name.to_ascii_lowercase() } else { name.to_vec() };
        Self { subject, name, kind, value: value.to_vec(), bits: 0 }
    }

    pub fn source(network: Addr, bits: u8) -> Self {
        Self { subject: http_subject::SOURCE, name: Vec::new(), kind: http_match::PREFIX, value: network.to_vec(), bits }
    }
}

/// The rules of a service, `(version id, conditions)` each, and the header or cookie that is its key. `None` when a limit of
/// [`HttpRules`] is exceeded.
pub fn compile(rules: &[(u32, Vec<Condition>)], key: Option<(u8, &[u8])>) -> Option<Box<HttpRules>> {
    let mut all: Vec<&Condition> = rules.iter().flat_map(|(_, conditions)| conditions).collect();
    all.sort();
    all.dedup();
    let key = key.map(|(subject, name)| Condition::new(subject, name, http_match::PRESENT, b""));
    let mut names: Vec<(u8, &[u8])> = all.iter().copied().chain(&key).map(|c| (c.subject, c.name.as_slice())).collect();
    names.sort_unstable();
    names.dedup();
    let mut built = Box::new(HttpRules::empty());
    let mut pool = Pool(&mut built.pool, 0);
    (built.rule_count, built.name_count, built.predicate_count) = (rules.len() as u8, names.len() as u8, all.len() as u8);
    let mut first = 0;
    for (i, (subject, name)) in names.iter().enumerate() {
        let count = all.iter().filter(|c| (c.subject, c.name.as_slice()) == (*subject, *name)).count();
        let value = HttpName { at: pool.add(name)?, len: name.len() as u8, subject: *subject, first, count: count as u8, pad: 0 };
        *built.names.get_mut(i)? = value;
        first = first.checked_add(count as u8)?;
        if *subject <= http_subject::QUERY {
            built.name_filter |= name_bit(name);
        }
        if *subject == http_subject::COOKIE {
            built.name_filter |= name_bit(b"cookie");
        }
    }
    for (slot, condition) in (0..).zip(&all) {
        let len = if condition.subject == http_subject::SOURCE { condition.bits } else { condition.value.len() as u8 };
        *built.predicates.get_mut(slot)? = HttpPredicate { at: pool.add(&condition.value)?, len, kind: condition.kind };
    }
    for (slot, (version, conditions)) in rules.iter().enumerate() {
        let bit = |c: &Condition| all.iter().position(|other| *other == c).map_or(0, |i| 1u64 << i);
        let mask = conditions.iter().map(bit).fold(0, |mask, bit| mask | bit);
        *built.rules.get_mut(slot)? = HttpRule { mask, version: *version, pad: 0 };
    }
    let key = key.as_ref().and_then(|key| names.iter().position(|name| *name == (key.subject, key.name.as_slice())));
    built.pool_len = pool.1 as u32;
    built.key_name = key.map_or(NO_NAME, |i| i as u8);
    Some(built)
}

/// The pool and its used length.
struct Pool<'a>(&'a mut [u8], usize);

impl Pool<'_> {
    fn add(&mut self, text: &[u8]) -> Option<u16> {
        let at = self.1;
        // Eight bytes stay free at the end.
        if text.len() > HTTP_TEXT_LIMIT || at + text.len() + 8 > self.0.len() {
            return None;
        }
        self.0[at..at + text.len()].copy_from_slice(text);
        self.1 += text.len();
        Some(at as u16)
    }
}
