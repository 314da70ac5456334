//! A client of the agent's admin API, where starting the CLI would cost more than what is measured. One connection a request.

use crate::http::parse_response;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent at a socket.
#[derive(Clone, Debug)]
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    pub fn new(socket: &Path) -> Admin {
        Admin { socket: socket.into() }
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Value> {
        self.call("GET", "/v1/status", "")
    }

    /// `POST /v1/explain`.
    pub fn explain(&self, request: &Value) -> Result<Value> {
        self.call("POST", "/v1/explain", &request.to_string())
    }

    /// Sets weights; returns what the agent says of the change. `dry_run` also answers the generation, whatever the size of the policy.
    pub fn weights(&self, service: &str, weights: &[(&str, u32)], dry_run: bool) -> Result<Value> {
        let weights: serde_json::Map<String, Value> = weights.iter().map(|(name, weight)| ((*name).into(), (*weight).into())).collect();
        let body = json!({"weights": weights, "dry_run": dry_run}).to_string();
        self.call("PUT", &format!("/v1/services/{service}/weights"), &body)
    }

    /// The generation that the kernel runs; `None` as long as the agent does not answer or knows no such service.
    pub fn generation(&self, service: &str, version: &str) -> Option<u64> {
        let answer = self.weights(service, &[(version, 1)], true).ok()?;
        answer["generation"].as_u64().filter(|generation| *generation > 0)
    }

    /// Says a word to a rollout: `start`, `abort`, ...
    pub fn rollout(&self, service: &str, word: &str) -> Result<Value> {
        self.call("POST", &format!("/v1/rollouts/{service}/{word}"), "{}")
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket).with_context(|| format!("no agent answers on {}", self.socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: splitter\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        let response = loop {
            let got = stream.read(&mut chunk)?;
            ensure!(got > 0, "the agent's answer to {method} {path} broke off");
            bytes.extend_from_slice(&chunk[..got]);
            match parse_response(&bytes) {
                Ok(Some(response)) => break response,
                Ok(None) => {}
                Err(_) => bail!("the agent's answer to {method} {path} is not HTTP"),
            }
        };
        let whole = response.head_length + usize::try_from(response.body_length)?;
        while bytes.len() < whole {
            let got = stream.read(&mut chunk)?;
            ensure!(got > 0, "the agent's answer to {method} {path} broke off");
            bytes.extend_from_slice(&chunk[..got]);
        }
        let body = &bytes[response.head_length..whole];
        ensure!(response.status == 200, "{method} {path}: {} {}", response.status, String::from_utf8_lossy(body));
        serde_json::from_slice(body).with_context(|| format!("{method} {path}: odd answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Answers one request with `answer`; returns what was asked.
    fn once(answer: &'static str, ask: impl FnOnce(&Admin) -> Result<Value>) -> (String, Result<Value>) {
        let socket = std::env::temp_dir().join(format!("splitter-admin-{}-{}", std::process::id(), answer.len()));
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            // In two pieces.
            let (first, second) = answer.split_at(answer.len() - 3);
            stream.write_all(first.as_bytes()).unwrap();
            stream.write_all(second.as_bytes()).unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let result = ask(&Admin::new(&socket));
        let asked = server.join().unwrap();
        std::fs::remove_file(socket).unwrap();
        (asked, result)
    }

    #[test]
    fn a_change_of_weights_is_one_request() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"generation\":7}";
        let (asked, result) = once(answer, |admin| admin.weights("shop", &[("v2", 5)], true));
        assert_eq!(result.unwrap()["generation"], 7);
        assert!(asked.starts_with("PUT /v1/services/shop/weights HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with(r#"{"dry_run":true,"weights":{"v2":5}}"#), "{asked}");
    }

    #[test]
    fn a_refusal_is_an_error_with_its_words() {
        let (_, result) = once("HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\n\r\n{\"error\":\"no\"}", Admin::status);
        assert_eq!(result.unwrap_err().to_string(), r#"GET /v1/status: 404 {"error":"no"}"#);
    }
}
