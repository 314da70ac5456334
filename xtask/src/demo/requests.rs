//! Rules on requests, beside the weights: what the requests of kept connections carry, the policy of their service, and their part of the table.
//!
//! Pure, but for the policy's addresses: [`super::traffic`] sends, [`super::report`] judges.

use super::{
    VERSIONS, Weights,
    report::share,
    screen::{bar, count},
};
use splitter_lab::{
    lab::{Lab, VIP4},
    load::{ErrorKind, Kind, Phase, Plan, Reuse},
};
use std::{fmt::Write, net::SocketAddr};

/// Name and port of the service.
pub const SERVICE: &str = "demo-http";
pub const PORT: u16 = 81;
/// The servers' port for it. Not the one of layer 4's service: backends see a client's own port, and a client may use one port for both services.
pub const SERVER_PORT: u16 = 8081;

/// What a request carries, and which version it must get whatever the weights are; without one the weights decide.
pub struct Tag {
    pub name: &'static str,
    lines: &'static str,
    pub version: Option<&'static str>,
}

pub const TAGS: [Tag; 3] = [
    Tag { name: "X-Canary: always", lines: "X-Canary: always\r\n", version: Some("v2") },
    Tag { name: "Cookie: canary=never", lines: "Cookie: theme=dark; canary=never\r\n", version: Some("v1") },
    Tag { name: "neither", lines: "Cookie: theme=dark\r\n", version: None },
];

const RULES: &str = "  rules:\n    - {match: {header: {name: X-Canary, value: always}}, version: v2}\n    \
                     - {match: {cookie: {name: canary, value: never}}, version: v1}\n";

impl Tag {
    /// Share of v2 that is asked at these weights of v1 and v2.
    pub fn asked(&self, weights: Weights) -> f64 {
        match self.version {
            Some(version) => f64::from(u8::from(version == VERSIONS[1].0)),
            None => share(u64::from(weights[1]), weights.iter().map(|weight| u64::from(*weight)).sum()),
        }
    }

    /// Eight kept connections.
    pub fn plan(&self) -> Plan {
        let expect = self.version.map(String::from).into_iter().collect();
        let kind = Kind { headers: self.lines.into(), expect, ..Kind::get("/") };
        let target = SocketAddr::new(VIP4.into(), PORT);
        Plan { concurrency: 8, rate: Some(300.0), reuse: Reuse::KeepAlive, kinds: vec![kind], ..Plan::http(target) }
    }
}

/// The document of the policy; backends are counted from 1.
pub fn policy(lab: &Lab, versions: &[(&str, u32, &[usize])]) -> String {
    let mut text = format!(
        "---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {SERVICE}}}\nspec:\n  frontends:\n    \
         - {{address: {VIP4}, port: {PORT}, protocol: TCP}}\n  mode: http\n  versions:\n"
    );
    for (name, weight, backends) in versions {
        let addresses: Vec<String> = backends.iter().map(|i| format!("\"{}\"", lab.backend_addr(*i, false, SERVER_PORT))).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    - {{name: {name}, weight: {weight}, backends: [{}]}}", addresses.join(", "));
    }
    text + RULES
}

/// Requests that v2 answered, and all that were answered by whom they should or by chance.
pub fn counts(phase: &Phase) -> (u64, u64) {
    (phase.versions.get(VERSIONS[1].0).map_or(0, |version| version.requests), phase.requests())
}

/// Requests that a version answered to which their rule does not send them.
pub fn wrong(phase: &Phase) -> u64 {
    phase.errors.get(&ErrorKind::WrongVersion).copied().unwrap_or(0)
}

/// For a terminal.
pub fn table(weights: Weights, view: &[Phase]) -> String {
    let mut text =
        format!("  {:<21}{:>9}{:>10}  {:<30}{:>13}{:>10}\n", "a request carries", "asked v2", "achieved", "", "requests", "wrong");
    for (tag, phase) in TAGS.iter().zip(view) {
        let (v2, all) = counts(phase);
        let (asked, achieved) = (tag.asked(weights) * 100.0, share(v2, all));
        text += &format!(
            "  {:<21}{asked:>8.1}%{:>9.2}%  {}{:>13}{:>10}\n",
            tag.name,
            achieved * 100.0,
            bar(achieved),
            count(all),
            count(wrong(phase))
        );
    }
    text
}

/// For a log.
pub fn line(weights: Weights, view: &[Phase]) -> String {
    let part = |(tag, phase): (&Tag, &Phase)| {
        let (v2, all) = counts(phase);
        format!("{} asked {:.0} got {:.2}%", tag.name, tag.asked(weights) * 100.0, share(v2, all) * 100.0)
    };
    let parts: Vec<String> = TAGS.iter().zip(view).map(part).collect();
    let (all, wrong) = view.iter().fold((0, 0), |sum, phase| (sum.0 + phase.requests(), sum.1 + wrong(phase)));
    format!("to v2 by rule: {}  {} requests  {} wrong", parts.join("  "), count(all), count(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_asks_the_same_at_all_weights() {
        let asked = |weights| TAGS.each_ref().map(|tag| tag.asked(weights));
        assert_eq!(asked([95, 5]), [1.0, 0.0, 0.05]);
        assert_eq!(asked([0, 100]), [1.0, 0.0, 1.0]);
    }
}
