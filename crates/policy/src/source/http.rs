//! What `mode: http` and `mode: https` add to a TrafficSplit: `splitBy`, rules on requests, `canary`, `whenUnavailable`, `whenTooLong`.
//!
//! Owns their fields and limits; the limits themselves are the rule compiler's.

use super::{
    At,
    draft::Places,
    fields::{Context, Fields, kind},
    rules::{self, MATCH},
    text,
    yaml::{Kind, Node},
};
use crate::model::{Condition, Http, HttpRule, Mode, SplitBy, Text, TooLong, Unavailable, Version};
use splitter_common::{abi::http_subject, http::compiler::Compiler};

/// `splitBy`, by default `request` for http and `connection` else.
pub fn split_by(fields: &Fields<'_>, mode: Option<Mode>, context: &mut Context<'_>) -> SplitBy {
    let default = if mode.is_some_and(Mode::reads_requests) { SplitBy::Request } else { SplitBy::Connection };
    let Some(node) = fields.optional("splitBy") else { return default };
    let found = if matches!(node.kind, Kind::Map(_)) { key(node, context) } else { word(node, context) };
    let reads_requests = matches!(found, Some(SplitBy::Request | SplitBy::Header(_) | SplitBy::Cookie(_)));
    if reads_requests && matches!(mode, Some(Mode::Tcp | Mode::Udp)) {
        context.error(node.at, "this splitBy reads HTTP requests: write `mode: http`, or use `connection` or `client-ip`");
    }
    found.unwrap_or(default)
}

fn word(node: &Node<'_>, context: &mut Context<'_>) -> Option<SplitBy> {
    let words = [("request", 0), ("connection", 1), ("client-ip", 2), ("header", 3), ("cookie", 4)];
    match context.word(node, "spec.splitBy", &words)? {
        0 => Some(SplitBy::Request),
        1 => Some(SplitBy::Connection),
        2 => Some(SplitBy::ClientIp),
        which => {
            let example = if which == 3 { "{header: X-User-Id}" } else { "{cookie: uid}" };
            context.error(node.at, format!("splitBy {} needs a name; write for example `splitBy: {example}`", kind(node)));
            None
        }
    }
}

fn key(node: &Node<'_>, context: &mut Context<'_>) -> Option<SplitBy> {
    let fields = context.fields(node, "spec.splitBy", &["header", "cookie"])?;
    match (fields.optional("header"), fields.optional("cookie")) {
        (Some(header), None) => valid(header, "spec.splitBy.header", text::header_name, context).map(SplitBy::Header),
        (None, Some(cookie)) => valid(cookie, "spec.splitBy.cookie", text::cookie_name, context).map(SplitBy::Cookie),
        (None, None) if matches!(&node.kind, Kind::Map(entries) if !entries.is_empty()) => None,
        _ => {
            context.error(node.at, "spec.splitBy takes one name; write `{header: NAME}` or `{cookie: NAME}`");
            None
        }
    }
}

/// Rules and the rest. `places.rules` gets those that the policy writes.
pub fn http(fields: &Fields<'_>, split_by: &SplitBy, versions: &[Version], places: &mut Places, context: &mut Context<'_>) -> Http {
    let mut compiler = Compiler::default();
    // The first name always fits.
    let _ = match split_by {
        SplitBy::Header(name) => compiler.key(http_subject::HEADER, name.as_bytes()),
        SplitBy::Cookie(name) => compiler.key(http_subject::COOKIE, name.as_bytes()),
        _ => Ok(()),
    };
    let mut found = Vec::new();
    let items = fields.optional("rules").and_then(|node| context.list(node, "spec.rules")).unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        let Some(rule) = rule(item, &format!("spec.rules[{index}]"), versions, context) else { continue };
        if let Err(limit) = compiler.rule(rule.conditions.iter().map(Condition::predicate), 0) {
            context.error(item.at, format!("this rule does not fit: a service can have at most {limit}; remove or merge some"));
            break;
        }
        found.push(rule);
        places.rules.push(item.at);
    }
    if let Some(node) = fields.optional("canary")
        && let Some(canary) = rules::named(node, "spec.canary", versions, context)
    {
        let tags = tags(versions, canary, node.at.line);
        let count = tags.len();
        let limit = tags.iter().find_map(|rule| compiler.rule(rule.conditions.iter().map(Condition::predicate), 0).err());
        if let Some(limit) = limit {
            context.error(node.at, format!("`canary` stands for {count} rules, which do not fit beside the others: a service can have at most {limit}; write the rules that are needed instead"));
        }
        found.extend(tags);
    }
    let unavailable = fields.optional("whenUnavailable").and_then(|node| unavailable(node, context)).unwrap_or_default();
    let too_long = fields.optional("whenTooLong").and_then(|node| too_long(node, context)).unwrap_or_default();
    Http { rules: found, unavailable, too_long }
}

