//! Requests get the version that `mode: http` would give them, and arrive whole.

use crate::{
    stage::{Stage, count, split, url},
    support::client_ip,
};
use splitter_lab::{http::body_byte, serve::digest, stats};
use std::fs;

const BOTH: [bool; 2] = [false, true];

fn both(v1: u32, v2: u32, more: &str) -> Vec<crate::support::Split> {
    BOTH.iter().map(|v6| split(*v6, v1, v2)).map(|split| if more.is_empty() { split } else { split.with(more) }).collect()
}

#[test]
fn requests_of_one_connection_are_split_by_weight() {
    const REQUESTS: u64 = 1_000;
    let stage = Stage::new("hsplit", &both(75, 25, ""));
    for (v6, name) in [(false, "web"), (true, "web6")] {
        let answers = stage.asks(v6, &["-w", "connects=%{num_connects}\n", &url(&format!("/?[1-{REQUESTS}]"))]);
        let of_v2 = count(&answers, "b3");
        assert_eq!(of_v2 + count(&answers, "b1") + count(&answers, "b2"), REQUESTS, "every request is answered");
        assert_eq!(count(&answers, "connects=1"), 1, "by one connection");
        assert!(stats::plausible(of_v2, REQUESTS, 0.25), "v2 got {of_v2} of {REQUESTS}");
        let service = stage.service(name);
        let told: Vec<u64> = service.versions.iter().map(|version| version.requests).collect();
        assert_eq!(told, [REQUESTS - of_v2, of_v2]);
        for (version, requests) in service.versions.iter().zip(told) {
            assert_eq!((version.trials.drawn.begun, version.trials.drawn.answered), (requests, requests), "{}", version.name);
            assert_eq!(version.codes["2xx"], requests);
            assert!(version.first_byte.p50.is_some_and(|seconds| seconds > 0.0));
        }
        assert_eq!(service.mode, "https");
        stage.set_weights(name, [[0, 100]].into_iter());
        let answers = stage.asks(v6, &[&url("/?[1-50]")]);
        assert_eq!(count(&answers, "b3"), 50, "the new weights hold at once");
    }
}

#[test]
fn rules_and_keys_choose_as_with_http() {
    let splits = both(100, 0, "canary: v2");
    let keyed = [split(false, 50, 50).with("splitBy: {header: X-User}")];
    let stage = Stage::new("hrules", &splits);
    for v6 in BOTH {
        for (field, expected) in [("X-Canary: always", "b3"), ("Cookie: a=b; canary=1", "b3"), ("X-Gray-Version: v2", "b3")] {
            let answers = stage.asks(v6, &["-H", field, &url("/?[1-20]")]);
            assert_eq!(count(&answers, expected), 20, "{field}: {answers}");
        }
        let answers = stage.asks(v6, &[&url("/?[1-20]")]);
        assert_eq!(count(&answers, "b3"), 0, "{answers}");
    }
    stage.apply(&keyed);
    for user in 0..12 {
        let explained = stage.cli(&["explain", "web", "--header", &format!("X-User: u{user}"), "-o", "json"]);
        let explained: serde_json::Value = serde_json::from_str(&explained).expect("JSON");
        let answers = stage.asks(false, &["-H", &format!("X-User: u{user}"), &url("/?[1-5]")]);
        let expected = if explained["version"] == "v2" { count(&answers, "b3") } else { 5 - count(&answers, "b3") };
        assert_eq!(expected, 5, "u{user}: {explained} but {answers}");
    }
}

#[test]
fn backends_are_told_whom_they_serve() {
    let stage = Stage::new("hfacts", &both(100, 0, ""));
    for v6 in BOTH {
        let client = client_ip(&stage, v6).to_string();
        let words = ["-H", "X-Forwarded-For: 192.0.2.1", "-H", "X-Forwarded-Proto: http", "-H", "Connection: X-Hop", "-H", "X-Hop: 1"];
        let text = stage.asks(v6, &[&words[..], &[&url("/facts")]].concat()).to_lowercase();
        let has = |line: &str| text.lines().any(|known| known.trim_end() == line);
        assert!(has(&format!("x-forwarded-for: 192.0.2.1, {client}")), "{client}: {text}");
        assert!(has("x-forwarded-proto: https") && !has("x-forwarded-proto: http"), "{text}");
        assert!(has("host: shop.test:80") && has("x-forwarded-host: shop.test:80"), "{text}");
        assert!(!text.contains("x-hop"), "{text}");
    }
}

