//! A stand-in for the agent: its socket, answers as a test wants them, and the bad manners of a real one.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

pub const SPLITTER: &str = env!("CARGO_BIN_EXE_splitter");

pub enum Reply {
    Json(u16, String),
    /// Bytes that are no HTTP.
    Noise,
    /// The connection ends without an answer.
    Close,
    /// ... in the middle of one.
    Half,
    /// No answer for some seconds.
    Hang,
}

pub fn ok(body: impl ToString) -> Reply {
    Reply::Json(200, body.to_string())
}

pub fn refused(status: u16, error: &str) -> Reply {
    Reply::Json(status, serde_json::json!({ "error": error }).to_string())
}

/// Ends when it is dropped; its socket stays in the folder.
pub struct Agent {
    socket: PathBuf,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// `reply`: for `METHOD TARGET`.
    pub fn start(socket: &Path, mut reply: impl FnMut(&str) -> Reply + Send + 'static) -> Agent {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        let end = Arc::new(AtomicBool::new(false));
        let ends = end.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                serve(stream, &mut reply);
            }
        });
        Agent { socket: socket.to_owned(), end, thread: Some(thread) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: UnixStream, reply: &mut impl FnMut(&str) -> Reply) {
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    let Some(Ok(first)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let first = first.trim_end_matches(" HTTP/1.1").to_owned();
    // A requester that went away does not want the answer.
    let _ = match reply(&first) {
        Reply::Json(status, body) => write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        Reply::Noise => write!(stream, "SSH-2.0-OpenSSH_9.2\r\n"),
        Reply::Half => write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{{"),
        Reply::Close => Ok(()),
        Reply::Hang => {
            std::thread::sleep(std::time::Duration::from_secs(3));
            Ok(())
        }
    };
}

/// Runs the command line with this socket.
pub fn splitter(socket: &Path, words: &[&str]) -> Output {
    Command::new(SPLITTER).env("SPLITTER_ADMIN", socket).env_remove("NO_COLOR").args(words).output().expect("splitter runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A status of one service with two versions.
pub fn status(name: &str) -> String {
    let backend = |address: &str| serde_json::json!({"address": address, "id": 1, "state": "ready", "suspect": false});
    let latency = serde_json::json!({"count": 0, "p50": null, "p90": null, "p99": null});
    let version = |version: &str| {
        serde_json::json!({
            "name": version, "id": 1, "weight": 50, "weight_ratio": 0.5, "observed_ratio": null, "connections": 0, "flows": 0, "bytes_in": 0,
            "bytes_out": 0, "packets_in": 0, "packets_out": 0, "resets_client": 0, "resets_backend": 0, "refused": 0, "timeouts": 0,
            "connect": latency, "first_byte": latency, "backends": [backend("10.2.1.2:8080")],
        })
    };
    serde_json::json!({
        "agent": {"version": "0.1.0", "abi_version": 3, "pid": 1, "started": 0.0, "pins": "", "adopted": false, "xdp": "off"},
        "desired": {"source": "p.yaml", "read": 1.0, "state": "ok", "errors": [], "warnings": []},
        "applied": {"generation": 1, "at": 1.0, "services": 1, "apply_ms": 1.0, "error": null},
        "interfaces": [{"name": "eth0", "ifindex": 2, "programs": ["tcx-ingress"], "peer_redirect": false}],
        "services": [{"name": name, "mode": "tcp", "split_by": "connection", "on_weight_change": "keep", "frontends": ["10.9.9.9:80/TCP"],
            "weights_from": "policy", "versions": [version("v1"), version("v2")]}],
        "reasons": [], "tables": [],
    })
    .to_string()
}

pub fn rollout(phase: &str, step: usize, share: f64, reason: &str) -> String {
    serde_json::json!({
        "service": "web", "canary": "v2", "baseline": "v1", "phase": phase, "reason": reason, "step": step, "steps": [0.1, 0.5, 1.0],
        "share": share, "began": 1.0, "since": 1.0, "attempt": 1, "retries": 0, "pace": "fixed", "findings": [], "missing": [], "points": [],
    })
    .to_string()
}
