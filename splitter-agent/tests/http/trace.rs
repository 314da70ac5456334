//! `splitter trace` beside real traffic: every decision is told once, with what became of it; readers come, go, and do not read.

use crate::{
    stage::{Stage, tagged},
    support::{Bed, PATIENCE, SPLITTER, Split, client_ip, eventually, socket, vip},
    wire::{TO_V1, TO_V2, Wire, get},
};
use aya::{
    maps::{Array, Map, MapData, MapInfo, RingBuf},
    programs::loaded_programs,
};
use splitter_api::TraceEvent;
use splitter_lab::load::Plan;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A running `splitter trace`.
struct Tracer {
    child: Child,
    out: BufReader<ChildStdout>,
    err: ChildStderr,
}

impl Tracer {
    /// Returns when the kernel tells. When somebody looks already, this one must look at more: that shows in the kernel.
    fn start(bed: &Bed, words: &[&str]) -> Tracer {
        let before = switch(bed);
        let mut command = Command::new(SPLITTER);
        command.env("SPLITTER_ADMIN", bed.site.socket()).arg("trace").args(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("splitter");
        let (out, err) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
        eventually("it looks", || {
            let now = switch(bed);
            (now[0] != 0 && (before[0] == 0 || now[1..] != before[1..])).then_some(())
        });
        Tracer { child, out, err }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line
    }

    fn event(&mut self) -> TraceEvent {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Its exit code, what is left of its output, and its last words.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("its output");
        self.err.read_to_string(&mut err).expect("its errors");
        (self.child.wait().expect("an end").code(), out, err)
    }
}

/// Until when, and at what.
fn switch(bed: &Bed) -> [u64; 8] {
    let map = MapData::from_pin(bed.site.pins.join("TRACE")).expect("the agent pins it");
    let map = Array::<_, [u64; 8]>::try_from(Map::from_map_data(map).expect("a kind that aya knows")).expect("an array");
    map.get(&0, 0).expect("a value")
}

fn until(bed: &Bed) -> u64 {
    switch(bed)[0]
}

/// The ring of the programs, which is pinned nowhere.
fn ring(bed: &Bed) -> RingBuf<MapData> {
    let switch = MapInfo::from_pin(bed.site.pins.join("TRACE")).expect("the agent pins it").id();
    let maps = loaded_programs().filter_map(|program| program.ok()?.map_ids().ok()?).filter(|ids| ids.contains(&switch));
    let ring = maps.flatten().find(|id| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some("TRACE_RING")));
    let map = MapData::from_id(ring.expect("a program with both")).expect("the ring");
    RingBuf::try_from(Map::from_map_data(map).expect("a kind that aya knows")).expect("a ring")
}

fn is_off(bed: &Bed) {
    eventually("nobody looks any more", || (until(bed) == 0).then_some(()));
}

fn bed(name: &str) -> Bed {
    let mut splits = [
        tagged(100, 0),
        tagged(100, 0).v6().named("web6"),
        Split::tcp(0, 1).named("plain").v6(),
        Split::tcp(1, 0).named("dns").udp(),
        Split::tcp(0, 1).named("nobody").state(3, "down"),
    ];
    splits[2].frontends = vec![std::net::SocketAddr::new(vip(true).ip(), 81)];
    splits[3].frontends = vec![std::net::SocketAddr::new(vip(false).ip(), 53)];
    splits[4].frontends = vec![std::net::SocketAddr::new(vip(false).ip(), 82)];
    Stage::begin(Bed::prepare(name, Default::default(), &splits), &[], None).bed
}

