//! What `mode: http` adds to a service: rules on requests, and what happens when nobody can serve.
//!
//! Owns the conditions, their order of meaning ([`Condition::implies`]) and their form for the rule compiler.

use super::Cidr;
use serde::{Deserialize, Serialize};
use splitter_common::{
    abi::{http_match, http_subject, mapped},
    http::compiler::Predicate,
};
use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
};

/// Present exactly when the mode is `http`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// First match wins. Those that the line `canary` stands for come last.
    pub rules: Vec<HttpRule>,
    pub unavailable: Unavailable,
    #[serde(default)]
    pub too_long: TooLong,
}

/// `whenUnavailable`: what a client gets when no backend of its version can serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unavailable {
    /// An answer with status 503.
    #[default]
    Status,
    Reset,
}

/// `whenTooLong`: what becomes of a request whose head is longer than what is read, so that no rule and no key can be looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// It goes to the rollout's baseline, without a rollout to the first version; when that has no weight, to the first one that has.
    #[default]
    Baseline,
    /// A first one is given by weight, a later one stays with its backend.
    Weight,
    /// An answer with status 431.
    Status,
}

#[derive(Clone, Debug, Eq, Serialize, Deserialize)]
pub struct HttpRule {
    /// At least one; all must hold.
    pub conditions: Vec<Condition>,
    /// Index into the service's versions.
    pub version: usize,
    /// Where it stands in its file; not part of its meaning.
    pub line: u32,
    /// Made from the line `canary`.
    pub from_canary: bool,
}

impl PartialEq for HttpRule {
    fn eq(&self, other: &Self) -> bool {
        (&self.conditions, self.version, self.from_canary) == (&other.conditions, other.version, other.from_canary)
    }
}

/// Names and values as the policy writes them; at most `HTTP_TEXT_LIMIT` bytes each, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Name compared without case.
    Header(String, Text),
    Cookie(String, Text),
    Query(String, Text),
    Path(String),
    /// Begins with `/`; ends with one only when it is nothing else.
    PathPrefix(String),
    Method(String),
    Source(Cidr),
}

/// What a value has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Text {
    Exact(String),
    Prefix(String),
    /// Whatever its value.
    Present,
}

impl Condition {
    /// For the compiler.
    pub fn predicate(&self) -> Predicate<'_> {
        let text = |subject, name: &'_ str, kind, value: &'_ str| Predicate {
            subject,
            name: Cow::Owned(name.as_bytes().to_vec()),
            kind,
            value: Cow::Owned(value.as_bytes().to_vec()),
            len: value.len() as u8,
        };
        let named = |subject, name, value: &Text| match value {
            Text::Exact(value) => text(subject, name, http_match::EXACT, value),
            Text::Prefix(value) => text(subject, name, http_match::PREFIX, value),
            Text::Present => text(subject, name, http_match::PRESENT, ""),
        };
        match self {
            Self::Header(name, value) => named(http_subject::HEADER, name, value),
            Self::Cookie(name, value) => named(http_subject::COOKIE, name, value),
            Self::Query(name, value) => named(http_subject::QUERY, name, value),
            Self::Path(path) => text(http_subject::PATH, "", http_match::EXACT, path),
            Self::PathPrefix(path) if path == "/" => text(http_subject::PATH, "", http_match::PREFIX, path),
            Self::PathPrefix(path) => text(http_subject::PATH, "", http_match::SEGMENT, path),
            Self::Method(method) => text(http_subject::METHOD, "", http_match::EXACT, method),
            Self::Source(network) => {
                let (addr, len) = match network.address {
                    IpAddr::V4(v4) => (mapped(v4.octets()), 96 + network.prefix),
                    IpAddr::V6(v6) => (v6.octets(), network.prefix),
                };
                let value = Cow::Owned(addr.to_vec());
                Predicate { subject: http_subject::SOURCE, name: Cow::Borrowed(&[]), kind: http_match::PREFIX, value, len }
            }
        }
    }

    /// Whether every request for which this holds fulfils the other one too.
    pub fn implies(&self, other: &Self) -> bool {
        let name = |a: &str, b: &str, value: &Text, wanted: &Text| a == b && value.implies(wanted);
        match (self, other) {
            (Self::Header(a, value), Self::Header(b, wanted)) => a.eq_ignore_ascii_case(b) && value.implies(wanted),
            (Self::Cookie(a, value), Self::Cookie(b, wanted)) | (Self::Query(a, value), Self::Query(b, wanted)) => {
                name(a, b, value, wanted)
            }
            (Self::Path(path) | Self::PathPrefix(path), Self::PathPrefix(prefix)) => in_segments(path, prefix),
            (Self::Source(a), Self::Source(b)) => a.is_within(b),
            _ => self == other,
        }
    }

    /// Whether no request can fulfil both. Headers, cookies and parameters may occur twice, so that only the path is told apart.
    pub fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(path), Self::PathPrefix(prefix)) | (Self::PathPrefix(prefix), Self::Path(path)) => !in_segments(path, prefix),
            _ => false,
        }
    }

    /// Whether a client of a frontend of the same family as `vip` can fulfil it.
    pub fn is_possible(&self, vip: SocketAddr) -> bool {
        !matches!(self, Self::Source(network) if network.address.is_ipv4() != vip.is_ipv4())
    }
}

