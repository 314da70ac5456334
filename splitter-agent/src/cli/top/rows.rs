//! What `top` shows of each version: counters of two looks made into rates, and the order of the services. Pure; time is given.

use clap::ValueEnum;
use splitter_api::{RolloutStatus, Service, Status, Version};
use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
};

/// What services can be sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// By name
    #[default]
    Service,
    /// Largest difference between asked and achieved share first
    Achieved,
    /// Most requests (of http, else connections) a second first
    Rate,
    /// Lowest share of successes first
    Success,
    /// Most failures a second first
    Failed,
    /// Most live flows first
    Flows,
    /// Slowest median of the first byte first
    P50,
    /// Slowest 99th percentile of the first byte first
    P99,
    /// Slowest 99th percentile of the connect time first
    Connect,
    /// Most bytes a second from clients first
    In,
    /// Most bytes a second to clients first
    Out,
    /// Most backends that take no new connections first
    Ready,
    /// Rollouts that run first
    Rollout,
}

/// Seconds of the window in which successes are counted, at least; at most twice as many.
const WINDOW: f64 = 10.0;
/// Rates kept for a sparkline.
pub const HISTORY: usize = 60;

/// Counters of a version, as far as rates are made of them.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// Requests of http, else connections.
    trials: u64,
    failed: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Totals {
    fn of(version: &Version) -> Self {
        let broken = version.refused + version.timeouts + version.resets_backend;
        let (trials, failed) = if version.codes.is_empty() {
            (version.connections, broken)
        } else {
            (version.requests, broken + version.codes.get("5xx").copied().unwrap_or(0))
        };
        Self { trials, failed, bytes_in: version.bytes_in, bytes_out: version.bytes_out }
    }
}

/// Counters of all versions at one moment, seconds of a clock that does not go back.
#[derive(Clone, Debug)]
struct Look {
    at: f64,
    totals: HashMap<(String, String), Totals>,
}

impl Look {
    fn of(status: &Status, at: f64) -> Self {
        let versions = status.services.iter().flat_map(|service| service.versions.iter().map(move |version| (service, version)));
        let totals = versions.map(|(service, version)| ((service.name.clone(), version.name.clone()), Totals::of(version)));
        Self { at, totals: totals.collect() }
    }

    /// Growth a second since another look, of one counter; `None` when either look does not know it, or the counter began anew.
    fn rate(&self, before: &Look, key: &(String, String), of: fn(&Totals) -> u64) -> Option<f64> {
        let grown = of(self.totals.get(key)?).checked_sub(of(before.totals.get(key)?))?;
        let elapsed = self.at - before.at;
        (elapsed > 0.0).then(|| grown as f64 / elapsed)
    }
}

/// The looks that rates are made of: the last one, the one before, and two older ones that begin the window of successes.
#[derive(Debug, Default)]
pub struct Looks {
    last: Option<Look>,
    before: Option<Look>,
    anchors: VecDeque<Look>,
}

impl Looks {
    /// Notes a status, and makes rows of it.
    pub fn note(&mut self, status: &Status, at: f64) -> Vec<ServiceRow> {
        let look = Look::of(status, at);
        if self.anchors.back().is_none_or(|newest| at - newest.at >= WINDOW) {
            self.anchors.push_back(look.clone());
            if self.anchors.len() > 2 {
                self.anchors.pop_front();
            }
        }
        self.before = self.last.replace(look);
        let rollouts: HashMap<&str, &RolloutStatus> = status.rollouts.iter().map(|rollout| (rollout.service.as_str(), rollout)).collect();
        status.services.iter().map(|service| self.service(service, rollouts.get(service.name.as_str()).copied())).collect()
    }

    fn service(&self, service: &Service, rollout: Option<&RolloutStatus>) -> ServiceRow {
        let versions = service.versions.iter().map(|version| self.version(service, version)).collect();
        let rollout = rollout.filter(|rollout| rollout.phase != "idle").map(|rollout| (rollout.phase.clone(), rollout.share));
        ServiceRow { name: service.name.clone(), versions, rollout }
    }

    fn version(&self, service: &Service, version: &Version) -> Row {
        let key = (service.name.clone(), version.name.clone());
        let rate = |of| self.last.as_ref()?.rate(self.before.as_ref()?, &key, of);
        let window = |of| self.last.as_ref()?.rate(self.anchors.front()?, &key, of);
        let trials: Option<f64> = window(|totals: &Totals| totals.trials);
        let failed = window(|totals: &Totals| totals.failed);
        let success = trials.zip(failed).filter(|(trials, failed)| trials + failed > 0.0);
        let able = |state: &str, suspect: bool| state == "ready" && !suspect;
        Row {
            name: version.name.clone(),
            weight: version.weight,
            asked: version.weight_ratio,
            achieved: version.observed_ratio,
            deviates: super::super::status::deviation(version) == super::super::out::Style::Yellow,
            rate: rate(|totals| totals.trials),
            // What was tried before the window may fail in it.
            success: success.map(|(trials, failed)| 1.0 - (failed / trials.max(failed)).min(1.0)),
            failed: rate(|totals| totals.failed),
            bytes_in: rate(|totals| totals.bytes_in),
            bytes_out: rate(|totals| totals.bytes_out),
            flows: version.flows,
            p50: version.first_byte.p50,
            p99: version.first_byte.p99,
            connect: version.connect.p99,
            ready: version.backends.iter().filter(|backend| able(&backend.state, backend.suspect)).count(),
            backends: version.backends.len(),
        }
    }
}

