//! What operators and the policy say to rollouts, and what they are told.

use super::{Entry, find};
use crate::control::{
    ControlError,
    actor::{Actor, unix_now},
    status, weights,
};
use splitter_api::{RolloutEvent, RolloutStatus, WeightChange, WeightRequest};
use splitter_policy::model::Service;
use splitter_rollout::{Action, Observation, Phase, State, Weights, Word, WordKind};
use std::time::Instant;

impl Actor {
    /// Follows an operator's word, or says why not.
    ///
    /// # Errors
    /// When it cannot be followed in this state; and when it was followed but could not be saved, so that a restart might not know of it.
    pub(in crate::control) fn rollout_word(&mut self, name: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        let mut entry = match self.rollouts.entries.remove(name) {
            Some(entry) => entry,
            None => self.fresh(name)?,
        };
        let (now, dry_run) = (Instant::now(), word.dry_run);
        let result = if dry_run { self.rehearse(name, &mut entry, word, now) } else { self.say(name, &mut entry, word, now) };
        let moment = entry.moment(now);
        // Nothing is kept of a rollout that nobody started.
        if entry.state.phase != Phase::Idle {
            self.rollouts.entries.insert(name.into(), entry);
        }
        self.rollouts.rounds.changed();
        let (state, note) = result?;
        let moment = if dry_run { splitter_rollout::Moment { passed: 0.0, ..moment } } else { moment };
        Ok(RolloutStatus { note, pinned: self.pinned(name), ..splitter_rollout::status(&state, moment) })
    }

    /// The state afterwards, and what became of the shares.
    fn say(&mut self, name: &str, entry: &mut Entry, word: Word, now: Instant) -> Result<(State, String), ControlError> {
        let before = self.running_weights(name);
        let moment = entry.moment(now);
        splitter_rollout::allowed(&entry.state, &word, moment).map_err(ControlError::Invalid)?;
        if word.kind == WordKind::Start {
            *entry = self.begun_anew(name, entry)?;
        }
        let saved = self.step(name, entry, Observation { word: Some(word), ..Observation::default() }, now);
        let note = splitter_rollout::difference(&before, &self.running_weights(name));
        if !saved {
            let RolloutStatus { phase, canary, share, .. } = splitter_rollout::status(&entry.state, moment);
            let why = self.rollouts.saving.error().unwrap_or_default();
            return Err(ControlError::Kernel(format!(
                "it is done ({name} is {phase}, {canary} at {}%), but not on disk, so a restart of the agent might not know of it: {why}. Make                  room or mend the disk: it is tried again every second",
                (share * 1e6).round() / 1e4
            )));
        }
        Ok((entry.state.clone(), note))
    }

    /// As [`Actor::say`] would, on a copy.
    fn rehearse(&self, name: &str, entry: &mut Entry, word: Word, now: Instant) -> Result<(State, String), ControlError> {
        let before = self.running_weights(name);
        let mut moment = entry.moment(now);
        splitter_rollout::allowed(&entry.state, &word, moment).map_err(ControlError::Invalid)?;
        let mut state = entry.state.clone();
        if word.kind == WordKind::Start {
            let mut fresh = self.begun_anew(name, entry)?;
            moment = fresh.moment(now);
            state = fresh.state;
        }
        let backends = state.backends.unwrap_or_default();
        let observation = Observation { word: Some(word), weights: Some(before.clone()), backends, ..Observation::default() };
        let actions = splitter_rollout::step_in_place(&mut state, &observation, moment);
        let wanted = actions.into_iter().find_map(|action| if let Action::SetWeights(wanted) = action { Some(wanted) } else { None });
        Ok((state, wanted.map_or(String::new(), |wanted| splitter_rollout::difference(&before, &wanted))))
    }

    /// A start takes the policy as it is now; of the earlier rollout stays when it failed, for the cool-down.
    fn begun_anew(&self, name: &str, old: &Entry) -> Result<Entry, ControlError> {
        let mut entry = self.fresh(name)?;
        (entry.state.clock, entry.state.failed, entry.stepped) = (old.state.clock, old.state.failed, old.stepped);
        Ok(entry)
    }

    fn running_weights(&self, name: &str) -> Weights {
        self.planned(name).map(|planned| weights::of(&planned.model)).unwrap_or_default()
    }

    /// A rollout that nobody has started.
    fn fresh(&self, name: &str) -> Result<Entry, ControlError> {
        self.has_policy()?;
        self.fresh_of(find(&self.desired.services, name)?)
    }

