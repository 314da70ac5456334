//! As much of HTTP/1.1 as the lab's server and client speak to each other: heads without folding, Content-Length bodies.

/// Byte `i` of every `/bytes/N` body: a prime period, so that a lost or doubled segment shows.
pub fn body_byte(i: u64) -> u8 {
    (i % 251) as u8
}

/// A request as far as the server cares.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub keep_alive: bool,
    /// Bytes of head and body together.
    pub length: usize,
}

/// A response head as far as the client cares.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub version: String,
    pub body_length: u64,
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
    keep_alive: bool,
}

fn common(head: &str) -> Result<Common, Malformed> {
    let mut common = Common { content_length: 0, keep_alive: true };
    for (name, value) in headers(head) {
        if name.eq_ignore_ascii_case("content-length") {
            common.content_length = value.parse().map_err(|_| Malformed)?;
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            common.keep_alive = false;
        }
    }
    Ok(common)
}

/// The first request in `bytes`; `None` until it is there with its body.
pub fn parse_request(bytes: &[u8]) -> Result<Option<Request>, Malformed> {
    let Some((head, head_length)) = head(bytes)? else { return Ok(None) };
    let mut words = head.split("\r\n").next().unwrap_or_default().split(' ');
    let (Some(_), Some(path), Some("HTTP/1.1"), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err(Malformed);
    };
    let Common { content_length, keep_alive } = common(head)?;
    let length = head_length + usize::try_from(content_length).map_err(|_| Malformed)?;
    Ok((bytes.len() >= length).then(|| Request { path: path.into(), keep_alive, length }))
}

/// The head of a response; `None` until it is complete.
pub fn parse_response(bytes: &[u8]) -> Result<Option<Response>, Malformed> {
    let Some((head, head_length)) = head(bytes)? else { return Ok(None) };
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok()).ok_or(Malformed)?;
    let Common { content_length, keep_alive } = common(head)?;
    let version = headers(head).find(|(name, _)| name.eq_ignore_ascii_case("x-version")).map_or("", |(_, value)| value);
    Ok(Some(Response { status, version: version.into(), body_length: content_length, keep_alive, head_length }))
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
        let request = Request { path: "/x".into(), keep_alive: false, length: whole.len() - 3 };
        assert_eq!(parse_request(whole), Ok(Some(request)));
    }

    #[test]
    fn response_names_its_version() {
        let bytes = b"HTTP/1.1 503 Service Unavailable\r\nX-Version: v2\r\nContent-Length: 12\r\n\r\n";
        let response = Response { status: 503, version: "v2".into(), body_length: 12, keep_alive: true, head_length: bytes.len() };
        assert_eq!(parse_response(bytes), Ok(Some(response)));
    }

    #[test]
    fn rubbish_is_refused() {
        assert_eq!(parse_request(b"hello\r\n\r\n"), Err(Malformed));
        assert_eq!(parse_response(b"SSH-2.0\r\n\r\n"), Err(Malformed));
        assert_eq!(parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), Err(Malformed));
    }
}
