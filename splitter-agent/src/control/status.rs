//! The observed state, put together from what was applied and what the kernel counts.

use super::{
    counters,
    decision::protocol_label,
    live::endpoint,
    rates::Rates,
    store::Runtime,
    sweep::{Clock, Findings},
};
use splitter_api::{StatusQuery, StatusSort};
use splitter_common::{
    abi::{Backend, Kind, Lapsed, Measure, Outcomes, Reason, VersionCounters, backend_state, is_suspected, service_flag, trial},
    decide::SPACE,
};
use splitter_datapath::{
    Served, Table, TableError, Tables,
    plan::mode_name,
    reconcile::{Applied, Planned},
};
use splitter_policy::model::{Mode, OnWeightChange, Pinned, SplitBy, Unserved, Way};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// Asked share of each version, as the record's intervals say.
pub fn ratios(planned: &Planned) -> Vec<f64> {
    let mut begin = 0;
    let count = planned.model.versions.len();
    let width = |slot: &splitter_common::abi::VersionSlot| {
        let width = slot.end.saturating_sub(begin);
        begin = begin.max(slot.end);
        width as f64 / SPACE as f64
    };
    planned.image.record.versions[..count.min(splitter_common::abi::MAX_VERSIONS)].iter().map(width).collect()
}

/// As [`ratios`], by name.
pub fn shares(planned: &Planned) -> BTreeMap<String, f64> {
    planned.model.versions.iter().map(|version| version.name.clone()).zip(ratios(planned)).collect()
}

pub fn interfaces<'a>(served: impl Iterator<Item = &'a Served>) -> Vec<splitter_api::Interface> {
    let one = |served: &Served| splitter_api::Interface {
        name: served.name.clone(),
        ifindex: served.ifindex,
        programs: served.hooks.iter().map(|hook| hook.name().into()).collect(),
        missing: served.missing.iter().map(|hook| hook.name().into()).collect(),
        peer_redirect: served.peer,
    };
    served.map(one).collect()
}

pub fn reasons(tables: &impl Tables) -> Result<Vec<splitter_api::ReasonCount>, TableError> {
    let kind = |kind| match kind {
        Kind::Drop => "drop",
        Kind::Pass => "pass",
        Kind::Answer => "answer",
        Kind::Event => "event",
    };
    let seen = counters::reasons(tables)?.into_iter().filter(|(_, count)| *count > 0);
    Ok(seen
        .map(|(reason, count)| splitter_api::ReasonCount { reason: reason.name().into(), kind: kind(reason.kind()).into(), count })
        .collect())
}

/// Tables that users can fill, with their entries as the last sweep counted them.
pub fn tables(tables: &impl Tables, findings: &Findings) -> Vec<splitter_api::Table> {
    let one = |table: Table| splitter_api::Table {
        name: table.name().to_lowercase(),
        entries: findings.entries.get(&table).copied().unwrap_or(0),
        max_entries: u64::from(tables.limit(table)),
        memory: tables.memory(table),
    };
    Table::of_flows().chain([Table::Stashes]).map(one).collect()
}

/// Every service, sorted by name.
#[cfg(test)]
pub fn services(
    tables: &impl Tables,
    applied: &Applied,
    runtime: &Runtime,
    findings: &Findings,
    clock: Clock,
    rates: &Rates,
) -> Result<Vec<splitter_api::Service>, TableError> {
    some(tables, applied, applied.services().collect(), &StatusQuery::default(), (runtime, findings, clock, rates))
}

/// The services that were chosen, in the order and number of the query. Only their counters are read.
pub fn some(
    tables: &impl Tables,
    applied: &Applied,
    mut planned: Vec<&Planned>,
    query: &StatusQuery,
    (runtime, findings, clock, rates): (&Runtime, &Findings, Clock, &Rates),
) -> Result<Vec<splitter_api::Service>, TableError> {
    planned.sort_unstable_by(|a, b| a.model.name.cmp(&b.model.name));
    let limit = query.limit.unwrap_or(usize::MAX);
    if query.sort == StatusSort::Name {
        planned.truncate(limit);
    }
    let numbers: Vec<u32> = planned.iter().flat_map(|planned| versions(planned)).collect();
    let facts = Facts {
        counters: counters::of_versions(tables, &numbers)?,
        histograms: counters::histograms_of(tables, &numbers)?,
        flows: by_version(applied, &findings.flows),
        pinned: by_version(applied, &findings.pinned),
        suspects: suspects(tables, clock)?,
        ticks: clock.ticks,
        lapsed: lapsed(tables)?,
        losses: losses(tables)?,
        findings,
        rates,
    };
    let mut services: Vec<_> = planned.into_iter().map(|planned| service(planned, runtime, &facts)).collect();
    // Of equal ones the first by name stays the first.
    services.sort_by(|a, b| rank(query.sort, b).total_cmp(&rank(query.sort, a)));
    services.truncate(limit);
    Ok(services)
}

