//! The judgement of `doctor` on firewalls: rules that look at forwarded packets see what goes through the stack, and only a part of what is redirected.

use super::{Check, checks::shorten};
use serde_json::Value;
use splitter_api::Status;
use std::collections::{BTreeMap, BTreeSet};

/// What the tools print; `None`: not to be had.
#[derive(Debug, Default)]
pub struct Rules {
    /// `nft -j list ruleset`.
    pub nft: Option<String>,
    /// `iptables-legacy-save` and `ip6tables-legacy-save`; `None` for those whose tables are not in use.
    pub legacy: Vec<(&'static str, Option<String>)>,
}

/// A chain that forwarded packets come by, with what it jumps to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// `nft inet filter forward`.
    name: String,
    rules: usize,
    /// What matches no rule is dropped.
    drops: bool,
    /// Rules ask for the state of connections.
    state: bool,
}

/// What goes past the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Past {
    /// No agent says so; one that is started without `--path` sends flows through the stack.
    #[default]
    Unknown,
    /// Services whose flows are redirected, by name; none: all go through the stack.
    Services(Vec<String>),
}

impl Past {
    pub fn of(status: &anyhow::Result<Status>) -> Self {
        let Ok(status) = status.as_ref().map(|status| &status.services) else { return Self::Unknown };
        Self::Services(status.iter().filter(|service| service.path == "redirect").map(|service| service.name.clone()).collect())
    }
}

/// The chains that have something to say to forwarded packets.
pub fn check(rules: &Rules, past: &Past) -> Check {
    const NAME: &str = "firewall";
    let mut chains = match rules.nft.as_deref().map(nft) {
        Some(Some(chains)) => chains,
        _ => return Check::warn(NAME, "not checked: `nft` is missing or may not run", "install nftables, and run doctor as root"),
    };
    for (tool, saved) in &rules.legacy {
        match saved {
            Some(text) => chains.extend(legacy(tool, text)),
            None => return Check::warn(NAME, format!("not checked: tables of {tool} are in use and it does not run"), "install iptables"),
        }
    }
    chains.retain(|chain| chain.rules > 0 || chain.drops);
    if chains.is_empty() {
        return Check::ok(NAME, "no rules for forwarded packets");
    }
    let shown: Vec<String> = chains.iter().map(describe).collect();
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    let redirected = match past {
        Past::Services(services) => services.as_slice(),
        Past::Unknown => &[],
    };
    if redirected.is_empty() {
        let text = "flows go through the node's stack and so by these, all but those whose source is translated (`snat`) and those that began before the rules came";
        let found = match past {
            Past::Unknown => format!("{}: with --path auto {text}", shorten(&shown)),
            Past::Services(_) => format!("{}: {text}", shorten(&shown)),
        };
        return Check::ok(NAME, found);
    }
    let half = if chains.iter().any(|chain| chain.state) {
        "; and the rest (datagrams that it cuts, what only it can route) they see without the connection that it belongs to, which rules on \
         its state drop"
    } else if chains.iter().any(|chain| chain.drops) {
        "; and the rest (datagrams that it cuts, what only it can route) is dropped unless a rule lets it pass"
    } else {
        ""
    };
    let services: Vec<&str> = redirected.iter().map(String::as_str).collect();
    let found = format!(
        "{}: packets of {} and their answers are redirected past these, so they hold back none of them{half}",
        shorten(&shown),
        shorten(&services)
    );
    let remedy = "`path: stack` (or `--path auto` and no `path`); where that cannot be, filter at the backends or before this node, and accept \
                  what is from and to backends ahead of rules on states";
    Check::warn(NAME, found, remedy)
}

fn describe(chain: &Chain) -> String {
    let rules = if chain.rules == 1 { "1 rule".to_owned() } else { format!("{} rules", chain.rules) };
    let drops = if chain.drops { ", policy drop" } else { "" };
    let state = if chain.state { ", by connection state" } else { "" };
    format!("{} ({rules}{drops}{state})", chain.name)
}

/// A chain by family, table and name.
type Id = (String, String, String);

/// Base chains of the hook forward; `None` when the text is not nft's.
fn nft(text: &str) -> Option<Vec<Chain>> {
    let all: Value = serde_json::from_str(text).ok()?;
    let objects = all.get("nftables")?.as_array()?;
    let id = |object: &Value, chain: &str| -> Option<Id> {
        let field = |name: &str| object.get(name)?.as_str().map(str::to_owned);
        Some((field("family")?, field("table")?, field(chain)?))
    };
    let mut rules: BTreeMap<Id, Vec<&Value>> = BTreeMap::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        rules.entry(id(rule, "chain")?).or_default().push(rule);
    }
    let bases = objects.iter().filter_map(|object| object.get("chain")).filter(|chain| {
        // Those of bridges see frames that are not routed.
        chain.get("hook").and_then(Value::as_str) == Some("forward") && chain.get("family").and_then(Value::as_str) != Some("bridge")
    });
    let found = bases.filter_map(|base| {
        let first = id(base, "name")?;
        let mut chain = Chain {
            name: format!("nft {} {} {}", first.0, first.1, first.2),
            drops: base.get("policy").and_then(Value::as_str) == Some("drop"),
            ..Chain::default()
        };
        let (mut seen, mut left) = (BTreeSet::from([first.clone()]), vec![first]);
        while let Some(id) = left.pop() {
            for rule in rules.get(&id).into_iter().flatten() {
                chain.rules += 1;
                let mut targets = Vec::new();
                chain.state |= asks_for_state(rule, &mut targets);
                left.extend(targets.into_iter().map(|name| (id.0.clone(), id.1.clone(), name)).filter(|next| seen.insert(next.clone())));
            }
        }
        Some(chain)
    });
    Some(found.collect())
}

