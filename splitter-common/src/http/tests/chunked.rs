//! Chunked bodies against a parser that reads a whole body line by line.

use super::{
    Plain,
    chunks::{Chunks, WINDOW},
    reference::body::{Outcome, naive},
};
use proptest::prelude::*;
use std::{format, vec::Vec};

/// In windows of the given lengths, data skipped in the same steps.
fn followed(body: &[u8], steps: &[u32]) -> Outcome {
    let mut chunks = Chunks::default();
    let mut at = 0;
    for step in steps.iter().cycle() {
        if chunks.is_odd() {
            return Outcome::Odd;
        } else if chunks.is_end() {
            return Outcome::End(at);
        } else if at == body.len() {
            return Outcome::Open;
        }
        let have = (body.len() - at).min(*step as usize);
        if chunks.skip() > 0 {
            let passed = have.min(chunks.skip() as usize);
            chunks.pass(passed as u32);
            at += passed;
            continue;
        }
        let mut window = [b'\n'; WINDOW as usize];
        let len = have.min(WINDOW as usize);
        window[..len].copy_from_slice(&body[at..at + len]);
        at += chunks.feed::<Plain>(&window, len as u32) as usize;
    }
    unreachable!("the steps never end")
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![4 => Just(""), 1 => Just(";a=b"), 1 => Just("; a=\"long extension, longer than a window of bytes\"")];
    let chunk = (1usize..200, prop_oneof![Just("{:x}"), Just("{:X}"), Just("000")], extension);
    let trailer = prop_oneof![Just("Expires: never\r\n"), Just("X-Long-Trailer: with more bytes than one window holds\r\n")];
    (prop::collection::vec(chunk, 0..6), prop::collection::vec(trailer, 0..3)).prop_map(|(chunks, trailers)| {
        let mut body = Vec::new();
        for (size, style, extension) in chunks {
            let digits = match style {
                "{:x}" => format!("{size:x}"),
                "{:X}" => format!("{size:X}"),
                _ => format!("000{size:x}"),
            };
            body.extend(format!("{digits}{extension}\r\n").bytes());
            body.extend((0..size).map(|i| b"0\r\n5\r\n\n;a"[i % 9]));
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n");
        trailers.iter().for_each(|trailer| body.extend(trailer.bytes()));
        body.extend(b"\r\n");
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_end_is_found_to_the_byte(body in bodies(), steps in prop::collection::vec(1u32..50, 1..8)) {
        let mut more = body.clone();
        more.extend(b"HTTP/1.1 200 OK\r\n");
        prop_assert_eq!(naive(&more), Outcome::End(body.len()));
        prop_assert_eq!(followed(&more, &steps), Outcome::End(body.len()));
    }

    #[test]
    fn damaged_bodies_are_read_as_by_a_naive_parser(
        body in bodies(),
        steps in prop::collection::vec(1u32..50, 1..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\r\n\t 0aG;:-\x00\x7f\xff"[..]), 0..3u8), 1..4),
        cut: prop::sample::Index,
    ) {
        let mut body = body;
        for (at, byte, how) in damage {
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => drop(body.remove(at)),
            }
        }
        body.truncate(cut.index(body.len() * 3 + 1).max(1));
        prop_assert_eq!(followed(&body, &steps), naive(&body), "{:?}", std::string::String::from_utf8_lossy(&body));
    }
}

#[test]
fn odd_shapes() {
    for body in [
        "\r\n",
        "g\r\n",
        "5 \r\n",
        " 5\r\n",
        "+5\r\n",
        "-5\r\n",
        "0x5\r\n",
        ";a\r\n",
        "5\n",
        "5;a\n",
        "5;a\rb\r\n",
        "80000000\r\n",
        "100000005\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "0\r\n a\r\n",
        "0\r\na\r\n",
        "0\r\na b: c\r\n",
        "0\r\n: c\r\n",
        "0\r\nGET / HTTP/1.1\r\n",
        "0\r\na\n",
        "0\r\n\n",
        "0\r\na: \u{0}\r\n",
        "0\r\n\rx",
    ] {
        assert_eq!(followed(body.as_bytes(), &[7]), Outcome::Odd, "{body:?}");
        assert_eq!(naive(body.as_bytes()), Outcome::Odd, "{body:?}");
    }
    assert_eq!(size_of::<Chunks>(), 8);
}

#[test]
fn data_is_skipped_whole() {
    let mut chunks = Chunks::default();
    let mut window = [0; WINDOW as usize];
    window[..10].copy_from_slice(b"7fffffff\r\n");
    assert_eq!((chunks.feed::<Plain>(&window, 32), chunks.skip()), (10, i32::MAX as u32));
    chunks.pass(i32::MAX as u32 - 1);
    assert_eq!((chunks.skip(), chunks.feed::<Plain>(&window, 32)), (1, 0));
    chunks.pass(2);
    assert!(chunks.is_odd() && chunks.skip() == 0);
}
