//! The plainest code for what the scanner does word by word, which tests and fuzzing hold it against. Never part of what is shipped.
//!
//! | module | what it does |
//! |---|---|
//! | `head` | a request's head by `httparse`, and the rules about it one by one |
//! | `body` | a chunked body line by line |

pub mod body;
pub mod head;

use super::compiler;
use crate::abi::{Addr, HttpRules, http_match, http_subject};
use std::{boxed::Box, vec::Vec};

/// One condition of a rule, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// [`http_subject`] constant.
    pub subject: u8,
    pub name: Vec<u8>,
    /// [`http_match`] constant.
    pub kind: u8,
    pub value: Vec<u8>,
    /// Bytes of the value; of a network, its bits.
    pub len: u8,
}

impl Condition {
    pub fn new(subject: u8, name: &[u8], kind: u8, value: &[u8]) -> Self {
        Self { subject, name: name.to_vec(), kind, value: value.to_vec(), len: value.len() as u8 }
    }

    /// The client is in a network.
    pub fn source(network: Addr, bits: u8) -> Self {
        Self { len: bits, ..Self::new(http_subject::SOURCE, b"", http_match::PREFIX, &network) }
    }
}

/// Rules as the kernel takes them: `(version, conditions)` each, and the subject and name of the key.
///
/// # Panics
/// When they do not fit.
pub fn compile(rules: &[(u32, Vec<Condition>)], key: Option<(u8, &[u8])>) -> Box<HttpRules> {
    let mut compiler = compiler::Compiler::default();
    for (version, conditions) in rules {
        let predicates = conditions.iter().map(|c| compiler::Predicate {
            subject: c.subject,
            name: c.name.as_slice().into(),
            kind: c.kind,
            value: c.value.as_slice().into(),
            len: c.len,
        });
        compiler.rule(predicates, *version).unwrap();
    }
    if let Some((subject, name)) = key {
        compiler.key(subject, name).unwrap();
    }
    compiler.finish().unwrap()
}