/// Whether a part of a rule asks for a connection's state; collects the chains that it goes to.
fn asks_for_state(value: &Value, targets: &mut Vec<String>) -> bool {
    let mut asks = false;
    match value {
        Value::Array(items) => {
            for item in items {
                asks |= asks_for_state(item, targets);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let text = |key: &str| field.get(key).and_then(Value::as_str);
                match name.as_str() {
                    "jump" | "goto" => targets.extend(text("target").map(str::to_owned)),
                    "ct" => asks |= matches!(text("key"), Some("state" | "status")),
                    "xt" => asks |= matches!(text("name"), Some("conntrack" | "state")),
                    _ => {}
                }
                asks |= asks_for_state(field, targets);
            }
        }
        _ => {}
    }
    asks
}

/// Chains FORWARD in the output of a program such as `iptables-save`.
fn legacy(tool: &str, text: &str) -> Vec<Chain> {
    let mut found = Vec::new();
    for table in text.split("\n*").map(|part| part.trim_start_matches('*')).filter(|part| !part.starts_with('#')) {
        let name = table.lines().next().unwrap_or_default();
        let Some(policy) = table.lines().find_map(|line| line.strip_prefix(":FORWARD ")) else { continue };
        let mut chain = Chain { name: format!("{tool} {name} FORWARD"), drops: policy.starts_with("DROP"), ..Chain::default() };
        let (mut seen, mut left) = (BTreeSet::from(["FORWARD"]), vec!["FORWARD"]);
        while let Some(of) = left.pop() {
            let appended = format!("-A {of} ");
            for rule in table.lines().filter(|line| line.starts_with(&appended)) {
                chain.rules += 1;
                chain.state |= rule.contains("--ctstate") || rule.contains("-m state") || rule.contains("--ctstatus");
                let words: Vec<&str> = rule.split(' ').collect();
                left.extend(
                    words.windows(2).filter(|pair| matches!(pair[0], "-j" | "-g")).map(|pair| pair[1]).filter(|next| seen.insert(next)),
                );
            }
        }
        found.push(chain);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    const NFT: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "filter", "handle": 2}},
        {"chain": {"family": "inet", "table": "filter", "name": "a", "handle": 1}},
        {"chain": {"family": "inet", "table": "filter", "name": "forward", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": [{"accept": null}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "a", "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "forward", "expr": [{"jump": {"target": "a"}}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "forward", "expr": [{"jump": {"target": "a"}}]}}]}"#;

    const SAVED: &str = "# Generated by iptables-save v1.8.9 on Mon Nov 30\n*mangle\n:FORWARD ACCEPT [0:0]\nCOMMIT\n# Completed\n# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n-A INPUT -j DROP\n-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A DOCKER -i x -j DROP\nCOMMIT\n# Completed\n";

    #[test]
    fn chains_count_what_they_jump_to_once() {
        let chain = Chain { name: "nft inet filter forward".into(), rules: 3, drops: true, state: true };
        assert_eq!(nft(NFT), Some(vec![chain]));
        let found = legacy("iptables-legacy", SAVED);
        let chain = |name: &str, rules, drops, state| Chain { name: name.into(), rules, drops, state };
        assert_eq!(
            found,
            [chain("iptables-legacy mangle FORWARD", 0, false, false), chain("iptables-legacy filter FORWARD", 3, true, true)]
        );
    }

    #[test]
    fn rules_for_forwarded_packets_are_named_with_what_follows() {
        let rules = |nft: &str, legacy: &str| Rules { nft: Some(nft.into()), legacy: vec![("iptables-legacy", Some(legacy.into()))] };
        let empty = "{\"nftables\": []}";
        let past = Past::Services(vec!["shop".into()]);
        let check = |rules: &Rules| super::check(rules, &past);
        let found = check(&rules(NFT, SAVED));
        assert_eq!(found.verdict, Verdict::Warn);
        let begin = "nft inet filter forward (3 rules, policy drop, by connection state), iptables-legacy filter FORWARD (3 rules, policy drop, by \
                     connection state): packets of shop and";
        assert!(found.found.starts_with(begin), "{}", found.found);
        assert!(found.found.contains("rules on its state drop"), "{}", found.found);
        assert_eq!(check(&rules(empty, "")).verdict, Verdict::Ok);
        assert_eq!(check(&rules(empty, "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n")).verdict, Verdict::Ok);
        let plain = check(&rules(empty, "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.0.0.0/8 -j DROP\nCOMMIT\n"));
        assert!(plain.found.ends_with("hold back none of them"), "{}", plain.found);
    }

    #[test]
    fn what_goes_through_the_stack_is_held_back() {
        let rules = Rules { nft: Some(NFT.into()), legacy: Vec::new() };
        for past in [Past::Unknown, Past::Services(Vec::new())] {
            let found = check(&rules, &past);
            assert!(found.verdict == Verdict::Ok && found.found.contains("go through the node's stack"), "{}", found.found);
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert_eq!(check(&Rules::default(), &Past::Unknown).verdict, Verdict::Warn);
        let unread = Rules { nft: Some("{\"nftables\": []}".into()), legacy: vec![("ip6tables-legacy", None)] };
        assert!(check(&unread, &Past::Unknown).found.contains("ip6tables-legacy"));
    }

    #[test]
    fn rules_of_iptables_nft_are_read_too() {
        let text = r#"{"nftables": [{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
            {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": [{"xt": {"type": "match", "name": "conntrack"}}, {"drop": null}]}}]}"#;
        assert_eq!(nft(text), Some(vec![Chain { name: "nft ip filter FORWARD".into(), rules: 1, drops: false, state: true }]));
    }
}
