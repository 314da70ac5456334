//! Chunked bodies: the first byte says how many lengths of pieces follow, the rest is the body.
//!
//! The end must be found to the byte, whatever the pieces are, and what is odd must be odd for a parser that reads the body whole.

use crate::bytes::Bytes;
use splitter_common::http::{
    Plain,
    chunks::{Chunks, WINDOW},
    reference::body::{Outcome, naive},
};

/// See the module.
pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let count = input.byte() % 8;
    let steps: Vec<usize> = input.take(count.into()).iter().map(|step| usize::from(*step) + 1).collect();
    let steps = if steps.is_empty() { vec![WINDOW as usize] } else { steps };
    let body = input.0;
    assert_eq!(followed(body, &steps), naive(body), "in {steps:?}");
}

/// In windows of the given lengths, data passed over in the same steps.
fn followed(body: &[u8], steps: &[usize]) -> Outcome {
    let (mut chunks, mut at) = (Chunks::default(), 0);
    for (round, step) in steps.iter().cycle().enumerate() {
        if chunks.is_odd() {
            return Outcome::Odd;
        } else if chunks.is_end() {
            return Outcome::End(at);
        } else if at == body.len() {
            return Outcome::Open;
        }
        let have = (body.len() - at).min(*step);
        if chunks.skip() > 0 {
            let passed = have.min(chunks.skip() as usize);
            chunks.pass(passed as u32);
            at += passed;
            continue;
        }
        let mut window = [[b'\n', b'0', b'\r', 0xff][round % 4]; WINDOW as usize];
        let len = have.min(WINDOW as usize);
        window[..len].copy_from_slice(&body[at..at + len]);
        let used = chunks.feed::<Plain>(&window, len as u32) as usize;
        assert!(used <= len && (used > 0 || chunks.skip() > 0 || chunks.is_odd() || chunks.is_end()), "{used} of {len}");
        at += used;
    }
    unreachable!("the steps never end")
}
