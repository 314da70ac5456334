//! Tests of the scanner. `shapes`: what is refused and pinned; `rules`: predicates and keys; `differential`: against another parser;
//! `chunked`: bodies; `pieces`: heads of responses in several packets.

mod chunked;
mod corpus;
mod differential;
mod pieces;
mod rules;
mod shapes;
mod whole;

use super::{
    reference::{Condition, compile},
    *,
};
use crate::abi::{Addr, mapped};
use std::{boxed::Box, vec::Vec};

const CLIENT: Addr = mapped([192, 0, 2, 7]);

/// The text as the scanner takes it, with something behind it.
fn padded(text: &[u8], filler: u8) -> Box<HeadText> {
    let mut padded = Box::new([filler; HEAD_LIMIT as usize + HEAD_SLACK as usize]);
    let len = text.len().min(padded.len());
    padded[..len].copy_from_slice(&text[..len]);
    padded
}

fn read_for(text: &[u8], rules: Option<&HttpRules>, client: Addr) -> RequestHead {
    // The first result is read with clean scratch memory, the others with what that left.
    let mut scan = Scan::default();
    let mut results = [0, 0xff, b'\n', b'a'].map(|filler| {
        let mut out = RequestHead::default();
        request::<Plain>(&padded(text, filler), text.len() as u32, rules, &client, &mut scan, &mut out);
        out
    });
    assert!(results.iter().all(|out| *out == results[0]), "what stands behind the text, or in the scratch memory, decides: {results:?}");
    std::mem::take(&mut results[0])
}

fn read(text: &[u8]) -> RequestHead {
    read_for(text, None, CLIENT)
}

fn answer_to(text: &[u8], head: bool) -> ResponseHead {
    let results = [0, 0xff, b'\n', b'1'].map(|filler| {
        let mut out = ResponseHead::default();
        response::<Plain>(&padded(text, filler), text.len() as u32, head, &mut Scan::default(), &mut out);
        out
    });
    assert!(results.iter().all(|out| *out == results[0]), "what stands behind the text decides: {results:?}");
    results[0]
}

fn answer(text: &[u8]) -> ResponseHead {
    answer_to(text, false)
}

/// A request with these lines beside its `Host`.
fn with(lines: &str) -> Vec<u8> {
    std::format!("GET /a HTTP/1.1\r\nHost: h.example\r\n{lines}\r\n").into_bytes()
}

fn refused(text: &[u8]) -> bool {
    read(text) == RequestHead { verdict: verdict::REFUSE, ..Default::default() }
}
