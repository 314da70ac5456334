//! `rollout.gates` -> model.

use super::{TIMEOUT, decimal, list, number, percent, share, time, timeout};
use crate::{
    model::{ALL, Check, ErrorRate, External, Gates, Latency, Measure, Number, ShareMismatch},
    source::{
        fields::{Context, Fields, kind},
        yaml::{Kind, Node},
    },
};
use std::time::Duration;

const FIELDS: &[&str] = &["errorRate", "latency", "share", "saturation", "probes", "prometheus", "webhooks", "commands"];

/// Ten times as much.
const TENFOLD: u32 = 10 * ALL;

pub const SHARE: ShareMismatch = ShareMismatch { tolerance: 200_000 };

/// `errorRate` and `share` are there unless they are switched off by name. `sticky`: clients are drawn by a key, so the share is only judged when
/// it is asked for.
pub fn decode(node: Option<&Node<'_>>, sticky: bool, context: &mut Context<'_>) -> Gates {
    let share_default = (!sticky).then_some(SHARE);
    let Some(node) = node else { return Gates { error_rate: Some(ErrorRate::default()), share: share_default, ..Gates::default() } };
    let Some(fields) = context.fields(node, "spec.rollout.gates", FIELDS) else { return Gates::default() };
    if matches!(&node.kind, Kind::Map(entries) if entries.is_empty()) {
        context.warn(
            node.at,
            "spec.rollout.gates is empty and changes nothing: errorRate and share stay as they are without it; remove it, or write for example \
             `gates: {errorRate: {max: 1%}}`",
        );
    }
    let latency = match fields.optional("latency") {
        Some(node) if matches!(node.kind, Kind::List(_)) => list(&fields, "latency", "spec.rollout.gates.latency", context, latency),
        Some(node) => latency(node, "spec.rollout.gates.latency", context).into_iter().collect(),
        None => Vec::new(),
    };
    let mut external = list(&fields, "saturation", "spec.rollout.gates.saturation", context, saturation);
    external.extend(list(&fields, "probes", "spec.rollout.gates.probes", context, probe));
    external.extend(list(&fields, "prometheus", "spec.rollout.gates.prometheus", context, prometheus));
    external.extend(list(&fields, "webhooks", "spec.rollout.gates.webhooks", context, webhook));
    external.extend(list(&fields, "commands", "spec.rollout.gates.commands", context, command));
    for (index, gate) in external.iter().enumerate() {
        if external[..index].iter().any(|other| other.name == gate.name) {
            context.error(node.at, format!("two gates have the name `{}`; give each its own", gate.name));
        }
    }
    let error_rate = match fields.optional("errorRate") {
        Some(node) if is_off(node) => None,
        Some(node) => error_rate(node, context),
        None => Some(ErrorRate::default()),
    };
    let share = match fields.optional("share") {
        Some(node) if is_off(node) => None,
        Some(node) => share_mismatch(node, context),
        None => share_default,
    };
    if error_rate.is_none() && share.is_none() && latency.is_empty() && external.is_empty() {
        context.warn(
            node.at,
            "spec.rollout.gates has no gate left: the canary is promoted whatever it does; keep errorRate, or name another gate",
        );
    }
    Gates { error_rate, latency, share, external }
}

/// `off`: YAML 1.1 reads it as false, and so it may be written.
fn is_off(node: &Node<'_>) -> bool {
    matches!(&node.kind, Kind::Scalar { text, .. } if matches!(text.as_ref(), "off" | "false"))
}

fn share_mismatch(node: &Node<'_>, context: &mut Context<'_>) -> Option<ShareMismatch> {
    let fields = context.fields(node, "spec.rollout.gates.share", &["tolerance"])?;
    let tolerance = share(&fields, "tolerance", "spec.rollout.gates.share.tolerance", 10_000, ALL, context);
    Some(tolerance.map_or(SHARE, |tolerance| ShareMismatch { tolerance }))
}

