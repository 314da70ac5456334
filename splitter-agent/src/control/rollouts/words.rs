//! What operators and the policy say to rollouts, and what they are told.

use super::{Entry, find};
use crate::{
    control::{
        ControlError,
        actor::{Actor, unix_now},
        weights,
    },
    model::Service,
    observed::{RolloutEvent, RolloutStatus, WeightChange, WeightRequest},
    rollout::{self, Observation, Phase, State, Word, WordKind},
};

impl Actor {
    /// Follows an operator's word, or says why not.
    pub(in crate::control) fn rollout_word(&mut self, name: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        let mut entry = match self.rollouts.entries.remove(name) {
            Some(entry) => entry,
            None => self.fresh(name)?,
        };
        let result = self.say(name, &mut entry, word);
        let status = rollout::status(&entry.state, unix_now());
        // Nothing is kept of a rollout that nobody started.
        if entry.state.phase != Phase::Idle {
            self.rollouts.entries.insert(name.into(), entry);
        }
        self.rollouts.rounds.changed();
        result.map(|()| status)
    }

    fn say(&mut self, name: &str, entry: &mut Entry, word: Word) -> Result<(), ControlError> {
        rollout::allowed(&entry.state, word.kind).map_err(ControlError::Invalid)?;
        if word.kind == WordKind::Start {
            // A start takes the policy as it is now, and remembers the last failure for its cool-down.
            let failed_at = entry.state.failed_at;
            *entry = self.fresh(name)?;
            entry.state.failed_at = failed_at;
        }
        self.step(name, entry, Observation { word: Some(word), ..Observation::default() }, unix_now());
        Ok(())
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
    pub(in crate::control) fn rollout(&self, name: &str) -> Result<RolloutStatus, ControlError> {
        match self.rollouts.entries.get(name) {
            Some(entry) => Ok(rollout::status(&entry.state, unix_now())),
            None => self.fresh(name).map(|entry| rollout::status(&entry.state, unix_now())),
        }
    }

    /// All that the policy has, as far as one was ever read.
    pub(in crate::control) fn list_rollouts(&self) -> Result<Vec<RolloutStatus>, ControlError> {
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
    pub(in crate::control) fn all_rollouts(&self) -> Vec<RolloutStatus> {
        let now = unix_now();
        let mut all: Vec<RolloutStatus> = self.rollouts.entries.values().map(|entry| rollout::status(&entry.state, now)).collect();
        let unstarted =
            self.desired.services.iter().filter(|service| service.rollout.is_some() && !self.rollouts.entries.contains_key(&service.name));
        all.extend(unstarted.filter_map(|service| self.fresh_of(service).ok()).map(|entry| rollout::status(&entry.state, now)));
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
            self.audit(&RolloutEvent {
                at: unix_now(),
                service: name.into(),
                event: "weights".into(),
                by: by.into(),
                weights_from: change.before.clone(),
                weights_to: change.after.clone(),
                reason: "splitter weight".into(),
                ..RolloutEvent::default()
            });
            self.overridden(name, by, "weights were set by hand; `splitter rollout resume` goes on, `abort` gives up");
        }
        Ok(change)
    }

    fn overridden(&mut self, name: &str, by: &str, reason: &str) {
        if self.rollouts.entries.get(name).is_some_and(|entry| entry.state.phase.is_live() || !entry.state.settled) {
            let word = Word { kind: WordKind::Overridden, by: by.into(), reason: reason.into() };
            if let Err(error) = self.rollout_word(name, word) {
                tracing::error!(%error, service = name, "rollout");
            }
        }
    }

    /// Before the judge looks again: rollouts whose weights a policy changed stand back, with its weights in the kernel.
    pub(in crate::control) fn rollouts_stand_back(&mut self, reweighted: &[String]) {
        for name in reweighted.iter().filter(|name| self.rollouts.entries.contains_key(*name)).cloned().collect::<Vec<_>>() {
            if let Err(error) = self.bring_forward(&name) {
                tracing::error!(%error, service = name, "rollout");
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
                    let word = Word { kind: WordKind::Abort, by: "policy".into(), reason: "the policy has no rollout any more".into() };
                    if rollout::allowed(&entry.state, WordKind::Abort).is_ok()
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
        self.rollouts.files.remove(name);
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

    /// At the agent's end: what was seen so far is not lost.
    pub(in crate::control) fn keep_rollouts(&mut self) {
        for entry in self.rollouts.entries.values().filter(|entry| entry.state.phase.is_live()) {
            if let Err(error) = self.rollouts.files.save(&entry.state) {
                tracing::error!(%error, "the next agent takes this rollout up at an earlier state");
            }
        }
    }
}

fn has_versions(service: &Service, state: &State) -> bool {
    let has = |name: &str| service.versions.iter().any(|version| version.name == name);
    has(&state.canary) && has(&state.baseline)
}
