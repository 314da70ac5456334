//! What stands between client and backends: nothing, the agent, or the rules that kube-proxy writes for one service with two endpoints (its
//! nftables and iptables modes as of Kubernetes 1.36, chains for what is not configured here left out where no packet of ours meets them).

use super::{
    super::{
        Place, Rows,
        synthetic::{self, BACK_PORT, FRONT_PORT},
    },
    server,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_lab::{
    agent::{self, Site},
    cleanup::Guard,
    lab::{Lab, Options, Process, VIP4},
    load::{Load, Plan},
};
use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// One, so that who serves whom, and with it which CPU wakes which, is alike for all subjects: a client thread that goes to a backend
/// itself sticks to it, one that goes to a VIP would not.
const BACKENDS: usize = 1;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The client calls the backends themselves.
    Plain,
    Splitter,
    /// As `Plain`, past a firewall that follows connections.
    Filtered,
    /// The agent, and the firewall holds for what it splits.
    Stack,
    Nft,
    Iptables,
}

/// A network with servers; dropped in this order.
pub struct Subject {
    pub name: String,
    kind: Kind,
    /// One for each thread of the client.
    pub targets: Vec<SocketAddr>,
    agent: Option<(Process, Site)>,
    servers: Vec<Process>,
    pub lab: Lab,
    /// For the files of servers and client.
    pub folder: PathBuf,
    _removal: Guard,
}

impl Subject {
    pub fn start(place: &Place, name: &str, kind: Kind) -> Result<Subject> {
        let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let lab = Lab::with(&letters, Options { backends: BACKENDS, ..Options::default() })?;
        // One congestion control on every machine, and one that does not pace: in a virtual machine a pacing timer leaves to the
        // hypervisor for every burst, which costs more than all that is compared here.
        for end in std::iter::once(lab.client()).chain(lab.backends()) {
            end.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        }
        let (folder, removal) = agent::folder(lab.name())?;
        let servers = (1..=BACKENDS).map(|i| server::start(&lab, i, &folder)).collect::<Result<_>>()?;
        let backends: Vec<SocketAddr> = (1..=BACKENDS).map(|i| lab.backend_addr(i, false, BACK_PORT)).collect();
        let targets = if matches!(kind, Kind::Plain | Kind::Filtered) {
            backends.clone()
        } else {
            vec![SocketAddr::new(VIP4.into(), FRONT_PORT); BACKENDS]
        };
        let agent = match kind {
            Kind::Plain => None,
            Kind::Filtered => rules(&lab, "nft", &["-f", "-"], FIREWALL).map(|()| None)?,
            Kind::Splitter | Kind::Stack => {
                if kind == Kind::Stack {
                    rules(&lab, "nft", &["-f", "-"], FIREWALL)?;
                }
                let site = Site::new(&place.splitter, &lab.node, &synthetic::real(1, 0))?;
                Some((site.start(1)?, site))
            }
            Kind::Nft => rules(&lab, "nft", &["-f", "-"], &nft(&backends)).map(|()| None)?,
            Kind::Iptables => rules(&lab, "iptables-restore", &[], &iptables(&backends)).map(|()| None)?,
        };
        let subject = Subject { name: name.into(), kind, targets, agent, servers, lab, folder, _removal: removal };
        subject.rest();
        Ok(subject)
    }