    fn fresh_of(&self, service: &Service) -> Result<Entry, ControlError> {
        let name = service.name.as_str();
        let Some(policy) = service.rollout.clone() else {
            return Err(ControlError::Invalid(format!(
                "the policy of {name} has no `rollout`; add for example `rollout: {{canary: v2}}` to its spec"
            )));
        };
        let version = |index: usize| service.versions.get(index).map(|version| version.name.clone()).unwrap_or_default();
        let (canary, baseline) = (version(policy.canary), version(policy.baseline));
        let now = self.planned(name).map(|planned| weights::of(&planned.model)).unwrap_or_else(|_| weights::of(service));
        let state = State::new(name, &canary, &baseline, policy, &now);
        Ok(Entry::new(state))
    }

    /// One rollout, also one that was never started.
    pub(in crate::control) fn rollout(&mut self, name: &str) -> Result<RolloutStatus, ControlError> {
        let full = |entry: &mut Entry| {
            let moment = entry.moment(Instant::now());
            splitter_rollout::full_status(&entry.state, moment)
        };
        let found = match self.rollouts.entries.get_mut(name) {
            Some(entry) => full(entry),
            None => full(&mut self.fresh(name)?),
        };
        Ok(RolloutStatus { pinned: self.pinned(name), ..found })
    }

    /// Connections of a service that no share moves, as the last sweep found them.
    pub(in crate::control) fn pinned(&self, name: &str) -> u64 {
        self.reconciler.service(name).map_or(0, |planned| status::pinned(planned, self.janitor.findings()))
    }

    /// All that the policy has, as far as one was ever read.
    pub(in crate::control) fn list_rollouts(&mut self) -> Result<Vec<RolloutStatus>, ControlError> {
        let all = self.all_rollouts();
        if all.is_empty() { self.has_policy().map(|()| all) } else { Ok(all) }
    }

