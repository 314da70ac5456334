//! As much of HTTP/1.1 as the lab's server and client speak to each other: heads without folding; bodies by Content-Length or in chunks.

/// Byte `i` of every `/bytes/N` body: a prime period, so that a lost or doubled segment shows.
pub fn body_byte(i: u64) -> u8 {
    (i % 251) as u8
}

/// A request as far as the server cares.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub keep_alive: bool,
    /// It asks for another protocol.
    pub upgrade: bool,
    /// As it came, without the empty line.
    pub head: String,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Bytes of head and body together.
    pub length: usize,
}

/// A response head as far as the client cares.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub version: String,
    /// 0 when the body is chunked.
    pub body_length: u64,
    pub chunked: bool,
    pub keep_alive: bool,
    pub head_length: usize,
}

/// Bytes that no HTTP/1.1 message begins with.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// The end of the head, or `None` while it is incomplete.
fn head(bytes: &[u8]) -> Result<Option<(&str, usize)>, Malformed> {
    const LONGEST: usize = 64 * 1024;
    match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(end) => Ok(Some((str::from_utf8(&bytes[..end]).map_err(|_| Malformed)?, end + 4))),
        None if bytes.len() > LONGEST => Err(Malformed),
        None => Ok(None),
    }
}

fn headers(head: &str) -> impl Iterator<Item = (&str, &str)> {
    head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value.trim()))
}

struct Common {
    content_length: u64,
    chunked: bool,
    keep_alive: bool,
}

fn common(head: &str) -> Result<Common, Malformed> {
    let mut common = Common { content_length: 0, chunked: false, keep_alive: true };
    for (name, value) in headers(head) {
        if name.eq_ignore_ascii_case("content-length") {
            common.content_length = value.parse().map_err(|_| Malformed)?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            common.chunked = true;
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            common.keep_alive = false;
        }
    }
    Ok(common)
}

/// The first request in `bytes`; `None` until it is there with its body. Empty lines before it belong to it (RFC 9112, 2.2).
pub fn parse_request(bytes: &[u8]) -> Result<Option<Request>, Malformed> {
    let empty = bytes.chunks(2).take_while(|line| *line == b"\r\n").count() * 2;
    let bytes = &bytes[empty..];
    let Some((head, head_length)) = head(bytes)? else { return Ok(None) };
    let mut words = head.split("\r\n").next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.1"), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err(Malformed);
    };
    // CONNECT names an authority.
    if !path.starts_with('/') && method != "CONNECT" {
        return Err(Malformed);
    }
    let Common { content_length, chunked, keep_alive } = common(head)?;
    let rest = &bytes[head_length..];
    let mut body = Vec::new();
    let used = if chunked {
        let (used, done) = Chunks::default().take(rest, &mut |data| body.extend_from_slice(data))?;
        done.then_some(used)
    } else {
        let length = usize::try_from(content_length).map_err(|_| Malformed)?;
        body.extend_from_slice(&rest[..length.min(rest.len())]);
        (rest.len() >= length).then_some(length)
    };
    let upgrade = headers(head).any(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
    Ok(used.map(|used| Request {
        method: method.into(),
        path: path.into(),
        keep_alive,
        upgrade,
        head: head.into(),
        body,
        length: empty + head_length + used,
    }))
}

/// Whether a whole head stands in `bytes` whose sender waits for 100 before it sends the body (RFC 9110, 10.1.1).
pub fn wants_continue(bytes: &[u8]) -> bool {
    let Ok(Some((head, _))) = head(bytes) else { return false };
    headers(head).any(|(name, value)| name.eq_ignore_ascii_case("expect") && value.eq_ignore_ascii_case("100-continue"))
}

/// Decoder of a chunked body (RFC 9112, 7.1), fed in pieces; extensions and trailers are skipped.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    part: Part,
    left: u64,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Size,
    Data,
    /// The line end behind the data.
    End,
    Trailer,
}

