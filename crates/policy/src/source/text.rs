//! Names and values of HTTP requests as a policy writes them: what a client can send.
//!
//! Owns their grammar and the wording of what is wrong; pure.

use splitter_common::abi::HTTP_TEXT_LIMIT;

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn short(text: &str) -> Result<(), String> {
    match text.len() {
        0 => Err("is empty; write at least one character, or `present: true` when the value does not matter".into()),
        1..=HTTP_TEXT_LIMIT => Ok(()),
        length => Err(format!("is {length} bytes long; at most {HTTP_TEXT_LIMIT} are compared")),
    }
}

/// A header's name.
pub fn header_name(text: &str) -> Result<(), String> {
    short(text)?;
    match text {
        _ if text.ends_with(':') => Err(format!("`{text}`: write the name without the colon")),
        _ if !is_token(text) => {
            Err(format!("`{text}` is not a header's name; use letters, digits and !#$%&'*+-.^_`|~ (RFC 9110, section 5.6.2)"))
        }
        _ if text.eq_ignore_ascii_case("cookie") => Err("`Cookie` holds all cookies in one line; name one with `cookie`".into()),
        _ => Ok(()),
    }
}

/// A header's value, or the begin of one. Optional white space around a value is not part of it (RFC 9110, 5.5).
pub fn header_value(text: &str) -> Result<(), String> {
    short(text)?;
    if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err("holds a control character, which no header can have".into());
    }
    if text.trim_matches([' ', '\t']) != text {
        return Err(format!("`{text}` begins or ends with white space, which is not part of a header's value; remove it"));
    }
    Ok(())
}

/// RFC 6265, 4.1.1.
pub fn cookie_name(text: &str) -> Result<(), String> {
    short(text)?;
    if is_token(text) {
        return Ok(());
    }
    Err(format!("`{text}` is not a cookie's name; use letters, digits and !#$%&'*+-.^_`|~ (RFC 6265, section 4.1.1)"))
}

/// More than RFC 6265 allows: what browsers send.
pub fn cookie_value(text: &str) -> Result<(), String> {
    short(text)?;
    if text.bytes().any(|b| b.is_ascii_control() || b == b';') || text.trim() != text {
        return Err(format!("`{text}` cannot be a cookie's value: no `;`, no control characters, no white space around it"));
    }
    Ok(())
}

/// A query parameter's name or value: compared as sent.
pub fn query(text: &str, is_name: bool) -> Result<(), String> {
    short(text)?;
    let wrong = |b: u8| !b.is_ascii_graphic() || b == b'&' || b == b'#' || is_name && b == b'=';
    if text.bytes().any(wrong) {
        return Err(format!("`{text}` cannot stand in a query; write it percent-encoded as clients send it, for example %20 for a space"));
    }
    Ok(())
}

/// A path, or the begin of one: compared as sent.
pub fn path(text: &str) -> Result<(), String> {
    short(text)?;
    if !text.starts_with('/') {
        return Err(format!("`{text}` does not begin with `/`; write `/{text}`"));
    }
    if text.contains('?') {
        return Err(format!("`{text}` holds a query; match it with `query: {{name: NAME, value: VALUE}}`"));
    }
    if text.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
        return Err(format!("`{text}` is not a path as clients send it; write it percent-encoded, for example %20 for a space"));
    }
    Ok(())
}

/// Methods are compared with case (RFC 9110, 9.1).
pub fn method(text: &str) -> Result<(), String> {
    short(text)?;
    let upper = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"].contains(&upper.as_str());
    match text {
        "CONNECT" => Err("`CONNECT` asks for a tunnel, which is never split by rules".into()),
        _ if known && upper != text => Err(format!("`{text}`: methods are written with capitals; write {upper}")),
        _ if is_token(text) => Ok(()),
        _ => Err(format!("`{text}` is not a method; write for example GET (one rule for each method)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_can_send() {
        for (found, part) in [
            (header_name("X-Canary"), ""),
            (header_name("X Canary"), "not a header's name"),
            (header_name("X-Canary:"), "without the colon"),
            (header_name("cookie"), "name one with `cookie`"),
            (header_name(&"a".repeat(256)), "256 bytes long; at most 255"),
            (header_value("two words"), ""),
            (header_value(" a"), "white space"),
            (header_value("a\nb"), "control character"),
            (header_value(""), "is empty"),
            (cookie_name("__Host-id"), ""),
            (cookie_name("a=b"), "not a cookie's name"),
            (cookie_value("a,b c"), ""),
            (cookie_value("a;b"), "no `;`"),
            (query("a%20b", false), ""),
            (query("a=b", false), ""),
            (query("a=b", true), "percent-encoded"),
            (query("a b", false), "%20"),
            (path("/beta/%C3%A4"), ""),
            (path("beta"), "write `/beta`"),
            (path("/ä"), "percent-encoded"),
            (path("/a?b=c"), "query: {name"),
            (method("GET"), ""),
            (method("PURGE"), ""),
            (method("get"), "write GET"),
            (method("GET, PUT"), "one rule for each"),
            (method("CONNECT"), "tunnel"),
        ] {
            match found {
                Ok(()) => assert_eq!(part, ""),
                Err(message) => assert!(!part.is_empty() && message.contains(part), "{message}\nshould say {part:?}"),
            }
        }
    }
}
