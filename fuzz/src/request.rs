//! Heads of requests. The first byte chooses rules and pieces.
//!
//! The scanner of the kernel must say what `httparse` and the plainest reading of the rules say, but for shapes that it refuses on purpose; the same
//! whatever stands behind the text; and the same of a head that comes in pieces.

use crate::heads;

/// See the module.
pub fn run(input: &[u8]) {
    if let Some((choice, text)) = input.split_first() {
        heads::check(text, *choice);
    }
}
