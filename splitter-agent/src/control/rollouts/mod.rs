//! Rollouts on this node: looks at the kernel about ten times a second, feeds the step function, keeps its state, and acts.
//!
//! Runs within the actor, so that a rollback is one map write with nothing to wait for. What talks to others is sent off (`errands`). Decides
//! nothing about a canary: [`crate::rollout`] does.

mod errands;
mod files;
mod sample;
mod words;

use super::{ControlError, actor::Actor, status, store::StoreError, weights};
use crate::{
    datapath::TableError,
    model::{BackendState, Measure, Service},
    observed::{RolloutEvent, WeightRequest},
    outside::Subject,
    rollout::{self, Action, LatencySamples, Observation, Phase, Reading, State, Traffic, stats::Counts},
};
use errands::{Answered, Errands};
use files::Files;
use sample::{FEW, Sampler};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Looks are made rarer when they cost more than this part of one CPU.
const BUDGET: f64 = 0.008;
/// Time between two looks at histograms, with few and with many versions.
const LATENCY: Duration = Duration::from_secs(1);
const LATENCY_MANY: Duration = Duration::from_secs(5);
/// Time after which weights that could not be set are tried again, seconds.
const RETRY: f64 = 1.0;
/// Evidence of a running rollout is kept at least this often.
const KEEP: f64 = 60.0;

/// One service's rollout on this node.
pub(super) struct Entry {
    pub(super) state: State,
    /// The actor's generation when weights and backends were last compared; `None`: compare at the next look.
    compared: Option<u64>,
    /// When weights that could not be set are tried again, Unix seconds.
    retry: Option<f64>,
    backends: u64,
    /// What is read of it, while the generation stays the same.
    watched: Option<(u64, Watched)>,
    /// When each external gate is asked next, Unix seconds.
    due: HashMap<String, f64>,
    /// When it was last written to disk, Unix seconds.
    kept: f64,
}

/// What every service has, since it is in the policy; [`Entry`]s exist only once somebody said a word.
pub(super) struct Rollouts {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) files: Files,
    errands: Errands,
    sampler: Sampler,
    looked: Instant,
    sampled: Instant,
    /// Seconds that a look costs, smoothed.
    cost: f64,
    /// Transitions since the agent's start, by service and event.
    pub(super) told: BTreeMap<(String, String), u64>,
}

/// Versions of one service that a look reads.
#[derive(Debug)]
struct Watched {
    canary: u32,
    baseline: u32,
    /// Of the whole service, where the share is judged.
    all: Vec<u32>,
    measures: Vec<Measure>,
}

type Samples = HashMap<(u32, Measure), Counts>;

impl Rollouts {
    /// Takes up what an earlier agent left.
    pub(super) fn open(state: &Path, runtime: tokio::runtime::Handle) -> Result<Self, StoreError> {
        let files = Files::open(state)?;
        let entry = |state: State| {
            (
                state.service.clone(),
                Entry { state, compared: None, retry: None, backends: 0, watched: None, due: HashMap::new(), kept: 0.0 },
            )
        };
        let entries = files.load().into_iter().map(entry).collect();
        let now = Instant::now();
        Ok(Self {
            entries,
            files,
            errands: Errands::new(runtime),
            sampler: Sampler::default(),
            looked: now,
            sampled: now,
            cost: 0.0,
            told: BTreeMap::new(),
        })
    }

    /// Seconds that a look costs, and seconds between two.
    pub(super) fn pace(&self) -> (f64, f64) {
        (self.cost, LOOK.as_secs_f64().max(self.cost / BUDGET))
    }

    /// When the next look is due; `None` while nothing needs one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.entries.values().any(Entry::needs_looks).then(|| self.looked + Duration::from_secs_f64(self.pace().1))
    }
}

impl Entry {
    /// Something may happen by itself.
    fn needs_looks(&self) -> bool {
        let state = &self.state;
        let retries = state.phase == Phase::RolledBack && state.attempt < state.policy.retries;
        state.phase.is_live() || state.phase == Phase::Waiting || !state.settled || retries
    }
}

