//! Lines of cookies: the first byte chooses as that of [`crate::request`], each line break of the rest begins another `Cookie` line in a head that is
//! sound but for them. Rules and keys about cookies must hold as the plainest reading says.

use crate::heads;

/// See the module.
pub fn run(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else { return };
    let mut head = b"GET /beta?canary=1 HTTP/1.1\r\nHost: shop.example\r\n".to_vec();
    for line in text.split(|byte| *byte == b'\n') {
        head.extend(b"Cookie: ");
        head.extend(line);
        head.extend(b"\r\n");
    }
    head.extend(b"X-User-Id: 7\r\n\r\n");
    heads::check(&head, *choice);
}
