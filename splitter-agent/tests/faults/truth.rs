//! What the agent says is what the kernel runs, whoever works against it: emptied folders, second agents, lost programs, signals, slow clients.

use crate::support::{Bed, SPLITTER, Split, document, eventually, no_failures, run_on, vip};
use splitter_lab::{agent::METRICS, lab::Process, load::Plan};
use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::TcpStream,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::Path,
    time::{Duration, Instant},
};

/// Longest wait for what is to happen at once, on a machine that does much else.
const AT_ONCE: Duration = Duration::from_secs(1);

fn pid(bed: &Bed) -> u32 {
    bed.agent.as_ref().expect("a running agent").pid()
}

fn log(bed: &Bed) -> String {
    fs::read_to_string(bed.site.dir.join("agent.log")).unwrap_or_default()
}

/// Asks the agent's address for metrics and health: status line, head and body.
fn get(bed: &Bed, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    bed.lab.node.run(ask).unwrap().unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

fn metric(bed: &Bed, name: &str) -> f64 {
    let text = get(bed, "/metrics");
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

fn ready(bed: &Bed) -> bool {
    get(bed, "/readyz").starts_with("HTTP/1.1 200")
}

/// The policy is a folder with one file; the agent has applied it.
fn in_a_folder(name: &str) -> Bed {
    let mut bed = Bed::prepare(name, Default::default(), &[Split::tcp(1, 1)]);
    let folder = bed.site.policy();
    let text = fs::read_to_string(&folder).unwrap();
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("web.yaml"), text).unwrap();
    bed.agent = Some(bed.site.start(1).expect("the agent starts"));
    bed
}

/// One `rm` before a `cp` is no wish to remove everything, neither under a running agent nor for the next one.
#[test]
fn an_emptied_folder_changes_nothing() {
    let mut bed = in_a_folder("emptied");
    let (folder, file) = (bed.site.policy(), bed.site.policy().join("web.yaml"));
    let text = fs::read_to_string(&file).unwrap();
    let generation = bed.status().applied.generation;
    let kept = |bed: &Bed, why: &str| {
        let told = |status: &splitter_api::Status| status.desired.errors.first().is_some_and(|error| error.contains(why));
        let status = bed.wait(why, |status| status.desired.state == "rejected" && told(status));
        assert_eq!((status.applied.generation, status.applied.services), (generation, 1), "{why}");
        bed.clean(Plan::http(vip(false)), 20);
    };
    fs::remove_file(&file).unwrap();
    kept(&bed, "this folder is empty");
    fs::write(&file, "# soon\n").unwrap();
    kept(&bed, "no TrafficSplit found here");
    fs::remove_dir_all(&folder).unwrap();
    kept(&bed, "it is missing");
    fs::create_dir(&folder).unwrap();
    kept(&bed, "this folder is empty");
    bed.kill_agent();
    bed.agent = Some(bed.site.start(1).expect("the last good policy is there at the start"));
    kept(&bed, "this folder is empty");
    fs::write(&file, text.replace("weight: 1", "weight: 3")).unwrap();
    bed.wait("the folder is followed", |status| status.desired.state == "ok" && status.applied.generation > generation);
}

fn ended(agent: &Process) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(15) {
        if let Some(status) = agent.exited() {
            return !status.success();
        }
        run_on(Duration::from_millis(20));
    }
    false
}

#[test]
fn a_second_agent_ends_and_names_the_first() {
    let mut bed = Bed::new("second", &[Split::tcp(1, 1)]);
    let first = pid(&bed);
    let second = bed.site.spawn().unwrap();
    assert!(ended(&second), "two agents on the same pins");
    let text = log(&bed);
    let told = format!("another agent (pid {first}) holds the pins in {}", bed.site.pins.display());
    assert!(text.contains(&format!("{told}: waiting up to 5 s")) && text.contains(&format!("splitter: {told}: stop it first")), "{text}");
    // Pins of its own are not enough when it writes the same state.
    let (pins, others) = (bed.site.pins.clone(), bed.site.pins.with_file_name(format!("{}-second", bed.site.node.name())));
    bed.site.pins = others.clone();
    let second = bed.site.spawn().unwrap();
    let over = ended(&second);
    bed.site.pins = pins;
    fs::remove_dir(others.join("links")).and_then(|()| fs::remove_dir(others)).unwrap();
    assert!(over, "two agents on the same state");
    let told = format!("another agent (pid {first}) holds the state in {}", bed.site.dir.join("state").display());
    assert!(log(&bed).contains(&told), "{}", log(&bed));
    assert_eq!(bed.status().agent.pid, first);
    bed.clean(Plan::http(vip(false)), 50);
}