/// What a service is sorted by, the largest first.
fn rank(sort: StatusSort, service: &splitter_api::Service) -> f64 {
    let sum = |of: fn(&splitter_api::Version) -> u64| service.versions.iter().map(of).sum::<u64>() as f64;
    match sort {
        StatusSort::Name => 0.0,
        StatusSort::Flows => sum(|version| version.flows),
        StatusSort::Connections => sum(|version| version.connections),
        StatusSort::Requests => sum(|version| version.requests),
        StatusSort::Failed => {
            sum(|version| version.refused + version.timeouts + version.resets_backend + version.codes.get("5xx").copied().unwrap_or(0))
        }
        StatusSort::Latency => service.versions.iter().filter_map(|version| version.first_byte.p99).fold(0.0, f64::max),
    }
}

struct Facts<'a> {
    counters: HashMap<u32, VersionCounters>,
    histograms: HashMap<(u32, u32), counters::Histogram>,
    flows: HashMap<u32, u64>,
    pinned: HashMap<u32, u64>,
    suspects: HashMap<u32, bool>,
    ticks: u32,
    lapsed: HashMap<u32, Lapsed>,
    losses: HashMap<u32, BTreeMap<String, u64>>,
    findings: &'a Findings,
    rates: &'a Rates,
}

/// Numbers of a service's versions.
pub fn versions(planned: &Planned) -> impl Iterator<Item = u32> + '_ {
    planned.image.record.versions.iter().take(planned.model.versions.len()).map(|slot| slot.version)
}

/// What was counted by backend, by version.
fn by_version(applied: &Applied, counted: &HashMap<u32, u64>) -> HashMap<u32, u64> {
    let mut flows = HashMap::new();
    for (backend, count) in counted {
        *flows.entry(applied.owner(*backend).1).or_default() += count;
    }
    flows
}

/// Connections of a service that the last sweep found pinned.
pub fn pinned(planned: &Planned, findings: &Findings) -> u64 {
    planned.image.backends.iter().filter_map(|(id, _)| findings.pinned.get(id)).sum()
}

fn lapsed(tables: &impl Tables) -> Result<HashMap<u32, Lapsed>, TableError> {
    let mut lapsed = HashMap::new();
    splitter_datapath::LAPSED.each(tables, |version, count| {
        lapsed.insert(version, count);
    })?;
    Ok(lapsed)
}

/// What clients suffered for want of a slot for a head, by service and reason.
fn losses(tables: &impl Tables) -> Result<HashMap<u32, BTreeMap<String, u64>>, TableError> {
    let mut losses: HashMap<u32, BTreeMap<String, u64>> = HashMap::new();
    splitter_datapath::HEAD_LOSSES.each(tables, |key, count| {
        if let Some(reason) = Reason::ALL.get(key.reason as usize) {
            losses.entry(key.service).or_default().insert(reason.name().into(), count);
        }
    })?;
    Ok(losses)
}

fn suspects(tables: &impl Tables, clock: Clock) -> Result<HashMap<u32, bool>, TableError> {
    let mut suspects = HashMap::new();
    splitter_datapath::SUSPECTS.each(tables, |backend, until| {
        suspects.insert(backend, is_suspected(until, clock.ticks));
    })?;
    Ok(suspects)
}

fn service(planned: &Planned, runtime: &Runtime, facts: &Facts<'_>) -> splitter_api::Service {
    let model = &planned.model;
    let baseline = runtime.baselines.get(&model.name);
    let since: Vec<u64> = model
        .versions
        .iter()
        .zip(versions(planned))
        .map(|(version, number)| {
            let before = baseline.and_then(|baseline| baseline.get(&version.name)).copied().unwrap_or(0);
            facts.counters.get(&number).map_or(0, |c| decisions(model.mode, c)).saturating_sub(before)
        })
        .collect();
    let total: u64 = since.iter().sum();
    let ratios = ratios(planned);
    let one = |i: usize| {
        let observed_ratio = (total > 0).then(|| since[i] as f64 / total as f64);
        version(planned, i, ratios.get(i).copied().unwrap_or(0.0), observed_ratio, facts)
    };
    splitter_api::Service {
        name: model.name.clone(),
        mode: mode_name(model.mode).into(),
        path: if planned.image.record.flags & service_flag::STACK != 0 { Way::Stack } else { Way::Redirect }.name().into(),
        split_by: split_by(&model.split_by),
        on_weight_change: on_weight_change(model.on_weight_change),
        pinned_on_weight_change: match model.pinned {
            Pinned::Keep => "keep",
            Pinned::Reset => "reset",
        }
        .into(),
        frontends: model.frontends.iter().map(|f| format!("{}/{}", f.address, protocol_label(f.protocol))).collect(),
        unserved: match model.vip.unserved {
            Unserved::Refuse => "refuse",
            Unserved::Pass => "pass",
        }
        .into(),
        ping: model.vip.ping,
        weights_from: match runtime.overrides.get(&model.name) {
            Some(kept) if kept.kept => "kernel",
            Some(_) => "cli",
            None => "policy",
        }
        .into(),
        heads: facts.findings.heads(planned.image.id),
        heads_lost: facts.losses.get(&planned.image.id).cloned().unwrap_or_default(),
        policy_weights: runtime.overrides.get(&model.name).map(|kept| kept.base.clone()),
        versions: (0..model.versions.len()).map(one).collect(),
    }
}

