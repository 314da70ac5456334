//! What the agent needs of the machine, and what it leaves there.

use crate::support::{
    Bed, Split, connections, copy_program, eventually,
    kernel::{held, maps_alive, programs_alive},
    tool, vip,
};
use splitter_lab::load::{Load, Plan};
use std::{fs, os::unix::fs::PermissionsExt, process::Command};

/// CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// A bpffs of its own, because the system's belongs to root.
struct Bpffs<'a>(&'a std::path::Path);

impl Bpffs<'_> {
    fn mount(path: &std::path::Path) -> Bpffs<'_> {
        fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "bpf", "bpf"]).arg(path);
        tool(mount);
        Bpffs(path)
    }
}

impl Drop for Bpffs<'_> {
    fn drop(&mut self) {
        // What resists shows in the test that follows, which cannot remove its folder.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn three_capabilities_are_enough_and_root_is_not_needed() {
    const NOBODY: u32 = 65_534;
    let mut bed = Bed::prepare("caps", Default::default(), &[Split::tcp(50, 50)]);
    // Where an unprivileged user can read it.
    let copy = bed.site.dir.join("splitter");
    copy_program(&copy);
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mountpoint = bed.site.dir.join("bpf");
    let _bpffs = Bpffs::mount(&mountpoint);
    for path in [&bed.site.dir, &bed.site.dir.join("state"), &mountpoint] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    (bed.site.splitter, bed.site.pins) = (copy, mountpoint.join("pins"));
    let user = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --no-new-privs");
    let set = "-all,+bpf,+net_admin,+perfmon";
    let words = format!("{user} --bounding-set={set} --inh-caps={set} --ambient-caps={set}");
    bed.site.wrapper = words.split(' ').map(String::from).collect();
    for adopted in [false, true] {
        bed.start();
        let agent = bed.agent.as_ref().unwrap().pid();
        let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(u64::from_str_radix(&line("CapEff:"), 16).unwrap(), CAPABILITIES);
        assert!(line("Uid:").starts_with("65534"), "{status}");
        let total = bed.clean(Plan::http(vip(false)), 400);
        assert!((100..300).contains(&connections(&total, &["b3"])), "{total:?}");
        assert_eq!(bed.status().agent.adopted, adopted);
        bed.kill_agent();
    }
}

#[test]
fn detach_leaves_no_trace() {
    let mut bed = Bed::prepare("detach", Default::default(), &[Split::tcp(1, 1), Split::tcp(1, 1).v6().named("web6")]);
    (bed.site.xdp, bed.site.interfaces) = ("generic", vec!["c0:uplink", "b*"]);
    let routes = |bed: &Bed| {
        let mut text = String::new();
        for words in ["-4 route show table all", "-6 route show table all", "rule show", "-d link show"] {
            let mut ip = bed.lab.node.command("ip");
            ip.args(words.split(' '));
            text += &tool(ip);
        }
        text
    };
    // Neighbours and counters aside, this is what a host is: learnt before, so that nothing new has to be learnt after.
    let direct = |bed: &Bed| {
        for i in 1..=3 {
            let plan = Plan { requests: Some(20), ..Plan::http(bed.lab.backend_addr(i, false, 8080)) };
            let total = Load::run(Some(bed.lab.client()), plan).unwrap().total();
            assert_eq!((total.requests(), total.failed()), (20, 0), "b{i}, without the agent: {total:?}");
        }
    };
    direct(&bed);
    let before = routes(&bed);
    let mut bed = bed.started();
    bed.clean(Plan::http(vip(false)), 100);
    bed.clean(Plan::http(vip(true)), 100);
    direct(&bed);
    let agent = bed.agent.as_ref().unwrap().pid();
    let (programs, maps) = (held(agent, "prog_id"), held(agent, "map_id"));
    assert!(programs.len() >= 3 && maps.len() >= 20, "{programs:?} {maps:?}");
    bed.kill_agent();
    assert!(programs.iter().any(|id| programs_alive().contains(id)), "the kernel goes on without the agent");
    bed.clean(Plan::http(vip(false)), 100);

    bed.site.detach().expect("detach works");
    bed.site.detach().expect("and works when there is nothing left");
    assert!(!bed.site.pins.exists(), "{} is left", bed.site.pins.display());
    eventually("the kernel frees every program and map", || {
        (programs_alive().is_disjoint(&programs) && maps_alive().is_disjoint(&maps)).then_some(())
    });
    assert_eq!(before, routes(&bed));
    direct(&bed);
    let gone = bed.load(Plan { requests: Some(3), ..Plan::http(vip(false)) }).total();
    assert_eq!(gone.requests(), 0, "somebody still answers at the VIP");
}
