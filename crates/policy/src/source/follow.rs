//! What an object source and an endpoint source say together.
//!
//! Owns how long new names are waited for, and that the addresses of the last good objects go on changing while newer objects are refused.

use super::{
    Diagnostic, EndpointSource, Outcome, PolicySource,
    resolve::{self, Query},
};
use crate::model::Policy;
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep_until},
};

/// Names that were not asked before are waited for this long: a version whose addresses are not known yet would refuse its share.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the node should run now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// With the addresses as they are now. `None`: as before, or nothing that could be accepted was read yet.
    pub policy: Option<Policy>,
    /// Why the newest objects are refused; `policy` is then of older ones.
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    /// What people should know of addresses: failures of lookups.
    pub findings: Vec<String>,
    /// Names whose last lookup failed.
    pub failing: usize,
    /// The objects were read anew; else only addresses have changed.
    pub read: bool,
}

/// Delivers the first update, and then every one that differs, until the receiver or the object source is gone.
pub async fn follow(mut objects: impl PolicySource, mut endpoints: impl EndpointSource, updates: Sender<Update>) {
    let mut state = State::default();
    loop {
        let waiting = state.waits_until(&endpoints);
        let update = tokio::select! {
            outcome = objects.next() => match outcome {
                Some(outcome) => state.read(outcome, &mut endpoints),
                None => return,
            },
            () = endpoints.changed() => state.found(&endpoints),
            () = sleep_until(waiting.unwrap_or_else(Instant::now)), if waiting.is_some() => {
                state.patience = None;
                state.found(&endpoints)
            }
            () = updates.closed() => return,
        };
        if let Some(update) = update
            && updates.send(update).await.is_err()
        {
            return;
        }
    }
}

#[derive(Default)]
struct State {
    /// The last good objects, before their names are looked up.
    objects: Option<Policy>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// New names are waited for until then; what was read meanwhile is held back.
    patience: Option<Instant>,
    /// What was read has not been delivered.
    fresh: bool,
    delivered: Option<(Policy, Vec<String>)>,
}

impl State {
    fn read(&mut self, outcome: Outcome, endpoints: &mut impl EndpointSource) -> Option<Update> {
        self.warnings = outcome.warnings;
        self.fresh = true;
        match outcome.result {
            Ok(policy) => {
                self.errors = Vec::new();
                let queries: BTreeSet<Query> = resolve::queries(&policy);
                endpoints.want(&queries);
                self.objects = Some(policy);
                self.patience = Some(Instant::now() + PATIENCE);
            }
            Err(errors) => self.errors = errors,
        }
        self.found(endpoints)
    }

    /// Until when new names are waited for; `None` when none is.
    fn waits_until(&self, endpoints: &impl EndpointSource) -> Option<Instant> {
        self.patience.filter(|_| endpoints.found().values().any(|known| known.pending && known.backends.is_empty()))
    }

    fn found(&mut self, endpoints: &impl EndpointSource) -> Option<Update> {
        if self.waits_until(endpoints).is_some() {
            return None;
        }
        self.patience = None;
        let mut update = Update { errors: self.errors.clone(), warnings: self.warnings.clone(), read: self.fresh, ..Update::default() };
        if let Some(objects) = &self.objects {
            let found = endpoints.found();
            update.failing = found.values().filter(|known| known.failure.is_some()).count();
            let (policy, findings) = resolve::resolve(objects, &found);
            let changed = self.delivered.as_ref().is_none_or(|(before, said)| *before != policy || *said != findings);
            if !changed && !self.fresh {
                return None;
            }
            update.findings = findings.clone();
            // Refused objects change nothing; a reload of the same ones has them applied again.
            if changed || self.errors.is_empty() {
                update.policy = Some(policy.clone());
                self.delivered = Some((policy, findings));
            }
        }
        self.fresh = false;
        Some(update)
    }
}