#[test]
fn every_decision_is_told_with_its_end() {
    let bed = bed("trace");
    assert_eq!(until(&bed), 0);
    let mut tracer = Tracer::start(&bed, &["-o", "json"]);
    for (v6, name) in [(false, "web"), (true, "web6")] {
        let mut wire = Wire::open(bed.lab.client(), vip(v6));
        let client = wire.stream.local_addr().unwrap();
        wire.ask(get("/status/404", &[TO_V2]));
        let event = tracer.event();
        assert_eq!((event.client, event.service.as_str(), event.version.as_deref()), (client.to_string(), name, Some("v2")));
        assert_eq!(event.backend, Some(bed.lab.backend_addr(3, v6, 8080).to_string()));
        assert_eq!((event.decided_by.as_str(), event.status, event.protocol.as_str()), ("rule", Some(404), "http"));
        assert_eq!((event.method.as_deref(), event.path.as_deref()), (Some("GET"), Some("/status/404")));
        let rule = event.rule.expect("the rule");
        assert!(rule.contains("X-Canary=always"), "{rule}");
        wire.ask(get("/wait/60", &[]));
        let event = tracer.event();
        assert_eq!((event.version.as_deref(), event.decided_by.as_str(), event.status), (Some("v1"), "weight", Some(200)));
        assert!(event.bucket.is_some() && !event.refused && !event.pinned);
        assert!((0.058..1.0).contains(&event.first_byte.unwrap()), "{:?}", event.first_byte);
        wire.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n");
        // Later heads that are odd are their backend's: it is pinned.
        let event = tracer.event();
        assert_eq!((event.pinned, event.reason.as_deref()), (true, Some("pinned_head")));
        let mut wire = Wire::open(bed.lab.client(), vip(v6));
        wire.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n");
        assert_eq!(wire.answer().unwrap().status, 400);
        let event = tracer.event();
        assert_eq!((event.refused, event.status, event.reason.as_deref()), (true, Some(400), Some("head_refused")));
    }
    let from = std::net::SocketAddr::new(client_ip(&bed, true), 30_000);
    let to = std::net::SocketAddr::new(vip(true).ip(), 81);
    bed.lab.client().run(|| socket::Conversation::open(from, to)).unwrap().unwrap();
    let event = tracer.event();
    assert_eq!((event.client, event.service.as_str(), event.version.as_deref()), (from.to_string(), "plain", Some("v2")));
    assert_eq!((event.protocol.as_str(), event.decided_by.as_str(), event.status), ("tcp", "weight", None));
    let udp = socket::unfragmented(bed.lab.client(), std::net::SocketAddr::new(vip(false).ip(), 53));
    for _ in 0..3 {
        socket::echo(&udp).unwrap();
    }
    let event = tracer.event();
    assert_eq!((event.client, event.protocol.as_str()), (udp.local_addr().unwrap().to_string(), "udp"));
    let nobody = std::net::SocketAddr::new(vip(false).ip(), 82);
    assert!(Wire::try_open(bed.lab.client(), nobody).is_err());
    let event = tracer.event();
    assert_eq!((event.service.as_str(), event.refused, event.reason.as_deref()), ("nobody", true, Some("no_backend")));
    tracer.signal(libc::SIGINT);
    assert_eq!(tracer.end(), (Some(0), String::new(), String::new()));
    is_off(&bed);
}

#[test]
fn a_backend_that_is_gone_is_told_as_a_refusal_of_the_node() {
    let mut bed = bed("tracegone");
    bed.stop_server(3);
    let mut tracer = Tracer::start(&bed, &["web", "--version", "v2", "-o", "json", "--count", "1"]);
    let mut wire = Wire::open(bed.lab.client(), vip(false));
    wire.ask(get("/", &[TO_V1]));
    let mut wire = Wire::open(bed.lab.client(), vip(false));
    assert_eq!(wire.try_ask(get("/gone?secret=1", &[TO_V2])).unwrap().status, 503);
    let event = tracer.event();
    assert_eq!((event.version.as_deref(), event.status, event.refused), (Some("v2"), Some(503), true));
    assert_eq!((event.path.as_deref(), event.reason.as_deref()), (Some("/gone"), Some("unavailable")));
    assert_eq!(tracer.end(), (Some(0), String::new(), String::new()));
    is_off(&bed);
}

