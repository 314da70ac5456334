//! A chunked body, read whole and line by line.

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Bytes of the body.
    End(usize),
    Odd,
    Open,
}

/// The whole body at once.
pub fn naive(body: &[u8]) -> Outcome {
    let mut at = 0;
    loop {
        let line = match line(&body[at..]) {
            Ok(line) => line,
            Err(outcome) => return if outcome == Outcome::Open && !could_be_size(&body[at..]) { Outcome::Odd } else { outcome },
        };
        let Some(size) = size(line) else { return Outcome::Odd };
        at += line.len() + 2;
        if size == 0 {
            return trailers(body, at);
        }
        match body.get(at + size..) {
            None => return Outcome::Open,
            Some(rest) if rest.starts_with(b"\r\n") => at += size + 2,
            Some(rest) => return if b"\r\n".starts_with(rest) { Outcome::Open } else { Outcome::Odd },
        }
    }
}

fn trailers(body: &[u8], mut at: usize) -> Outcome {
    loop {
        match line(&body[at..]) {
            Ok([]) => return Outcome::End(at + 2),
            Ok(line) if is_field(line, false) => at += line.len() + 2,
            Ok(_) => return Outcome::Odd,
            Err(Outcome::Open) if !is_field(body[at..].strip_suffix(b"\r").unwrap_or(&body[at..]), !body.ends_with(b"\r")) => {
                // A lone CR begins the last line.
                return if &body[at..] == b"\r" { Outcome::Open } else { Outcome::Odd };
            }
            Err(outcome) => return outcome,
        }
    }
}

/// Whether a line is a field line (RFC 9112, 5), or may become one.
fn is_field(line: &[u8], growing: bool) -> bool {
    let name = line.split(|b| *b == b':').next().unwrap_or_default();
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let named = name.iter().all(token) && (growing && name.len() == line.len() || !name.is_empty());
    named && (growing || name.len() < line.len())
}

/// Up to CR LF; every other control byte is odd.
fn line(text: &[u8]) -> Result<&[u8], Outcome> {
    let Some(end) = text.iter().position(|b| b.is_ascii_control() && *b != b'\t') else { return Err(Outcome::Open) };
    match &text[end..] {
        [b'\r', b'\n', ..] => Ok(&text[..end]),
        b"\r" => Err(Outcome::Open),
        _ => Err(Outcome::Odd),
    }
}

fn size(line: &[u8]) -> Option<usize> {
    let digits = line.split(|b| *b == b';').next()?;
    let text = std::str::from_utf8(digits).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let significant = plain.then(|| text.trim_start_matches('0'))?;
    let size = if significant.is_empty() { 0 } else { u128::from_str_radix(significant, 16).ok()? };
    (size < 1 << 31).then_some(size as usize)
}

/// Whether an unfinished line may become a size.
fn could_be_size(text: &[u8]) -> bool {
    text.is_empty() || size(text.strip_suffix(b"\r").unwrap_or(text)).is_some()
}
