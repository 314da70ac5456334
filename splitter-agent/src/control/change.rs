//! Weight changes: one map write, then the bookkeeping, and what becomes of live flows by the policy.

use super::{
    ControlError,
    actor::{Actor, NO_MAPS, unix_now},
    counters, live, status,
    store::Override,
    weights,
};
use splitter_api::{WeightChange, WeightRequest};
use splitter_datapath::reconcile::Planned;
use splitter_policy::model::{Mode, OnWeightChange, Pinned};
use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

/// A second pass for flows that were being decided while the weights changed.
const AGAIN: f64 = 1.0;

impl Actor {
    pub(super) fn planned(&self, name: &str) -> Result<&Planned, ControlError> {
        weights::planned(self.reconciler.applied(), name).or_else(|unknown| self.has_policy().and(Err(unknown)))
    }

    /// One map write, then the bookkeeping.
    pub(super) fn change_weights(&mut self, name: &str, request: &WeightRequest) -> Result<WeightChange, ControlError> {
        if !request.dry_run {
            self.make_sure()?;
        }
        self.bring_forward(name)?;
        let planned = self.planned(name)?;
        let after = weights::merge(&planned.model, request)?;
        let before = weights::of(&planned.model);
        let named: BTreeMap<String, u32> =
            planned.model.versions.iter().map(|version| version.name.clone()).zip(after.iter().copied()).collect();
        let mut change = WeightChange { service: name.into(), before, after: named, ..WeightChange::default() };
        if request.dry_run {
            change.flows_to_end = self.dry_run(name, &after)?;
            change.generation = self.applied.generation;
            return Ok(change);
        }
        let begin = Instant::now();
        self.write_weights(name, &after)?;
        change.write_us = begin.elapsed().as_secs_f64() * 1e6;
        self.applied.generation += 1;
        self.applied.at = unix_now();
        self.keep_override(name, change.after.clone());
        change.flows_to_end = self.weights_changed(name);
        self.save_runtime();
        change.applied = true;
        change.generation = self.applied.generation;
        Ok(change)
    }

    fn write_weights(&mut self, name: &str, weights: &[u32]) -> Result<(), ControlError> {
        let datapath = self.datapath.as_mut().ok_or_else(|| ControlError::Kernel(NO_MAPS.into()))?;
        self.reconciler.set_weights(&mut datapath.tables, name, weights)?;
        if self.reconciler.service(name).is_some_and(|planned| planned.model.mode == Mode::Https) {
            self.publish_proxy();
        }
        Ok(())
    }

    fn keep_override(&mut self, name: &str, weights: BTreeMap<String, u32>) {
        let base = weights::find(&self.desired.services, name).map(|service| weights::of(service)).unwrap_or_default();
        if base == weights {
            self.runtime.overrides.remove(name);
        } else {
            self.runtime.overrides.insert(name.into(), Override { base, weights, kept: false });
        }
    }

    /// Flows that would have to go, were the weights these.
    fn dry_run(&mut self, name: &str, weights: &[u32]) -> Result<u64, ControlError> {
        let planned = self.planned(name)?;
        if planned.model.on_weight_change == OnWeightChange::Keep && planned.model.pinned == Pinned::Keep {
            return Ok(0);
        }
        let mut trial = planned.clone();
        splitter_datapath::plan::set_weights(&mut trial.image.record, weights);
        let id = trial.image.id;
        let trial = self.reconciler.applied().with(trial);
        let datapath = self.datapath()?;
        live::strays(&mut datapath.tables, &trial, &HashSet::from([id]), live::Then::Count).map_err(|e| ControlError::Kernel(e.to_string()))
    }

    /// Notes the counters, and does with the flows what the policy says; returns how many end, now or later.
    fn weights_changed(&mut self, name: &str) -> u64 {
        let Some((id, policy)) = self.note_weights(name) else { return 0 };
        match policy {
            OnWeightChange::Keep => self.pinned_strays(&[name.into()]),
            OnWeightChange::Reset => self.strays(HashSet::from([id]), live::Then::End),
            OnWeightChange::Drain(_) => self.strays(HashSet::from([id]), live::Then::Count),
        }
    }

    /// The same for all services of a portion: the flow tables are gone through once.
    pub(super) fn weights_changed_by_policy(&mut self, names: &[String]) {
        let noted = names.iter().filter_map(|name| self.note_weights(name));
        let resets: HashSet<u32> = noted.filter(|(_, policy)| *policy == OnWeightChange::Reset).map(|(id, _)| id).collect();
        if !resets.is_empty() {
            self.strays(resets, live::Then::End);
        }
        self.pinned_strays(names);
    }

    /// Asks for the end of the pinned connections that belong elsewhere now, of those of the services whose policy wants it; how many.
    fn pinned_strays(&mut self, names: &[String]) -> u64 {
        let services = names.iter().filter_map(|name| self.reconciler.service(name));
        let ids: HashSet<u32> = services.filter(|service| service.model.pinned == Pinned::Reset).map(|service| service.image.id).collect();
        if ids.is_empty() { 0 } else { self.strays(ids, live::Then::End) }
    }

    /// Notes the counters of a service whose weights have changed, and when its flows have to go; its number, and what becomes of its flows.
    fn note_weights(&mut self, name: &str) -> Option<(u32, OnWeightChange)> {
        let planned = self.reconciler.service(name)?;
        let (id, policy, mode) = (planned.image.id, planned.model.on_weight_change, planned.model.mode);
        let numbers = planned.model.versions.iter().map(|version| version.name.clone()).zip(status::versions(planned));
        let tables = &self.datapath.as_ref()?.tables;
        let count = |number: u32| counters::of_version(tables, number).map_or(0, |c| status::decisions(mode, &c));
        let baseline = numbers.map(|(version, number)| (version, count(number))).collect();
        self.runtime.baselines.insert(name.into(), baseline);
        let delay = match policy {
            OnWeightChange::Keep => return Some((id, policy)),
            OnWeightChange::Reset => AGAIN,
            OnWeightChange::Drain(time) => time.as_secs_f64(),
        };
        self.runtime.drains.insert(name.into(), unix_now() + delay);
        Some((id, policy))
    }

    /// Flows of these services whose versions are no longer theirs; how many.
    fn strays(&mut self, ids: HashSet<u32>, then: live::Then) -> u64 {
        let Some(datapath) = &mut self.datapath else { return 0 };
        live::strays(&mut datapath.tables, self.reconciler.applied(), &ids, then).unwrap_or_else(|error| {
            tracing::error!(%error, "flows of the old weights stay");
            0
        })
    }

    pub(super) fn end_drains(&mut self) {
        let now = unix_now();
        let due: Vec<String> = self.runtime.drains.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        if due.is_empty() || self.reconciler.is_unsure() {
            return;
        }
        let ids: HashSet<u32> = due.iter().filter_map(|name| Some(self.reconciler.service(name)?.image.id)).collect();
        let Some(datapath) = &mut self.datapath else { return };
        match live::strays(&mut datapath.tables, self.reconciler.applied(), &ids, live::Then::End) {
            Ok(count) => {
                tracing::info!(services = due.join(" "), flows = count, "flows of the old weights are reset");
                due.iter().for_each(|name| {
                    self.runtime.drains.remove(name);
                });
                self.save_runtime();
            }
            Err(error) => tracing::error!(%error, "flows of the old weights stay for now"),
        }
    }
}