#[test]
fn readers_have_filters_of_their_own_and_an_end() {
    let bed = bed("readers");
    let client = client_ip(&bed, false).to_string();
    let none = Tracer::start(&bed, &["--client", "192.0.2.0/24"]);
    let some = Tracer::start(&bed, &["web", "--client", &format!("{client}/32"), "--count", "2"]);
    let mut all = Tracer::start(&bed, &["-o", "json"]);
    let mut wire = Wire::open(bed.lab.client(), vip(false));
    let mut wire6 = Wire::open(bed.lab.client(), vip(true));
    for tag in [TO_V1, TO_V2] {
        wire6.ask(get("/six", &[tag]));
        wire.ask(get("/four", &[tag]));
    }
    let paths: Vec<_> = (0..4).map(|_| all.event().path.unwrap()).collect();
    assert_eq!(paths, ["/six", "/four", "/six", "/four"]);
    let (code, out, err) = some.end();
    assert_eq!((code, err.as_str(), out.lines().count()), (Some(0), "", 2), "{out}");
    assert!(out.lines().all(|line| line.contains("/four") && line.contains("200 in ")), "{out}");
    none.signal(libc::SIGINT);
    assert_eq!(none.end(), (Some(0), String::new(), String::new()));
    assert_ne!(until(&bed), 0, "one still looks");
    drop(all.out);
    // It notices at the next line.
    wire.ask(get("/", &[]));
    assert_eq!(all.child.wait().unwrap().code(), Some(0), "a closed pipe is no failure");
    is_off(&bed);
    for (words, wanted) in [
        (&["trace", "nosuch"][..], "there is no service \"nosuch\""),
        (&["trace", "web", "--version", "v9"], "service web has no version v9; it has v1, v2"),
        (&["trace", "--version", "v9"], "no service has a version v9"),
    ] {
        let refused = bed.site.cli(words).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}

#[test]
fn who_does_not_read_holds_up_nobody() {
    // More than the sockets, the pieces and the reader's queue hold together.
    const REQUESTS: u64 = 8_000;
    let bed = bed("slow");
    // The first to look, so that it is known when it does.
    let mut quick = Tracer::start(&bed, &["web", "-o", "json", "--rate", "100000"]);
    let mut slow = UnixStream::connect(bed.site.socket()).unwrap();
    slow.write_all(b"GET /v1/trace?rate=100000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let pid = quick.child.id();
    let lines = Arc::new(AtomicU64::new(0));
    let counted = lines.clone();
    let reading = std::thread::spawn(move || {
        while !quick.line().is_empty() {
            counted.fetch_add(1, Relaxed);
        }
        quick.end()
    });
    bed.clean(Plan::http(vip(false)), REQUESTS);
    assert!(bed.status().applied.generation > 0, "the agent answers");
    // It reads at last, and hears what it has missed.
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let missed = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        let told = text.rsplit("\"reader_slow\":").next().and_then(|rest| rest.split('}').next()?.parse::<u64>().ok());
        told.filter(|missed| *missed > 0)
    };
    let (mut text, mut buffer) = (Vec::new(), [0; 65_536]);
    let missed = eventually("what was missed is told", || {
        let read = slow.read(&mut buffer).expect("the agent goes on");
        text.extend_from_slice(&buffer[..read]);
        missed(&text)
    });
    assert!(missed < REQUESTS, "{missed}");
    // A machine under load may lose some on the way, and says so.
    let end = Instant::now() + PATIENCE;
    while lines.load(Relaxed) < REQUESTS && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    // SAFETY: our child, which has not been waited for.
    unsafe { libc::kill(pid as i32, libc::SIGINT) };
    let (code, _, err) = reading.join().unwrap();
    let lines = lines.load(Relaxed);
    assert!(
        code == Some(0) && (lines == REQUESTS && err.is_empty() || lines > REQUESTS / 2 && err.contains("more were not shown")),
        "{lines} {err}"
    );
    drop(slow);
    is_off(&bed);
}

#[test]
fn what_comes_too_fast_is_counted() {
    let bed = bed("fast");
    let tracer = Tracer::start(&bed, &["web", "--rate", "10"]);
    bed.clean(Plan::http(vip(false)), 500);
    std::thread::sleep(Duration::from_millis(1_500));
    tracer.signal(libc::SIGINT);
    let (code, out, err) = tracer.end();
    assert_eq!(code, Some(0));
    assert!(err.contains("more were not shown: over the limit, which --rate sets"), "{err:?}");
    assert!((1..200).contains(&out.lines().count()), "{}", out.lines().count());
    assert!(out.lines().all(|line| line.contains("200 in ")), "who is told of a request is told of its answer: {out}");
}

#[test]
fn who_breaks_off_sees_what_waits() {
    let bed = bed("breaksoff");
    let tracer = Tracer::start(&bed, &["web"]);
    let mut wire = Wire::open(bed.lab.client(), vip(false));
    wire.send(get("/wait/5000", &[]));
    std::thread::sleep(Duration::from_millis(500));
    tracer.signal(libc::SIGINT);
    let (code, out, err) = tracer.end();
    assert_eq!((code, err.as_str(), out.lines().count()), (Some(0), "", 1), "{out}");
    assert!(out.contains("GET /wait/5000") && out.contains("no answer yet"), "{out}");
}

#[test]
fn a_killed_agent_leaves_it_on_for_seconds_only() {
    let mut bed = bed("killed");
    let tracer = Tracer::start(&bed, &[]);
    bed.kill_agent();
    let (code, _, err) = tracer.end();
    assert_eq!(code, Some(1), "{err}");
    assert_ne!(until(&bed), 0, "nobody was there to switch it off");
    let begin = Instant::now();
    let mut wire = Wire::open(bed.lab.client(), vip(false));
    eventually("the kernel does it by itself", || {
        wire.ask(get("/", &[]));
        (until(&bed) == 0).then_some(())
    });
    assert!(begin.elapsed() < Duration::from_secs(7));
    bed.start();
    let mut tracer = Tracer::start(&bed, &["web", "-o", "json", "--count", "1"]);
    wire.ask(get("/again", &[]));
    assert_eq!(tracer.event().path.as_deref(), Some("/again"), "the new agent's ring is the programs'");
    assert_eq!(tracer.end().0, Some(0));
}

#[test]
fn a_killed_reader_switches_it_off_and_nothing_is_written() {
    let bed = bed("reader");
    let tracer = Tracer::start(&bed, &[]);
    tracer.signal(libc::SIGKILL);
    tracer.end();
    is_off(&bed);
    let mut wire = Wire::open(bed.lab.client(), vip(false));
    wire.ask(get("/", &[TO_V1]));
    wire.ask(get("/", &[TO_V2]));
    assert!(ring(&bed).next().is_none(), "nobody looks, and nothing is written");
}

/// Lines of the agent's log that the programs have told.
fn told(bed: &Bed) -> Vec<String> {
    let log = std::fs::read_to_string(bed.site.dir.join("agent.log")).unwrap_or_default();
    log.lines().filter(|line| line.contains("::diagnostics: ")).map(str::to_owned).collect()
}

#[test]
fn the_programs_tell_what_they_do_when_they_are_asked_to() {
    let splits = [tagged(100, 0), tagged(100, 0).v6().named("web6")];
    for asked in [true, false] {
        let mut bed = Bed::prepare(if asked { "debug" } else { "nodebug" }, Default::default(), &splits);
        if asked {
            bed.site.options.push("--debug-programs".into());
        } else {
            bed.site.options.extend(["--log-level".into(), "debug".into()]);
        }
        let bed = bed.started();
        for v6 in [false, true] {
            let mut wire = Wire::open(bed.lab.client(), vip(v6));
            assert_eq!(wire.ask(get("/status/404", &[TO_V2])).status, 404);
            // Asked before the answer has come.
            let first = get("/wait/500", &[]);
            wire.send_cut(&[first.clone(), get("/", &[])].concat(), &[first.len()], Duration::from_millis(100));
            assert_eq!((wire.answer().unwrap().status, wire.answer().unwrap().status), (200, 200));
            let mut wire = Wire::open(bed.lab.client(), vip(v6));
            wire.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n");
            assert_eq!(wire.answer().unwrap().status, 400);
        }
        if !asked {
            assert_eq!(told(&bed), Vec::<String>::new());
            continue;
        }
        for wanted in [
            "a request goes to backend ",
            "a response came, status 404",
            "a connection stays with its leg, reason pinned_pipeline",
            "the node answers itself, status 400",
        ] {
            eventually(wanted, || (told(&bed).iter().filter(|line| line.contains(wanted)).count() >= 2).then_some(()));
        }
        let lines = told(&bed);
        assert!(lines.iter().all(|line| line.contains("program=\"splitter_") || line.contains("program=\"http_")), "{lines:?}");
    }
}
