//! A network of namespaces: client(s) -- node -- backends, as a host with veth pairs would see it.
//!
//! ```text
//! client 10.1.0.2  eth0 --- c0 10.1.0.1  node  10.2.1.1 b1 --- eth0  10.2.1.2 backend 1
//!        fd01::2               fd01::1         fd02:1::1            fd02:1::2
//! ```
//! Client k sits on 10.1.k.0/24 and fd01:k::/64 behind `ck`, backend i (from 1) on 10.2.i.0/24 and fd02:i::/64 behind `bi`; everybody's default
//! route is the node. With [`Options::shared_segment`] all of them share 10.1.0.0/24 behind `c0` through a switch, so that a backend's answer
//! would bypass the node. VIPs ([`VIP4`], [`VIP6`]) are assigned nowhere.
//!
//! Everything is removed on drop and on SIGINT, SIGTERM and SIGHUP; names carry the pid, so that [`sweep`] finds what SIGKILL left.

mod command;
mod netns;
mod process;
mod record;

pub use command::{USAGE, command};
pub use netns::Namespace;
pub use process::Process;
pub use record::{Record, kept};

use crate::cleanup::Guard;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 9);

const PREFIX: &str = "spl-";

/// What the network looks like. `Options::default()` is one client, three backends, plain veth pairs with default offloads.
#[derive(Clone, Debug)]
pub struct Options {
    pub clients: usize,
    pub backends: usize,
    /// Clients and backends on one L2 segment behind `c0`.
    pub shared_segment: bool,
    pub client_mtu: u32,
    pub backend_mtu: u32,
    /// Segmentation and checksum offloads of every veth end (needs the ethtool binary when false).
    pub offloads: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { clients: 1, backends: 3, shared_segment: false, client_mtu: 1500, backend_mtu: 1500, offloads: true }
    }
}

impl Options {
    fn mtu(&self, role: Role) -> u32 {
        if role == Role::Client { self.client_mtu } else { self.backend_mtu }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Backend,
}

/// A running network. Threads and processes that use it must end first, or are killed when it is dropped.
pub struct Lab {
    name: String,
    options: Options,
    pub node: Namespace,
    clients: Vec<Namespace>,
    backends: Vec<Namespace>,
    switch: Option<Namespace>,
    guard: Option<Guard>,
    removed: Arc<Mutex<Vec<String>>>,
}

impl Lab {
    /// The default network under a name unique in this process; short, of letters and digits.
    pub fn new(name: &str) -> Result<Lab> {
        Lab::with(name, Options::default())
    }

