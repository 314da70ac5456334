//! The judgements of `doctor`: pure functions from text to a verdict and a remedy.

use super::{
    Check,
    network::{Needs, count},
};
use splitter_api::{Interface, Status};
use splitter_datapath::missing_capabilities;
use splitter_policy::source::Outcome;
use std::{collections::BTreeMap, net::IpAddr, path::Path};

/// Address families that a policy uses; without a policy both may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    pub fn of(needs: &Needs) -> Self {
        let uses = |v4: bool| needs.vips.keys().any(|vip| vip.is_ipv4() == v4);
        Self { v4: uses(true), v6: uses(false) }
    }

    /// Neither: no policy is known.
    fn unknown(self) -> bool {
        !self.v4 && !self.v6
    }
}

/// `mountinfo` lines: `... MOUNTPOINT OPTIONS - TYPE SOURCE ...`.
pub fn bpffs(mounts: &str) -> Check {
    let points = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("bpf ").then(|| before.split(' ').nth(4))?
    });
    let points: Vec<_> = points.collect();
    if points.contains(&"/sys/fs/bpf") {
        return Check::ok("bpffs", "mounted on /sys/fs/bpf");
    }
    match points.first() {
        Some(point) => {
            Check::warn("bpffs", format!("mounted on {point}, not on /sys/fs/bpf"), format!("run the agent with --pins {point}/splitter"))
        }
        None => Check::fail("bpffs", "not mounted: nothing would outlive the agent", "mount -t bpf bpf /sys/fs/bpf"),
    }
}

