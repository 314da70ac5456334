//! What the demonstration sends: new connections over IPv4 and IPv6, whose versions tell the shares, and kept connections, which must live on.

use anyhow::Result;
use splitter_bench::{
    lab::Namespace,
    load::{Load, Phase, Plan, Reuse},
};
use std::net::SocketAddr;

pub struct Traffic {
    loads: Option<[Load; 3]>,
    phase: usize,
}

/// Counts of the current phase.
pub struct View {
    /// A connection a request, IPv4 and IPv6.
    pub fresh: [Phase; 2],
    /// Long-lived connections: they keep their version, so that they tell nothing about shares.
    pub kept: Phase,
}

impl View {
    /// All new connections.
    pub fn fresh(&self) -> Phase {
        let mut all = self.fresh[0].clone();
        all.merge(&self.fresh[1]);
        all
    }

    pub fn failed(&self) -> u64 {
        self.fresh().failed() + self.kept.failed()
    }

    /// The first failure in words.
    pub fn first_error(&self) -> Option<String> {
        self.fresh().first_error.or_else(|| self.kept.first_error.clone())
    }
}

impl Traffic {
    pub fn start(client: &Namespace, v4: SocketAddr, v6: SocketAddr) -> Result<Traffic> {
        let fresh = |target, rate| Plan { concurrency: 64, rate: Some(rate), ..Plan::http(target) };
        let kept = Plan { concurrency: 16, rate: Some(200.0), reuse: Reuse::KeepAlive, ..Plan::http(v4) };
        let start = |plan| Load::start(Some(client), plan);
        Ok(Traffic { loads: Some([start(fresh(v4, 1200.0))?, start(fresh(v6, 400.0))?, start(kept)?]), phase: 0 })
    }

    /// What begins from now on counts in a new phase.
    pub fn next_phase(&mut self) {
        for load in self.loads.iter().flatten() {
            self.phase = load.next_phase();
        }
    }

    pub fn running(&self) -> bool {
        self.loads.iter().flatten().all(Load::running)
    }

    pub fn view(&self) -> View {
        let mut phases = self.loads.iter().flatten().map(|load| load.snapshot(self.phase));
        let mut next = || phases.next().unwrap_or_default();
        View { fresh: [next(), next()], kept: next() }
    }

    /// Ends all loads and returns their totals: new connections over IPv4 and IPv6, kept ones.
    pub fn stop(&mut self) -> Result<(Phase, Phase, Phase)> {
        let mut totals = Vec::new();
        for load in self.loads.take().into_iter().flatten() {
            let mut total = Phase::default();
            load.stop()?.iter().for_each(|phase| total.merge(phase));
            totals.push(total);
        }
        let mut totals = totals.into_iter();
        let mut next = || totals.next().unwrap_or_default();
        Ok((next(), next(), next()))
    }
}
