//! Policies as YAML, written the way a person would.

use super::{PORT, vip};
use splitter_lab::lab::Lab;
use std::net::SocketAddr;

/// One TrafficSplit: v1 on the backends `b1` and `b2`, v2 on `b3`, unless a test says otherwise.
#[derive(Clone, Debug)]
pub struct Split {
    pub name: &'static str,
    pub udp: bool,
    /// `mode: http` in the place of `tcp`.
    pub http: bool,
    pub v6: bool,
    pub frontends: Vec<SocketAddr>,
    /// Weight and backends (from 1) of v1, v2, ...
    pub versions: Vec<(u32, Vec<usize>)>,
    /// State of a backend that is not ready.
    pub states: Vec<(usize, &'static str)>,
    /// Further lines of the spec, in YAML's flow style: `splitBy: client-ip`.
    pub more: Vec<String>,
}

impl Split {
    /// TCP over IPv4 at the VIP.
    pub fn tcp(v1: u32, v2: u32) -> Split {
        Split {
            name: "web",
            udp: false,
            http: false,
            v6: false,
            frontends: vec![vip(false)],
            versions: vec![(v1, vec![1, 2]), (v2, vec![3])],
            states: Vec::new(),
            more: Vec::new(),
        }
    }

    /// HTTP over IPv4 at the VIP.
    pub fn http(v1: u32, v2: u32) -> Split {
        Split { http: true, ..Split::tcp(v1, v2) }
    }

    pub fn udp(self) -> Split {
        Split { udp: true, ..self }
    }

    pub fn v6(self) -> Split {
        Split { v6: true, frontends: vec![vip(true)], ..self }
    }

    pub fn named(self, name: &'static str) -> Split {
        Split { name, ..self }
    }

    pub fn with(mut self, line: &str) -> Split {
        self.more.push(line.into());
        self
    }

    pub fn state(mut self, backend: usize, state: &'static str) -> Split {
        self.states.push((backend, state));
        self
    }

    fn yaml(&self, lab: &Lab) -> String {
        let protocol = if self.udp { "udp" } else { "tcp" };
        let mut text = format!("---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {}}}\nspec:\n", self.name);
        text += &format!("  mode: {}\n  frontends:\n", if self.http { "http" } else { protocol });
        for frontend in &self.frontends {
            let (address, port, protocol) = (frontend.ip(), frontend.port(), protocol.to_uppercase());
            text += &format!("    - {{address: \"{address}\", port: {port}, protocol: {protocol}}}\n");
        }
        text += "  versions:\n";
        for (i, (weight, backends)) in (1..).zip(&self.versions) {
            let backend = |backend: &usize| {
                let state = self.states.iter().find(|(other, _)| other == backend).map_or("ready", |(_, state)| state);
                format!("{{address: \"{}\", state: {state}}}", lab.backend_addr(*backend, self.v6, PORT))
            };
            let backends: Vec<String> = backends.iter().map(backend).collect();
            text += &format!("    - {{name: v{i}, weight: {weight}, backends: [{}]}}\n", backends.join(", "));
        }
        self.more.iter().for_each(|line| text += &format!("  {line}\n"));
        text
    }
}

/// A policy file.
pub fn document(lab: &Lab, splits: &[Split]) -> String {
    splits.iter().map(|split| split.yaml(lab)).collect()
}