    /// Every target answers, and conntrack is used by the rivals and the firewall alone. The VIP is assigned nowhere: who answers there was translated.
    pub fn check(&self) -> Result<()> {
        self.wake();
        for target in &self.targets {
            let plan = Plan { requests: Some(20), concurrency: 4, ..Plan::http(*target) };
            let total = Load::run(Some(self.lab.client()), plan)?.total();
            ensure!(total.failed() == 0, "{} of 20 requests to {target} failed: {:?}", total.failed(), total.first_error);
        }
        self.rest();
        let tracked = self.lab.node.run(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))?;
        let tracked = tracked.context("the kernel has no conntrack to compare with")?;
        let uses = tracked.trim() != "0";
        ensure!(
            uses == matches!(self.kind, Kind::Nft | Kind::Iptables | Kind::Filtered | Kind::Stack),
            "conntrack entries at the node: {}",
            tracked.trim()
        );
        Ok(())
    }

    /// Only the subject whose turn it is has a running agent: its timers are no other's cost.
    pub fn wake(&self) {
        self.agent.iter().for_each(|(agent, _)| agent.signal(libc::SIGCONT));
    }

    pub fn rest(&self) {
        self.agent.iter().for_each(|(agent, _)| agent.signal(libc::SIGSTOP));
    }

    /// Takes everything down; the agent is first asked how many connections it saw.
    pub fn end(mut self, rows: &mut Rows) -> Result<()> {
        self.wake();
        if let Some((agent, site)) = self.agent.take() {
            let status = site.status()?;
            let connections = connections(&status).context("odd status")?;
            let connections = connections.iter().sum::<u64>();
            ensure!(connections > 0, "no connection went by the agent's programs");
            let row = rows.add(&self.name, "connections", connections as f64, None);
            row.more.insert("reasons", status["reasons"].clone());
            agent.stop(PATIENCE)?;
            site.detach()?;
            site.remove()?;
        }
        self.servers.drain(..).for_each(Process::kill);
        self.lab.remove()
    }
}

/// Connections of the versions of the only service.
fn connections(status: &Value) -> Option<Vec<u64>> {
    status["services"][0]["versions"].as_array()?.iter().map(|version| version["connections"].as_u64()).collect()
}