/// One version.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub name: String,
    pub weight: u32,
    pub asked: f64,
    pub achieved: Option<f64>,
    /// Beyond chance.
    pub deviates: bool,
    pub rate: Option<f64>,
    /// Of the last 10 to 20 seconds; `None` when nothing was tried.
    pub success: Option<f64>,
    pub failed: Option<f64>,
    pub bytes_in: Option<f64>,
    pub bytes_out: Option<f64>,
    pub flows: u64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub connect: Option<f64>,
    /// Backends that take new connections, and all.
    pub ready: usize,
    pub backends: usize,
}

/// One service; phase and share of its rollout, if one was ever started.
#[derive(Clone, Debug, Default)]
pub struct ServiceRow {
    pub name: String,
    pub versions: Vec<Row>,
    pub rollout: Option<(String, f64)>,
}

impl ServiceRow {
    /// Lines that it takes in the list.
    pub fn height(&self) -> usize {
        self.versions.len().max(1)
    }

    /// What it is sorted by, the largest first.
    fn rank(&self, column: Column) -> f64 {
        let sum = |of: fn(&Row) -> Option<f64>| self.versions.iter().filter_map(of).sum::<f64>();
        let most = |of: fn(&Row) -> Option<f64>| self.versions.iter().filter_map(of).fold(-1.0, f64::max);
        match column {
            Column::Service => 0.0,
            Column::Achieved => most(|row| Some((row.achieved? - row.asked).abs())),
            Column::Rate => sum(|row| row.rate),
            Column::Success => most(|row| Some(1.0 - row.success?)),
            Column::Failed => sum(|row| row.failed),
            Column::Flows => sum(|row| Some(row.flows as f64)),
            Column::P50 => most(|row| row.p50),
            Column::P99 => most(|row| row.p99),
            Column::Connect => most(|row| row.connect),
            Column::In => sum(|row| row.bytes_in),
            Column::Out => sum(|row| row.bytes_out),
            Column::Ready => sum(|row| Some((row.backends - row.ready) as f64)),
            Column::Rollout => self.rollout.as_ref().map_or(0.0, |(phase, _)| if super::ended(phase) { 1.0 } else { 2.0 }),
        }
    }
}

/// Sorts; what ranks equal stands by name.
pub fn sort(services: &mut [ServiceRow], column: Column, reversed: bool) {
    services.sort_by(|a, b| {
        let by_rank = b.rank(column).total_cmp(&a.rank(column));
        let by_name = a.name.cmp(&b.name);
        let turn = |order: Ordering| if reversed { order.reverse() } else { order };
        if column == Column::Service { turn(by_name) } else { turn(by_rank).then(by_name) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(connections: u64, refused: u64) -> Status {
        let version = Version { name: "v1".into(), connections, refused, bytes_in: connections * 1024, ..Version::default() };
        let service = Service { name: "checkout".into(), versions: vec![version], ..Service::default() };
        Status { services: vec![service], ..Status::default() }
    }

    #[test]
    fn rates_need_two_looks() {
        let mut looks = Looks::default();
        let first = looks.note(&status(100, 0), 10.0).remove(0).versions.remove(0);
        assert_eq!((first.rate, first.success, first.bytes_in), (None, None, None));
        let second = looks.note(&status(300, 50), 12.0).remove(0).versions.remove(0);
        assert_eq!((second.rate, second.failed, second.bytes_in), (Some(100.0), Some(25.0), Some(102_400.0)));
        assert_eq!(second.success, Some(0.75));
        let restarted = looks.note(&status(5, 0), 13.0).remove(0).versions.remove(0);
        assert_eq!((restarted.rate, restarted.success), (None, None), "the counters began anew");
    }

    #[test]
    fn successes_are_those_of_the_last_seconds() {
        let mut looks = Looks::default();
        let success = |looks: &mut Looks, connections, refused, at| looks.note(&status(connections, refused), at)[0].versions[0].success;
        success(&mut looks, 0, 0, 0.0);
        assert_eq!(success(&mut looks, 100, 100, 5.0), Some(0.0));
        success(&mut looks, 200, 100, 10.0);
        assert_eq!(success(&mut looks, 300, 100, 19.0).map(|share| (share * 100.0).round()), Some(67.0));
        success(&mut looks, 400, 100, 20.0);
        assert_eq!(success(&mut looks, 500, 100, 21.0), Some(1.0), "what failed is more than ten seconds ago");
        assert_eq!(success(&mut looks, 500, 130, 22.0).map(|share| (share * 100.0).round()), Some(90.0));
    }

    #[test]
    fn services_are_sorted_by_what_matters_most_in_them() {
        let row = |rate, success, flows| Row { rate: Some(rate), success, flows, backends: 2, ready: 1, ..Row::default() };
        let service = |name: &str, rows: Vec<Row>| ServiceRow { name: name.into(), versions: rows, rollout: None };
        let mut all = vec![
            service("a", vec![row(5.0, Some(1.0), 1), row(5.0, Some(0.5), 2)]),
            service("b", vec![row(1.0, None, 9)]),
            ServiceRow { rollout: Some(("running".into(), 0.1)), ..service("c", vec![row(20.0, Some(0.9), 0)]) },
        ];
        let mut order = |column, reversed| {
            sort(&mut all, column, reversed);
            all.iter().map(|service| service.name.as_str()).collect::<String>()
        };
        for (column, expected) in [
            (Column::Service, "abc"),
            (Column::Rate, "cab"),
            (Column::Success, "acb"),
            (Column::Flows, "bac"),
            (Column::Ready, "abc"),
            (Column::Rollout, "cab"),
            (Column::P99, "abc"),
        ] {
            assert_eq!(order(column, false), expected, "{column:?}");
        }
        assert_eq!((order(Column::Service, true), order(Column::Rate, true)), ("cba".into(), "bac".into()));
    }
}
