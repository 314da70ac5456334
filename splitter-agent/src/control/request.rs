//! `splitter explain` for http services: a request's head through the scanner, the rules and the buckets of the kernel.

use super::{
    ControlError,
    decision::{self, Facts},
    live, status,
};
use splitter_api::{ExplainRequest, Explanation};
use splitter_common::{
    abi::{Addr, BASELINE_RULED, HttpRules, http_subject},
    decide::{self, NO_RULE, Request, select::key},
    http::{self, HEAD_LIMIT, HeadText, Plain, RequestHead, Scan, verdict},
};
use splitter_datapath::{plan, reconcile::Planned};
use splitter_policy::model::{HttpRule, SplitBy, TooLong};

/// The head as the kernel reads it.
pub struct Read {
    pub head: RequestHead,
    /// Bits of the predicates that need the client's address.
    sources: u64,
}

/// The head of the request that is asked about. `host`: for the `Host` line when none is given.
///
/// # Errors
/// When a part cannot stand in a head.
pub fn head(request: &ExplainRequest, host: &str) -> Result<String, ControlError> {
    if let Some(head) = &request.head {
        return Ok(head.clone());
    }
    let mut target = request.path.clone().unwrap_or_else(|| "/".into());
    if let Some(query) = &request.query {
        target += if target.contains('?') { "&" } else { "?" };
        target += query.trim_start_matches('?');
    }
    let mut lines = vec![format!("{} {target} HTTP/1.1", request.method.as_deref().unwrap_or("GET"))];
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        lines.push(format!("Host: {host}"));
    }
    lines.extend(request.headers.iter().map(|(name, value)| format!("{name}: {value}")));
    let cookies: Vec<_> = request.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !cookies.is_empty() {
        lines.push(format!("Cookie: {}", cookies.join("; ")));
    }
    if let Some(line) = lines.iter().find(|line| line.contains(['\r', '\n'])) {
        return Err(ControlError::Invalid(format!("{line:?} holds a line break, which would end the line")));
    }
    Ok(lines.join("\r\n") + "\r\n\r\n")
}

/// Reads a head as the kernel would for this service.
pub fn read(planned: &Planned, head: &[u8], client: &Addr) -> Read {
    let mut text: Box<HeadText> = Box::new([0; size_of::<HeadText>()]);
    let len = head.len().min(HEAD_LIMIT as usize);
    text[..len].copy_from_slice(&head[..len]);
    let rules = planned.image.http.as_deref();
    let (mut scan, mut out) = (Scan::default(), RequestHead::default());
    http::request::<Plain>(&text, len as u32, rules, client, &mut scan, &mut out);
    if !matches!(out.verdict, verdict::COMPLETE | verdict::PIN) {
        // What was not read whole decides nothing.
        (out.facts, out.keyed) = (0, 0);
    }
    Read { head: out, sources: rules.map_or(0, sources) }
}

impl Read {
    /// No client is known.
    pub fn forget_source(&mut self) {
        self.head.facts &= !self.sources;
    }
}

fn sources(rules: &HttpRules) -> u64 {
    let names = rules.names.iter().take(usize::from(rules.name_count)).filter(|name| name.subject == http_subject::SOURCE);
    names.flat_map(|name| name.first..name.first.saturating_add(name.count)).fold(0, |bits, bit| bits | 1u64.wrapping_shl(bit.into()))
}

/// Position in the policy of the first rule that these facts fulfil.
pub fn rule(planned: &Planned, facts: u64) -> Option<usize> {
    let (rules, model) = (planned.image.http.as_deref()?, planned.model.http.as_ref()?);
    let compiled = rules.rules.iter().take(usize::from(rules.rule_count)).position(|rule| facts & rule.mask == rule.mask)?;
    plan::http::possible(&planned.model, model).nth(compiled).map(|(position, _)| position)
}

