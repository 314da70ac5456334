//! Rollouts on this node: feeds the step function with what the looks (`round`) see, keeps its state, and acts.
//!
//! Runs within the actor, so that a rollback is one map write with nothing to wait for. What talks to others is sent off (`errands`). Decides
//! nothing about a canary: [`crate::rollout`] does.

mod errands;
mod files;
mod round;
mod sample;
mod words;

use super::{ControlError, actor::Actor, store::StoreError, weights};
use crate::{
    model::{BackendState, Service},
    observed::{RolloutEvent, WeightRequest},
    outside::Subject,
    rollout::{self, Action, Observation, Phase, State},
};
use errands::Errands;
use files::Files;
use round::Rounds;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
    time::Instant,
};

/// Time after which weights that could not be set are tried again, seconds.
const RETRY: f64 = 1.0;
/// Evidence of a running rollout is kept at least this often.
const KEEP: f64 = 60.0;

/// One service's rollout on this node.
pub(super) struct Entry {
    pub(super) state: State,
    /// The actor's layout when weights and backends were last compared; `None`: compare at the next look.
    compared: Option<u64>,
    /// When weights that could not be set are tried again, Unix seconds.
    retry: Option<f64>,
    backends: u64,
    /// When each external gate is asked next, and how long its last question may be on its way.
    due: HashMap<String, (Instant, Option<Instant>)>,
    /// When it was last written to disk, Unix seconds, and whether traffic was seen since.
    kept: f64,
    news: bool,
}

/// What every service has, since it is in the policy; [`Entry`]s exist only once somebody said a word.
pub(super) struct Rollouts {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) files: Files,
    errands: Errands,
    rounds: Rounds,
    /// Transitions since the agent's start, by service and event.
    pub(super) told: BTreeMap<(String, String), u64>,
}

impl Rollouts {
    /// Takes up what an earlier agent left.
    pub(super) fn open(state: &Path, runtime: tokio::runtime::Handle) -> Result<Self, StoreError> {
        let files = Files::open(state)?;
        let entries = files.load().into_iter().map(|state| (state.service.clone(), Entry::new(state))).collect();
        Ok(Self { entries, files, errands: Errands::new(runtime), rounds: Rounds::new(), told: BTreeMap::new() })
    }

    /// Seconds that a look costs, and seconds between two.
    pub(super) fn pace(&self) -> (f64, f64) {
        self.rounds.pace()
    }

    /// When the next look is due; `None` while nothing needs one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.rounds.due()
    }
}

impl Entry {
    fn new(state: State) -> Self {
        Self { state, compared: None, retry: None, backends: 0, due: HashMap::new(), kept: 0.0, news: false }
    }

    /// Something may happen by itself.
    fn needs_looks(&self) -> bool {
        let state = &self.state;
        let retries = state.phase == Phase::RolledBack && state.attempt < state.policy.retries;
        state.phase.is_live() || state.phase == Phase::Waiting || !state.settled || retries
    }

    /// An external gate's answer is there: it may be asked again.
    fn answered(&mut self, gate: &str) {
        if let Some((_, asked)) = self.due.get_mut(gate) {
            *asked = None;
        }
    }

    /// Whether the node runs the weights that the state asks for is not known.
    fn is_unsure(&self, layout: u64) -> bool {
        !self.state.settled || self.retry.is_some() || self.compared != Some(layout)
    }
}

impl Actor {
    /// One step of one rollout: keeps the state, then acts.
    pub(super) fn step(&mut self, name: &str, entry: &mut Entry, mut observation: Observation, now: f64) {
        let layout = self.layout;
        let due = entry.retry.is_none_or(|at| now >= at || at - now > RETRY);
        if due && (entry.compared != Some(layout) || entry.retry.is_some()) || observation.word.is_some() {
            (entry.compared, entry.retry) = (Some(layout), None);
            observation.weights = self.planned(name).ok().map(|planned| weights::of(&planned.model));
            entry.backends = self.planned(name).map_or(0, |planned| fingerprint(&planned.model, &entry.state));
        }
        observation.backends = entry.backends;
        let (before, weights) = (entry.state.phase, observation.weights.clone());
        let actions = rollout::step_in_place(&mut entry.state, &observation, now);
        if actions.is_empty() && before == entry.state.phase {
            if entry.news && now - entry.kept > KEEP && entry.state.phase.is_live() {
                self.keep(entry, now);
            }
            return;
        }
        self.keep(entry, now);
        for action in actions {
            match action {
                Action::SetWeights(wanted) => {
                    if let Err(error) = self.change_weights(name, &WeightRequest { weights: wanted, dry_run: false }) {
                        tracing::error!(%error, service = name, "a rollout's weights are not set; they are tried again in a second");
                        entry.retry = Some(now + RETRY);
                    }
                    // Compared again in any case: only the node's own word counts.
                    entry.compared = None;
                }
                Action::Tell(mut event) => {
                    if let (Some(weights), "started") = (&weights, event.event.as_str()) {
                        event.weights_from.clone_from(weights);
                    }
                    self.tell(entry, *event);
                }
            }
        }
    }

    fn keep(&self, entry: &mut Entry, now: f64) {
        (entry.kept, entry.news) = (now, false);
        if let Err(error) = self.rollouts.files.save(&entry.state) {
            tracing::error!(%error, "a restart would take this rollout up at an earlier state");
        }
    }

    fn tell(&mut self, entry: &Entry, event: RolloutEvent) {
        let RolloutEvent { service, event: what, by, from, to, reason, .. } = &event;
        tracing::info!(service, event = what, by, from, to, reason, "rollout");
        *self.rollouts.told.entry((service.clone(), what.clone())).or_default() += 1;
        self.audit(&event);
        let subject = self.subject(&entry.state);
        self.rollouts.errands.tell(&entry.state.policy.hooks, subject, event);
    }

    pub(super) fn audit(&self, event: &RolloutEvent) {
        if let Err(error) = self.rollouts.files.audit(event) {
            tracing::error!(%error, "a transition is missing in the audit log");
        }
    }

    fn subject(&self, state: &State) -> Subject {
        let ready = |service: &Service| {
            let canary = service.versions.iter().find(|version| version.name == state.canary);
            let backends = canary.map(|version| version.backends.as_slice()).unwrap_or_default();
            backends.iter().filter(|backend| backend.state == BackendState::Ready).map(|backend| backend.address).collect()
        };
        let backends = self.planned(&state.service).map(|planned| ready(&planned.model)).unwrap_or_default();
        Subject { service: state.service.clone(), canary: state.canary.clone(), backends }
    }
}

/// Changes with the ready backends of canary and baseline.
fn fingerprint(service: &Service, state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    for version in service.versions.iter().filter(|version| version.name == state.canary || version.name == state.baseline) {
        version
            .backends
            .iter()
            .filter(|backend| backend.state == BackendState::Ready)
            .for_each(|backend| backend.address.hash(&mut hasher));
        hasher.write_u8(0);
    }
    hasher.finish()
}

/// The service as the policy has it now.
fn find<'a>(services: &'a [Arc<Service>], name: &str) -> Result<&'a Service, ControlError> {
    weights::find(services, name).map(AsRef::as_ref).ok_or_else(|| {
        let known = weights::list(services.iter().map(|service| service.name.as_str()));
        ControlError::NotFound(format!("there is no service {name:?}; the policy has: {known}"))
    })
}