fn too_long(node: &Node<'_>, context: &mut Context<'_>) -> Option<TooLong> {
    match &node.kind {
        Kind::Scalar { text, .. } if text == "baseline" => Some(TooLong::Baseline),
        Kind::Scalar { text, .. } if text == "weight" => Some(TooLong::Weight),
        Kind::Scalar { text, .. } if text == "431" => Some(TooLong::Status),
        _ => {
            context.error(node.at, format!("spec.whenTooLong must be `baseline`, `weight` or `431`, not {}", kind(node)));
            None
        }
    }
}

fn unavailable(node: &Node<'_>, context: &mut Context<'_>) -> Option<Unavailable> {
    match &node.kind {
        Kind::Scalar { text, .. } if text == "503" => Some(Unavailable::Status),
        Kind::Scalar { text, .. } if text == "reset" => Some(Unavailable::Reset),
        _ => {
            context.error(node.at, format!("spec.whenUnavailable must be `503` or `reset`, not {}", kind(node)));
            None
        }
    }
}

/// Values that send to the canary, and values that keep away from it.
const YES: [&str; 3] = ["always", "true", "1"];
const NO: [&str; 3] = ["never", "false", "0"];

/// The rules of `canary: VERSION`: the tag names in common use. Headers count before cookies; whoever stays away gets the first other
/// version.
fn tags(versions: &[Version], canary: usize, line: u32) -> Vec<HttpRule> {
    let rule = |condition, version| HttpRule { conditions: vec![condition], version, line, from_canary: true };
    let header = |name: &str, value: &str| Condition::Header(name.into(), Text::Exact(value.into()));
    let cookie = |value: &str| Condition::Cookie("canary".into(), Text::Exact(value.into()));
    let other = (0..versions.len()).find(|index| *index != canary);
    let mut found: Vec<HttpRule> = YES.iter().map(|value| rule(header("X-Canary", value), canary)).collect();
    found.extend(other.into_iter().flat_map(|other| NO.map(|value| rule(header("X-Canary", value), other))));
    found.extend(versions.iter().enumerate().map(|(index, version)| rule(header("X-Gray-Version", &version.name), index)));
    found.extend(YES.iter().map(|value| rule(cookie(value), canary)));
    found.extend(other.into_iter().flat_map(|other| NO.map(|value| rule(cookie(value), other))));
    found
}

fn rule(node: &Node<'_>, what: &str, versions: &[Version], context: &mut Context<'_>) -> Option<HttpRule> {
    let fields = context.fields(node, what, &["match", "version"])?;
    let version = rules::version(&fields, what, versions, context);
    let example = "match: {header: {name: X-Canary, value: always}}";
    let node = context.required(&fields, "match", &format!("{what}.match"), example)?;
    let before = context.report.errors.len();
    let conditions = conditions(node, what, context)?;
    if conditions.is_empty() && context.report.errors.len() == before {
        let hint = "every request would match; add a condition, or remove the rule and set weights";
        context.error(node.at, format!("{what}.match has no condition, so {hint}"));
        return None;
    }
    Some(HttpRule { conditions, version: version?, line: fields.at.line, from_canary: false })
}

/// What of a request a named condition looks at.
#[derive(Clone, Copy)]
struct Named {
    field: &'static str,
    known: &'static [&'static str],
    name: fn(&str) -> Result<(), String>,
    value: fn(&str) -> Result<(), String>,
    make: fn(String, Text) -> Condition,
}

const NAMED: [Named; 3] = [
    Named {
        field: "header",
        known: &["name", "value", "prefix", "present"],
        name: text::header_name,
        value: text::header_value,
        make: Condition::Header,
    },
    Named {
        field: "cookie",
        known: &["name", "value", "present"],
        name: text::cookie_name,
        value: text::cookie_value,
        make: Condition::Cookie,
    },
    Named {
        field: "query",
        known: &["name", "value", "present"],
        name: |text| text::query(text, true),
        value: |text| text::query(text, false),
        make: Condition::Query,
    },
];

