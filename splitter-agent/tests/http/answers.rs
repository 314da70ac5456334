//! Servers that write the head of a response in several packets.

use crate::{
    stage::{Stage, V1, V2, both_families, tagged},
    support::{Bed, PORT, vip},
    wire::{TO_V1, TO_V2, Wire, request},
};
use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread::{Scope, sleep},
    time::Duration,
};

/// Between two packets.
const PAUSE: Duration = Duration::from_micros(300);

/// What a path asks for: the response, and where it is cut.
fn response(path: &str, name: &str) -> (Vec<u8>, Vec<usize>) {
    let head = |first: &str, lines: &str| format!("{first}x-version: {name}\r\n{lines}\r\n");
    let every = |text: &str, step: usize| (step..text.len()).step_by(step).collect();
    let text = match path {
        "/interim" => head("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 404 No\r\n", "Content-Length: 2\r\n") + "no",
        "/chunks" => head("HTTP/1.1 200 OK\r\n", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
        "/nothing" => head("HTTP/1.1 204 No Content\r\n", ""),
        "/flush" | "/long" | "/at-once" => {
            let size = if path == "/flush" { 5_000 } else { 30_000 };
            let filler = format!("X-Filler: {}\r\n", "f".repeat(size));
            head("HTTP/1.1 200 OK\r\n", &(filler + "Content-Length: 5\r\n")) + "hello"
        }
        _ => head("HTTP/1.1 200 OK\r\n", "Content-Length: 5\r\n") + if path == "/head" { "" } else { "hello" },
    };
    let cuts = match path {
        "/flush" => every(&text, 4_096),
        "/long" => every(&text, 1_000),
        "/at-once" => Vec::new(),
        _ => every(&text, 1),
    };
    (text.into_bytes(), cuts)
}

/// Answers the requests of a connection, one after the other.
fn serve(stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut out = Wire::from(stream.try_clone()?)?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next().transpose()? {
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let (text, cuts) = response(&path, name);
        let mut from = 0;
        for cut in cuts.into_iter().chain([text.len()]) {
            out.stream.write_all(&text[from..cut])?;
            sleep(PAUSE);
            from = cut;
        }
    }
    Ok(())
}

/// Takes connections of a backend until it is over.
fn listen<'scope>(scope: &'scope Scope<'scope, '_>, listener: TcpListener, name: &'static str, over: &'scope AtomicBool) {
    scope.spawn(move || {
        while !over.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => drop(scope.spawn(move || serve(stream, name))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(5)),
                Err(error) => panic!("{name}: {error}"),
            }
        }
    });
}

/// Sets the flag when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Byte by byte, as Go flushes long ones, in packets of a kilobyte, and in one of many segments: every request is decided, and every answer counted once.
#[test]
fn requests_are_decided_however_heads_of_responses_come() {
    let splits = both_families(&tagged(100, 0));
    let mut bed = Bed::prepare("answers", Default::default(), &splits);
    bed.servers.iter_mut().for_each(|server| *server = None);
    let over = AtomicBool::new(false);
    let listeners: Vec<TcpListener> =
        (1..=3).map(|i| bed.lab.backend(i).run(|| TcpListener::bind(("::", PORT))).expect("a namespace").expect("a free port")).collect();
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for (listener, name) in listeners.into_iter().zip(["b1", "b2", "b3"]) {
            listener.set_nonblocking(true).expect("a listener");
            listen(scope, listener, name, &over);
        }
        let stage = Stage::begin(bed, &splits, crate::stage::through());
        let asks = [("GET", "/", 200), ("GET", "/interim", 404), ("GET", "/chunks", 200), ("GET", "/nothing", 204), ("HEAD", "/head", 200)];
        let asks = asks.into_iter().chain([("GET", "/flush", 200), ("GET", "/long", 200), ("GET", "/at-once", 200)]);
        let mut sent = 0;
        for v6 in [false, true] {
            let mut wire = Wire::open(stage.lab.client(), vip(v6));
            for (method, path, status) in asks.clone() {
                for (tag, expected) in [(TO_V1, V1), (TO_V2, V2), (TO_V2, V2), (TO_V1, V1)] {
                    wire.send(request(method, path, &[tag], b""));
                    let answer = wire.answer_to(method).unwrap_or_else(|error| panic!("{path}: {error}"));
                    assert!(answer.status == status && expected.contains(&answer.version.as_str()), "{path} with {tag}: {answer:?}");
                    sent += 1;
                }
            }
        }
        if crate::stage::through().is_some() {
            return;
        }
        for name in ["web", "web6"] {
            for version in stage.service(name).versions {
                let codes: Vec<u64> = ["2xx", "4xx"].iter().map(|class| version.codes[*class]).collect();
                assert_eq!((codes, version.requests), (vec![14, 2], 16), "{name} {}", version.name);
                let answered = version.trials.ruled.answered + version.trials.drawn.answered;
                assert_eq!((answered, version.first_byte.count), (16, 16), "{name} {}", version.name);
            }
        }
        assert_eq!(sent, 64);
        for reason in ["pinned_pipeline", "pinned_response", "pinned_request"] {
            assert_eq!(stage.reason(reason), 0, "{reason}");
        }
    });
}
