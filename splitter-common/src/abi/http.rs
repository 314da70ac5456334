//! What `mode: http` adds to the tables: the rules of a service, compiled.
//!
//! A *predicate* is one condition of a rule, stored once however many rules use it; it owns a bit. The head scanner sets the bits of the
//! predicates that hold for a request; a rule matches when all bits of its mask are set. One map value holds everything, so that one
//! map write changes a service's rules whole.

use super::pod;

/// Most rules of one service: 16 of the policy's, and those that its `canary` line stands for.
pub const MAX_HTTP_RULES: usize = 32;
/// Most distinct conditions of one service: the bits of a mask.
pub const MAX_PREDICATES: usize = 64;
/// Most distinct names of headers, cookies and query parameters of one service.
pub const MAX_HTTP_NAMES: usize = 32;
/// Bytes for all names and values of one service; a power of two.
pub const HTTP_POOL: usize = 4096;
/// Longest name or value, bytes.
pub const HTTP_TEXT_LIMIT: usize = 255;

/// Value of `HTTP_RULES` (hash without preallocation, key: service id u32). Services without rules, and whose key is not a header or a
/// cookie, have none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpRules {
    /// Bit `hash(first bytes of the lower-case name)` of every header name in use (with `cookie`, when a cookie is looked at): lines whose
    /// bit is not set are skipped. See `http::name_bit`.
    pub name_filter: u64,
    pub rule_count: u8,
    pub name_count: u8,
    pub predicate_count: u8,
    /// Index in `names` of the header or cookie whose value is the key of `splitBy`; [`NO_NAME`]: none.
    pub key_name: u8,
    /// Length of the used part of `pool`.
    pub pool_len: u32,
    /// Hash of all that the scanner reads of this: a head that has come in part goes on only with the same.
    pub id: u64,
    pub rules: [HttpRule; MAX_HTTP_RULES],
    /// Sorted by kind.
    pub names: [HttpName; MAX_HTTP_NAMES],
    /// Those of one name stand together.
    pub predicates: [HttpPredicate; MAX_PREDICATES],
    /// Names (headers' in lower case) and values. Eight bytes of zero follow, so that words can be read at its end.
    pub pool: [u8; HTTP_POOL + 8],
}

impl HttpRules {
    /// No rules, no key.
    pub const fn empty() -> Self {
        Self {
            name_filter: 0,
            rule_count: 0,
            name_count: 0,
            predicate_count: 0,
            key_name: NO_NAME,
            pool_len: 0,
            id: 0,
            rules: [HttpRule { mask: 0, version: 0, pad: 0 }; MAX_HTTP_RULES],
            names: [HttpName { at: 0, len: 0, subject: 0, first: 0, count: 0, pad: 0 }; MAX_HTTP_NAMES],
            predicates: [HttpPredicate { at: 0, len: 0, kind: 0 }; MAX_PREDICATES],
            pool: [0; HTTP_POOL + 8],
        }
    }
}

/// [`HttpRules::key_name`] when the key is no header and no cookie.
pub const NO_NAME: u8 = u8::MAX;

/// A rule: all bits of the mask must be set. An empty mask matches every request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpRule {
    pub mask: u64,
    /// Version id. A version that the service does not have (any more) makes the rule void.
    pub version: u32,
    pub pad: u32,
}

/// What predicates look at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpName {
    /// Where the name lies in the pool.
    pub at: u16,
    /// Its length, 1..=255; 0 for the method, the path and the source.
    pub len: u8,
    /// [`http_subject`] constant.
    pub subject: u8,
    /// First predicate of this name, and how many.
    pub first: u8,
    pub count: u8,
    pub pad: u16,
}

/// Values of [`HttpName::subject`].
pub mod http_subject {
    /// Name compared without case (RFC 9110, 5.1).
    pub const HEADER: u8 = 0;
    /// A pair of the `Cookie` header (RFC 6265, 4.2.1); names with case.
    pub const COOKIE: u8 = 1;
    /// A parameter of the query; bytes as sent, nothing is percent-decoded.
    pub const QUERY: u8 = 2;
    /// The path as sent, without the query; nothing is normalised or decoded.
    pub const PATH: u8 = 3;
    pub const METHOD: u8 = 4;
    /// The client's network.
    pub const SOURCE: u8 = 5;
}

/// One condition.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpPredicate {
    /// Where the value lies in the pool. Of a source network: 16 bytes of address (IPv4 mapped), host bits zero.
    pub at: u16,
    /// Bytes of the value; of a source network: bits of the prefix (0..=128, IPv4 counts from 96).
    pub len: u8,
    /// [`http_match`] constant.
    pub kind: u8,
}

/// Values of [`HttpPredicate::kind`].
pub mod http_match {
    pub const EXACT: u8 = 0;
    pub const PREFIX: u8 = 1;
    /// The name occurs, whatever its value.
    pub const PRESENT: u8 = 2;
    /// Path alone: the value, or the value with `/` and anything behind it. `/beta` holds for `/beta` and `/beta/x`, not for `/betamax`.
    pub const SEGMENT: u8 = 3;
}

pod!(HttpRules);
