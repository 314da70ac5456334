//! Heads: what the kernel's scanner reads of a request, and what is changed on the way.

use crate::snapshot::Service;
use hyper::{
    HeaderMap, Request, Version,
    header::{self, HeaderName, HeaderValue},
};
use splitter_common::{
    abi::{Addr, BASELINE_RULED, service_flag},
    decide::{self, NO_RULE},
    http::{self, HEAD_LIMIT, HeadText, Plain, RequestHead, Scan, verdict},
};
use std::{cell::RefCell, fmt::Write as _, io::Write as _};

thread_local! {
    static TEXT: RefCell<Box<HeadText>> = RefCell::new(Box::new([0; size_of::<HeadText>()]));
}

/// How a head is answered that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Two parsers could read it in two ways.
    Malformed,
    /// Longer than is read, and the service wants none such.
    TooLong,
}

/// Reads a request as the kernel would. `at`: what stands for its place in the connection.
pub fn read<B>(request: &Request<B>, service: &Service, client: &Addr, at: u32) -> Result<decide::Request, Refusal> {
    TEXT.with_borrow_mut(|text| {
        let Some(len) = write(request, &mut text[..HEAD_LIMIT as usize]) else { return too_long(service, at) };
        let (mut scan, mut out) = (Scan::default(), RequestHead::default());
        http::request::<Plain>(text, len as u32, service.rules.as_deref(), client, &mut scan, &mut out);
        match out.verdict {
            verdict::COMPLETE | verdict::PIN => {
                let ruled = service.rules.as_deref().and_then(|rules| http::rule(rules, out.facts)).unwrap_or(NO_RULE);
                Ok(decide::Request { at, key: (out.keyed != 0).then_some(out.key), ruled })
            }
            verdict::TOO_LONG | verdict::INCOMPLETE => too_long(service, at),
            _ => Err(Refusal::Malformed),
        }
    })
}

fn too_long(service: &Service, at: u32) -> Result<decide::Request, Refusal> {
    let flags = service.record.flags;
    if flags & service_flag::LONG_REFUSED != 0 {
        return Err(Refusal::TooLong);
    }
    let ruled = if flags & service_flag::LONG_BY_WEIGHT != 0 { NO_RULE } else { BASELINE_RULED };
    Ok(decide::Request { at, key: None, ruled })
}

/// The head as it would stand on the wire; `None`: there is no room.
fn write<B>(request: &Request<B>, text: &mut [u8]) -> Option<usize> {
    let room = text.len();
    let mut rest = text;
    let minor = if request.version() == Version::HTTP_10 { 0 } else { 1 };
    write!(rest, "{} {} HTTP/1.{minor}\r\n", request.method(), request.uri()).ok()?;
    for (name, value) in request.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            rest.write_all(part).ok()?;
        }
    }
    rest.write_all(b"\r\n").ok()?;
    Some(room - rest.len())
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// Removes what holds for one connection only (RFC 9110, 7.6.1).
pub fn strip(fields: &mut HeaderMap) {
    let lists = fields.get_all(header::CONNECTION).iter().filter_map(|list| list.to_str().ok());
    let named: Vec<HeaderName> = lists.flat_map(|list| list.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    // What frames the message, and whom it is for, is not for one connection.
    for name in named.iter().filter(|name| ![header::HOST, header::CONTENT_LENGTH].contains(name)) {
        fields.remove(name);
    }
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE, header::PROXY_AUTHORIZATION] {
        fields.remove(name);
    }
    fields.remove("keep-alive");
    fields.remove("proxy-connection");
}

/// Makes a request the node's: `client` is the value that stands for the client, `host` what it connected to.
pub fn forward(fields: &mut HeaderMap, client: &HeaderValue, host: &HeaderValue) {
    strip(fields);
    let mut chain = String::new();
    for known in fields.get_all(FORWARDED_FOR) {
        if let Ok(known) = known.to_str() {
            let _ = write!(chain, "{known}, ");
        }
    }
    let value = if chain.is_empty() {
        client.clone()
    } else {
        chain.push_str(client.to_str().unwrap_or_default());
        HeaderValue::from_str(&chain).unwrap_or_else(|_| client.clone())
    };
    fields.insert(FORWARDED_FOR, value);
    fields.insert(FORWARDED_PROTO, HTTPS);
    let named = fields.entry(header::HOST).or_insert_with(|| host.clone()).clone();
    fields.entry(FORWARDED_HOST).or_insert(named);
}
