//! Heads of responses in pieces against the scanner that reads them whole.

use super::{
    corpus::{RESPONSES, Random},
    lines::{LIMIT, Lines, SLACK, WINDOW},
    *,
};
use std::{format, string::String};

/// What is said of a head that comes in pieces of these lengths, the last of which is repeated, and how many of its bytes were read.
fn in_pieces(text: &[u8], steps: &[usize], answers_head: bool) -> (ResponseHead, usize) {
    let (mut lines, mut at, mut round) = (Lines::BEGIN, 0, 0);
    while at < text.len() {
        let end = text.len().min(at + steps[round.min(steps.len() - 1)]);
        round += 1;
        while at < end && !lines.is_over() {
            let len = (end - at).min(WINDOW as usize);
            let mut window = [[b'\n', b'a', 0xff][at % 3]; (WINDOW + SLACK) as usize];
            window[..len].copy_from_slice(&text[at..at + len]);
            let used = lines.feed::<Plain>(&window, len as u32) as usize;
            assert!(used == len || lines.is_over(), "{used} of {len} bytes, and the head is not over");
            at += used;
        }
        if lines.is_over() {
            break;
        }
    }
    let mut out = ResponseHead::default();
    lines.head(answers_head, &mut out);
    (out, at)
}

/// Compares both ways of reading; an unfinished head may be known as broken a little earlier, and then is.
fn check(text: &[u8], steps: &[usize], answers_head: bool) {
    let mut whole = answer_to(text, answers_head);
    whole.length = whole.length.min(1 << 31);
    let (pieces, read) = in_pieces(text, steps, answers_head);
    let show = || format!("{:?} in {steps:?}", String::from_utf8_lossy(text));
    if whole.verdict == verdict::INCOMPLETE && pieces.verdict == verdict::PIN {
        for end in ["", "0", "00", "\n", "\r\n", "00 OK\r\n", " \r\n", ": 1\r\n", "1: 1\r\n"] {
            let longer = [text, end.as_bytes(), b"\r\n\r\n"].concat();
            assert_ne!(answer_to(&longer, answers_head).verdict, verdict::COMPLETE, "{} and {end:?}", show());
        }
        return;
    }
    assert_eq!(pieces, whole, "{}", show());
    if whole.head_len != 0 {
        assert_eq!(read, whole.head_len as usize, "{}", show());
    }
}

#[test]
fn every_cut_of_every_head() {
    for text in RESPONSES {
        for answers_head in [false, true] {
            check(text, &[1], answers_head);
            check(text, &[text.len()], answers_head);
            for cut in 1..text.len() {
                check(text, &[cut, text.len()], answers_head);
                check(&text[..cut], &[1], answers_head);
            }
        }
    }
}

#[test]
fn damaged_heads() {
    let mut random = Random::new(0x5eed);
    for _ in 0..60_000 {
        let text = random.response();
        let steps: Vec<usize> = (0..1 + random.below(4)).map(|_| 1 + random.below(90)).collect();
        check(&text, &[1], false);
        check(&text, &steps, random.below(2) == 0);
    }
}

#[test]
fn up_to_the_limit_and_no_further() {
    let head = |len: usize| {
        let lines = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX: ";
        format!("{lines}{}\r\n\r\n", "v".repeat(len - lines.len() - 4)).into_bytes()
    };
    for steps in [&[1][..], &[4096, 1024], &[1460], &[65_536]] {
        for len in [HEAD_LIMIT as usize + 1, LIMIT as usize - 1, LIMIT as usize] {
            let (out, read) = in_pieces(&head(len), steps, false);
            assert_eq!((out.verdict, out.status, out.length, read), (verdict::COMPLETE, 200, 7, len), "{steps:?}");
        }
        let (out, read) = in_pieces(&head(LIMIT as usize + 1), steps, false);
        assert_eq!((out.verdict, out.status, read), (verdict::TOO_LONG, 200, LIMIT as usize), "{steps:?}");
    }
}