/// Whether a path is the prefix or lies below it.
pub fn in_segments(path: &str, prefix: &str) -> bool {
    prefix == "/" && path.starts_with('/') || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Text {
    fn implies(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Present) => true,
            (Self::Exact(value) | Self::Prefix(value), Self::Prefix(prefix)) => value.starts_with(prefix.as_str()),
            _ => self == other,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, name, value) = match self {
            Self::Header(name, value) => ("header", name, value),
            Self::Cookie(name, value) => ("cookie", name, value),
            Self::Query(name, value) => ("query", name, value),
            Self::Path(path) => return write!(f, "path {path}"),
            Self::PathPrefix(path) => return write!(f, "pathPrefix {path}"),
            Self::Method(method) => return write!(f, "method {method}"),
            Self::Source(network) => return write!(f, "sourceCidr {}/{}", network.address, network.prefix),
        };
        match value {
            Text::Exact(value) => write!(f, "{what} {name}={value}"),
            Text::Prefix(value) => write!(f, "{what} {name}={value}*"),
            Text::Present => write!(f, "{what} {name} present"),
        }
    }
}

impl fmt::Display for HttpRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.conditions.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrower_conditions_imply_broader_ones() {
        let prefix = |path: &str| Condition::PathPrefix(path.into());
        let header = |name: &str, value| Condition::Header(name.into(), value);
        let exact = |value: &str| Text::Exact(value.into());
        let network = |text: &str, prefix| Condition::Source(Cidr { address: text.parse().unwrap(), prefix });
        for (narrow, broad) in [
            (Condition::Path("/beta/x".into()), prefix("/beta")),
            (prefix("/beta/x"), prefix("/beta")),
            (prefix("/beta"), prefix("/")),
            (header("X-A", exact("ab")), header("x-a", Text::Prefix("a".into()))),
            (header("X-A", exact("ab")), header("x-a", Text::Present)),
            (network("10.1.7.0", 24), network("10.1.0.0", 16)),
            (network("10.1.7.0", 24), network("0.0.0.0", 0)),
        ] {
            assert!(narrow.implies(&broad) && !broad.implies(&narrow) && narrow.implies(&narrow), "{narrow} {broad}");
        }
        for (a, b) in [
            (prefix("/betamax"), prefix("/beta")),
            (Condition::Cookie("a".into(), exact("1")), Condition::Cookie("A".into(), Text::Present)),
            (header("a", exact("1")), Condition::Cookie("a".into(), Text::Present)),
            (network("fd00::", 64), network("0.0.0.0", 0)),
        ] {
            assert!(!a.implies(&b), "{a} {b}");
        }
        assert!(Condition::Path("/a".into()).excludes(&prefix("/b")) && !Condition::Path("/b/c".into()).excludes(&prefix("/b")));
    }
}
