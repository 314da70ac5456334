//! One HTTP/1.1 request on a connection of its own, in plain text.

use super::OutsideError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Bytes,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest answer read, bytes.
const ANSWER: usize = 1 << 20;

pub struct Request<'a> {
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    pub headers: &'a [(String, String)],
    pub body: String,
    /// For the Host header, unless `headers` has one.
    pub host: &'a str,
}

/// `http://HOST[:PORT]/PATH` -> `HOST:PORT` and `/PATH`.
pub fn split(url: &str) -> Option<(String, &str)> {
    let rest = url.strip_prefix("http://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // A colon after the closing bracket of an IPv6 address, if any, is a port's.
    let has_port = authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    (!authority.starts_with(':')).then_some((authority, if path.is_empty() { "/" } else { path }))
}

/// Status and body of the answer.
pub async fn send(address: &str, request: Request<'_>) -> Result<(u16, String), OutsideError> {
    let failed = |error: &dyn std::fmt::Display| OutsideError::Http(format!("{address}: {error}"));
    let stream = TcpStream::connect(address).await.map_err(|error| OutsideError::Connect(address.into(), error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let connection = tokio::spawn(connection);
    let mut builder = hyper::Request::builder().method(request.method).uri(request.path);
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        builder = builder.header(HOST, request.host);
    }
    if !request.body.is_empty() {
        builder = builder.header(CONTENT_LENGTH, request.body.len());
    }
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    let exchange = async {
        let built = builder.body(Full::new(Bytes::from(request.body))).map_err(|e| failed(&e))?;
        let answer = sender.send_request(built).await.map_err(|e| failed(&e))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER).collect().await.map_err(|e| failed(&e))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let answer = exchange.await;
    connection.abort();
    answer
}

/// Posts JSON to a URL.
pub async fn post(url: &str, body: String) -> Result<(u16, String), OutsideError> {
    let (address, path) = parts(url)?;
    let headers = [(CONTENT_TYPE.to_string(), "application/json".to_owned())];
    send(&address, Request { method: "POST", path, headers: &headers, body, host: &address }).await
}

pub async fn get(url: &str) -> Result<(u16, String), OutsideError> {
    let (address, path) = parts(url)?;
    send(&address, Request { method: "GET", path, headers: &[], body: String::new(), host: &address }).await
}

fn parts(url: &str) -> Result<(String, &str), OutsideError> {
    split(url).ok_or_else(|| OutsideError::Http(format!("{url} is not http://HOST:PORT/PATH")))
}