/// Whether every client gets the version that this rule (none: the weights) gives: no rule that reads its address comes before, but for
/// those with the same version.
fn whoever(planned: &Planned, read: &Read, ruled: Option<usize>) -> bool {
    let (Some(rules), Some(model)) = (planned.image.http.as_deref(), planned.model.http.as_ref()) else { return true };
    let possible = plan::http::possible(&planned.model, model).zip(&rules.rules[..usize::from(rules.rule_count).min(rules.rules.len())]);
    let before = possible.take_while(|((position, _), _)| Some(*position) != ruled);
    let mut held = before.filter(|(_, rule)| (read.head.facts | read.sources) & rule.mask == rule.mask);
    held.all(|((_, rule), _)| ruled.is_some_and(|ruled| model.rules[ruled].version == rule.version))
}

/// Fills the answer. `facts.client_port` counts when `port` is true; without `client` its address neither.
pub fn explain(
    planned: &Planned,
    request: &ExplainRequest,
    read: &Read,
    (facts, client, port): (&Facts, bool, bool),
    answer: &mut Explanation,
    suspect: impl Fn(u32) -> bool,
) -> Result<(), ControlError> {
    match read.head.verdict {
        verdict::INCOMPLETE => return Err(ControlError::Invalid("the head has no end: an empty line is missing".into())),
        verdict::REFUSE => {
            answer.decided_by = "refused".into();
            answer.reason = "The head is not HTTP/1, or two servers could read it in two ways: the node answers 400.".into();
            return Ok(());
        }
        _ => {}
    }
    let long = if read.head.verdict == verdict::TOO_LONG { planned.model.http.as_ref().map(|http| http.too_long) } else { None };
    if long == Some(TooLong::Status) {
        answer.decided_by = "refused".into();
        answer.reason = format!("The head is longer than {HEAD_LIMIT} bytes: the node answers 431, see whenTooLong.");
        return Ok(());
    }
    let asked = Request {
        at: request.sequence.unwrap_or(0),
        key: (read.head.keyed != 0).then_some(read.head.key),
        ruled: match (long, planned.image.http.as_deref()) {
            (Some(TooLong::Baseline), _) => BASELINE_RULED,
            (None, Some(rules)) => http::rule(rules, read.head.facts).unwrap_or(NO_RULE),
            _ => NO_RULE,
        },
    };
    let decision = decision::select(planned, facts, Some(&asked), suspect);
    let known = match long {
        Some(TooLong::Baseline) => baseline(planned, decision.version, answer),
        _ => version(planned, (request, read, &asked), (facts, client, port), decision.version, answer),
    };
    let Some(version) = decision.version.filter(|_| known) else { return Ok(()) };
    let name = planned.model.versions[version].name.clone();
    answer.version = Some(name);
    match read.head.verdict {
        verdict::PIN => answer.reason.push_str(" The connection stays with its backend after this request."),
        verdict::TOO_LONG => {
            let text =
                format!(" The head is longer than {HEAD_LIMIT} bytes: rules are not looked at, and the connection stays with its backend.");
            answer.reason.push_str(&text);
        }
        _ => {}
    }
    let single = planned.image.record.versions[version].size == 1;
    let known = client && (port || planned.model.split_by == SplitBy::ClientIp);
    if !single && !known {
        return Ok(());
    }
    match decision.backend {
        Some(id) => {
            let row = planned.image.backends.iter().find(|(known, _)| *known == id);
            answer.backend = row.map(|(_, row)| live::endpoint(&row.addr, row.port));
        }
        None => answer.reason.push_str(" It has no backend that takes requests: see whenUnavailable."),
    }
    Ok(())
}

/// Says that a request whose head is too long gets a version; `false`: none.
fn baseline(planned: &Planned, chosen: Option<usize>, answer: &mut Explanation) -> bool {
    let Some(index) = chosen else {
        answer.decided_by = "none".into();
        answer.reason = "All weights are 0: the request is refused, see whenUnavailable.".into();
        return false;
    };
    answer.decided_by = "baseline".into();
    answer.reason = format!("Version {} is the baseline, which gets what is not read (whenTooLong).", planned.model.versions[index].name);
    true
}

