//! Which certificate clients are shown, and how it is exchanged.

use crate::{
    stage::{NAME, Stage, count, issue, split, text, url},
    support::{SPLITTER, eventually, tool, vip},
};
use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

/// The names in the certificate that a client is shown who asks for one.
fn shown(stage: &Stage, v6: bool, name: &str) -> String {
    let mut client = stage.lab.client().command("openssl");
    client.args(["s_client", "-connect", &vip(v6).to_string(), "-servername", name]);
    let hello = client.stdin(Stdio::null()).stderr(Stdio::null()).output().expect("openssl runs").stdout;
    let mut reader = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName", "-serial"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    // What has no certificate in it ends the reader early.
    let _ = reader.stdin.take().expect("a pipe").write_all(&hello);
    String::from_utf8_lossy(&reader.wait_with_output().expect("openssl ends").stdout).into_owned()
}

#[test]
fn the_name_that_is_asked_for_chooses_the_certificate() {
    let files = "{certFile: shop.crt, keyFile: shop.key}, {certFile: wild.crt, keyFile: wild.key}, {certFile: one.crt, keyFile: one.key}";
    let mut splits = [split(false, 50, 50), split(true, 50, 50)];
    let mut stage = Stage::new("hsni", &splits);
    issue(&stage.site.dir, "wild", &["*.wild.test"]);
    issue(&stage.site.dir, "one", &["one.wild.test"]);
    splits.iter_mut().for_each(|split| split.more = vec![format!("tls: {{certificates: [{files}]}}")]);
    stage.apply(&splits);
    for v6 in [false, true] {
        for (name, expected) in [
            (NAME, "DNS:shop.test"),
            ("a.wild.test", "DNS:*.wild.test"),
            ("one.wild.test", "DNS:one.wild.test"),
            ("other.test", "DNS:shop.test"),
        ] {
            let found = shown(&stage, v6, name);
            assert!(found.contains(expected), "{name} over {}: {found}", if v6 { "IPv6" } else { "IPv4" });
        }
        for version in ["--tlsv1.2", "--tlsv1.3"] {
            let answers = stage.asks(v6, &[version, "--tls-max", &version[6..], &url("/")]);
            assert!(answers.starts_with('b'), "{version}: {answers}");
        }
    }
    stage.bed.agent.take();
}

#[test]
fn certificates_are_exchanged_under_live_connections() {
    let stage = Stage::new("hswap", &[split(false, 50, 50)]);
    let dir = &stage.site.dir;
    // As Kubernetes mounts secrets: a link to a folder that is exchanged whole.
    let fill = |generation: u32| {
        let folder = dir.join(format!("secret-{generation}"));
        fs::create_dir(&folder).expect("a folder");
        issue(&folder, "tls", &[&format!("g{generation}.test")]);
        let new = dir.join("data.new");
        symlink(&folder, &new).expect("a link");
        fs::rename(&new, dir.join("data")).expect("a link");
    };
    fill(0);
    let mut mounted = split(false, 50, 50);
    mounted.more = vec!["tls: {certificates: [{certFile: data/tls.crt, keyFile: data/tls.key}]}".into()];
    stage.apply(&[mounted]);
    // One connection, over all exchanges.
    let mut kept = stage.curl(false, &["-k", "--rate", "20/s", "-w", "connects=%{num_connects}\n", &url("/?[1-120]")]);
    let kept = kept.stdout(Stdio::piped()).spawn().expect("curl runs");
    for generation in 1..=3 {
        fill(generation);
        eventually("the new certificate is shown", || shown(&stage, false, NAME).contains(&format!("g{generation}.test")).then_some(()));
    }
    // A key without its certificate changes nothing.
    let folder = dir.join("secret-3");
    let (good, before) = (fs::read(folder.join("tls.key")).expect("a key"), shown(&stage, false, NAME));
    issue(dir, "stray", &["stray.test"]);
    fs::copy(dir.join("stray.key"), folder.join("tls.key")).expect("a key");
    eventually("the agent says that it does not fit", || stage.site.log_tail().contains("certificates stay as they were").then_some(()));
    assert_eq!(shown(&stage, false, NAME), before);
    fs::write(folder.join("tls.key"), good).expect("a key");
    let answers = kept.wait_with_output().expect("curl ends");
    let answers = String::from_utf8_lossy(&answers.stdout).into_owned();
    assert_eq!(["b1", "b2", "b3"].map(|name| count(&answers, name)).iter().sum::<u64>(), 120, "{answers}");
    assert_eq!(count(&answers, "connects=1"), 1, "{answers}");
}

#[test]
fn a_policy_whose_certificate_is_wrong_is_refused_and_the_last_one_stays() {
    let stage = Stage::new("hwrong", &[split(false, 0, 100)]);
    let mut wrong = split(false, 100, 0);
    wrong.more = vec!["tls: {certificates: [{certFile: shop.crt, keyFile: none.key}]}".into()];
    stage.write_policy(&text(&stage.bed, &[wrong]));
    let status = stage.wait("the policy is refused", |status| status.desired.state == "rejected");
    let error = status.desired.errors.join("\n");
    assert!(error.contains("policy.yaml:4:18: TrafficSplit web: cannot read the key "), "{error}");
    assert!(error.contains("none.key"), "{error}");
    assert_eq!(count(&stage.asks(false, &[&url("/?[1-20]")]), "b3"), 20, "the last good policy stays");
    let mut check = Command::new(SPLITTER);
    let checked = check.arg("check").arg(stage.site.policy()).output().expect("splitter runs");
    assert!(!checked.status.success());
    assert!(String::from_utf8_lossy(&checked.stdout).contains("cannot read the key"), "{checked:?}");
    stage.apply(&[split(false, 100, 0)]);
    assert_eq!(count(&stage.asks(false, &[&url("/?[1-20]")]), "b3"), 0);
    let mut check = Command::new(SPLITTER);
    check.arg("check").arg(stage.site.policy());
    tool(check);
}