fn error_rate(node: &Node<'_>, context: &mut Context<'_>) -> Option<ErrorRate> {
    let what = "spec.rollout.gates.errorRate";
    let fields = context.fields(node, what, &["max", "maxIncrease", "margin", "ignoreBelow", "unanswered", "codes"])?;
    let mut read = |name: &str, min, max| share(&fields, name, &format!("{what}.{name}"), min, max, context);
    let default = ErrorRate::default();
    Some(ErrorRate {
        max: read("max", 1, ALL - 1),
        max_increase: read("maxIncrease", 0, TENFOLD).unwrap_or(default.max_increase),
        margin: read("margin", 1, ALL - 1).unwrap_or(default.margin),
        ignore_below: read("ignoreBelow", 0, ALL - 1).unwrap_or(default.ignore_below),
        unanswered: unanswered(&fields, context).unwrap_or(default.unanswered),
        codes: codes(&fields, context).unwrap_or(default.codes),
    })
}

/// Shorter than a few ticks of the slowest clock, or longer than anybody waits.
const UNANSWERED_LIMITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3600)];

fn unanswered(fields: &Fields<'_>, context: &mut Context<'_>) -> Option<Duration> {
    let what = "spec.rollout.gates.errorRate.unanswered";
    let found = time(fields, "unanswered", what, context)?;
    let [least, most] = UNANSWERED_LIMITS;
    if !(least..=most).contains(&found)
        && let Some(node) = fields.optional("unanswered")
    {
        context.error(node.at, format!("{what} must be 100ms to 1h: how long a client may wait for an answer before that is a failure"));
    }
    Some(found)
}

/// Classes (`5xx`) and single statuses, as spans.
fn codes(fields: &Fields<'_>, context: &mut Context<'_>) -> Option<Vec<[u16; 2]>> {
    let what = "spec.rollout.gates.errorRate.codes";
    let node = fields.optional("codes")?;
    let items = context.list(node, what)?;
    if items.is_empty() {
        context.error(node.at, format!("{what} names nothing; list what fails, for example [5xx, 404], or leave it out for [5xx]"));
    }
    let mut spans = Vec::new();
    for item in items {
        let text = if let Kind::Scalar { text, .. } = &item.kind { text.as_ref() } else { "" };
        let class = text.strip_suffix("xx").filter(|class| class.len() == 1).and_then(|class| class.parse::<u16>().ok());
        let single = text.parse::<u16>().ok().filter(|code| text.len() == 3 && (100..600).contains(code));
        match (class, single) {
            (Some(class @ 1..=5), _) => spans.push([class * 100, class * 100 + 99]),
            (_, Some(code)) => spans.push([code, code]),
            _ => context.error(item.at, format!("{what} must be classes 1xx to 5xx or statuses 100 to 599, not {}", kind(item))),
        }
    }
    spans.sort_unstable();
    spans.dedup();
    Some(spans)
}