impl Chunks {
    /// Hands on what is data; how many bytes were used, and whether the body ended with them.
    pub fn take(&mut self, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> Result<(usize, bool), Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            if self.part == Part::Data {
                let length = (bytes.len() - at).min(usize::try_from(self.left).map_err(|_| Malformed)?);
                data(&bytes[at..at + length]);
                at += length;
                self.left -= length as u64;
                if self.left == 0 {
                    self.part = Part::End;
                }
                continue;
            }
            self.line.push(bytes[at]);
            at += 1;
            if self.line.len() > 1_024 {
                return Err(Malformed);
            }
            if self.line.ends_with(b"\r\n") {
                let line = std::mem::take(&mut self.line);
                if self.line_ends(&line[..line.len() - 2])? {
                    return Ok((at, true));
                }
            }
        }
        Ok((at, false))
    }

    /// Whether the body ended.
    fn line_ends(&mut self, line: &[u8]) -> Result<bool, Malformed> {
        match self.part {
            Part::Size => {
                let text = str::from_utf8(line).map_err(|_| Malformed)?;
                self.left = u64::from_str_radix(text.split(';').next().unwrap_or_default().trim(), 16).map_err(|_| Malformed)?;
                self.part = if self.left == 0 { Part::Trailer } else { Part::Data };
            }
            Part::End if line.is_empty() => self.part = Part::Size,
            Part::Trailer if line.is_empty() => return Ok(true),
            Part::Trailer => {}
            Part::End | Part::Data => return Err(Malformed),
        }
        Ok(false)
    }
}

/// The head of a response; `None` until it is complete.
pub fn parse_response(bytes: &[u8]) -> Result<Option<Response>, Malformed> {
    let Some((head, head_length)) = head(bytes)? else { return Ok(None) };
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok()).ok_or(Malformed)?;
    let Common { content_length, chunked, keep_alive } = common(head)?;
    let version = headers(head).find(|(name, _)| name.eq_ignore_ascii_case("x-version")).map_or("", |(_, value)| value);
    Ok(Some(Response { status, version: version.into(), body_length: content_length, chunked, keep_alive, head_length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_waits_for_its_body() {
        let whole = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabcGET";
        for cut in 0..whole.len() - 3 {
            assert_eq!(parse_request(&whole[..cut]), Ok(None), "cut at {cut}");
        }
        let request = parse_request(whole).unwrap().unwrap();
        assert_eq!((request.path.as_str(), request.keep_alive, request.length), ("/x", false, whole.len() - 3));
        assert_eq!((request.method.as_str(), request.body.as_slice()), ("POST", b"abc".as_slice()));
    }

    #[test]
    fn chunks_in_any_pieces() {
        let whole = b"5;x=y\r\nhello\r\nc\r\n, wide\r\nworl\r\n1\r\nd\r\n0\r\nafter: all\r\n\r\nGET";
        for size in [1, 2, 3, 7, 100] {
            let (mut chunks, mut body, mut used, mut done) = (Chunks::default(), Vec::new(), 0, false);
            for piece in whole.chunks(size) {
                if !done {
                    let (more, end) = chunks.take(piece, &mut |data| body.extend_from_slice(data)).unwrap();
                    (used, done) = (used + more, end);
                }
            }
            assert_eq!((body.as_slice(), used, done), (b"hello, wide\r\nworld".as_slice(), whole.len() - 3, true), "by {size}");
        }
        assert!(Chunks::default().take(b"zz\r\n", &mut |_| ()).is_err());
        assert!(Chunks::default().take(b"1\r\nabc", &mut |_| ()).is_ok() && Chunks::default().take(b"1\r\nab\r\n", &mut |_| ()).is_err());
    }

    #[test]
    fn who_waits_for_100_is_seen() {
        assert!(wants_continue(b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\ncontent-length: 3\r\n\r\n"));
        assert!(!wants_continue(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\n") && !wants_continue(b"GET / HTTP/1.1\r\n\r\n"));
    }

    #[test]
    fn response_names_its_version() {
        let bytes = b"HTTP/1.1 503 Service Unavailable\r\nX-Version: v2\r\nContent-Length: 12\r\n\r\n";
        let response =
            Response { status: 503, version: "v2".into(), body_length: 12, chunked: false, keep_alive: true, head_length: bytes.len() };
        assert_eq!(parse_response(bytes), Ok(Some(response)));
    }

    #[test]
    fn empty_lines_before_a_request_belong_to_it() {
        let late = parse_request(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET").unwrap().unwrap();
        assert_eq!((late.method.as_str(), late.length), ("GET", 31));
        assert_eq!(parse_request(b"\r\n\r\n"), Ok(None));
    }

    #[test]
    fn rubbish_is_refused() {
        assert_eq!(parse_request(b"hello\r\n\r\n"), Err(Malformed));
        assert_eq!(parse_response(b"SSH-2.0\r\n\r\n"), Err(Malformed));
        assert_eq!(parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), Err(Malformed));
    }
}
