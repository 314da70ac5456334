//! A node whose netfilter has rules, and which takes only what comes from where it should.

use super::tool;
use splitter_lab::lab::Namespace;

/// What many hosts have: what conntrack does not understand is dropped.
const RULES: &str = "table inet guard {
    counter invalid {}
    counter seen {}
    chain forward { type filter hook forward priority filter; policy accept; ct state invalid counter name invalid drop; }
    chain local { type filter hook input priority filter; policy accept; ct state invalid counter name invalid drop; }
}";

/// The rules, a strict reverse path filter, and a connection tracking that forgives nothing.
pub fn strict(node: &Namespace) {
    let names = ["c0", "b1", "b2", "b3", "all", "default"];
    let filters: Vec<_> = names.iter().map(|name| (format!("net/ipv4/conf/{name}/rp_filter"), "1")).collect();
    let filters: Vec<_> = filters.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    node.sysctls(&filters).unwrap();
    nft(node, RULES);
    node.sysctls(&[("net/netfilter/nf_conntrack_tcp_loose", "0"), ("net/netfilter/nf_conntrack_tcp_be_liberal", "0")]).unwrap();
}

pub fn nft(node: &Namespace, text: &str) -> String {
    let mut nft = node.command("nft");
    nft.arg(text);
    tool(nft)
}

/// Packets of a named counter of the rules.
pub fn counted(node: &Namespace, name: &str) -> u64 {
    let mut list = node.command("nft");
    list.args(["list", "counter", "inet", "guard", name]);
    let text = tool(list);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).find(|pair| pair[0] == "packets").and_then(|pair| pair[1].parse().ok()).expect("a counter")
}