/// What a service has decided: requests where it reads them, else connections.
pub fn decisions(mode: Mode, counters: &VersionCounters) -> u64 {
    if mode.reads_requests() { counters.requests } else { counters.connections }
}

fn split_by(key: &SplitBy) -> String {
    match key {
        SplitBy::Connection => "connection".into(),
        SplitBy::ClientIp => "client-ip".into(),
        SplitBy::Request => "request".into(),
        SplitBy::Header(name) => format!("header: {name}"),
        SplitBy::Cookie(name) => format!("cookie: {name}"),
    }
}

fn on_weight_change(policy: OnWeightChange) -> String {
    match policy {
        OnWeightChange::Keep => "keep".into(),
        OnWeightChange::Reset => "reset".into(),
        OnWeightChange::Drain(time) => format!("drain: {}", seconds(time)),
    }
}

fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}

fn version(planned: &Planned, index: usize, weight_ratio: f64, observed_ratio: Option<f64>, facts: &Facts<'_>) -> splitter_api::Version {
    let model = &planned.model.versions[index];
    let number = planned.image.record.versions.get(index).map_or(0, |slot| slot.version);
    let c = facts.counters.get(&number).copied().unwrap_or_default();
    let (timing, unanswered) = timing(planned, number);
    let (late, pending) = trial::unended(&c.pending, facts.ticks, timing, unanswered);
    let latency = |measure: Measure| facts.histograms.get(&(number, measure as u32)).map(counters::Histogram::latency).unwrap_or_default();
    let backend = |(id, row): &(u32, splitter_common::abi::Backend)| splitter_api::Backend {
        address: endpoint(&row.addr, row.port),
        id: *id,
        state: state_name(row.state).into(),
        suspect: facts.suspects.get(id).copied().unwrap_or(false),
    };
    splitter_api::Version {
        name: model.name.clone(),
        id: number,
        weight: model.weight,
        weight_ratio,
        observed_ratio,
        connections: c.connections,
        flows: facts.flows.get(&number).copied().unwrap_or(0),
        pinned: facts.pinned.get(&number).copied().unwrap_or(0),
        bytes_in: c.bytes_in,
        bytes_out: c.bytes_out,
        packets_in: c.packets_in,
        packets_out: c.packets_out,
        resets_client: c.resets_client,
        resets_backend: c.resets_backend,
        refused: c.refused,
        timeouts: c.timeouts,
        requests: c.requests,
        request_rate: facts.rates.of(number),
        codes: if planned.model.mode.reads_requests() { codes(&c) } else { BTreeMap::new() },
        switches: c.switches,
        opened: c.opened,
        closed: c.closed,
        trials: trials(&c, facts.lapsed.get(&number).copied().unwrap_or_default(), late),
        pending: pending.max(0) as u64,
        connect: latency(Measure::Connect),
        first_byte: latency(Measure::FirstByte),
        backends: planned.image.backends.iter().filter(|(_, row)| row.version == number).map(backend).collect(),
    }
}

/// How pending trials of a version are entered: the same for all of its backends.
fn timing(planned: &Planned, version: u32) -> (u8, u32) {
    let row = planned.image.backends.iter().map(|(_, row): &(u32, Backend)| row).find(|row| row.version == version);
    row.map_or((0, 0), |row| (row.timing, row.unanswered))
}

/// `late`: trials that wait for too long and have not ended. A rollout judges by drawn ones but for those that steer by a rule.
fn trials(counters: &VersionCounters, lapsed: Lapsed, late: i64) -> splitter_api::Trials {
    let drawn = Outcomes { overdue: counters.drawn.overdue.wrapping_add(late as u64), ..counters.drawn };
    splitter_api::Trials { drawn: outcomes(&drawn, lapsed.drawn), ruled: outcomes(&counters.ruled, lapsed.ruled) }
}

fn outcomes(of: &Outcomes, lapsed: u64) -> splitter_api::Outcomes {
    splitter_api::Outcomes {
        begun: of.trials,
        answered: of.answered,
        refused: of.refused,
        unopened: of.unopened + lapsed,
        abandoned: of.abandoned,
        closed: of.closed,
        cut: of.cut,
        unavailable: of.unavailable,
        overdue: of.overdue,
    }
}

/// Names of the status classes, by index of the counters.
const CODES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

fn codes(counters: &VersionCounters) -> BTreeMap<String, u64> {
    CODES.iter().zip(counters.status).map(|(name, count)| ((*name).into(), count)).collect()
}

fn state_name(state: u8) -> &'static str {
    match state {
        backend_state::READY => "ready",
        backend_state::DRAINING => "draining",
        _ => "down",
    }
}
