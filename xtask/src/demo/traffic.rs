//! What the demonstration sends: new connections over IPv4 and IPv6, whose versions tell the shares, kept connections, which must live on, and
//! requests with tags.

use super::requests::{TAGS, Tag};
use anyhow::Result;
use splitter_lab::{
    lab::Namespace,
    load::{Load, Phase, Plan, Reuse},
};
use std::net::SocketAddr;

pub struct Traffic {
    loads: Vec<Load>,
    phase: usize,
}

/// Counts of the current phase.
pub struct View {
    /// A connection a request, IPv4 and IPv6.
    pub fresh: [Phase; 2],
    /// Long-lived connections: they keep their version, so that they tell nothing about shares.
    pub kept: Phase,
    /// Requests to the http service, by [`TAGS`].
    pub tagged: Vec<Phase>,
}

impl View {
    /// Counts in the order of the loads.
    fn of(mut counts: impl Iterator<Item = Phase>) -> View {
        let mut next = || counts.next().unwrap_or_default();
        View { fresh: [next(), next()], kept: next(), tagged: counts.collect() }
    }

    /// All new connections.
    pub fn fresh(&self) -> Phase {
        let mut all = self.fresh[0].clone();
        all.merge(&self.fresh[1]);
        all
    }

    fn parts(&self) -> impl Iterator<Item = &Phase> {
        self.fresh.iter().chain([&self.kept]).chain(&self.tagged)
    }

    pub fn requests(&self) -> u64 {
        self.parts().map(Phase::requests).sum()
    }

    pub fn failed(&self) -> u64 {
        self.parts().map(Phase::failed).sum()
    }

    /// The first failure in words.
    pub fn first_error(&self) -> Option<String> {
        self.parts().find_map(|phase| phase.first_error.clone())
    }
}

impl Traffic {
    pub fn start(client: &Namespace, v4: SocketAddr, v6: SocketAddr) -> Result<Traffic> {
        let fresh = |target, rate| Plan { concurrency: 64, rate: Some(rate), ..Plan::http(target) };
        let kept = Plan { concurrency: 16, rate: Some(200.0), reuse: Reuse::KeepAlive, ..Plan::http(v4) };
        let plans = [fresh(v4, 1200.0), fresh(v6, 400.0), kept].into_iter().chain(TAGS.iter().map(Tag::plan));
        let loads = plans.map(|plan| Load::start(Some(client), plan)).collect::<Result<_>>()?;
        Ok(Traffic { loads, phase: 0 })
    }

    /// What begins from now on counts in a new phase.
    pub fn next_phase(&mut self) {
        for load in &self.loads {
            self.phase = load.next_phase();
        }
    }

    pub fn running(&self) -> bool {
        self.loads.iter().all(Load::running)
    }

    pub fn view(&self) -> View {
        View::of(self.loads.iter().map(|load| load.snapshot(self.phase)))
    }

    /// Ends all loads and returns their totals.
    pub fn stop(&mut self) -> Result<View> {
        let mut totals = Vec::new();
        for load in self.loads.drain(..) {
            let mut total = Phase::default();
            load.stop()?.iter().for_each(|phase| total.merge(phase));
            totals.push(total);
        }
        Ok(View::of(totals.into_iter()))
    }
}
