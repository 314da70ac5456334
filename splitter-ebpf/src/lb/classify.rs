//! Whether an endpoint is any service's: the question that most packets end with.

use crate::env::Env;
use splitter_common::filter::{self, Role};

/// What the filter says of an endpoint: not ours, of layer 4, of an http service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    No,
    Yes,
    Http,
}

/// Asks the filter. `port`: as loaded; `words`: in network order.
#[inline(always)]
pub fn classify<E: Env>(env: &E, role: Role, words: &[u32], port: u16, proto: u32) -> Known {
    let (word, bits) = filter::bits(role, words, port, proto as u8);
    let word = env.filter_word(word);
    if word & bits != bits {
        return Known::No;
    }
    let http = filter::http(bits);
    if word & http == http { Known::Http } else { Known::Yes }
}
