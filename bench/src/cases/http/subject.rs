//! What stands between client and backends: nothing, the agent, or a proxy that splits by the same tags and weights.

use super::super::{Place, synthetic::BACK_PORT};
use anyhow::{Result, ensure};
use serde_json::Value;
use splitter_lab::{
    admin::Admin,
    agent::{self, Site},
    cleanup::Guard,
    foreign::{self, Proxy, Server, Split, find},
    lab::{Lab, Options, Process, VIP4},
    load::{self, Load, Plan, Reuse},
};
use std::{fmt::Write, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

/// v1 gets what carries no tag.
pub const PORT_BY_CONNECTION: u16 = 80;
/// v2 gets 5% of what carries no tag, request by request.
pub const PORT_BY_REQUEST: u16 = 81;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The client calls the backend of v1 itself.
    Plain,
    /// The same, and two servers share the connections at the address of v1.
    PlainShared,
    Splitter,
    Haproxy,
    Nginx,
}

/// A network with a backend a version; dropped in this order.
pub struct Subject {
    pub name: String,
    kind: Kind,
    agent: Option<(Process, Site)>,
    proxy: Option<Process>,
    servers: Vec<Process>,
    pub lab: Lab,
    /// For the files of servers and client.
    pub folder: PathBuf,
    _removal: Guard,
}

impl Subject {
    pub fn start(place: &Place, name: &str, kind: Kind) -> Result<Subject> {
        let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let lab = Lab::with(&letters, Options { backends: 2, ..Options::default() })?;
        // Without pacing, see the case `l4`.
        for end in [lab.client(), &lab.node].into_iter().chain(lab.backends()) {
            end.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        }
        // A proxy needs a port for each connection to its backends.
        lab.node.sysctls(&[("net/ipv4/ip_local_port_range", "1024 65535"), ("net/ipv4/tcp_tw_reuse", "1")])?;
        let (folder, removal) = agent::folder(lab.name())?;
        let server = |at, i| Server::Nginx.start(lab.backend(at), &format!("v{i}"), BACK_PORT, &folder);
        let servers = vec![server(1, 1)?, server(if kind == Kind::PlainShared { 1 } else { 2 }, 2)?];
        let agent = match kind {
            Kind::Splitter => {
                let site = Site::new(&place.splitter, &lab.node, &policy(&lab))?;
                Some((site.start(2)?, site))
            }
            _ => None,
        };
        let proxy = match kind {
            Kind::Haproxy => Some(Proxy::Haproxy.start(&lab.node, &split(&lab), &folder)?),
            Kind::Nginx => Some(Proxy::Nginx.start(&lab.node, &split(&lab), &folder)?),
            Kind::Plain | Kind::PlainShared | Kind::Splitter => None,
        };
        let subject = Subject { name: name.into(), kind, agent, proxy, servers, lab, folder, _removal: removal };
        subject.rest();
        Ok(subject)
    }

    pub fn target(&self, port: u16) -> SocketAddr {
        match self.kind {
            Kind::Plain | Kind::PlainShared => self.lab.backend_addr(1, false, BACK_PORT),
            _ => SocketAddr::new(VIP4.into(), port),
        }
    }

    /// Tags are followed, on new and on kept connections.
    pub fn check(&self) -> Result<()> {
        self.wake();
        let kind = |line: &str, name: &str| load::Kind {
            headers: format!("{line}\r\n"),
            expect: if matches!(self.kind, Kind::Plain | Kind::PlainShared) { Vec::new() } else { vec![name.into()] },
            ..load::Kind::get("/")
        };
        let kinds = vec![kind("X-Canary: always", "v2"), kind("x-canary: never", "v1"), kind("Cookie: a=1; canary=1", "v2")];
        for port in [PORT_BY_CONNECTION, PORT_BY_REQUEST] {
            for reuse in [Reuse::New, Reuse::KeepAlive] {
                let plan = Plan { requests: Some(100), concurrency: 4, reuse, kinds: kinds.clone(), ..Plan::http(self.target(port)) };
                let total = Load::run(Some(self.lab.client()), plan)?.total();
                ensure!(total.failed() == 0, "{} of 100 requests failed: {:?}", total.failed(), total.first_error);
            }
        }
        self.rest();
        Ok(())
    }

    /// Only the subject whose turn it is runs: timers of others are not its cost.
    pub fn wake(&self) {
        self.processes().for_each(|process| process.signal(libc::SIGCONT));
    }

    pub fn rest(&self) {
        self.processes().for_each(|process| process.signal(libc::SIGSTOP));
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        self.agent.iter().map(|(agent, _)| agent).chain(&self.proxy).chain(&self.servers)
    }

    /// Whose CPU time is the subject's.
    pub fn own(&self) -> Vec<i32> {
        self.processes().map(|process| process.pid() as i32).collect()
    }

    /// Changes of the leg so far; 0 without the agent.
    pub fn switches(&self) -> Result<u64> {
        let Some((_, site)) = &self.agent else { return Ok(0) };
        let status = Admin::new(&site.socket()).status()?;
        Ok(switches(&status))
    }

    pub fn end(mut self) -> Result<()> {
        self.wake();
        if let Some((agent, site)) = self.agent.take() {
            agent.stop(PATIENCE)?;
            site.detach()?;
            site.remove()?;
        }
        drop(self.proxy.take());
        self.servers.drain(..).for_each(Process::kill);
        self.lab.remove()
    }
}

/// Of all services and versions.
fn switches(status: &Value) -> u64 {
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    all(&status["services"]).iter().flat_map(|service| all(&service["versions"])).filter_map(|version| version["switches"].as_u64()).sum()
}

fn split(lab: &Lab) -> Split {
    let version = |i: usize, weight| (format!("v{i}"), weight, vec![lab.backend_addr(i, false, BACK_PORT)]);
    let frontends = [PORT_BY_CONNECTION, PORT_BY_REQUEST].map(|port| SocketAddr::new(VIP4.into(), port));
    Split { frontends: frontends.to_vec(), versions: vec![version(1, 95), version(2, 5)] }
}

fn policy(lab: &Lab) -> String {
    let mut text = String::new();
    for (name, port, key, weights) in
        [("byconnection", PORT_BY_CONNECTION, "connection", [100, 0]), ("byrequest", PORT_BY_REQUEST, "request", [95, 5])]
    {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec:\n  mode: http\n  frontends:\n    \
             - {{address: {VIP4}, port: {port}, protocol: TCP}}\n  splitBy: {key}\n  versions:\n"
        );
        for (i, weight) in (1..).zip(weights) {
            let _ = writeln!(text, "    - {{name: v{i}, weight: {weight}, backends: [\"{}\"]}}", lab.backend_addr(i, false, BACK_PORT));
        }
        let _ = writeln!(text, "  {}", foreign::Split::RULES);
    }
    text
}

/// Which rivals these are.
pub fn versions() -> String {
    let version = |program: &str, option: &str| {
        let output = find(program).and_then(|path| Command::new(path).arg(option).output().ok());
        let text = output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
        text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_else(|| format!("no {program}"))
    };
    format!("{}, {}", version("haproxy", "-v"), version("nginx", "-v"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn switches_are_summed() {
        let status = json!({"services": [{"versions": [{"switches": 5}, {"switches": 7}]}, {"versions": [{}]}]});
        assert_eq!(switches(&status), 12);
        assert_eq!(switches(&json!({})), 0);
    }
}
