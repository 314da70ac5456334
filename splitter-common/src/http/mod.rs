//! HTTP/1.1 heads (RFC 9112): one scanner for the kernel, `splitter explain` and the tests. No allocation, no slices, no panic: the text
//! lies in an array of fixed size and every index is masked, so that the verifier can follow.

pub mod chunks;
#[cfg(any(test, feature = "std"))]
pub mod compiler;
mod field;
pub mod lines;
mod pairs;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
mod request;
mod response;
mod select;
mod start;
mod state;
mod words;

pub use request::{begin, go_on, request};
pub use response::response;
pub use state::Scan;

use crate::abi::{HttpRules, MAX_HTTP_RULES};
use state::Head;

/// Longest head that is read, bytes. A power of two.
pub const HEAD_LIMIT: u32 = 16_384;
/// Room behind a head: for reading words at its end, and for one copy that starts at its last byte.
pub const HEAD_SLACK: u32 = 2048;
/// A head. Bytes behind the given length may hold anything.
pub type HeadText = [u8; HEAD_LIMIT as usize + HEAD_SLACK as usize];

/// How a loop of many rounds is run: `bpf_loop` in the kernel (Linux 5.17), a plain loop on the host.
pub trait Loop {
    /// Calls `f` with 0, 1, ... at most `rounds` times, until it answers `true`.
    fn repeat<F: FnMut(u32) -> bool>(rounds: u32, f: F);
}

/// [`Loop`] on the host.
pub enum Plain {}

impl Loop for Plain {
    fn repeat<F: FnMut(u32) -> bool>(rounds: u32, f: F) {
        let _ = (0..rounds).any(f);
    }
}

/// What a head asks of whoever forwards it: `verdict` of [`RequestHead`] and [`ResponseHead`].
pub mod verdict {
    /// More bytes are needed.
    pub const INCOMPLETE: u8 = 0;
    /// A request or response whose end is known, or will be: see [`framing`](super::framing).
    pub const COMPLETE: u8 = 1;
    /// Complete, and the end of the message or what follows is not known (a body of 2 GB or more ...): the connection
    /// stays with its backend.
    pub const PIN: u8 = 2;
    /// Not HTTP/1, or a shape that two parsers could read in two ways: to be answered with 400.
    pub const REFUSE: u8 = 3;
    /// Longer than [`super::HEAD_LIMIT`].
    pub const TOO_LONG: u8 = 4;
}

/// Where a message's body ends.
pub mod framing {
    /// After `RequestHead::length` (`ResponseHead::length`) bytes, which may be 0.
    pub const LENGTH: u8 = 0;
    pub const CHUNKED: u8 = 1;
    /// With the connection.
    pub const CLOSE: u8 = 2;
}

/// What is read of a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// Bits of the predicates that hold.
    pub facts: u64,
    /// Hash of the value of the `splitBy` header or cookie; meaningful when `keyed` is 1.
    pub key: u64,
    /// Bytes of the body.
    pub length: u64,
    /// Bytes of the head, the empty line included; 0 while it is incomplete.
    pub head_len: u32,
    /// [`verdict`] constant.
    pub verdict: u8,
    /// [`framing`] constant.
    pub framing: u8,
    /// 1: the method is HEAD, so the response has no body whatever its head says.
    pub head_method: u8,
    pub keyed: u8,
    /// 1: the method is CONNECT, so the connection becomes a tunnel when the response's status is 2xx (RFC 9110, 9.3.6).
    pub connect_method: u8,
    pub pad: [u8; 7],
}

/// As [`RequestHead`], of a response.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    pub length: u64,
    pub head_len: u32,
    /// 100..=999.
    pub status: u16,
    pub verdict: u8,
    pub framing: u8,
}

/// The bit of a name in [`HttpRules::name_filter`], which has those of all header, cookie and parameter names in use, and `cookie`'s when
/// a cookie is in use. Made of the first eight bytes, case left out, and of the length.
pub const fn name_bit(name: &[u8]) -> u64 {
    let mut first = 0u64;
    let mut i = if name.len() < 8 { name.len() } else { 8 };
    while i > 0 {
        i -= 1;
        first = first << 8 | name[i] as u64 | 0x20;
    }
    words::bit(first, name.len() as u32)
}

/// Version id of the first rule that matches.
#[inline(always)]
pub fn rule(rules: &HttpRules, facts: u64) -> Option<u32> {
    let mut i = 0;
    while i < MAX_HTTP_RULES {
        if i >= rules.rule_count as usize {
            return None;
        }
        let rule = &rules.rules[i];
        if facts & rule.mask == rule.mask {
            return Some(rule.version);
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests;