    /// # Errors
    /// Without root or iproute2; when the name is taken. Nothing is left behind.
    pub fn with(name: &str, options: Options) -> Result<Lab> {
        ensure!(is_root(), "network namespaces need root");
        ensure!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()), "bad lab name {name:?}: letters and digits only");
        ensure!((1..=250).contains(&options.clients) && options.backends <= 250, "1 to 250 clients, at most 250 backends");
        sweep()?;
        let base = format!("{PREFIX}{}-{name}", std::process::id());
        if netns::names().iter().any(|other| other.starts_with(&format!("{base}-"))) {
            bail!("this process already has a lab named {name}");
        }
        let removed = Arc::new(Mutex::new(Vec::new()));
        let guard = {
            let (base, removed) = (base.clone(), removed.clone());
            Guard::new(move || {
                let errors = remove_lab(&base);
                removed.lock().unwrap_or_else(PoisonError::into_inner).extend(errors);
            })
        };
        let make = |role: String| Namespace::create(&format!("{base}-{role}"));
        let mut lab = Lab {
            node: make("node".into())?,
            switch: if options.shared_segment { Some(make("switch".into())?) } else { None },
            clients: (0..options.clients)
                .map(|k| make(if k == 0 { "client".into() } else { format!("client{k}") }))
                .collect::<Result<_>>()?,
            backends: (1..=options.backends).map(|i| make(format!("b{i}"))).collect::<Result<_>>()?,
            name: base,
            options,
            guard: Some(guard),
            removed,
        };
        lab.plumb().context("cannot set up the lab's network")?;
        Ok(lab)
    }

    /// `spl-PID-NAME`: the common prefix of the namespaces' names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first client.
    pub fn client(&self) -> &Namespace {
        &self.clients[0]
    }

    pub fn clients(&self) -> &[Namespace] {
        &self.clients
    }

    /// Backend `i`, counted from 1 as in its address.
    ///
    /// # Panics
    /// When the lab has no such backend.
    pub fn backend(&self, i: usize) -> &Namespace {
        &self.backends[i - 1]
    }

    pub fn backends(&self) -> &[Namespace] {
        &self.backends
    }

    pub fn client_ip(&self, k: usize, v6: bool) -> IpAddr {
        let host = if self.options.shared_segment { (0, 2 + 100 * u16::from(k > 0) + k as u16) } else { (k as u16, 2) };
        address(1, host.0, host.1, v6)
    }

    /// Address of backend `i`, counted from 1.
    pub fn backend_ip(&self, i: usize, v6: bool) -> IpAddr {
        if self.options.shared_segment { address(1, 0, 10 + i as u16, v6) } else { address(2, i as u16, 2, v6) }
    }

    pub fn backend_addr(&self, i: usize, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.backend_ip(i, v6), port)
    }

    /// The node's address on the side of client `k`.
    pub fn node_ip(&self, k: usize, v6: bool) -> IpAddr {
        address(1, k as u16, 1, v6)
    }

    /// Removes the network and says what resisted; [`Drop`] does the same silently.
    pub fn remove(mut self) -> Result<()> {
        drop(self.guard.take());
        let errors = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(errors.is_empty(), "{}", errors.join("\n"));
        Ok(())
    }

    /// Leaves the network running after this process: [`sweep`] spares it until [`Record::down`].
    pub fn keep(mut self, stop: Vec<Vec<String>>, paths: Vec<PathBuf>) -> Result<Record> {
        let record = Record::write(&self.name, stop, paths)?;
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
        Ok(record)
    }

    fn plumb(&mut self) -> Result<()> {
        for namespace in [&self.node].into_iter().chain(&self.switch).chain(&self.clients).chain(&self.backends) {
            namespace.sysctls(COMMON_SYSCTLS)?;
        }
        self.node.sysctls(NODE_SYSCTLS)?;
        for client in &self.clients {
            client.sysctls(CLIENT_SYSCTLS)?;
        }
        if let Some(switch) = self.switch.clone() {
            return self.plumb_shared(&switch);
        }
        for (k, client) in self.clients.iter().enumerate() {
            self.link(client, Role::Client, &format!("c{k}"), 1, k as u16)?;
        }
        for (i, backend) in (1..).zip(&self.backends) {
            self.link(backend, Role::Backend, &format!("b{i}"), 2, i)?;
        }
        Ok(())
    }

    /// A veth pair between the node and an end; both get addresses of network 10.`net`.`subnet`.0.
    fn link(&self, end: &Namespace, role: Role, port: &str, net: u16, subnet: u16) -> Result<()> {
        let mtu = self.options.mtu(role);
        self.node.batch(&format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n", end.name()))?;
        self.raise(&self.node, port)?;
        self.raise(end, "eth0")?;
        assign(&self.node, port, net, subnet, 1)?;
        assign(end, "eth0", net, subnet, 2)?;
        default_route(end, net, subnet)
    }

    fn plumb_shared(&self, switch: &Namespace) -> Result<()> {
        switch.batch("link add br0 type bridge stp_state 0 forward_delay 0\nlink set br0 up\n")?;
        let named = |role, port: String, end, device, host| (role, port, end, device, host);
        let node = named(Role::Client, "n0".into(), &self.node, "c0", 1);
        let clients = self.clients.iter().enumerate().map(|(k, ns)| {
            let host = if k == 0 { 2 } else { 102 + k as u16 };
            named(Role::Client, format!("c{k}"), ns, "eth0", host)
        });
        let backends = (1..).zip(&self.backends).map(|(i, ns)| named(Role::Backend, format!("b{i}"), ns, "eth0", 10 + i));
        for (role, port, end, device, host) in [node].into_iter().chain(clients).chain(backends) {
            let mtu = self.options.mtu(role);
            switch.batch(&format!(
                "link add {port} mtu {mtu} type veth peer name {device} mtu {mtu} netns {}\nlink set {port} master br0 up\n",
                end.name()
            ))?;
            self.raise(end, device)?;
            assign(end, device, 1, 0, host)?;
            if host != 1 {
                default_route(end, 1, 0)?;
            }
        }
        Ok(())
    }

    /// Brings one end up, with its offloads as asked.
    fn raise(&self, namespace: &Namespace, device: &str) -> Result<()> {
        namespace.batch(&format!("link set {device} up\n"))?;
        if self.options.offloads {
            return Ok(());
        }
        let off = ["tso", "gso", "gro", "tx", "rx"].into_iter().flat_map(|feature| [feature, "off"]);
        let output = namespace
            .command("ethtool")
            .args(["-K", device])
            .args(off)
            .output()
            .context("cannot run ethtool (Debian: apt-get install ethtool)")?;
        ensure!(output.status.success(), "ethtool -K {device}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.guard.take());
    }
}

/// No duplicate address detection (a fresh address works at once), no reverse path filter, no router advertisements.
const COMMON_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv4/tcp_max_syn_backlog", "16384"),
    ("net/core/somaxconn", "16384"),
];

const NODE_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// A client that opens thousands of connections a second must not run out of ports.
const CLIENT_SYSCTLS: &[(&str, &str)] = &[("net/ipv4/ip_local_port_range", "1024 65535"), ("net/ipv4/tcp_tw_reuse", "1")];

