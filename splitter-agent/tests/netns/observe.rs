//! What the agent says about the traffic is what happened.

use crate::support::{Bed, SPLITTER, Split, client_ip, connections, eventually, share_of_v2, socket::conversations, tool, vip};
use splitter_lab::{agent::METRICS, load::Plan};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

fn backend_name(bed: &Bed, address: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address with a port");
    let found = (1..=3).find(|i| bed.lab.backend_addr(*i, false, address.port()) == address);
    format!("b{}", found.unwrap_or_else(|| panic!("{address} is no backend")))
}

fn version_of(backend: &str) -> &'static str {
    if backend == "b3" { "v2" } else { "v1" }
}

#[test]
fn explain_flows_and_status_agree_with_what_happens() {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 200;
    let bed = Bed::new("explain", &[Split::tcp(60, 40)]);
    let client = client_ip(&bed, false);
    let address = |port: u16| SocketAddr::new(client, port).to_string();
    let predicted: Vec<_> = (FIRST..FIRST + COUNT).map(|port| bed.explain("web", &address(port))).collect();
    let kept = conversations(bed.lab.client(), client, vip(false), FIRST, COUNT);
    for (explanation, conversation) in predicted.iter().zip(&kept) {
        assert_eq!(explanation.decided_by, "weight", "{explanation:?}");
        assert_eq!(explanation.version.as_deref(), Some(version_of(&conversation.backend)), "{explanation:?}");
        assert_eq!(explanation.backend.as_deref().map(|backend| backend_name(&bed, backend)), Some(conversation.backend.clone()));
    }
    let answered: BTreeSet<_> = kept.iter().map(|conversation| conversation.backend.as_str()).collect();
    assert_eq!(answered.len(), 3, "not every backend was met");

    let rows: BTreeMap<String, _> = bed.flows().into_iter().map(|row| (row.client.clone(), row)).collect();
    assert_eq!(rows.len(), kept.len());
    for conversation in &kept {
        let row = &rows[&conversation.client.to_string()];
        let told =
            (row.service.as_str(), row.version.as_str(), row.state.as_str(), row.frontend.as_str(), backend_name(&bed, &row.backend));
        assert_eq!(told, ("web", version_of(&conversation.backend), "established", "10.9.9.9:80", conversation.backend.clone()));
    }
    let of = |version: &str| kept.iter().filter(|conversation| version_of(&conversation.backend) == version).count() as u64;
    // Flows are counted about once a second.
    let status =
        bed.wait("every flow is counted", |status| status.services[0].versions.iter().all(|version| version.flows == of(&version.name)));
    for version in &status.services[0].versions {
        let counts = [version.connections, version.connect.count, version.first_byte.count];
        assert_eq!(counts, [of(&version.name); 3], "{}", version.name);
    }

    // An open connection is explained by its flow, whatever the weights say now.
    bed.cli(&["weight", "web", "v1=0", "v2=1"]);
    let old = kept.iter().find(|conversation| conversation.backend == "b1").expect("somebody is on b1");
    let explanation = bed.explain("web", &old.client.to_string());
    assert_eq!((explanation.decided_by.as_str(), explanation.version.as_deref()), ("flow", Some("v1")), "{explanation:?}");
    drop(kept);
    bed.wait("closed connections are no flows any more", |status| status.services[0].versions.iter().all(|version| version.flows == 0));
}

