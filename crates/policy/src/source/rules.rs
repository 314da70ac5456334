//! `rules` of layer 4, and what rules of all kinds share: the version they name, source networks.

use super::{
    At,
    fields::{Context, Fields, suggestion},
    network,
    yaml::Node,
};
use crate::model::{Cidr, Rule, Version};

/// Fields of a rule's `match`; the first is the only one that layer 4 knows.
pub const MATCH: &[&str] = &["sourceCidr", "header", "cookie", "path", "pathPrefix", "method", "query"];

/// Rules of a service that does not read requests.
pub fn layer4(fields: &Fields<'_>, versions: &[Version], places: &mut Vec<At>, context: &mut Context<'_>) -> Vec<Rule> {
    for name in ["canary", "whenUnavailable", "whenTooLong"] {
        if let Some(entry) = fields.entry(name) {
            context.error(entry.at, format!("`{name}` is about HTTP requests; write `mode: http`, or remove it"));
        }
    }
    let mut found = Vec::new();
    let Some(node) = fields.optional("rules") else { return found };
    for (index, item) in context.list(node, "spec.rules").unwrap_or_default().iter().enumerate() {
        if let Some(rule) = rule(item, &format!("spec.rules[{index}]"), versions, context) {
            found.push(rule);
            places.push(item.at);
        }
    }
    found
}

fn rule(node: &Node<'_>, what: &str, versions: &[Version], context: &mut Context<'_>) -> Option<Rule> {
    let fields = context.fields(node, what, &["match", "version"])?;
    let version = version(&fields, what, versions, context);
    let conditions = context.required(&fields, "match", &format!("{what}.match"), "match: {sourceCidr: 10.1.7.0/24}")?;
    let known = context.fields(conditions, &format!("{what}.match"), MATCH)?;
    let mut refused = false;
    for name in &MATCH[1..] {
        if let Some(entry) = known.entry(name) {
            context.error(entry.at, format!("rules on `{name}` read HTTP requests: write `mode: http`, or match on `sourceCidr` alone"));
            refused = true;
        }
    }
    if refused && known.entry("sourceCidr").is_none() {
        return None;
    }
    let node = context.required(&known, "sourceCidr", &format!("{what}.match.sourceCidr"), "sourceCidr: 10.1.7.0/24")?;
    Some(Rule { source: source(node, what, context)?, version: version? })
}

/// `match.sourceCidr` of the rule `what`.
pub fn source(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Cidr> {
    let text = context.string(node, &format!("{what}.match.sourceCidr"))?;
    network::cidr(text).map_err(|message| context.error(node.at, message)).ok()
}

/// Index of the version that a rule names.
pub fn version(fields: &Fields<'_>, what: &str, versions: &[Version], context: &mut Context<'_>) -> Option<usize> {
    let node = context.required(fields, "version", &format!("{what}.version"), "version: v2")?;
    named(node, &format!("{what}.version"), versions, context)
}

/// Index of the version whose name the node is.
pub fn named(node: &Node<'_>, what: &str, versions: &[Version], context: &mut Context<'_>) -> Option<usize> {
    let name = context.string(node, what)?;
    let index = versions.iter().position(|v| v.name == name);
    if index.is_none() && versions.iter().all(|v| !v.name.is_empty()) {
        let known: Vec<_> = versions.iter().map(|v| v.name.as_str()).collect();
        context.error(node.at, format!("there is no version `{name}`; {}", suggestion(name, &known)));
    }
    index
}
