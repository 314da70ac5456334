//! The entry of a request's head.

use super::{
    HEAD_LIMIT, Head, HeadText, Loop, RequestHead, Scan, field, framing,
    state::{BYTES_PER_ROUND, ROUNDS_AT_LEAST, phase, seen},
    verdict,
};
use crate::{
    abi::{Addr, HttpRules},
    barrier,
};

/// From this length on a body is not counted: sequence numbers of TCP compare over half of their 32 bits.
const COUNTED: u64 = 1 << 31;

/// Reads a request's head in `text[..len]` from its beginning. What stands behind `len` does not matter. `scan` is scratch memory; when the head is
/// [`verdict::INCOMPLETE`], [`go_on`] needs what is left in it.
///
/// `facts`, `key` and `length` mean something with [`verdict::COMPLETE`] and, except for an HTTP/2 preface, with [`verdict::PIN`]. A
/// predicate holds when it holds for any field, cookie or parameter of its name; the key is the first value that is not empty.
///
/// Refuses what RFC 9112 (2.2, 3, 5.1, 5.2, 6.1, 6.3, 11.2) lets two parsers read in two ways.
#[inline(always)]
pub fn request<L: Loop>(text: &HeadText, len: u32, rules: Option<&HttpRules>, client: &Addr, scan: &mut Scan, out: &mut RequestHead) {
    begin(rules, scan);
    go_on::<L>(text, len, rules, client, scan, out);
}

/// Makes `scan` ready for the first byte of a head.
#[inline(always)]
pub fn begin(rules: Option<&HttpRules>, scan: &mut Scan) {
    let names = match rules {
        Some(rules) => rules.name_filter,
        None => 0,
    };
    *scan = Scan { filter: field::ALWAYS | names, resume: phase::START, ..Scan::default() };
}

/// As [`request`], of a head of which a part has been read: `scan` is as [`begin`] or the last call has left it, the text and the rules are the same, and `len` is no
/// less. Refuses also what takes more rounds than `len` bytes need.
#[inline(always)]
pub fn go_on<L: Loop>(text: &HeadText, len: u32, rules: Option<&HttpRules>, client: &Addr, scan: &mut Scan, out: &mut RequestHead) {
    let limited = if len > HEAD_LIMIT { HEAD_LIMIT } else { len };
    let new = barrier::forget(&mut scan.new, limited);
    (scan.len, scan.phase, scan.verdict) = (limited, scan.resume, verdict::REFUSE as u32);
    {
        let mut head = Head::<false> { text, rules, client, scan };
        L::repeat(ROUNDS_AT_LEAST.wrapping_add(new / BYTES_PER_ROUND), move |_| head.step());
    }
    *out = RequestHead::default();
    finish(text, client, scan, out);
    // Asked of the memory: a register with `len` would make the verifier follow the loop once for each side of the comparison above.
    if out.verdict == verdict::INCOMPLETE && scan.len == HEAD_LIMIT {
        out.verdict = verdict::TOO_LONG;
    }
}

/// What the lines together say.
#[inline(always)]
fn finish(text: &HeadText, client: &Addr, scan: &mut Scan, out: &mut RequestHead) {
    out.verdict = scan.verdict as u8;
    if scan.verdict != verdict::COMPLETE as u32 {
        return;
    }
    if scan.seen & (seen::HOST | seen::HTTP_1_0) == 0 {
        out.verdict = verdict::REFUSE;
        return;
    }
    (out.facts, out.key, out.length, out.head_len) = (scan.facts, scan.key, scan.length, scan.head_len);
    out.keyed = (scan.seen & seen::KEY != 0) as u8;
    let chunked = scan.seen & seen::CODING != 0;
    out.framing = if chunked { framing::CHUNKED } else { framing::LENGTH };
    let length = scan.length;
    let head = Head::<false> { text, rules: None, client, scan };
    out.head_method = head.is_head() as u8;
    out.connect_method = head.is_connect() as u8;
    // A body of CONNECT means nothing (RFC 9110, 9.3.6): some read it, some take it for data of the tunnel.
    if length >= COUNTED || out.connect_method != 0 && (chunked || length != 0) {
        out.verdict = verdict::PIN;
    }
}
