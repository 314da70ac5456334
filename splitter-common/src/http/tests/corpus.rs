//! Heads for the tests: real ones, and what seeded damage makes of them. Knows nothing of the scanner.

/// As clients send them.
pub const HEADS: [&[u8]; 15] = [
    b"GET / HTTP/1.1\r\nHost: 10.9.9.9\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
    b"GET /beta/x?canary=1&v=2 HTTP/1.1\r\nHost: shop.example\r\nX-Canary: always\r\nX-Gray-Version:  v2 \r\nCookie: a=b; canary=1;uid=7\r\n\r\n",
    b"GET /static/app.js?v=1.2 HTTP/1.1\r\nHost: shop.example:8080\r\nConnection: keep-alive\r\nsec-ch-ua: \"Chromium\";v=\"126\"\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\nAccept: text/html,*/*;q=0.8\r\nCookie: _ga=GA1.1.123; theme=\"dark\"; canary=\"1\"; uid=long-user-id-0123456789\r\n\r\n",
    b"POST /cart HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 27\r\n\r\nfield=value&GET / HTTP/1.1\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-Canary: never\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"\r\nHEAD /x HTTP/1.0\r\nConnection: keep-alive\r\nX-User-Id: alice\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX_Under.score!~^: 1\r\nX-Gray-Version:\t\tv22\t\r\n\r\n",
    b"PUT http://shop.example/beta?x=y&canary&v=22 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 2147483648\r\nExpect: 100-continue\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI /x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xe6\x97\xa5?canary=\xff HTTP/1.1\r\nHost: [2001:db8::1]:80\r\nX-Canary: \xc3\xa4\r\nx-user-id: a-longer-user-id-of-40-bytes-0123456789a\r\n\r\n",
    b"DELETE /bet HTTP/1.1\r\nhost: x\r\nCOOKIE: canary=2\r\nCOOKIE: canary=1; uid=; uid=9\r\nx-canary:\r\nX-Canary: always\r\n\r\n",
    b"GET https://a?canary=3 HTTP/1.0\r\nX-Padding-Header-With-A-Long-Name: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n\r\n",
];

/// As servers send them.
pub const RESPONSES: [&[u8]; 34] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 30 Nov 2026 10:00:00 GMT\r\nContent-Type: text/html; charset=utf-8\r\ncontent-length:\t 0012 \t\r\nConnection: keep-alive\r\nETag: \"5f\"\r\nTest: 1\r\nTransfer: 2\r\n\r\n0123456789ab",
    b"HTTP/1.1 200 OK\r\ntRANSFER-eNCODING: Chunked \r\nX-A: \xc3\xa4\tb\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 Fine\tday \xc3\xa4\r\n\r\nuntil I close",
    b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload; as=style\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 700\r\n\r\n",
    b"HTTP/1.1 500 Oh\r\nContent-Length: 2147483647\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 00000000000000000001\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunke\r\nTransfer-Encodings: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Lengt: x\r\nContent-Lengths: y\r\nContent-(: z\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConten\r\nTransfe\r\nc\r\nt\r\nc:\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon here\r\nA : b\r\n!: \r\n\r\n",
    b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 5\n\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2p1\r\nmore\r\n\r\n",
];

/// What breaks heads.
const PIECES: [&[u8]; 50] = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b" ",
    b"\t",
    b"\0",
    b"\x7f",
    b"\x0b",
    b"\x1f",
    b"\x80",
    b"\xff",
    b":",
    b" :",
    b";",
    b"; ",
    b"=",
    b"&",
    b"?",
    b"/",
    b",",
    b"\"",
    b"^",
    b"~",
    b"0",
    b"a",
    b"A",
    b"-",
    b"Host: b\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"X-Canary: always\r\n",
    b"X-Canary : always\r\n",
    b"Cookie: canary=1\r\n",
    b"canary=1; ",
    b"X-Gray-Version: v2.1\r\n",
    b"X-User-Id: bob\r\n",
    b"Upgrade: h2c\r\n",
    b"X^: 1\r\n",
    b"X~: 1\r\n",
    b"HTTP/1.0\r\n",
    b"\r\n\r\n",
    b"PRI ",
    b"CONNECT ",
];

/// xorshift64* (Vigna 2016).
pub struct Random(u64);

impl Random {
    /// The seed is not 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize) % limit.max(1)
    }

    /// A head, whole or cut, sound or damaged.
    pub fn head(&mut self) -> Vec<u8> {
        let mut text = HEADS[self.below(HEADS.len())].to_vec();
        for _ in 0..[0, 1, 1, 2, 3, 5][self.below(6)] {
            self.damage(&mut text);
        }
        if self.below(4) == 0 {
            text.truncate(self.below(text.len() + 1));
        }
        text
    }

    /// The same of a response.
    pub fn response(&mut self) -> Vec<u8> {
        let mut text = RESPONSES[self.below(RESPONSES.len())].to_vec();
        for _ in 0..[0, 1, 1, 2, 3][self.below(5)] {
            self.damage(&mut text);
        }
        if self.below(4) == 0 {
            text.truncate(self.below(text.len() + 1));
        }
        text
    }

    fn damage(&mut self, text: &mut Vec<u8>) {
        let piece = PIECES[self.below(PIECES.len())];
        let at = self.below(text.len() + 1);
        let line = text[..at].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let next = text[at..].iter().position(|b| *b == b'\n').map_or(text.len(), |i| at + i + 1);
        match self.below(9) {
            0 | 1 => drop(text.splice(at..at, piece.iter().copied())),
            // Whole lines mostly make other sense, not none.
            2 | 3 => drop(text.splice(line..line, piece.iter().copied())),
            4 => drop(text.splice(at..(at + piece.len()).min(text.len()), piece.iter().copied())),
            5 => drop(text.drain(at..(at + self.below(12)).min(text.len()))),
            6 => drop(text.drain(line..next)),
            7 => {
                let copy = text[line..next].to_vec();
                let to = text[..line].iter().rposition(|b| *b == b'\n').map_or(line, |i| i + 1);
                text.splice(to..to, copy);
            }
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}