pub fn capabilities(status: &str) -> Check {
    let Some(missing) = missing_capabilities(status) else {
        return Check::warn("privileges", "/proc/self/status does not tell", "run with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    };
    if missing.is_empty() {
        return Check::ok("privileges", "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are held");
    }
    let remedy = "run as root, or with deploy/splitter.service's AmbientCapabilities";
    Check::fail("privileges", format!("missing here: {}", missing.join(", ")), remedy)
}

pub fn jit(setting: Option<&str>) -> Check {
    match setting {
        Some("1" | "2") => Check::ok("BPF JIT", "on"),
        Some(_) => Check::fail("BPF JIT", "off: every packet would be interpreted", "sysctl -w net.core.bpf_jit_enable=1"),
        None => Check::warn("BPF JIT", "this kernel does not tell", "look at CONFIG_BPF_JIT, and at net.core.bpf_jit_enable as root"),
    }
}

/// The route lookup of the datapath answers only where the stack may forward.
pub fn forwarding(v4: Option<&str>, v6: Option<&str>, families: Families) -> Vec<Check> {
    let one = |name, setting: Option<&str>, used: bool, key: &str| match setting {
        _ if !used && !families.unknown() => Check::ok(name, "not needed: the policy does not use the family"),
        Some("0") | None if used => {
            Check::fail(name, "off, and the policy needs it: the node does not route to backends", format!("sysctl -w {key}=1"))
        }
        Some("0") => {
            Check::warn(name, "off: the node does not route to backends of this family", format!("sysctl -w {key}=1, if it is used"))
        }
        Some(_) => Check::ok(name, "on"),
        None => Check::warn(name, "cannot be read: the family may be off", "nothing, if it is not used"),
    };
    vec![
        one("IPv4 forwarding", v4, families.v4, "net.ipv4.ip_forward"),
        one("IPv6 forwarding", v6, families.v6, "net.ipv6.conf.all.forwarding"),
    ]
}

/// Of IPv4 alone. The larger of `all` and the interface's own value counts; 1 is strict, 2 loose.
pub fn reverse_path(settings: &BTreeMap<String, String>, families: Families) -> Check {
    if families.v6 && !families.v4 {
        return Check::ok("rp_filter", "not needed: the policy does not use IPv4");
    }
    let value = |name: &str| settings.get(name).and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
    let all = value("all");
    let names = settings.keys().filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"));
    let strict: Vec<_> = names.filter(|name| all.max(value(name)) == 1).map(String::as_str).collect();
    if strict.is_empty() {
        return Check::ok("rp_filter", "not strict");
    }
    let found = format!("strict on {}: replies that come back by another interface are dropped", shorten(&strict));
    Check::warn("rp_filter", found, "sysctl -w net.ipv4.conf.all.rp_filter=2, if clients and backends are routed asymmetrically")
}

pub fn agent(status: &anyhow::Result<Status>) -> Check {
    match status {
        Ok(status) if status.interfaces.iter().all(|interface| interface.programs.is_empty()) => Check::fail(
            "agent",
            format!("{} runs, but is attached to no interface: nothing is served", status.agent.version),
            "start it with an --interface that matches one of `ip link`, which must be up and have Ethernet headers",
        ),
        Ok(status) if status.interfaces.iter().any(|interface| !interface.missing.is_empty()) => {
            let incomplete = status.interfaces.iter().filter(|interface| !interface.missing.is_empty());
            let shown: Vec<String> =
                incomplete.map(|interface| format!("{} lacks {}", interface.name, interface.missing.join(", "))).collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            let (found, remedy) = (shorten(&shown), "it puts back what somebody took; else its log says what the kernel refuses");
            match status.interfaces.iter().any(Interface::is_blind) {
                true => Check::fail("agent", format!("{found}: packets pass it by there"), remedy),
                false => Check::warn("agent", found, remedy),
            }
        }
        Ok(status) if !status.attachments.warnings.is_empty() => {
            Check::warn("agent", status.attachments.warnings.join("; "), "correct its --interface, or bring the interface up")
        }
        Ok(status) if status.desired.state == "rejected" => {
            let first = status.desired.errors.first().map_or("", String::as_str);
            Check::warn(
                "agent",
                format!("{} runs, but its policy is rejected: {first}", status.agent.version),
                "correct the policy: splitter status",
            )
        }
        Ok(status) => Check::ok(
            "agent",
            format!("{} answers, {} applied", status.agent.version, count(status.applied.services, "service", "services")),
        ),
        Err(error) => Check::warn("agent", error.to_string(), "start it: splitter agent --policy PATH"),
    }
}

/// Tables of the running agent.
pub fn tables(status: &anyhow::Result<Status>) -> Option<Check> {
    let status = status.as_ref().ok()?;
    let full = status.nearly_full();
    Some(if full.is_empty() {
        Check::ok("tables", "none is nearly full")
    } else {
        let shown: Vec<&str> = full.iter().map(String::as_str).collect();
        Check::warn(
            "tables",
            format!("nearly full: {}", shorten(&shown)),
            "stashes: `splitter status` names the services that hold them; others: splitter detach, then a larger --max-flows",
        )
    })
}

pub fn kube_proxy(rules: &[String]) -> Check {
    if rules.is_empty() {
        return Check::warn("kube-proxy", "not checked: nft and iptables-save are missing or may not run", "run as root");
    }
    let marks = ["KUBE-SERVICES", "table ip kube-proxy", "table ip6 kube-proxy"];
    if rules.iter().any(|text| marks.iter().any(|mark| text.contains(mark))) {
        let found = "its rules are on this host: they would translate what splitter leaves alone";
        return Check::warn("kube-proxy", found, "give splitter VIPs that are no Service's cluster IP");
    }
    Check::ok("kube-proxy", "no rules of it")
}

/// `links` is JSON of iproute2, `qdiscs` its text, `ours` are interfaces on which the agent says it uses clsact.
pub fn other_programs(links: Option<&str>, qdiscs: Option<&str>, ours: &[&str]) -> Check {
    const NAME: &str = "other programs";
    let Some(links) = links.and_then(|text| serde_json::from_str::<Vec<serde_json::Value>>(text).ok()) else {
        return Check::warn(NAME, "not checked: `ip` is missing or may not run", "install iproute2");
    };
    let mut found = Vec::new();
    for link in &links {
        let program = link["xdp"]["prog"]["name"].as_str().unwrap_or("?");
        if link.get("xdp").is_some() && !program.starts_with("splitter") {
            found.push(format!("XDP {program} on {}", link["ifname"].as_str().unwrap_or("?")));
        }
    }
    for line in qdiscs.unwrap_or_default().lines().filter(|l| l.starts_with("qdisc clsact")) {
        let device = line.split(' ').skip_while(|w| *w != "dev").nth(1).unwrap_or("?");
        if !ours.contains(&device) {
            found.push(format!("clsact (TC programs, perhaps) on {device}"));
        }
    }
    if found.is_empty() {
        return Check::ok(NAME, "no foreign XDP program or clsact");
    }
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    let remedy = "keep --xdp off there; splitter's TCX program runs before clsact (its own filter of clsact at priority 7330) and passes on what is not its own";
    Check::warn(NAME, shorten(&found), remedy)
}

/// /proc/self/limits: `Max open files  SOFT  HARD  files`.
pub fn open_files(limits: &str) -> Check {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let soft = line.and_then(|l| l.split_whitespace().next());
    match soft.map(str::parse::<u64>) {
        Some(Ok(soft)) if soft < 1024 => Check::warn("open files", format!("limit {soft}"), "ulimit -n 1024, or LimitNOFILE= in the unit"),
        _ => Check::ok("open files", format!("limit {}", soft.unwrap_or("unknown"))),
    }
}

/// /proc/meminfo: `MemAvailable:  N kB`.
pub fn memory(meminfo: &str) -> Check {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    let Some(mib) = kib.map(|k| k / 1024) else { return Check::warn("memory", "unknown", "look at /proc/meminfo") };
    let found = format!("{mib} MiB available");
    match mib {
        0..64 => Check::fail("memory", found, "free memory, or add some: a million flows take about 200 MiB"),
        64..256 => Check::warn("memory", found, "lower --max-flows: a million flows take about 200 MiB"),
        _ => Check::ok("memory", found),
    }
}

pub fn policy(path: &Path, outcome: &Outcome, local: &[IpAddr]) -> Vec<Check> {
    let policy = match &outcome.result {
        Ok(policy) => policy,
        Err(errors) => {
            let first = errors.first().map(ToString::to_string).unwrap_or_default();
            let remedy = format!("splitter check {} shows all {}", path.display(), errors.len());
            return vec![Check::fail("policy", first, remedy)];
        }
    };
    let mut list = vec![match outcome.warnings.first() {
        None => Check::ok("policy", count(policy.services.len(), "service", "services")),
        Some(first) => Check::warn("policy", first.to_string(), format!("splitter check {} shows all", path.display())),
    }];
    let vips = policy.services.iter().flat_map(|s| s.frontends.iter().map(move |f| (s, f.address.ip())));
    let assigned: Vec<_> = vips.filter(|(_, vip)| local.contains(vip)).map(|(s, vip)| format!("{vip} ({})", s.name)).collect();
    if assigned.is_empty() {
        list.push(Check::ok("VIPs", "none is an address of this host"));
    } else {
        let found: Vec<_> = assigned.iter().map(String::as_str).collect();
        let found = format!("{} assigned to this host: its own processes reach the host instead of a backend", shorten(&found));
        list.push(Check::warn("VIPs", found, "route VIPs to this node instead of assigning them"));
    }
    let backends = policy.services.iter().flat_map(|s| s.versions.iter().flat_map(|v| &v.backends));
    let own: Vec<_> = backends.map(|b| b.address).filter(|a| a.ip().is_loopback() || local.contains(&a.ip())).collect();
    if let Some(first) = own.first() {
        let found =
            format!("{first} ({} in all) is a process of this host: other processes of this host cannot reach it by the VIP", own.len());
        list.push(Check::warn(
            "backends",
            found,
            "fine for clients elsewhere; for local clients run backends in their own namespace, or on other hosts",
        ));
    }
    list
}

/// The first few.
pub(super) fn shorten(names: &[&str]) -> String {
    let shown = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 4 { format!("{shown} and {} more", names.len() - 4) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn bpffs_is_found_in_mountinfo() {
        let line = |point: &str, kind: &str| format!("30 25 0:27 / {point} rw,nosuid shared:9 - {kind} {kind} rw\n");
        assert_eq!(bpffs(&line("/sys/fs/bpf", "bpf")).verdict, Verdict::Ok);
        assert_eq!(bpffs(&line("/run/bpf", "bpf")).verdict, Verdict::Warn);
        assert_eq!(bpffs(&line("/sys/fs/bpf", "tmpfs")).verdict, Verdict::Fail);
    }

    #[test]
    fn tables_that_are_nearly_full() {
        let table = |name: &str, entries| splitter_api::Table { name: name.into(), entries, max_entries: 1_000, memory: 0 };
        let status = |tables| Ok(Status { tables, ..Status::default() });
        assert_eq!(tables(&status(vec![table("tcp4", 899), table("stashes", 749)])).unwrap().verdict, Verdict::Ok);
        let found = tables(&status(vec![table("tcp4", 900), table("stashes", 750), table("udp4", 0)])).unwrap();
        assert_eq!(found.found, "nearly full: tcp4: 900 of 1000 entries, stashes: 750 of 1000 entries");
        assert!(tables(&Err(anyhow::anyhow!("no agent"))).is_none());
    }

    #[test]
    fn capabilities_by_bit() {
        let status = |bits: u64| format!("Name:\tx\nCapEff:\t{bits:016x}\n");
        assert_eq!(capabilities(&status(1 << 39 | 1 << 38 | 1 << 12)).verdict, Verdict::Ok);
        assert_eq!(capabilities(&status(1 << 21 | 1 << 12)).verdict, Verdict::Ok);
        assert!(capabilities(&status(1 << 12)).found.ends_with("CAP_BPF, CAP_PERFMON"));
        assert_eq!(capabilities("").verdict, Verdict::Warn);
    }

    #[test]
    fn forwarding_fails_only_for_families_in_use() {
        let verdicts = |families| forwarding(Some("0"), None, families).iter().map(|c| c.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(Families::default()), [Verdict::Warn, Verdict::Warn]);
        assert_eq!(verdicts(Families { v4: true, v6: true }), [Verdict::Fail, Verdict::Fail]);
        assert_eq!(verdicts(Families { v4: true, v6: false }), [Verdict::Fail, Verdict::Ok]);
        assert_eq!(verdicts(Families { v4: false, v6: true }), [Verdict::Ok, Verdict::Fail]);
    }

    #[test]
    fn reverse_path_takes_the_larger_value() {
        let settings = |all: &str, eth0: &str| [("all", all), ("eth0", eth0)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let check = |all: &str, eth0: &str| reverse_path(&settings(all, eth0), Families::default());
        assert_eq!(check("0", "1").verdict, Verdict::Warn);
        assert_eq!(check("1", "0").verdict, Verdict::Warn);
        assert_eq!(check("2", "1").verdict, Verdict::Ok);
        assert_eq!(check("0", "0").verdict, Verdict::Ok);
        assert_eq!(reverse_path(&settings("1", "1"), Families { v4: false, v6: true }).verdict, Verdict::Ok);
    }

    #[test]
    fn an_agent_that_is_attached_to_nothing_fails() {
        let whole = Interface { name: "c0".into(), programs: vec!["tcx-ingress".into()], ..Interface::default() };
        let lacks = |hook: &str| Interface { missing: vec![hook.into()], ..whole.clone() };
        let verdict = |interfaces| agent(&Ok(Status { interfaces, ..Status::default() })).verdict;
        assert_eq!((verdict(vec![whole.clone()]), verdict(Vec::new())), (Verdict::Ok, Verdict::Fail));
        assert_eq!((verdict(vec![lacks("tcx-egress")]), verdict(vec![lacks("xdp-native")])), (Verdict::Fail, Verdict::Warn));
        assert_eq!(verdict(vec![Interface { programs: Vec::new(), ..whole.clone() }]), Verdict::Fail);
        let mut warned = Status { interfaces: vec![whole], ..Status::default() };
        warned.attachments.warnings.push("--interface eht0: no interface has this name".into());
        assert_eq!(agent(&Ok(warned)).verdict, Verdict::Warn);
        assert_eq!(agent(&Err(anyhow::anyhow!("nobody answers"))).verdict, Verdict::Warn);
    }

    #[test]
    fn foreign_rules_and_programs() {
        assert_eq!(kube_proxy(&[]).verdict, Verdict::Warn);
        assert_eq!(kube_proxy(&[":KUBE-SERVICES - [0:0]".into()]).verdict, Verdict::Warn);
        assert_eq!(kube_proxy(&["table ip nat {}".into()]).verdict, Verdict::Ok);
        let links = r#"[{"ifname":"eth0","xdp":{"mode":1,"prog":{"id":3,"name":"xdp_lb"}}},{"ifname":"eth1","xdp":{"prog":{"name":"splitter_xdp"}}}]"#;
        assert_eq!(other_programs(Some(links), None, &[]).found, "XDP xdp_lb on eth0");
        assert_eq!(other_programs(Some("[]"), Some("qdisc clsact ffff: dev eth1 parent ffff:fff1\n"), &[]).verdict, Verdict::Warn);
        let ours = other_programs(Some("[]"), Some("qdisc clsact ffff: dev eth1 parent ffff:fff1\n"), &["eth1"]);
        assert_eq!(ours.verdict, Verdict::Ok);
        assert_eq!(other_programs(Some("[]"), Some("qdisc noqueue 0: dev lo root\n"), &[]).verdict, Verdict::Ok);
        assert_eq!(other_programs(None, None, &[]).verdict, Verdict::Warn);
    }

    #[test]
    fn limits() {
        assert_eq!(open_files("Max open files            256                  4096                 files\n").verdict, Verdict::Warn);
        assert_eq!(open_files("Max open files            1048576              1048576              files\n").verdict, Verdict::Ok);
        assert_eq!(memory("MemTotal: 1 kB\nMemAvailable:   32768 kB\n").verdict, Verdict::Fail);
        assert_eq!(memory("MemAvailable:   8388608 kB\n").verdict, Verdict::Ok);
        assert_eq!(jit(Some("0")).verdict, Verdict::Fail);
    }
}
