//! Heads of responses: the first byte says whether the request was HEAD and how long the pieces are.
//!
//! Reading whole and in pieces must give the same, but for an unfinished head that the pieces know as broken a little earlier; of what is COMPLETE,
//! `httparse` must find status and length too.

use crate::heads::padded;
use splitter_common::http::{
    HEAD_LIMIT, Plain, ResponseHead, Scan, framing,
    lines::{Lines, SLACK, WINDOW},
    response, verdict,
};

/// See the module.
pub fn run(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else { return };
    let text = &text[..text.len().min(HEAD_LIMIT as usize - 1)];
    let answers_head = choice & 1 != 0;
    let mut whole = read(text, answers_head, choice >> 1);
    let steps = [1, 3, 8, 32, 33, 200, 1460, 5].map(|step| step + usize::from(choice >> 4));
    let (pieces, used) = in_pieces(text, steps[usize::from(choice >> 1 & 7)], answers_head);
    against_httparse(text, &whole, answers_head);
    whole.length = whole.length.min(1 << 31);
    if whole.verdict == verdict::INCOMPLETE && pieces.verdict == verdict::PIN {
        for end in ["", "0", "\n", "\r\n", "00 OK\r\n", " \r\n", ": 1\r\n", "1: 1\r\n"] {
            let longer = [text, end.as_bytes(), b"\r\n\r\n"].concat();
            if longer.len() < HEAD_LIMIT as usize {
                assert_ne!(read(&longer, answers_head, 0).verdict, verdict::COMPLETE, "with {end:?} behind it");
            }
        }
        return;
    }
    assert_eq!(pieces, whole);
    assert!(whole.head_len == 0 || used == whole.head_len as usize, "{used} of {whole:?}");
}

fn read(text: &[u8], answers_head: bool, filler: u8) -> ResponseHead {
    let mut out = ResponseHead::default();
    response::<Plain>(&padded(text, filler), text.len() as u32, answers_head, &mut Scan::default(), &mut out);
    assert!(out.head_len as usize <= text.len(), "{out:?}");
    out
}

/// What the pieces say, and how many bytes were read.
fn in_pieces(text: &[u8], step: usize, answers_head: bool) -> (ResponseHead, usize) {
    let (mut lines, mut at) = (Lines::BEGIN, 0);
    while at < text.len() && !lines.is_over() {
        let len = step.min(WINDOW as usize).min(text.len() - at);
        let mut window = [[b'\n', b'a', 0xff][at % 3]; (WINDOW + SLACK) as usize];
        window[..len].copy_from_slice(&text[at..at + len]);
        let used = lines.feed::<Plain>(&window, len as u32) as usize;
        assert!(used == len || lines.is_over(), "{used} of {len} bytes, and the head is not over");
        at += used;
    }
    let mut out = ResponseHead::default();
    lines.head(answers_head, &mut out);
    (out, at)
}

/// A head that is read to its end is one for others too.
fn against_httparse(text: &[u8], whole: &ResponseHead, answers_head: bool) {
    let mut space = [httparse::EMPTY_HEADER; 512];
    let mut response = httparse::Response::new(&mut space);
    if whole.verdict != verdict::COMPLETE || text.iter().filter(|byte| **byte == b'\n').count() > 400 {
        return;
    }
    // Passed on as they are: lines that are none do not concern where the body ends (docs/http.md).
    let Ok(parsed) = response.parse(&text[..whole.head_len as usize]) else { return };
    assert_eq!(parsed, httparse::Status::Complete(whole.head_len as usize));
    assert_eq!(response.code, Some(whole.status));
    let of = |name: &str| response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value).collect::<Vec<_>>();
    let (lengths, codings) = (of("content-length"), of("transfer-encoding"));
    let bodiless = answers_head || whole.status < 200 || matches!(whole.status, 204 | 304);
    let expected = match (&lengths[..], &codings[..]) {
        _ if bodiless => (framing::LENGTH, 0),
        ([], []) => (framing::CLOSE, 0),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => (framing::CHUNKED, 0),
        ([length], []) => (framing::LENGTH, std::str::from_utf8(length).expect("digits").parse().expect("a number")),
        _ => panic!("{lengths:?} and {codings:?} together are read"),
    };
    assert_eq!((whole.framing, whole.length), expected);
}