    /// Without a policy nothing can be said about what is in it.
    pub(in crate::control) fn has_policy(&self) -> Result<(), ControlError> {
        let source = &self.settings.source;
        match self.desired.state {
            _ if !self.desired.services.is_empty() => Ok(()),
            "pending" => Err(ControlError::NotYet(format!("the policy {source} has not been read yet: ask again in a moment"))),
            "rejected" => {
                let why = "`splitter status` says why";
                Err(ControlError::NotYet(format!("the policy {source} was refused, and no other was ever accepted here: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// All that the policy has, and those that run without it.
    pub(in crate::control) fn all_rollouts(&mut self) -> Vec<RolloutStatus> {
        let now = Instant::now();
        let told = |entry: &mut Entry| {
            let moment = entry.moment(now);
            splitter_rollout::status(&entry.state, moment)
        };
        let mut all: Vec<RolloutStatus> = self.rollouts.entries.values_mut().map(told).collect();
        let unstarted =
            self.desired.services.iter().filter(|service| service.rollout.is_some() && !self.rollouts.entries.contains_key(&service.name));
        all.extend(unstarted.filter_map(|service| self.fresh_of(service).ok()).map(|mut entry| told(&mut entry)));
        all.iter_mut().for_each(|rollout| rollout.pinned = self.pinned(&rollout.service));
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }

    pub(in crate::control) fn rollout_history(&self, name: &str) -> Result<Vec<RolloutEvent>, ControlError> {
        let events = self.rollouts.files.history(name).map_err(|error| ControlError::Kernel(error.to_string()))?;
        if events.is_empty() && !self.rollouts.entries.contains_key(name) {
            self.has_policy()?;
            find(&self.desired.services, name)?;
        }
        Ok(events)
    }

    /// Weights by an operator's hand: written down, and a rollout that runs stands back.
    pub(in crate::control) fn set_weights_by_hand(
        &mut self,
        name: &str,
        request: &WeightRequest,
        by: &str,
    ) -> Result<WeightChange, ControlError> {
        let change = self.change_weights(name, request)?;
        if change.applied {
            let noted = self.audit_weights(name, by, "splitter weight", change.before.clone(), change.after.clone());
            let saved = self.rollouts.saving.fine("weights") && noted;
            self.overridden(name, by, "weights were set by hand; `splitter rollout resume` goes on, `abort` gives up");
            if !saved {
                let why = self.rollouts.saving.error().unwrap_or_default();
                return Err(ControlError::Kernel(format!(
                    "the weights of {name} are set, but not on disk, so a restart of the agent might not know of them: {why}. Make room or mend \
                     the disk: it is tried again every second"
                )));
            }
        }
        Ok(change)
    }

    fn audit_weights(&mut self, name: &str, by: &str, reason: &str, from: Weights, to: Weights) -> bool {
        self.audit(&RolloutEvent {
            at: unix_now(),
            service: name.into(),
            event: "weights".into(),
            by: by.into(),
            weights_from: from,
            weights_to: to,
            reason: reason.into(),
            ..RolloutEvent::default()
        })
    }

    /// Tells a rollout that others have set its service's weights.
    pub(super) fn overridden(&mut self, name: &str, by: &str, reason: &str) {
        if self.rollouts.entries.contains_key(name)
            && let Err(error) = self.rollout_word(name, Word::new(WordKind::Overridden, by, reason))
        {
            tracing::error!(%error, service = name, "rollout");
        }
    }

    /// Names of rollouts whose service has other weights in a policy than in the one before. Also one whose weights are not the policy's, and
    /// one that stands back already: what it shows and judges is the share that the policy gives now.
    pub(in crate::control) fn reweighted_rollouts(&self, policy: &[std::sync::Arc<Service>]) -> Vec<String> {
        let of = |services: &[std::sync::Arc<Service>], name: &str| weights::find(services, name).map(|service| weights::of(service));
        let changed = |name: &&String| {
            let (old, new) = (of(&self.desired.services, name), of(policy, name));
            old.is_some() && new.is_some() && old != new
        };
        self.rollouts.entries.keys().filter(changed).cloned().collect()
    }

    /// Before the judge looks again: rollouts whose weights a policy changed stand back, with its weights in the kernel.
    pub(in crate::control) fn rollouts_stand_back(&mut self, reweighted: &[String]) {
        for name in reweighted.iter().filter(|name| self.rollouts.entries.contains_key(*name)).cloned().collect::<Vec<_>>() {
            let before = self.running_weights(&name);
            if let Err(error) = self.bring_forward(&name) {
                tracing::error!(%error, service = name, "rollout");
            }
            let after = self.running_weights(&name);
            if before != after {
                self.audit_weights(&name, "policy", "the policy's weights have changed", before, after);
            }
            self.overridden(&name, "policy", "the policy's weights have changed; `splitter rollout resume` goes on, `abort` gives up");
        }
    }

    /// After a policy was applied: rollouts that it no longer has end.
    pub(in crate::control) fn rollouts_meet_policy(&mut self) {
        let names: Vec<String> = self.rollouts.entries.keys().cloned().collect();
        for name in names {
            let Some(entry) = self.rollouts.entries.get(&name) else { continue };
            let service = weights::find(&self.desired.services, &name).cloned();
            let complete = service.as_deref().is_some_and(|service| has_versions(service, &entry.state));
            match service {
                Some(service) if complete && service.rollout.is_some() => {}
                Some(_) if complete => {
                    let word = Word::new(WordKind::Abort, "policy", "the policy has no rollout any more");
                    if splitter_rollout::allowed(&entry.state, &word, splitter_rollout::Moment::default()).is_ok()
                        && let Err(error) = self.rollout_word(&name, word)
                    {
                        tracing::error!(%error, service = name, "rollout");
                    }
                }
                _ => self.forget(&name),
            }
        }
    }

    /// Service or version are gone: there is nothing to set weights of.
    fn forget(&mut self, name: &str) {
        let Some(entry) = self.rollouts.entries.remove(name) else { return };
        self.rollouts.rounds.changed();
        let removed = self.rollouts.files.remove(name);
        self.rollouts.saving.note("rollouts", removed);
        if entry.state.phase.is_live() || entry.state.phase == Phase::Waiting {
            let (canary, reason) = (entry.state.canary.clone(), "the policy has this service or these versions no more");
            let event = RolloutEvent {
                at: unix_now(),
                service: name.into(),
                canary,
                event: "aborted".into(),
                by: "policy".into(),
                ..RolloutEvent::default()
            };
            self.tell(&entry, RolloutEvent { reason: reason.into(), ..event });
        }
    }

    /// At the agent's end: what was seen so far is not lost, nor how long cool-downs have lasted.
    pub(in crate::control) fn keep_rollouts(&mut self) {
        let now = Instant::now();
        let mut entries = std::mem::take(&mut self.rollouts.entries);
        for (name, entry) in &mut entries {
            if !entry.unsaved && !entry.needs_looks() && entry.state.failed.is_none() {
                continue;
            }
            let passed = now.saturating_duration_since(entry.stepped).as_secs_f64();
            (entry.state.clock, entry.stepped) = (entry.state.clock + passed, now);
            if !self.keep(entry) {
                tracing::error!(service = name, "the next agent takes this rollout up at an earlier state");
            }
        }
        self.rollouts.entries = entries;
    }
}

fn has_versions(service: &Service, state: &State) -> bool {
    let has = |name: &str| service.versions.iter().any(|version| version.name == name);
    has(&state.canary) && has(&state.baseline)
}