/// The next agent may come before the last one has gone, however that goes.
#[test]
fn a_restart_waits_for_the_end_of_the_last_agent() {
    let mut bed = Bed::new("overlap", &[Split::tcp(1, 1)]);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let last = bed.agent.take().unwrap();
        let next = bed.site.spawn().unwrap();
        let number = u64::from(next.pid());
        run_on(Duration::from_millis(500));
        last.signal(signal);
        let took_over = || bed.site.status().is_ok_and(|status| status["agent"]["pid"] == number && status["applied"]["services"] == 1);
        next.wait_ready(Duration::from_secs(20), took_over).expect("the next agent takes over");
        last.kill();
        bed.agent = Some(next);
        assert!(bed.status().agent.adopted);
    }
    bed.clean(Plan::http(vip(false)), 50);
}

fn detach(bed: &Bed, more: &[&str]) -> (bool, String) {
    let mut command = bed.lab.node.command(SPLITTER);
    let output = command.arg("detach").arg("--pins").arg(&bed.site.pins).args(more).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn detach_leaves_a_living_agent_alone() {
    let mut bed = Bed::new("attached", &[Split::tcp(1, 1)]);
    let (done, text) = detach(&bed, &[]);
    let told = format!("an agent (pid {}) lives on the pins in {}", pid(&bed), bed.site.pins.display());
    assert!(!done && text.contains(&told) && text.contains("--force"), "{text}");
    bed.clean(Plan::http(vip(false)), 50);
    let agent = bed.agent.take().unwrap();
    let (done, text) = detach(&bed, &["--force"]);
    assert!(done && text.starts_with(&format!("agent (pid {}) stopped\n", agent.pid())) && text.contains("map CONFIG"), "{text}");
    assert!(agent.exited().is_some_and(|status| status.success()), "it was asked to end");
    assert!(!bed.site.pins.exists());
    let (done, text) = detach(&bed, &["--force"]);
    assert!(done && text.contains("nothing to remove"), "{text}");
}

/// Detaches a link as `bpftool link detach` does.
fn detach_link(pin: &Path) {
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let object = [path.as_ptr() as u64, 0];
    // SAFETY: BPF_OBJ_GET with the path of a pin, and BPF_LINK_DETACH with the link's descriptor, which is closed afterwards.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, 7, object.as_ptr(), size_of_val(&object));
        assert!(fd >= 0, "{}: {}", pin.display(), std::io::Error::last_os_error());
        assert_eq!(libc::syscall(libc::SYS_bpf, 34, &raw const fd, 4), 0, "{}", std::io::Error::last_os_error());
        libc::close(fd as i32);
    }
}

fn pin(bed: &Bed, hook: &str) -> std::path::PathBuf {
    let interface = bed.status().interfaces.into_iter().find(|interface| interface.name == "c0").expect("c0 is served");
    bed.site.pins.join("links").join(format!("{}-{hook}", interface.ifindex))
}

#[test]
fn what_somebody_detaches_is_told_and_comes_back() {
    let mut bed = Bed::prepare("lost", Default::default(), &[Split::tcp(1, 1)]);
    (bed.site.xdp, bed.site.interfaces) = ("generic", vec!["c0:uplink", "b*"]);
    bed.start();
    assert!(ready(&bed));
    assert_eq!((metric(&bed, "splitter_attachments_lost_total"), metric(&bed, "splitter_interfaces_attached")), (0.0, 4.0));
    let whole = |status: &splitter_api::Status| {
        let all: Vec<_> = status.interfaces.iter().filter(|interface| interface.missing.is_empty()).map(|i| i.programs.len()).collect();
        all.len() == 4 && all.iter().sum::<usize>() == 9
    };
    assert!(whole(&bed.status()), "{:?}", bed.status().interfaces);
    let mut expected = 0;
    let unpin = |pin: &Path| fs::remove_file(pin).unwrap();
    for (what, take) in [("detached", detach_link as fn(&Path)), ("unpinned", unpin)] {
        for hook in ["tcx-ingress", "tcx-egress", "xdp-generic"] {
            take(&pin(&bed, hook));
            expected += 1;
            bed.wait(&format!("{what} {hook}: noticed"), |status| status.attachments.lost == expected);
            bed.wait(&format!("{what} {hook}: back"), whole);
            assert!(ready(&bed));
            bed.clean(Plan::http(vip(false)), 30);
        }
    }
    assert_eq!(metric(&bed, "splitter_attachments_lost_total"), f64::from(expected as u32));
    // In between it is told, by whoever asks first.
    let told = (0..30).any(|_| {
        detach_link(&pin(&bed, "tcx-ingress"));
        let answer = get(&bed, "/readyz");
        bed.wait("back", whole);
        answer.starts_with("HTTP/1.1 503") && answer.contains("c0 lacks tcx-ingress")
    });
    assert!(told, "nobody said that c0 was blind");
}