impl Actor {
    /// One look at every rollout that runs.
    pub(super) fn look_at_rollouts(&mut self) {
        let (begun, used) = (Instant::now(), cpu_time());
        let seconds = begun.duration_since(self.rollouts.looked).as_secs_f64();
        self.rollouts.looked = begun;
        let mut readings = self.new_readings();
        // Taken out, so that acting can use the rest of the actor; nothing looks at them meanwhile.
        let mut entries = std::mem::take(&mut self.rollouts.entries);
        entries.values_mut().for_each(|entry| self.watch(entry));
        let counted = self.read_counts(&entries).inspect_err(|error| tracing::error!(%error, "rollouts see no counters")).is_ok();
        let (since, samples) = self.read_samples(&entries, begun).unwrap_or_else(|error| {
            tracing::error!(%error, "rollouts see no histograms");
            (0.0, None)
        });
        let now = super::actor::unix_now();
        for (name, entry) in entries.iter_mut().filter(|(_, entry)| entry.needs_looks()) {
            let mut observation = Observation::default();
            if !readings.is_empty() {
                observation.readings = readings.remove(name).unwrap_or_default();
            }
            if let Some((_, watched)) = &entry.watched {
                observation.traffic = watched.traffic(&self.rollouts.sampler, seconds).filter(|_| counted);
                observation.latency = samples.as_ref().map(|samples| watched.latency(samples, since));
            }
            self.step(name, entry, observation, now);
            self.ask_external(name, entry, now);
        }
        self.rollouts.entries = entries;
        let cost = cpu_time() - used;
        self.rollouts.cost += 0.1 * (cost - self.rollouts.cost);
    }