/// Which rivals these are.
pub fn versions() -> String {
    let version = |program: &str| {
        let output = Command::new(path(program)).arg("--version").output();
        output.map_or_else(|_| format!("no {program}"), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    format!("{}, {}", version("nft"), version("iptables"))
}

fn path(program: &str) -> PathBuf {
    server::find(program).unwrap_or_else(|| Path::new(program).into())
}

/// Hands rules to a program in the node.
fn rules(lab: &Lab, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut command = lab.node.command(path(program));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {program}: `cargo xtask setup` installs it"))?;
    child.stdin.take().context("no standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// As many hosts and network policies have it: new connections to the backends, and what belongs to them.
const FIREWALL: &str = "table inet firewall {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    ip daddr 10.2.0.0/16 tcp dport 8080 accept
  }
}
";

/// Sources that kube-proxy would not masquerade: the cluster's pods, which the client is one of.
const CLUSTER: &str = "10.0.0.0/8";

fn nft(backends: &[SocketAddr]) -> String {
    let hairpin: Vec<String> = backends.iter().map(|b| format!("{0} . {0} . tcp . {1}", b.ip(), b.port())).collect();
    let endpoints: Vec<String> = backends.iter().enumerate().map(|(i, b)| format!("{i} : {} . {}", b.ip(), b.port())).collect();
    let (count, hairpin, endpoints) = (backends.len(), hairpin.join(", "), endpoints.join(", "));
    let empty = |name: &str, key: &str| format!("  map {name} {{ type {key} : verdict; }}\n");
    let hook = |name: &str, kind: &str, hook: &str, priority: &str, rules: &str| {
        format!("  chain {name} {{ type {kind} hook {hook} priority {priority}; policy accept; {rules} }}\n")
    };
    let address = "ipv4_addr . inet_proto . inet_service";
    [
        "table ip kube-proxy {\n".to_owned(),
        format!("  set cluster-ips {{ type ipv4_addr; elements = {{ {VIP4} }} }}\n"),
        "  set nodeport-ips { type ipv4_addr; elements = { 10.1.0.1 } }\n".into(),
        format!("  set hairpin-connections {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; elements = {{ {hairpin} }} }}\n"),
        empty("no-endpoint-services", address),
        empty("firewall-ips", address),
        empty("service-nodeports", "inet_proto . inet_service"),
        format!("  map service-ips {{ type {address} : verdict; elements = {{ {VIP4} . tcp . {FRONT_PORT} : goto service-real }} }}\n"),
        hook("filter-prerouting-pre-dnat", "filter", "prerouting", "dstnat - 10", "ct state new jump firewall-check;"),
        hook(
            "filter-forward",
            "filter",
            "forward",
            "filter",
            "ct state new jump service-endpoints-check; ct state new jump cluster-ips-check;",
        ),
        hook("nat-prerouting", "nat", "prerouting", "dstnat", "jump services;"),
        hook("nat-postrouting", "nat", "postrouting", "srcnat", "jump masquerading;"),
        "  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }\n".into(),
        "  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }\n".into(),
        "  chain cluster-ips-check { ip daddr @cluster-ips reject; }\n".into(),
        format!("  chain services {{\n    ip daddr @cluster-ips ip saddr != {CLUSTER} meta mark set meta mark | 0x4000\n"),
        "    ip daddr . meta l4proto . th dport vmap @service-ips\n".into(),
        "    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n  }\n".into(),
        "  chain masquerading {\n    meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random\n".into(),
        "    ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random\n  }\n".into(),
        format!("  chain service-real {{ meta l4proto tcp dnat ip to numgen random mod {count} map {{ {endpoints} }}; }}\n}}\n"),
    ]
    .concat()
}

fn iptables(backends: &[SocketAddr]) -> String {
    let service = "KUBE-SVC-REAL";
    let mut lines: Vec<String> = [
        "*filter",
        ":KUBE-EXTERNAL-SERVICES - [0:0]",
        ":KUBE-FORWARD - [0:0]",
        ":KUBE-PROXY-FIREWALL - [0:0]",
        ":KUBE-SERVICES - [0:0]",
        "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
        "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD",
        "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT",
        "*nat",
        ":KUBE-MARK-MASQ - [0:0]",
        ":KUBE-POSTROUTING - [0:0]",
        ":KUBE-SERVICES - [0:0]",
    ]
    .map(String::from)
    .to_vec();
    lines.push(format!(":{service} - [0:0]"));
    lines.extend((0..backends.len()).map(|i| format!(":KUBE-SEP-{i} - [0:0]")));
    lines.extend(
        [
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
            "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
            "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
            "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully",
        ]
        .map(String::from),
    );
    let vip = format!("-d {VIP4}/32 -p tcp -m comment --comment \"lab/real cluster IP\" -m tcp --dport {FRONT_PORT}");
    lines.push(format!("-A KUBE-SERVICES {vip} -j {service}"));
    lines.push(format!("-A {service} ! -s {CLUSTER} {vip} -j KUBE-MARK-MASQ"));
    for (i, backend) in backends.iter().enumerate() {
        let left = backends.len() - i;
        let choice = if left > 1 { format!(" -m statistic --mode random --probability {:.11}", 1.0 / left as f64) } else { String::new() };
        lines.push(format!("-A {service} -m comment --comment \"lab/real -> {backend}\"{choice} -j KUBE-SEP-{i}"));
        lines.push(format!("-A KUBE-SEP-{i} -s {}/32 -m comment --comment \"lab/real\" -j KUBE-MARK-MASQ", backend.ip()));
        lines.push(format!("-A KUBE-SEP-{i} -p tcp -m comment --comment \"lab/real\" -m tcp -j DNAT --to-destination {backend}"));
    }
    lines.push("COMMIT\n".into());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn backends() -> Vec<SocketAddr> {
        ["10.2.1.2:8080", "10.2.2.2:8080", "10.2.3.2:8080"].map(|text| text.parse().unwrap()).to_vec()
    }

    #[test]
    fn every_endpoint_has_the_same_chance() {
        let text = iptables(&backends());
        let chances: Vec<f64> = text.lines().filter_map(|l| l.split("--probability ").nth(1)?.split(' ').next()?.parse().ok()).collect();
        assert_eq!(chances, [0.33333333333, 0.5]);
        let rules = nft(&backends());
        let expected = "numgen random mod 3 map { 0 : 10.2.1.2 . 8080, 1 : 10.2.2.2 . 8080, 2 : 10.2.3.2 . 8080 }";
        assert!(rules.contains(expected), "{rules}");
        assert_eq!(rules.matches('{').count(), rules.matches('}').count());
    }

    #[test]
    fn connections_are_read() {
        let status = json!({"services": [{"versions": [{"connections": 5}, {"connections": 7}]}]});
        assert_eq!(connections(&status), Some(vec![5, 7]));
        assert_eq!(connections(&json!({"services": []})), None);
    }
}
