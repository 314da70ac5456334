//! Over real sockets, processes and files.

use super::*;
use std::fs;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

fn subject(backends: Vec<SocketAddr>) -> Subject {
    Subject { service: "web".into(), canary: "v2".into(), backends }
}

fn gate(check: Check) -> External {
    External { name: "g".into(), check, every: Duration::from_secs(1), timeout: Duration::from_secs(2), failures: 1 }
}

fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(String::from).to_vec()
}

/// Answers one request with this, and hands back what was asked.
async fn server(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let mut length = 0;
        // Head and body may come in two pieces.
        while !String::from_utf8_lossy(&request[..length]).split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let wanted = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            body.len() >= wanted.unwrap_or(0)
        }) {
            length += stream.read(&mut request[length..]).await.unwrap();
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (address, task)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\norders";
const BAD: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn webhooks_pass_and_fail_by_status() {
    for (answer, passed) in [(OK, Some(true)), (BAD, Some(false))] {
        let (address, asked) = server(answer).await;
        let check = Check::Webhook { url: format!("http://{address}/judge?x=1") };
        assert_eq!(ask(&gate(check), &subject(Vec::new())).await.passed, passed);
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("POST /judge?x=1 HTTP/1.1\r\n") && asked.contains("\"canary\":\"v2\""), "{asked}");
    }
    // Nobody there is no answer.
    let answer = ask(&gate(Check::Webhook { url: "http://127.0.0.1:1/".into() }), &subject(Vec::new())).await;
    assert!(answer.passed.is_none() && answer.text.contains("cannot connect to 127.0.0.1:1"), "{answer:?}");
}

#[tokio::test]
async fn probes_ask_every_backend() {
    let probe = |contains: &str| Check::Http {
        method: "POST".into(),
        path: "/order".into(),
        headers: vec![("x-test".into(), "1".into())],
        body: "one".into(),
        status: 200,
        contains: Some(contains.into()),
    };
    let ((first, asked), (second, _)) = (server(OK).await, server(OK).await);
    assert_eq!(ask(&gate(probe("order")), &subject(vec![first, second])).await.passed, Some(true));
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("POST /order HTTP/1.1\r\nhost: web\r\n") && asked.ends_with("\r\n\r\none"), "{asked}");
    let ((first, _), (second, _)) = (server(OK).await, server(BAD).await);
    let answer = ask(&gate(probe("order")), &subject(vec![first, second])).await;
    assert!(answer.passed == Some(false) && answer.text.contains(&format!("{second} answered 503 instead of 200")), "{answer:?}");
    let (address, _) = server(OK).await;
    assert!(ask(&gate(probe("bill")), &subject(vec![address])).await.text.contains("without \"bill\""));
    // A dead backend fails, unlike a dead judge.
    assert_eq!(ask(&gate(probe("x")), &subject(vec!["127.0.0.1:1".parse().unwrap()])).await.passed, Some(false));
}

#[tokio::test]
async fn commands_answer_by_exit_code_and_are_killed_in_time() {
    for (script, passed) in [("exit 0", Some(true)), ("exit 1", Some(false)), ("exit 2", None), ("kill -9 $$", None)] {
        assert_eq!(ask(&gate(Check::Command { run: sh(script) }), &subject(Vec::new())).await.passed, passed, "{script}");
    }
    let told = "test \"$SPLITTER_SERVICE $SPLITTER_CANARY $SPLITTER_CANARY_BACKENDS\" = 'web v2 1.2.3.4:5'";
    assert_eq!(ask(&gate(Check::Command { run: sh(told) }), &subject(vec!["1.2.3.4:5".parse().unwrap()])).await.passed, Some(true));
    assert!(ask(&gate(Check::Command { run: vec!["/nonexistent".into()] }), &subject(Vec::new())).await.text.contains("cannot be run"));

    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let slow = External {
        timeout: Duration::from_millis(300),
        ..gate(Check::Command { run: sh(&format!("sleep 60 & echo $! > {}; wait", pid.display())) })
    };
    let answer = ask(&slow, &subject(Vec::new())).await;
    assert!(answer.passed.is_none() && answer.text.contains("no answer within"), "{answer:?}");
    let grandchild: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    // It is gone, or a corpse that its new parent has not collected yet.
    let dead = || fs::read_to_string(format!("/proc/{grandchild}/stat")).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..100 {
        if dead() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the command's child lives on");
}

/// Which of several series is meant nobody can tell.
#[tokio::test]
async fn several_series_are_an_error_that_names_them() {
    let body = "{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[\
                {\"metric\":{\"__name__\":\"up\",\"job\":\"a\"},\"value\":[1,\"0\"]},{\"metric\":{\"job\":\"b\",\"pod\":\"x\"},\"value\":[1,\"9\"]}]}}";
    let text: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_boxed_str());
    let (address, _asked) = server(text).await;
    let from = Number::Prometheus { url: format!("http://{address}"), query: "up".into() };
    let answer = ask(&gate(Check::Value { from, min: None, max: Some(1_000) }), &subject(Vec::new())).await;
    assert_eq!((answer.passed, answer.value), (None, None));
    assert!(answer.text.contains("2 series where one is wanted: up{job=\"a\"}, {job=\"b\",pod=\"x\"}; aggregate them"), "{}", answer.text);
}