/// A program on an interface's XDP hook that passes everything; gone with the descriptors.
fn foreign_xdp(ifindex: u32) -> [OwnedFd; 2] {
    let bpf = |command: i64, attributes: &[u64]| {
        // SAFETY: attributes of the command, padded with zeros; what they point to outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
        assert!(fd >= 0, "bpf {command}: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    };
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    // r0 = XDP_PASS; exit
    let code = [pair(0xb7, 2), 0x95];
    let program = bpf(5, &[pair(6, 2), code.as_ptr() as u64, c"GPL".as_ptr() as u64, 0, 0, 0, 0, 0]);
    let link = bpf(28, &[pair(program.as_raw_fd() as u32, ifindex), pair(37, 2)]);
    [program, link]
}

/// Somebody else's program in the place is told for as long as it is there.
#[test]
fn a_hook_that_another_took_is_told() {
    let mut bed = Bed::prepare("taken", Default::default(), &[Split::tcp(1, 1)]);
    (bed.site.xdp, bed.site.interfaces) = ("generic", vec!["c0:uplink", "b*"]);
    let links = || splitter_datapath::interfaces().expect("rtnetlink answers");
    let c0 = bed.lab.node.run(links).unwrap().into_iter().find(|link| link.name == "c0").expect("c0 is there").ifindex;
    let foreign = bed.lab.node.run(|| foreign_xdp(c0)).unwrap();
    bed.start();
    let missing = |bed: &Bed| bed.status().interfaces.into_iter().find(|interface| interface.name == "c0").unwrap().missing;
    assert_eq!(missing(&bed), ["xdp-generic"]);
    let answer = get(&bed, "/readyz");
    assert!(answer.contains("ok\nwarning: c0 lacks xdp-generic"), "TC serves meanwhile: {answer}");
    assert_eq!(metric(&bed, "splitter_attachments_missing"), 1.0);
    assert!(bed.cli(&["status"]).contains("xdp-generic missing"));
    drop(foreign);
    eventually("ours is in the place", || missing(&bed).is_empty().then_some(()));
    assert_eq!(bed.status().attachments.lost, 0, "it was never there");
}

/// All pins are gone under a living agent: it makes them again, and the next one finds what it left.
#[test]
fn pins_that_somebody_removed_are_made_again() {
    let mut bed = Bed::new("unpinned", &[Split::tcp(1, 1)]);
    bed.clean(Plan::http(vip(false)), 50);
    let counted = |bed: &Bed| bed.service("web").versions.iter().map(|version| version.connections).sum::<u64>();
    let before = counted(&bed);
    let names = |bed: &Bed| {
        let mut names: Vec<_> = fs::read_dir(&bed.site.pins).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let all = names(&bed);
    fs::remove_dir_all(&bed.site.pins).unwrap();
    eventually(&format!("the pins are back: {all:?}"), || (bed.site.pins.exists() && names(&bed) == all).then_some(()));
    bed.wait("all is attached", |status| status.interfaces.iter().all(|i| i.missing.is_empty() && i.programs.len() == 2));
    assert!(bed.status().attachments.lost >= 4);
    bed.clean(Plan::http(vip(false)), 50);
    assert!(log(&bed).contains("somebody removed pins of maps"), "{}", log(&bed));
    // The directory is another one, and held all the same.
    assert!(!detach(&bed, &[]).0);
    bed.kill_agent();
    bed.start();
    assert!(bed.status().agent.adopted);
    assert_eq!(counted(&bed), before + 50);
    bed.clean(Plan::http(vip(false)), 50);
}

#[test]
fn an_interface_that_is_not_there_is_told() {
    let mut bed = Bed::prepare("noiface", Default::default(), &[Split::tcp(1, 1)]);
    bed.site.interfaces = vec!["lan0", "eht1"];
    bed.start();
    let status = bed.status();
    let told =
        |texts: &str| ["--interface lan0: no interface has this name", "attached to no interface"].iter().all(|part| texts.contains(part));
    assert!(status.applied.services == 1 && told(&status.attachments.warnings.join("\n")), "{:?}", status.attachments);
    let answer = get(&bed, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 503") && told(&answer), "{answer}");
    assert!(told(&bed.cli(&["status"])) && told(&log(&bed)));
    bed.lab.node.batch("link add lan0 type veth peer name lan1\nlink set lan0 up\n").unwrap();
    eventually("ready", || ready(&bed).then_some(()));
    let answer = get(&bed, "/readyz");
    assert!(answer.contains("ok\nwarning: --interface eht1: no interface has this name") && !answer.contains("lan0"), "{answer}");
}

#[test]
fn signals_reload_or_mean_nothing() {
    let bed = Bed::new("signals", &[Split::tcp(1, 1)]);
    let agent = bed.agent.as_ref().expect("a running agent");
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE] {
        agent.signal(signal);
    }
    for _ in 0..2 {
        let read = bed.status().desired.read;
        agent.signal(libc::SIGHUP);
        bed.wait("the policy is read again", |status| status.desired.read > read);
    }
    assert_eq!(bed.status().agent.pid, agent.pid());
}

#[test]
fn a_log_that_nobody_reads_does_not_end_the_agent() {
    let mut bed = Bed::prepare("nolog", Default::default(), &[Split::tcp(1, 1)]);
    let pipe = bed.site.dir.join("log");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: a C string that lives until the end of the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
    bed.site.wrapper = ["sh", "-c", &format!("exec \"$0\" \"$@\" 2>{}", pipe.display())].map(String::from).to_vec();
    bed.start();
    drop(reader);
    let mut wrong = document(&bed.lab, &[Split::tcp(1, 3)]);
    wrong.push_str("nonsense: 1\n");
    bed.write_policy(&wrong);
    bed.wait("errors are logged to nobody", |status| status.desired.state == "rejected");
    bed.write_policy(&document(&bed.lab, &[Split::tcp(1, 3)]));
    bed.wait("the change is taken", |status| status.services.first().is_some_and(|service| service.versions[1].weight == 3));
    assert_eq!(bed.status().agent.pid, pid(&bed), "it goes on");
}

/// Started by hand as root the agent keeps no more than under its unit, and what only root may read it can still read.
#[test]
fn capabilities_are_given_up() {
    let mut bed = Bed::prepare("caps", Default::default(), &[Split::tcp(1, 1)]);
    fs::set_permissions(bed.site.policy(), fs::Permissions::from_mode(0o600)).unwrap();
    let sets = |bed: &Bed| {
        let text = fs::read_to_string(format!("/proc/{}/status", pid(bed))).unwrap();
        let set = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t").map(str::to_owned)).unwrap();
        [set("CapPrm"), set("CapEff"), set("CapBnd")]
    };
    bed.start();
    // CAP_NET_ADMIN 12, CAP_PERFMON 38, CAP_BPF 39.
    let kept = format!("{:016x}", 1u64 << 12 | 1 << 38 | 1 << 39);
    assert_eq!(sets(&bed), [kept.clone(), kept.clone(), kept.clone()]);
    for thread in fs::read_dir(format!("/proc/{}/task", pid(&bed))).unwrap() {
        let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(text.contains(&format!("CapPrm:\t{kept}")), "a thread has more: {text}");
    }
    bed.clean(Plan::http(vip(false)), 50);
    bed.write_policy(&document(&bed.lab, &[Split::tcp(1, 3)]));
    bed.wait("a change is taken", |status| status.services[0].versions[1].weight == 3);
    bed.lab.node.batch("link del b3\nlink add b3 type veth peer name b3p\nlink set b3 up\n").unwrap();
    bed.wait("interfaces are followed", |status| status.interfaces.iter().any(|i| i.name == "b3" && i.programs.len() == 2));
    bed.kill_agent();
    bed.site.options = vec!["--keep-capabilities".into()];
    bed.start();
    assert_ne!(sets(&bed)[0], kept);
}

/// Clients that never finish what they ask.
#[test]
fn slow_clients_delay_neither_weights_nor_health() {
    let bed = Bed::new("slow", &[Split::tcp(1, 1)]);
    let half = || -> std::io::Result<Vec<TcpStream>> {
        (0..200)
            .map(|_| {
                let mut stream = TcpStream::connect(METRICS)?;
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHos")?;
                Ok(stream)
            })
            .collect()
    };
    let _metrics = bed.lab.node.run(half).unwrap().unwrap();
    let admin = |_| {
        let mut stream = UnixStream::connect(bed.site.socket()).unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHos").unwrap();
        stream
    };
    let _admin: Vec<_> = (0..200).map(admin).collect();
    let timed = |what: &str, work: &dyn Fn()| {
        let begin = Instant::now();
        work();
        assert!(begin.elapsed() < AT_ONCE, "{what} took {:?}", begin.elapsed());
    };
    timed("weight", &|| drop(bed.cli(&["weight", "web", "v1=1", "v2=9"])));
    timed("/healthz", &|| assert!(get(&bed, "/healthz").starts_with("HTTP/1.1 200")));
    timed("/readyz", &|| assert!(ready(&bed)));
    timed("/metrics", &|| assert_eq!(metric(&bed, "splitter_interfaces_attached"), 4.0));
    no_failures("afterwards", &bed.clean(Plan::http(vip(false)), 20));
}
