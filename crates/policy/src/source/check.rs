//! What concerns several objects (unique names and frontends), and warnings: policies that are valid and hardly meant.
//!
//! Pure; adds findings to a report.

use super::{
    At, Report,
    draft::Draft,
    fields::Context,
    http,
    network::{same_family, truncate, width},
};
use crate::model::{BackendState, Cidr, Rule, Service};
use std::collections::HashMap;

/// Checks all objects together.
pub fn across(drafts: &[Draft], report: &mut Report) {
    let mut names: HashMap<&str, (&str, At)> = HashMap::with_capacity(drafts.len());
    let mut frontends = HashMap::with_capacity(drafts.len());
    for (index, draft) in drafts.iter().enumerate() {
        let mut context = Context { path: &draft.path, object: Some(draft.object.clone()), report };
        if let Some((name, at)) = &draft.name {
            let first = *names.entry(name).or_insert((&draft.path, *at));
            if first != (draft.path.as_str(), *at) {
                let (path, at_first) = first;
                context.error(*at, format!("this name is taken by the one at {path}:{}; rename or remove one", at_first.line));
            }
        }
        for (frontend, at) in &draft.frontends {
            let owner = *frontends.entry(*frontend).or_insert((index, *at));
            if owner.0 != index {
                let other: &Draft = &drafts[owner.0];
                let address = frontend.address;
                context.error(
                    *at,
                    format!(
                        "frontend {address} belongs to {} at {}:{}; a frontend has one service",
                        other.object, other.path, owner.1.line
                    ),
                );
            }
        }
    }
    drafts.iter().for_each(|draft| alone(draft, report));
}

/// Warnings about one object.
pub fn alone(draft: &Draft, report: &mut Report) {
    if let Some(service) = &draft.service {
        warnings(service, draft, &mut Context { path: &draft.path, object: Some(draft.object.clone()), report });
    }
}

fn warnings(service: &Service, draft: &Draft, context: &mut Context<'_>) {
    if service.versions.iter().all(|v| v.weight == 0) {
        let at = draft.places.list.unwrap_or(At::START);
        context.warn(at, "every weight is 0: only clients that a rule names are served, all others are refused");
    }
    for (version, at) in service.versions.iter().zip(&draft.places.versions) {
        let ready = version.backends.iter().any(|b| b.state == BackendState::Ready);
        if version.weight > 0 && !ready && version.lookups.is_empty() {
            context.warn(*at, format!("version {} has weight {} but no ready backend: its share is refused", version.name, version.weight));
        }
    }
    if let Some(frontend) = service.frontends.first() {
        for (rule, at) in service.rules.iter().zip(&draft.places.rules) {
            if !same_family(rule.source.address, frontend.address.ip()) {
                let source = show(&rule.source);
                context.warn(*at, format!("no client can match {source}: the frontends are of the other address family"));
            }
        }
    }
    overlaps(service, draft, context);
    http::warnings(service, &draft.places.rules, context);
}

/// The longest prefix wins in the kernel, whatever the order: says so where the order suggests otherwise.
fn overlaps(service: &Service, draft: &Draft, context: &mut Context<'_>) {
    let mut first: HashMap<Cidr, usize> = HashMap::with_capacity(service.rules.len());
    for (index, rule) in service.rules.iter().enumerate() {
        first.entry(rule.source).or_insert(index);
    }
    for (index, (rule, at)) in service.rules.iter().zip(&draft.places.rules).enumerate() {
        let source = show(&rule.source);
        let same = first[&rule.source];
        if same != index {
            let line = draft.places.rules[same].line;
            context.warn(*at, format!("this rule never matches: the rule on line {line} has the same network {source}; remove one"));
            continue;
        }
        if let Some(broader) = earlier_broader(rule, index, &service.rules, &first) {
            let (line, other) = (draft.places.rules[broader].line, show(&service.rules[broader].source));
            context
                .warn(*at, format!("{source} wins over {other} on line {line}, which stands earlier: on layer 4 the longest prefix wins"));
        }
        if covered(rule.source, &first, 0) {
            context.warn(*at, format!("this rule never matches: narrower rules cover all of {source}; remove it"));
        }
    }
}

/// The nearest earlier rule with a broader network and another version.
fn earlier_broader(rule: &Rule, index: usize, rules: &[Rule], first: &HashMap<Cidr, usize>) -> Option<usize> {
    (0..rule.source.prefix).rev().find_map(|prefix| {
        let broader = first.get(&Cidr { address: truncate(rule.source.address, prefix), prefix })?;
        (*broader < index && rules[*broader].version != rule.version).then_some(*broader)
    })
}

/// Whether narrower networks cover all of `network`: both halves are rules or covered themselves.
fn covered(network: Cidr, rules: &HashMap<Cidr, usize>, depth: u8) -> bool {
    let bits = width(network.address);
    // Halving stops early: whoever covers a network with more than 2^8 rules means it.
    if network.prefix >= bits || depth == 8 || rules.len() < 3 {
        return false;
    }
    halves(network).into_iter().all(|half| rules.contains_key(&half) || covered(half, rules, depth + 1))
}

fn halves(network: Cidr) -> [Cidr; 2] {
    let prefix = network.prefix + 1;
    let upper = match network.address {
        std::net::IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() | 1 << (32 - prefix)).into(),
        std::net::IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() | 1 << (128 - u32::from(prefix))).into(),
    };
    [Cidr { address: network.address, prefix }, Cidr { address: upper, prefix }]
}

fn show(network: &Cidr) -> String {
    format!("{}/{}", network.address, network.prefix)
}