    /// One step of one rollout: keeps the state, then acts.
    pub(super) fn step(&mut self, name: &str, entry: &mut Entry, mut observation: Observation, now: f64) {
        let generation = self.applied.generation;
        let due = entry.retry.is_none_or(|at| now >= at || at - now > RETRY);
        if due && (entry.compared != Some(generation) || entry.retry.is_some()) || observation.word.is_some() {
            (entry.compared, entry.retry) = (Some(generation), None);
            observation.weights = self.planned(name).ok().map(|planned| weights::of(&planned.model));
            entry.backends = self.planned(name).map_or(0, |planned| fingerprint(&planned.model, &entry.state));
        }
        observation.backends = entry.backends;
        let (before, weights) = (entry.state.phase, observation.weights.clone());
        let actions = rollout::step_in_place(&mut entry.state, &observation, now);
        if actions.is_empty() && before == entry.state.phase {
            if now - entry.kept > KEEP && entry.state.phase.is_live() {
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
        entry.kept = now;
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

    /// Asks the external gates whose time has come.
    fn ask_external(&mut self, name: &str, entry: &mut Entry, now: f64) {
        if !entry.state.phase.is_live() || entry.state.policy.gates.external.is_empty() {
            return;
        }
        for gate in &entry.state.policy.gates.external {
            let due = entry.due.entry(gate.name.clone()).or_insert(now);
            // A clock that was set back must not silence a gate.
            if now < *due && *due - now <= gate.every.as_secs_f64().max(gate.timeout.as_secs_f64()) {
                continue;
            }
            // Never two at once: the next comes after this one's time is over.
            *due = now + gate.every.as_secs_f64().max(gate.timeout.as_secs_f64());
            tracing::debug!(service = name, gate = gate.name, "asked");
            self.rollouts.errands.ask(gate.clone(), self.subject(&entry.state), entry.state.began);
        }
    }

    fn new_readings(&self) -> HashMap<String, Vec<Reading>> {
        let mut readings: HashMap<String, Vec<Reading>> = HashMap::new();
        for Answered { service, began, reading } in self.rollouts.errands.answered() {
            if self.rollouts.entries.get(&service).is_some_and(|entry| entry.state.began == began) {
                readings.entry(service).or_default().push(reading);
            }
        }
        readings
    }

    /// Finds the numbers of the versions that a rollout is about, when they may have changed.
    fn watch(&self, entry: &mut Entry) {
        let generation = self.applied.generation;
        if !entry.state.phase.is_live() {
            entry.watched = None;
        } else if entry.watched.as_ref().is_none_or(|(known, _)| *known != generation) {
            entry.watched = self.watched(&entry.state).map(|watched| (generation, watched));
        }
    }

    fn watched(&self, state: &State) -> Option<Watched> {
        let planned = self.reconciler.service(&state.service)?;
        let numbers: Vec<u32> = status::versions(planned).collect();
        let number = |wanted: &str| planned.model.versions.iter().position(|version| version.name == wanted).map(|index| numbers[index]);
        let (canary, baseline) = (number(&state.canary)?, number(&state.baseline)?);
        let mut measures: Vec<Measure> = state.policy.gates.latency.iter().map(|gate| gate.measure).collect();
        measures.sort_unstable();
        measures.dedup();
        let all = if state.policy.gates.share.is_some() { numbers } else { vec![canary, baseline] };
        Some(Watched { canary, baseline, all, measures })
    }

    fn read_counts(&mut self, entries: &BTreeMap<String, Entry>) -> Result<(), TableError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let versions: Vec<u32> = watched(entries).flat_map(|watched| watched.all.iter().copied()).collect();
        self.rollouts.sampler.counters(&datapath.tables, &versions)
    }

    /// Histograms, when it is time for them, and for how many seconds they stand.
    fn read_samples(&mut self, entries: &BTreeMap<String, Entry>, now: Instant) -> Result<(f64, Option<Samples>), TableError> {
        let both = |watched: &'_ Watched, measure: &Measure| [(watched.canary, *measure), (watched.baseline, *measure)];
        let wanted: Vec<(u32, Measure)> =
            watched(entries).flat_map(|watched| watched.measures.iter().flat_map(|measure| both(watched, measure))).collect();
        let since = now.duration_since(self.rollouts.sampled);
        let pause = if wanted.len() > FEW { LATENCY_MANY } else { LATENCY };
        let Some(datapath) = self.datapath.as_ref().filter(|_| !wanted.is_empty() && since >= pause) else { return Ok((0.0, None)) };
        self.rollouts.sampled = now;
        Ok((since.as_secs_f64(), Some(self.rollouts.sampler.histograms(&datapath.tables, &wanted)?)))
    }
}

fn watched(entries: &BTreeMap<String, Entry>) -> impl Iterator<Item = &Watched> {
    entries.values().filter_map(|entry| entry.watched.as_ref()).map(|(_, watched)| watched)
}

impl Watched {
    /// `None` until both versions were seen twice.
    fn traffic(&self, sampler: &Sampler, seconds: f64) -> Option<Traffic> {
        let (canary, baseline) = (sampler.side(self.canary)?, sampler.side(self.baseline)?);
        let all = self.all.iter().filter_map(|version| Some(sampler.side(*version)?.connections)).sum();
        Some(Traffic { seconds, canary, baseline, all })
    }

    fn latency(&self, samples: &Samples, seconds: f64) -> LatencySamples {
        let of = |version: u32, measure: Measure| samples.get(&(version, measure)).cloned().unwrap_or_default();
        let by_measure = self.measures.iter().map(|measure| (*measure, [of(self.canary, *measure), of(self.baseline, *measure)]));
        LatencySamples { seconds, by_measure: by_measure.collect() }
    }
}

/// Seconds of CPU that this thread has used: on a busy machine a look takes longer than it costs.
fn cpu_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
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
    let found = services.iter().find(|service| service.name == name);
    found.map(AsRef::as_ref).ok_or_else(|| {
        let known = weights::list(services.iter().map(|service| service.name.as_str()));
        ControlError::NotFound(format!("there is no service {name:?}; the policy has: {known}"))
    })
}
