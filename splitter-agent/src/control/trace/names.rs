//! From the kernel's numbers to names, and from a decision's facts to its reason, by the same functions as the kernel.

use super::join::Told;
use crate::control::{
    decision::{self, Facts, index_of},
    explain, live, request,
};
use splitter_api::TraceEvent;
use splitter_common::{
    abi::{self, Addr, BASELINE_RULED, NO_REASON, Reason, TRACE_TEXT, UDP, trace_flag, trace_kind},
    decide,
};
use splitter_datapath::reconcile::{Applied, Planned};
use splitter_policy::model::SplitBy;
use std::collections::HashMap;

/// Bytes of a path that are shown.
const PATH: usize = 64;

/// A moment on both clocks.
pub struct Clock {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub now: u64,
    pub unix: f64,
}

/// Services by number, as they were at a layout.
#[derive(Debug, Default)]
pub struct Names {
    layout: Option<u64>,
    services: HashMap<u32, String>,
}

impl Names {
    /// Learns the numbers, when they may have changed.
    pub fn follow(&mut self, applied: &Applied, layout: u64) {
        if self.layout != Some(layout) {
            self.layout = Some(layout);
            self.services = applied.services().map(|planned| (planned.image.id, planned.model.name.clone())).collect();
        }
    }

    /// What is shown of a decision.
    pub fn line(&self, applied: &Applied, told: &Told, clock: &Clock) -> TraceEvent {
        let event = &told.decided;
        let facts = facts(event);
        let planned = self.services.get(&event.service).and_then(|name| applied.service(name));
        let http = event.flags & trace_flag::HTTP != 0;
        let mut line = TraceEvent {
            time: clock.unix - clock.now.saturating_sub(event.time) as f64 / 1e9,
            client: live::endpoint(&facts.client, facts.client_port.to_be_bytes()),
            frontend: live::endpoint(&facts.vip, facts.vip_port.to_be_bytes()),
            protocol: if http { "http" } else { decision::protocol_name(event.proto) }.into(),
            service: planned.map_or_else(|| format!("number {}", event.service), |planned| planned.model.name.clone()),
            version: version_name(planned, event.version),
            decided_by: "none".into(),
            pinned: event.flags & trace_flag::PINNED != 0,
            recovered: event.flags & trace_flag::RECOVERED != 0,
            refused: event.backend == 0,
            reason: reason(event.reason),
            ..TraceEvent::default()
        };
        (line.method, line.path) = request_line(event);
        if let Some(planned) = planned {
            line.backend =
                planned.image.backends.iter().find(|(id, _)| *id == event.backend).map(|(_, row)| live::endpoint(&row.addr, row.port));
            if event.kind == trace_kind::DECIDED && event.version != 0 {
                why(planned, event, &facts, &mut line);
            }
        }
        if let Some(ended) = &told.ended {
            if ended.kind == trace_kind::REFUSED {
                line.refused = true;
                line.reason = line.reason.take().filter(|_| !line.pinned).or_else(|| reason(ended.reason));
            } else {
                line.first_byte = Some(ended.spent as f64 / 1e9);
            }
            line.status = Some(ended.status).filter(|status| *status != 0);
        }
        line
    }
}

fn facts(event: &abi::TraceEvent) -> Facts {
    Facts {
        client: address(&event.client),
        client_port: event.client_port,
        vip: address(&event.vip),
        vip_port: event.vip_port,
        proto: event.proto,
    }
}

fn address(words: &[u32; 4]) -> Addr {
    let mut addr = [0; 16];
    addr.chunks_exact_mut(4).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_ne_bytes()));
    addr
}

fn reason(number: u8) -> Option<String> {
    let reason = Reason::ALL.get(usize::from(number)).filter(|_| number != NO_REASON)?;
    Some(reason.name().into())
}

fn version_name(planned: Option<&Planned>, version: u32) -> Option<String> {
    if version == 0 {
        return None;
    }
    let node = |planned: &Planned| planned.image.node.as_ref().is_some_and(|node| node.versions[0].version == version);
    if planned.is_some_and(node) {
        // The userspace tier's: each request has a version of its own.
        return Some("-".into());
    }
    let index = planned.and_then(|planned| index_of(planned, version));
    Some(planned.zip(index).map_or_else(|| format!("number {version}"), |(planned, index)| planned.model.versions[index].name.clone()))
}

/// The rule, or the bucket, that gave the version. Both are found again: what was applied in between may make them others.
fn why(planned: &Planned, event: &abi::TraceEvent, facts: &Facts, line: &mut TraceEvent) {
    if !planned.model.mode.reads_requests() {
        let ruled = decision::rule(planned, &facts.client)
            .filter(|rule| index_of(planned, event.version) == Some(planned.model.rules[*rule].version));
        line.rule = ruled.map(|rule| explain::describe(rule, &planned.model.rules[rule]));
        line.bucket = ruled.is_none().then(|| decision::bucket(planned, facts));
        line.decided_by = if ruled.is_some() { "rule" } else { "weight" }.into();
        return;
    }
    if event.text_len == 0 {
        line.decided_by = "connection".into();
        return;
    }
    if event.ruled == BASELINE_RULED {
        line.decided_by = "baseline".into();
        return;
    }
    if event.ruled == event.version {
        let rule = request::rule(planned, event.facts).zip(planned.model.http.as_ref());
        line.rule = rule.map(|(position, http)| request::describe(position, &http.rules[position]));
        line.decided_by = "rule".into();
        return;
    }
    let connection = decide::connection_key(&facts.client, facts.client_port, &facts.vip, facts.vip_port, facts.proto);
    let key = match planned.model.split_by {
        SplitBy::ClientIp => decide::client_key(&facts.client),
        SplitBy::Request => decide::request_key(connection, event.at),
        SplitBy::Header(_) | SplitBy::Cookie(_) if event.flags & trace_flag::KEYED != 0 => event.key,
        SplitBy::Connection | SplitBy::Header(_) | SplitBy::Cookie(_) => connection,
    };
    line.bucket = Some(decide::bucket(planned.image.record.salt, key));
    line.decided_by = "weight".into();
}

/// Method and path. The query is left out: it may hold what is nobody's business.
fn request_line(event: &abi::TraceEvent) -> (Option<String>, Option<String>) {
    debug_assert!(event.proto != UDP || event.text_len == 0);
    let text = &event.text[..usize::from(event.text_len).min(TRACE_TEXT)];
    let end = text.iter().position(|byte| *byte == b'\r' || *byte == b'\n');
    let line = &text[..end.unwrap_or(text.len())];
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let method = words.next().filter(|word| !word.is_empty()).map(shown);
    let Some(target) = words.next() else { return (method, None) };
    let query = target.iter().position(|byte| *byte == b'?');
    let path = &target[..query.unwrap_or(target.len())];
    // Nothing behind it: the text was cut, or the line is no request.
    let cut = path.len() > PATH || query.is_none() && words.next().is_none() && end.is_none() && text.len() == TRACE_TEXT;
    let mut path = shown(&path[..path.len().min(PATH)]);
    if cut {
        path.push_str("...");
    }
    (method, Some(path))
}