/// Says why a request gets the version `chosen`; `false` when that depends on what is not known, or nobody serves.
fn version(
    planned: &Planned,
    (request, read, asked): (&ExplainRequest, &Read, &Request),
    (facts, client, port): (&Facts, bool, bool),
    chosen: Option<usize>,
    answer: &mut Explanation,
) -> bool {
    let ruled = if asked.ruled == NO_RULE { None } else { rule(planned, read.head.facts) };
    if !client && !whoever(planned, read, ruled) {
        answer.decided_by = "undecided".into();
        answer.reason = "A rule reads the client's address: name one with --client.".into();
        return false;
    }
    if let (Some(position), Some(http)) = (ruled, &planned.model.http) {
        let rule = &http.rules[position];
        answer.decided_by = "rule".into();
        answer.rule = Some(describe(position, rule));
        answer.rule_origin = Some(origin(planned, rule));
        answer.reason = format!("The request fulfils rule {position} ({rule}): version {}.", planned.model.versions[rule.version].name);
        return true;
    }
    let shares = status::ratios(planned);
    if shares.iter().all(|share| *share == 0.0) {
        answer.decided_by = "none".into();
        answer.reason = "All weights are 0 and no rule matches: the request is refused, see whenUnavailable.".into();
        return false;
    }
    let what = match (&planned.model.split_by, request.sequence) {
        (SplitBy::ClientIp, _) if client => "the client's address",
        (SplitBy::Header(name) | SplitBy::Cookie(name), _) if asked.key.is_some() => name.as_str(),
        (SplitBy::Request, Some(_)) if port => "this request",
        (SplitBy::Connection | SplitBy::Header(_) | SplitBy::Cookie(_), _) if port => "the connection",
        _ => return only(planned, &shares, answer),
    };
    let (Some(index), record) = (chosen, &planned.image.record) else { return false };
    let bucket = decide::bucket(record.salt, key(record.split_by, facts, Some(asked)));
    answer.bucket = Some(bucket);
    answer.decided_by = "weight".into();
    let name = &planned.model.versions[index].name;
    answer.reason = format!("No rule matches. Bucket {bucket} of 4294967296, by {what}, falls into the interval of version {name}.");
    true
}

/// The key is not known: whether one version has all the weight.
fn only(planned: &Planned, shares: &[f64], answer: &mut Explanation) -> bool {
    if let Some(index) = shares.iter().position(|share| *share == 1.0) {
        answer.decided_by = "weight".into();
        answer.reason = format!("No rule matches, and version {} has all the weight.", planned.model.versions[index].name);
        return true;
    }
    answer.decided_by = "undecided".into();
    answer.reason = match &planned.model.split_by {
        SplitBy::Request => "No rule matches, and each request is drawn anew: only the odds are known.".into(),
        SplitBy::ClientIp => "No rule matches: name the client with --client.".into(),
        SplitBy::Connection => "No rule matches, and each connection decides by its source port: name one with --client IP:PORT.".into(),
        SplitBy::Header(name) | SplitBy::Cookie(name) => {
            format!("No rule matches, and without {name} the connection decides: give it, or --client IP:PORT.")
        }
    };
    false
}

/// Position from 0, and the match as the policy means it.
pub(super) fn describe(position: usize, rule: &HttpRule) -> String {
    let from = if rule.from_canary { " (of the line `canary`)" } else { "" };
    format!("{position}: {rule}{from}")
}

/// `FILE:LINE`.
fn origin(planned: &Planned, rule: &HttpRule) -> String {
    let file = planned.model.origin.rsplitn(3, ':').nth(2).unwrap_or_default();
    format!("{file}:{}", rule.line)
}

#[cfg(test)]
mod tests;