fn address(net: u16, subnet: u16, host: u16, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00 + net, subnet, 0, 0, 0, 0, 0, host).into()
    } else {
        Ipv4Addr::new(10, net as u8, subnet as u8, host as u8).into()
    }
}

fn assign(namespace: &Namespace, device: &str, net: u16, subnet: u16, host: u16) -> Result<()> {
    let (v4, v6) = (address(net, subnet, host, false), address(net, subnet, host, true));
    namespace.batch(&format!("address add {v4}/24 dev {device}\naddress add {v6}/64 dev {device} nodad\n"))
}

fn default_route(namespace: &Namespace, net: u16, subnet: u16) -> Result<()> {
    let (v4, v6) = (address(net, subnet, 1, false), address(net, subnet, 1, true));
    namespace.batch(&format!("route add 0.0.0.0/0 via {v4}\nroute add ::/0 via {v6}\n"))
}

/// Whether this process may make namespaces.
pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Namespaces of labs whose process is gone and which nobody kept, and everything that runs in them, are removed. Returns their names.
pub fn sweep() -> Result<Vec<String>> {
    let kept = kept_names();
    let mut removed = Vec::new();
    for name in netns::names().into_iter().filter(|name| is_leftover(name, &kept)) {
        // Another process may sweep at the same time: what is gone is gone.
        if let Err(error) = netns::remove(&name)
            && netns::names().contains(&name)
        {
            return Err(error.context(format!("cannot remove the leftover namespace {name}")));
        }
        removed.push(name);
    }
    Ok(removed)
}

/// The same for files and folders named `PREFIXspl-PID-LAB-ROLE`: what a dead process left in a folder. Returns what was removed.
pub fn sweep_paths(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let kept = kept_names();
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.strip_prefix(prefix).is_some_and(|name| is_leftover(name, &kept)) {
            continue;
        }
        let result = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        // Another process may sweep at the same time.
        if path.exists() {
            result.with_context(|| format!("cannot remove the leftover {}", path.display()))?;
        }
        removed.push(path);
    }
    Ok(removed)
}

fn kept_names() -> Vec<String> {
    record::kept().into_iter().map(|record| record.name).collect()
}

/// Whether this is the name of a lab's part whose process is gone and which nobody kept.
fn is_leftover(name: &str, kept: &[String]) -> bool {
    owner(name).is_some_and(|(pid, lab)| !Path::new("/proc").join(pid.to_string()).exists() && kept.iter().all(|kept| kept != lab))
}

/// Names of the namespaces of a lab (`spl-PID-NAME`) that exist now.
pub fn namespaces_of(lab: &str) -> Vec<String> {
    netns::names().into_iter().filter(|name| owner(name).is_some_and(|(_, other)| other == lab)).collect()
}

/// `spl-PID-LAB-ROLE` to the pid and `spl-PID-LAB`.
fn owner(namespace: &str) -> Option<(u32, &str)> {
    let (pid, rest) = namespace.strip_prefix(PREFIX)?.split_once('-')?;
    let (_, role) = rest.rsplit_once('-')?;
    Some((pid.parse().ok()?, &namespace[..namespace.len() - role.len() - 1]))
}

/// Returns what could not be removed.
fn remove_lab(lab: &str) -> Vec<String> {
    let remove = |name: String| netns::remove(&name).err().map(|error| format!("{name}: {error:#}"));
    namespaces_of(lab).into_iter().filter_map(remove).collect()
}

/// CPU seconds that this machine has spent so far outside idle and iowait, from /proc/stat; for differences around a run.
pub fn machine_cpu() -> Result<f64> {
    crate::stats::busy_seconds(&fs::read_to_string("/proc/stat")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_lab() {
        assert_eq!(owner("spl-12-demo-b1"), Some((12, "spl-12-demo")));
        assert_eq!(owner("spl-12-demo"), None);
        assert_eq!(owner("spl-x-demo-b1"), None);
        assert_eq!(owner("other"), None);
    }

    #[test]
    fn only_the_dead_leave_leftovers() {
        let alive = format!("spl-{}-demo-b1", std::process::id());
        // Above every possible pid.
        let dead = "spl-4194305-demo-b1";
        assert!(!is_leftover(&alive, &[]) && is_leftover(dead, &[]) && !is_leftover(dead, &["spl-4194305-demo".into()]));
        let folder = std::env::temp_dir().join(format!("sweep-{}", std::process::id()));
        for name in [format!("x-{dead}"), format!("x-{alive}"), dead.to_owned(), "x-other".to_owned()] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        assert_eq!(sweep_paths(&folder, "x-").unwrap(), [folder.join(format!("x-{dead}"))]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn addresses_follow_the_plan() {
        assert_eq!(address(1, 0, 2, false).to_string(), "10.1.0.2");
        assert_eq!(address(1, 0, 2, true).to_string(), "fd01::2");
        assert_eq!(address(2, 3, 2, true).to_string(), "fd02:3::2");
    }
}