#[test]
fn bodies_arrive_whole_both_ways() {
    const SIZE: usize = 1_000_000;
    let stage = Stage::new("hbody", &both(50, 50, ""));
    let body: Vec<u8> = (0..3 * SIZE as u64).map(body_byte).collect();
    let file = stage.site.dir.join("body");
    fs::write(&file, &body).expect("a file");
    let expected = format!(" {} {:016x}\n", body.len(), digest(&body));
    let data = format!("@{}", file.display());
    for v6 in BOTH {
        // So long a body makes curl ask for `100 Continue` first.
        for how in [&["-H", "Expect: 100-continue"][..], &["-H", "Transfer-Encoding: chunked"], &["-H", "Expect:"]] {
            let said = stage.asks(v6, &[how, &["--data-binary", &data, &url("/echo")]].concat());
            assert!(said.ends_with(&expected), "{how:?}: {said:?} is not {expected:?}");
        }
        for path in ["/bytes/1000000", "/chunked/1000000", "/close/1000000"] {
            let mut command = stage.curl(v6, &[&url(path)]);
            let output = command.output().expect("curl runs");
            assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout == body[..SIZE], "{path}: {} bytes", output.stdout.len());
        }
        let head = stage.asks(v6, &["-I", &url("/bytes/1000")]);
        assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 1000"), "{head}");
    }
}

#[test]
fn heads_that_two_parsers_read_in_two_ways_are_refused() {
    let stage = Stage::new("hheads", &both(100, 0, ""));
    let status = |words: &[&str]| stage.asks(false, &[&["-o", "/dev/null", "-w", "%{http_code}"], words, &[&url("/")]].concat());
    assert_eq!(status(&[]), "200");
    assert_eq!(status(&["-H", "Host:", "-H", "X: y"]), "400");
    assert_eq!(status(&["-X", "CONNECT"]), "501");
    let long = format!("X-Long: {}", "q".repeat(20_000));
    // To the baseline, as `mode: http` does.
    assert_eq!(status(&["-H", &long]), "200");
    stage.apply(&[split(false, 100, 0).with("whenTooLong: 431")]);
    assert_eq!(status(&["-H", &long]), "431");
}

#[test]
fn a_node_without_such_a_service_has_nothing_of_the_tier() {
    let mut stage = Stage::new("hnone", &[crate::support::Split::http(50, 50)]);
    let addresses = |stage: &Stage| {
        crate::support::tool({
            let mut command = stage.lab.node.command("ip");
            command.args(["-br", "address", "show", "lo"]);
            command
        })
    };
    let threads = |stage: &Stage| {
        let pid = stage.bed.agent.as_ref().expect("an agent").pid();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
        let names = tasks.map(|task| fs::read_to_string(task.expect("a thread").path().join("comm")).unwrap_or_default());
        names.filter(|name| name.starts_with("proxy-")).count()
    };
    assert!(!addresses(&stage).contains("169.254.77.77"));
    assert_eq!(threads(&stage), 0);
    stage.apply(&both(50, 50, ""));
    assert!(addresses(&stage).contains("169.254.77.77") && threads(&stage) > 0);
    assert_eq!(stage.asks(false, &[&url("/?[1-10]")]).lines().count(), 10);
    stage.apply(&[crate::support::Split::http(50, 50)]);
    crate::support::eventually("the threads end", || (threads(&stage) == 0).then_some(()));
    stage.bed.kill_agent();
    let mut detach = stage.lab.node.command(crate::support::SPLITTER);
    let removed = crate::support::tool({
        detach.arg("detach").arg("--pins").arg(&stage.site.pins);
        detach
    });
    assert!(removed.contains("169.254.77.77") && !addresses(&stage).contains("169.254.77.77"), "{removed}");
}