#[tokio::test]
async fn values_are_compared_with_their_limits() {
    let value = |from, max| Check::Value { from, min: None, max: Some(max) };
    let prometheus = "HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[{\"metric\":{},\"value\":[1,\"0.5\"]}]}}";
    let length = prometheus.split_once("\r\n\r\n").unwrap().1.len();
    let prometheus: &'static str = Box::leak(prometheus.replace("90", &length.to_string()).into_boxed_str());
    for (max, passed) in [(600, Some(true)), (400, Some(false))] {
        let (address, asked) = server(prometheus).await;
        let from = Number::Prometheus { url: format!("http://{address}/"), query: "sum(rate(x[1m]))".into() };
        let answer = ask(&gate(value(from, max)), &subject(Vec::new())).await;
        assert_eq!((answer.passed, answer.value), (passed, Some(0.5)), "{answer:?}");
        assert!(asked.await.unwrap().starts_with("GET /api/v1/query?query=sum%28rate%28x%5B1m%5D%29%29 HTTP/1.1"));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    fs::write(folder.path().join("memory.current"), "900\n").unwrap();
    fs::write(folder.path().join("memory.max"), "1000\n").unwrap();
    let answer = ask(&gate(value(Number::CgroupMemory { path: path.clone() }, 800)), &subject(Vec::new())).await;
    assert_eq!((answer.passed, answer.value), (Some(false), Some(0.9)));
    fs::write(folder.path().join("memory.max"), "max\n").unwrap();
    assert_eq!(ask(&gate(value(Number::CgroupMemory { path: path.clone() }, 800)), &subject(Vec::new())).await.passed, None);
    fs::write(folder.path().join("cpu.stat"), "usage_usec 1000\nuser_usec 1\n").unwrap();
    assert_eq!(ask(&gate(value(Number::CgroupCpu { path }, 800)), &subject(Vec::new())).await.value, Some(0.0));
    let from = Number::Command { run: sh("echo 7.5 requests") };
    assert_eq!(ask(&gate(value(from, 7_000)), &subject(Vec::new())).await.passed, Some(false));
    assert_eq!(ask(&gate(value(Number::Command { run: sh("echo many") }, 1)), &subject(Vec::new())).await.passed, None);
}

#[tokio::test]
async fn hooks_get_the_event() {
    let event = RolloutEvent { service: "web".into(), event: "rolled-back".into(), ..RolloutEvent::default() };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("event");
    let hook = Hook::Command { run: sh(&format!("cat > {}", file.display())), timeout: Duration::from_secs(2) };
    tell(&hook, &subject(Vec::new()), &event).await.unwrap();
    assert_eq!(serde_json::from_str::<RolloutEvent>(&fs::read_to_string(&file).unwrap()).unwrap(), event);
    let (address, asked) = server(BAD).await;
    let hook = Hook::Webhook { url: format!("http://{address}"), timeout: Duration::from_secs(2) };
    assert!(tell(&hook, &subject(Vec::new()), &event).await.unwrap_err().to_string().contains("503"));
    assert!(asked.await.unwrap().contains("\"event\":\"rolled-back\""));
}

#[test]
fn urls() {
    for (url, expected) in [
        ("http://a:1/b?c", Some(("a:1", "/b?c"))),
        ("http://a", Some(("a:80", "/"))),
        ("http://[::1]/x", Some(("[::1]:80", "/x"))),
        ("http://[::1]:9/x", Some(("[::1]:9", "/x"))),
        ("http:///x", None),
        ("https://a", None),
    ] {
        assert_eq!(http::split(url), expected.map(|(host, path)| (host.to_owned(), path)), "{url}");
    }
}
