//! Reads what the checks judge. Nothing here decides, nothing fails: what cannot be read is empty.

use super::{
    firewall::Rules,
    network::{Needs, Way},
};
use splitter_datapath::{Link, Route};
use std::{collections::BTreeMap, fs, net::IpAddr, process::Command};

/// The machine as text.
#[derive(Debug, Default)]
pub struct Host {
    pub mounts: String,
    /// /proc/self/status.
    pub status: String,
    pub jit: Option<String>,
    pub forward4: Option<String>,
    pub forward6: Option<String>,
    /// Interface (or `all`) to its `rp_filter`.
    pub reverse_path: BTreeMap<String, String>,
    /// `nft list chains` and `iptables-save -t nat`, as far as they run.
    pub rules: Vec<String>,
    /// `ip -j -d link`.
    pub links: Option<String>,
    /// `tc qdisc show`.
    pub qdiscs: Option<String>,
    /// /proc/self/limits.
    pub limits: String,
    /// /proc/meminfo.
    pub memory: String,
    /// Addresses of this host.
    pub local: Vec<IpAddr>,
    /// By rtnetlink.
    pub interfaces: Vec<Link>,
    pub firewall: Rules,
}

impl Host {
    pub fn read() -> Self {
        let conf = "/proc/sys/net/ipv4/conf";
        let names = fs::read_dir(conf).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
        Self {
            mounts: text("/proc/self/mountinfo").unwrap_or_default(),
            status: text("/proc/self/status").unwrap_or_default(),
            jit: text("/proc/sys/net/core/bpf_jit_enable"),
            forward4: text("/proc/sys/net/ipv4/ip_forward"),
            forward6: text("/proc/sys/net/ipv6/conf/all/forwarding"),
            reverse_path: names.filter_map(|name| Some((name.clone(), text(&format!("{conf}/{name}/rp_filter"))?))).collect(),
            rules: [run("nft", &["list", "chains"]), run("iptables-save", &["-t", "nat"])].into_iter().flatten().collect(),
            links: run("ip", &["-j", "-d", "link", "show"]),
            qdiscs: run("tc", &["qdisc", "show"]),
            limits: text("/proc/self/limits").unwrap_or_default(),
            memory: text("/proc/meminfo").unwrap_or_default(),
            local: local4(&text("/proc/net/fib_trie").unwrap_or_default())
                .into_iter()
                .chain(local6(&text("/proc/net/if_inet6").unwrap_or_default()))
                .collect(),
            interfaces: splitter_datapath::interfaces().unwrap_or_default(),
            firewall: Rules { nft: run("nft", &["-j", "list", "ruleset"]), legacy: legacy() },
        }
    }

    /// Where packets to VIPs and backends go; what the kernel does not tell is left out.
    pub fn ways(&self, needs: &Needs) -> BTreeMap<IpAddr, Way> {
        let name = |ifindex: u32| self.interfaces.iter().find(|link| link.ifindex == ifindex).map(|link| link.name.clone());
        let way = |address| {
            Some(match splitter_datapath::route_to(address).ok()? {
                Route::Local => Way::Local,
                Route::Out { ifindex, gateway } => Way::Out { interface: name(ifindex)?, gateway },
                Route::None => Way::None,
            })
        };
        needs.addresses().filter_map(|address| Some((address, way(address)?))).collect()
    }
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim_end().to_owned())
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Rules of the older tables, of families that have some: asking for others would make the kernel set them up.
fn legacy() -> Vec<(&'static str, Option<String>)> {
    let families = [
        ("/proc/net/ip_tables_names", "iptables-legacy", "iptables-legacy-save"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy", "ip6tables-legacy-save"),
    ];
    let used = families.into_iter().filter(|(names, ..)| text(names).is_some_and(|names| !names.is_empty()));
    used.map(|(_, tool, save)| (tool, run(save, &[]))).collect()
}

/// Addresses before `/32 host LOCAL` in /proc/net/fib_trie.
fn local4(trie: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse::<IpAddr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(address) = last
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// First field of /proc/net/if_inet6: 32 hex digits.
fn local6(table: &str) -> Vec<IpAddr> {
    let address = |line: &str| u128::from_str_radix(line.split(' ').next()?, 16).ok().map(|bits| IpAddr::from(bits.to_be_bytes()));
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert_eq!(local4(trie), ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(local6("00000000000000000000000000000001 01 80 10 80       lo\n"), ["::1".parse::<IpAddr>().unwrap()]);
    }
}
