//! Rollouts on this node: feeds the step function with what the looks (`round`) see, keeps its state, and acts.
//!
//! Runs within the actor, so that a rollback is one map write with nothing to wait for. What talks to others is sent off (`errands`). Decides
//! nothing about a canary: [`splitter_rollout`] does.

mod errands;
mod files;
mod freeze;
mod restart;
mod round;
mod sample;
mod saving;
mod words;

use super::{
    ControlError,
    actor::{Actor, unix_now},
    store::StoreError,
    weights,
};
use crate::outside::Subject;
use errands::Errands;
use files::Files;
use freeze::Frozen;
use round::Rounds;
pub(super) use saving::Saving;
use splitter_api::{RolloutEvent, WeightRequest};
use splitter_policy::model::{BackendState, Service};
use splitter_rollout::{Action, Moment, Observation, Phase, State};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Time after which what could not be done is tried again: weights to be set, a state to be saved.
const RETRY: Duration = Duration::from_secs(1);
/// Evidence of a running rollout is kept at least this often.
const KEEP: Duration = Duration::from_secs(60);

/// One service's rollout on this node.
pub(super) struct Entry {
    pub(super) state: State,
    /// The actor's layout when weights and backends were last compared; `None`: compare at the next look.
    compared: Option<u64>,
    /// When weights that could not be set are tried again.
    retry: Option<Instant>,
    backends: u64,
    /// When each external gate is asked next, and how long its last question may be on its way.
    due: HashMap<String, (Instant, Option<Instant>)>,
    /// When it was last written to disk, or tried to, and whether traffic was seen since.
    kept: Instant,
    news: bool,
    /// The last try to write it failed.
    unsaved: bool,
    /// When its state last took a step: its clock stands there.
    stepped: Instant,
    frozen: Frozen,
}

/// What every service has, since it is in the policy; [`Entry`]s exist only once somebody said a word.
pub(super) struct Rollouts {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) files: Files,
    errands: Errands,
    rounds: Rounds,
    /// Transitions since the agent's start, by service and event.
    pub(super) told: BTreeMap<(String, String), u64>,
    pub(super) saving: Saving,
}

impl Rollouts {
    /// Takes up what an earlier agent left.
    pub(super) fn open(state: &Path, runtime: tokio::runtime::Handle) -> Result<Self, StoreError> {
        let files = Files::open(state)?;
        let entries = files.load().into_iter().map(|state| (state.service.clone(), Entry::new(state))).collect();
        Ok(Self { entries, files, errands: Errands::new(runtime), rounds: Rounds::new(), told: BTreeMap::new(), saving: Saving::default() })
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
        let now = Instant::now();
        let (due, frozen) = (HashMap::new(), Frozen::default());
        Self { state, compared: None, retry: None, backends: 0, due, kept: now, news: false, unsaved: false, stepped: now, frozen }
    }

    /// Now, as the state sees it: since its last step.
    fn moment(&mut self, now: Instant) -> Moment {
        let unix = unix_now();
        let frozen = self.frozen.until(&self.state.policy.freeze, unix);
        Moment { unix, passed: now.saturating_duration_since(self.stepped).as_secs_f64(), frozen }
    }

    /// Something may happen by itself.
    fn needs_looks(&self) -> bool {
        let state = &self.state;
        state.is_judged() || state.phase == Phase::Waiting || !state.settled || state.retries() || self.unsaved
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
    /// One step of one rollout: keeps the state, then acts. `false`: what was done is not on disk; it was done all the same.
    pub(super) fn step(&mut self, name: &str, entry: &mut Entry, mut observation: Observation, now: Instant) -> bool {
        let layout = self.layout;
        let due = entry.retry.is_none_or(|at| now >= at);
        if due && (entry.compared != Some(layout) || entry.retry.is_some()) || observation.word.is_some() {
            (entry.compared, entry.retry) = (Some(layout), None);
            observation.weights = self.planned(name).ok().map(|planned| weights::of(&planned.model));
            entry.backends = self.planned(name).map_or(0, |planned| fingerprint(&planned.model, &entry.state));
        }
        observation.backends = entry.backends;
        let (before, weights, spoken) = (entry.state.phase, observation.weights.clone(), observation.word.is_some());
        let moment = entry.moment(now);
        let actions = splitter_rollout::step_in_place(&mut entry.state, &observation, moment);
        entry.stepped = now;
        if actions.is_empty() && before == entry.state.phase && !spoken {
            let since = now.saturating_duration_since(entry.kept);
            if entry.unsaved && since >= RETRY || entry.news && since > KEEP && entry.state.is_judged() {
                self.keep(entry);
            }
            return !entry.unsaved;
        }
        let mut saved = self.keep(entry);
        for action in actions {
            match action {
                Action::SetWeights(wanted) => {
                    if let Err(error) = self.change_weights(name, &WeightRequest { weights: wanted, dry_run: false }) {
                        tracing::error!(%error, service = name, "a rollout's weights are not set; they are tried again in a second");
                        entry.retry = Some(now + RETRY);
                    }
                    saved &= self.rollouts.saving.fine("weights");
                    // Compared again in any case: only the node's own word counts.
                    entry.compared = None;
                }
                Action::Tell(mut event) => {
                    if let (Some(weights), "started") = (&weights, event.event.as_str()) {
                        event.weights_from.clone_from(weights);
                    }
                    saved &= self.tell(entry, *event);
                }
            }
        }
        saved
    }

    /// Whether it is on disk now.
    fn keep(&mut self, entry: &mut Entry) -> bool {
        (entry.kept, entry.news) = (Instant::now(), false);
        let result = self.rollouts.files.save(&entry.state);
        let lost = result.as_ref().is_err_and(StoreError::is_missing) && self.make_state_anew();
        let result = if lost { self.rollouts.files.save(&entry.state) } else { result };
        entry.unsaved = !self.rollouts.saving.note("rollouts", result);
        !entry.unsaved
    }

    fn tell(&mut self, entry: &Entry, event: RolloutEvent) -> bool {
        let RolloutEvent { service, event: what, by, from, to, reason, .. } = &event;
        tracing::info!(service, event = what, by, from, to, reason, "rollout");
        *self.rollouts.told.entry((service.clone(), what.clone())).or_default() += 1;
        let saved = self.audit(&event);
        let subject = self.subject(&entry.state);
        self.rollouts.errands.tell(&entry.state.policy.hooks, subject, event);
        saved
    }

    /// Whether it is on disk.
    pub(super) fn audit(&mut self, event: &RolloutEvent) -> bool {
        let result = self.rollouts.files.audit(event);
        self.rollouts.saving.note("the audit log", result)
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