fn latency(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Latency> {
    let fields = context.fields(node, what, &["measure", "quantile", "max", "maxIncrease"])?;
    let field = format!("{what}.quantile");
    let quantile = context.required(&fields, "quantile", &field, "quantile: 0.99").and_then(|node| {
        let text = if let Kind::Scalar { text, .. } = &node.kind { text.as_ref() } else { "" };
        let found = decimal(text, 6).filter(|ppm| (1..u64::from(ALL)).contains(ppm)).map(|ppm| ppm as u32);
        if found.is_none() {
            context.error(node.at, format!("{field} must be between 0 and 1 such as 0.99, not {}", kind(node)));
        }
        found
    });
    let measures = [("firstByte", Measure::FirstByte), ("connect", Measure::Connect)];
    let measure = fields.optional("measure").and_then(|node| context.word(node, &format!("{what}.measure"), &measures));
    let max = time(&fields, "max", &format!("{what}.max"), context);
    let max_increase = share(&fields, "maxIncrease", &format!("{what}.maxIncrease"), 0, TENFOLD, context);
    if max.is_none() && max_increase.is_none() {
        context.error(node.at, format!("{what} must have `max`, `maxIncrease` or both; add for example `maxIncrease: 20%`"));
    }
    Some(Latency { measure: measure.unwrap_or_default(), quantile: quantile?, max, max_increase })
}

pub const EVERY_USUAL: Duration = Duration::from_secs(10);
/// Answers in a row that fail, by the list that a gate stands in: saturation, probes, prometheus, webhooks, commands.
pub const FAILURES: [u32; 5] = [3, 2, 3, 1, 1];
/// Others are not asked more often.
const EVERY: Duration = Duration::from_secs(1);

/// What all gates have that ask others.
const COMMON: [&str; 4] = ["name", "every", "timeout", "failures"];

fn external(fields: &Fields<'_>, what: &str, check: Option<Check>, failures: u32, context: &mut Context<'_>) -> Option<External> {
    let name = context
        .required(fields, "name", &format!("{what}.name"), "name: orders")
        .and_then(|node| context.string(node, &format!("{what}.name")))
        .map(str::to_owned);
    let every = time(fields, "every", &format!("{what}.every"), context).unwrap_or(EVERY_USUAL);
    if let Some(node) = fields.optional("every")
        && every < EVERY
    {
        context
            .error(node.at, format!("{what}.every must be at least 1s; counters are judged more often, others are not asked more often"));
    }
    let timeout = timeout(fields, "timeout", &format!("{what}.timeout"), context).unwrap_or(TIMEOUT);
    let failures = number(fields, "failures", &format!("{what}.failures"), 1000, context).unwrap_or(failures).max(1);
    Some(External { name: name?, check: check?, every, timeout, failures })
}

fn saturation(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<External> {
    const KNOWN: &[&str] = &["cgroup", "resource", "command", "max", COMMON[0], COMMON[1], COMMON[2], COMMON[3]];
    let fields = context.fields(node, what, KNOWN)?;
    let memory = fields
        .optional("resource")
        .and_then(|node| context.word(node, &format!("{what}.resource"), &[("cpu", false), ("memory", true)]))
        .unwrap_or(false);
    let max = context.required(&fields, "max", &format!("{what}.max"), "max: 80%");
    let max = max.and_then(|node| percent(node, &format!("{what}.max"), 1, 1000 * ALL, context));
    let from = match (fields.optional("cgroup"), fields.optional("command")) {
        (Some(path), None) => {
            let path = context.string(path, &format!("{what}.cgroup"))?.to_owned();
            Some(if memory { Number::CgroupMemory { path } } else { Number::CgroupCpu { path } })
        }
        (None, Some(run)) => Some(Number::Command { run: words(run, &format!("{what}.command"), context)? }),
        _ => {
            context.error(node.at, format!("{what} must have either `cgroup: PATH` or `command: [PROGRAM, ARGUMENT]`"));
            None
        }
    };
    // Shares in thousandths, as all limits of values.
    let check = from.zip(max).map(|(from, max)| Check::Value { from, min: None, max: Some(i64::from(max) / 1000) });
    external(&fields, what, check, FAILURES[0], context)
}

fn probe(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<External> {
    const KNOWN: &[&str] =
        &["path", "method", "headers", "body", "status", "contains", "command", COMMON[0], COMMON[1], COMMON[2], COMMON[3]];
    let fields = context.fields(node, what, KNOWN)?;
    let mut text = |name: &str| fields.optional(name).and_then(|node| context.string(node, &format!("{what}.{name}"))).map(str::to_owned);
    let (path, method, body, contains) = (text("path"), text("method"), text("body"), text("contains"));
    if let (Some(path), Some(node)) = (&path, fields.optional("path"))
        && !path.starts_with('/')
    {
        context.error(node.at, format!("{what}.path must begin with `/`: /{path}"));
    }
    let status = fields.optional("status").and_then(|node| context.number(node, &format!("{what}.status"), 100, 599));
    let mut headers = Vec::new();
    if let Some(node) = fields.optional("headers") {
        let Kind::Map(entries) = &node.kind else {
            context.error(node.at, format!("{what}.headers must be an object, not {}", kind(node)));
            return None;
        };
        for entry in entries {
            let value = context.string(&entry.value, &format!("{what}.headers"))?;
            headers.push((entry.key.to_string(), value.to_owned()));
        }
    }
    let check = match (path, fields.optional("command")) {
        (Some(path), None) => Some(Check::Http {
            method: method.unwrap_or_else(|| "GET".into()),
            path,
            headers,
            body: body.unwrap_or_default(),
            status: status.unwrap_or(200) as u16,
            contains,
        }),
        (None, Some(run)) => Some(Check::Command { run: words(run, &format!("{what}.command"), context)? }),
        _ => {
            context.error(node.at, format!("{what} must have either `path: /...` or `command: [PROGRAM, ARGUMENT]`"));
            None
        }
    };
    external(&fields, what, check, FAILURES[1], context)
}

fn prometheus(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<External> {
    const KNOWN: &[&str] = &["url", "query", "min", "max", COMMON[0], COMMON[1], COMMON[2], COMMON[3]];
    let fields = context.fields(node, what, KNOWN)?;
    let url = context.required(&fields, "url", &format!("{what}.url"), "url: http://prometheus:9090");
    let url = url.and_then(|node| url_of(node, &format!("{what}.url"), context));
    let query = context.required(&fields, "query", &format!("{what}.query"), "query: sum(rate(errors[1m]))");
    let query = query.and_then(|node| context.string(node, &format!("{what}.query"))).map(str::to_owned);
    let (min, max) = (thousandths(&fields, "min", what, context), thousandths(&fields, "max", what, context));
    if min.is_none() && max.is_none() {
        context.error(node.at, format!("{what} must have `min`, `max` or both"));
    }
    let check = url.zip(query).map(|(url, query)| Check::Value { from: Number::Prometheus { url, query }, min, max });
    external(&fields, what, check, FAILURES[2], context)
}

fn webhook(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<External> {
    const KNOWN: &[&str] = &["url", COMMON[0], COMMON[1], COMMON[2], COMMON[3]];
    let fields = context.fields(node, what, KNOWN)?;
    let node = context.required(&fields, "url", &format!("{what}.url"), "url: http://judge/verdict")?;
    let check = url_of(node, &format!("{what}.url"), context).map(|url| Check::Webhook { url });
    external(&fields, what, check, FAILURES[3], context)
}

fn command(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<External> {
    const KNOWN: &[&str] = &["run", COMMON[0], COMMON[1], COMMON[2], COMMON[3]];
    let fields = context.fields(node, what, KNOWN)?;
    let node = context.required(&fields, "run", &format!("{what}.run"), "run: [/usr/local/bin/check]")?;
    let check = words(node, &format!("{what}.run"), context).map(|run| Check::Command { run });
    external(&fields, what, check, FAILURES[4], context)
}

/// A number with at most three decimals, in thousandths.
fn thousandths(fields: &Fields<'_>, name: &str, what: &str, context: &mut Context<'_>) -> Option<i64> {
    let node = fields.optional(name)?;
    let text = if let Kind::Scalar { text, .. } = &node.kind { text.as_ref() } else { "" };
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let found = decimal(digits, 3).and_then(|value| i64::try_from(value).ok());
    if found.is_none() {
        context.error(node.at, format!("{what}.{name} must be a number with at most three decimals, not {}", kind(node)));
    }
    found.map(|value| sign * value)
}

pub fn url(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<String> {
    url_of(node, what, context)
}

fn url_of(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<String> {
    let text = context.string(node, what)?;
    let host = text.strip_prefix("http://").map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
    if host.is_none_or(str::is_empty) {
        let hint = "write http://HOST:PORT/PATH (for https, point it at a local forwarder, or use a command)";
        context.error(node.at, format!("{what} `{text}` is not a plain HTTP address; {hint}"));
        return None;
    }
    Some(text.to_owned())
}

/// A program and its arguments; no shell is involved.
pub fn words(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Vec<String>> {
    let items = context.list(node, what)?;
    let words: Vec<String> = items.iter().filter_map(|item| context.string(item, what)).map(str::to_owned).collect();
    if words.first().is_none_or(|program| program.is_empty()) {
        context.error(node.at, format!("{what} must name a program, for example [/usr/local/bin/check, --fast]"));
        return None;
    }
    (words.len() == items.len()).then_some(words)
}