/// The text at a path of the metrics listener.
fn metrics(bed: &Bed, accept: &str) -> String {
    let fetch = || {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = bed.lab.node.run(fetch).expect("a namespace").expect("metrics");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.into()
}

/// Sum of the samples whose line begins so.
fn sum(text: &str, start: &str) -> f64 {
    let value = |line: &str| line.strip_prefix(start)?.rsplit(' ').next()?.parse::<f64>().ok();
    text.lines().filter_map(value).sum()
}

#[test]
fn metrics_count_what_the_client_saw() {
    const REQUESTS: u64 = 1_000;
    let bed = Bed::new("metrics", &[Split::tcp(80, 20)]);
    let total = bed.clean(Plan { path: "/bytes/5000".into(), ..Plan::http(vip(false)) }, REQUESTS);
    share_of_v2("metrics", &total, 0.2);
    let text = metrics(&bed, "application/openmetrics-text; version=1.0.0");
    assert!(text.ends_with("# EOF\n"), "{text}");
    for (version, backends) in [("v1", ["b1", "b2"].as_slice()), ("v2", &["b3"])] {
        let labels = format!("{{service=\"web\",version=\"{version}\"");
        let seen = connections(&total, backends);
        assert_eq!(sum(&text, &format!("splitter_connections_total{labels}")), seen as f64);
        assert_eq!(sum(&text, &format!("splitter_connect_duration_seconds_count{labels}")), seen as f64);
        assert_eq!(sum(&text, &format!("splitter_first_byte_duration_seconds_count{labels}")), seen as f64);
        let out = sum(&text, &format!("splitter_bytes_total{labels},direction=\"out\"}}"));
        let payload = (seen * 5_000) as f64;
        assert!((payload..payload * 1.5).contains(&out), "{version}: {out} bytes for {payload} of payload");
    }
    assert_eq!(sum(&text, "splitter_connect_failures_total"), 0.0);
    assert_eq!(sum(&text, "splitter_drops_total"), 0.0, "{text}");
    let observed = sum(&text, "splitter_observed_ratio{service=\"web\",version=\"v2\"}");
    assert!((observed - connections(&total, &["b3"]) as f64 / REQUESTS as f64).abs() < 0.001, "{observed}");

    // The older format, also for who does not say what he reads.
    for accept in ["text/plain", "*/*"] {
        assert_eq!(promtool(&metrics(&bed, accept)), Vec::<String>::new(), "{accept}");
    }
    // promtool reads the older format alone, in which the head of a counter has the `_total` of its samples; of OpenMetrics it has nothing else to say.
    let complaints = promtool(&text);
    let heads = |name: &str| text.lines().any(|line| line.starts_with(&format!("# HELP {name} ")));
    let known = |line: &String| line.strip_suffix("_total no help text").is_some_and(heads);
    assert!(complaints.iter().all(known), "{complaints:?}");
}

/// What `promtool check metrics` has to say.
fn promtool(text: &str) -> Vec<String> {
    let mut command = Command::new("promtool");
    let mut child = command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool on PATH");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

#[test]
fn every_command_answers_a_person_and_a_script() {
    let bed = Bed::new("commands", &[Split::tcp(90, 10)]);
    let _kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 3);
    let commands: [&[&str]; 4] = [&["status"], &["status", "web"], &["flows", "web"], &["explain", "web", "--client", "10.1.0.2:20000"]];
    for words in commands {
        let table = bed.cli(words);
        assert!(table.contains("v1"), "`splitter {}` printed {table:?}", words.join(" "));
        let json = bed.cli(&[words, &["-o", "json"]].concat());
        serde_json::from_str::<serde_json::Value>(&json).unwrap_or_else(|error| panic!("`splitter {}`: {error}: {json}", words.join(" ")));
    }
    let rows = |words: &[&str]| -> usize {
        let json = bed.cli(&[&["flows", "-o", "json"], words].concat());
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON").as_array().expect("rows").len()
    };
    assert_eq!((rows(&[]), rows(&["web", "--limit", "2"]), rows(&["w*", "--sort", "idle", "--limit", "1"])), (3, 2, 1));
    assert_eq!((rows(&["--client", "10.1.0.0/16", "--state", "established"]), rows(&["--client", "10.2.0.0/16"])), (3, 0));
    assert_eq!(rows(&["--version", "v1"]) + rows(&["--version", "v2"]), 3);
    let unknown = bed.site.cli(&["status", "web", "shop"]).unwrap_err().to_string();
    assert!(unknown.contains("there is no service \"shop\"; the node runs: web"), "{unknown}");
    assert!(bed.cli(&["status", "w*", "--sort", "flows", "--limit", "1"]).contains("web"));
    assert!(bed.cli(&["top", "--interval", "100ms"]).contains("SUCCESS"));
    let mut completion = bed.lab.node.command(SPLITTER);
    completion.env("SPLITTER_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "3").env("SPLITTER_ADMIN", bed.site.socket());
    completion.args(["--", "splitter", "weight", "web", "v"]).env("_CLAP_IFS", " ");
    assert_eq!(tool(completion), "v1= v2=");
    let policy = bed.site.policy();
    let mut check = Command::new(SPLITTER);
    check.arg("check").arg(&policy);
    tool(check);
    let mut doctor = bed.lab.node.command(SPLITTER);
    doctor.args(["doctor", "--policy"]).arg(&policy);
    assert!(!tool(doctor).is_empty());
    let refused = bed.site.cli(&["weight", "nobody", "v1=1"]).unwrap_err().to_string();
    assert!(refused.contains("nobody"), "{refused}");
}

#[test]
fn the_output_of_a_gates_command_cannot_command_a_terminal() {
    let gate = r#"rollout: {canary: v2, steps: [10%, 100%], gates: {commands: [{name: smoke, every: 1s, run: [/bin/sh, -c, "printf 'x\\033[2Jy'"]}]}}"#;
    let bed = Bed::new("escape", &[Split::tcp(100, 0).with(gate)]);
    bed.cli(&["rollout", "start", "web"]);
    let told = || Some(bed.cli(&["rollout", "status", "web"])).filter(|text| text.contains("x\\x1b[2Jy"));
    let text = eventually("the command's output is shown", told);
    assert!(!text.contains('\x1b'), "{text:?}");
    let json = bed.cli(&["rollout", "status", "web", "-o", "json"]);
    assert!(json.contains("x\\u001b[2Jy"), "JSON has the text as it is: {json}");
}