/// All conditions of a rule's `match`, in the order of their kinds; wrong ones are left out.
fn conditions(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Vec<Condition>> {
    let fields = context.fields(node, &format!("{what}.match"), MATCH)?;
    let mut found = Vec::new();
    for named in NAMED {
        let field = format!("{what}.match.{}", named.field);
        match fields.optional(named.field) {
            Some(Node { kind: Kind::List(items), .. }) => {
                let one = |(index, item)| condition(item, &format!("{field}[{index}]"), named, context);
                found.extend(items.iter().enumerate().filter_map(one));
            }
            Some(node) => found.extend(condition(node, &field, named, context)),
            None => {}
        }
    }
    let mut plain = |field: &str, check: fn(&str) -> Result<(), String>, make: fn(String) -> Condition| {
        let value = valid(fields.optional(field)?, &format!("{what}.match.{field}"), check, context)?;
        found.push(make(value));
        Some(())
    };
    plain("path", text::path, Condition::Path);
    plain("pathPrefix", text::path, prefix);
    plain("method", text::method, Condition::Method);
    if let Some(node) = fields.optional("sourceCidr") {
        found.extend(rules::source(node, what, context).map(Condition::Source));
    }
    Some(found)
}

/// `/beta/` means the same as `/beta`.
fn prefix(path: String) -> Condition {
    let trimmed = path.trim_end_matches('/');
    Condition::PathPrefix(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
}

fn condition(node: &Node<'_>, what: &str, named: Named, context: &mut Context<'_>) -> Option<Condition> {
    let before = context.report.errors.len();
    let fields = context.fields(node, what, named.known)?;
    let known = context.report.errors.len() == before;
    let name = context
        .required(&fields, "name", &format!("{what}.name"), &format!("{}: {{name: NAME, value: VALUE}}", named.field))
        .and_then(|node| valid(node, &format!("{what}.name"), named.name, context));
    let given: Vec<_> = named.known[1..].iter().filter_map(|field| fields.optional(field).map(|node| (*field, node))).collect();
    let [(field, value)] = given[..] else {
        let at = given.get(1).map_or(fields.at, |(_, node)| node.at);
        if known {
            context.error(at, format!("{what} needs exactly one of {} beside its name", named.known[1..].join(", ")));
        }
        return None;
    };
    let text = match field {
        "present" => present(value, what, context)?,
        "prefix" => Text::Prefix(valid(value, &format!("{what}.prefix"), named.value, context)?),
        _ => Text::Exact(valid(value, &format!("{what}.value"), named.value, context)?),
    };
    Some((named.make)(name?, text))
}

fn present(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Text> {
    if matches!(&node.kind, Kind::Scalar { text, plain: true } if text == "true") {
        return Some(Text::Present);
    }
    let message = format!("{what}.present can only be true; what is absent is matched by no rule, so put rules for what is present before");
    context.error(node.at, message);
    None
}

/// A string that passes `check`.
fn valid(node: &Node<'_>, what: &str, check: fn(&str) -> Result<(), String>, context: &mut Context<'_>) -> Option<String> {
    let text = context.string(node, what)?;
    match check(text) {
        Ok(()) => Some(text.to_owned()),
        Err(message) => {
            context.error(node.at, format!("{what} {message}"));
            None
        }
    }
}

/// Warnings about rules that decide nothing. `places`: of the rules that the policy writes.
pub fn warnings(service: &crate::model::Service, places: &[At], context: &mut Context<'_>) {
    let Some(http) = &service.http else { return };
    let Some(frontend) = service.frontends.first() else { return };
    for (index, (rule, at)) in http.rules.iter().zip(places).enumerate() {
        let foreign = rule.conditions.iter().find(|condition| !condition.is_possible(frontend.address));
        if let Some(condition) = foreign {
            context.warn(*at, format!("no client can match {condition}: the frontends are of the other address family"));
            continue;
        }
        let apart = |a: &Condition| rule.conditions.iter().find(|b| a.excludes(b)).map(|b| (a.to_string(), b.to_string()));
        if let Some((a, b)) = rule.conditions.iter().find_map(apart) {
            context.warn(*at, format!("this rule never matches: no request has {a} and {b}"));
            continue;
        }
        let covers = |earlier: &&HttpRule| earlier.conditions.iter().all(|broad| rule.conditions.iter().any(|c| c.implies(broad)));
        if let Some(earlier) = http.rules[..index].iter().find(covers) {
            let line = earlier.line;
            context.warn(
                *at,
                format!(
                    "this rule never matches: the rule on line {line} takes all its requests; remove one, or put the narrower one first"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests;
