//! What the actor is asked without changing anything. Walks over the kernel's tables are not made here: readers get a [`Snapshot`] and make them
//! on a thread of their own, so that no weight change waits for a reader.

use super::{
    ControlError,
    actor::{Actor, FRESH, NO_MAPS},
    counters, explain,
    snapshot::Snapshot,
    status,
};
use splitter_api::{ExplainRequest, Explanation, Status};
use splitter_common::abi::{ABI_VERSION, is_suspected};
use splitter_datapath::{Datapath, reconcile::Applied};
use tokio::sync::oneshot;

impl Actor {
    /// Answers at once, or when the sweep that counts the flows has ended; while a policy is applied none ends.
    pub(super) fn status(&mut self, reply: oneshot::Sender<Snapshot>) {
        self.look_at_attachments();
        self.note_tallies();
        self.waiting.push(reply);
        if self.swept.elapsed() <= FRESH || self.datapath.is_none() || self.applying.is_some() {
            self.answer_waiting();
        } else if !self.janitor.is_sweeping() {
            self.reconciler.sweep_begins();
            self.janitor.begin();
        }
    }

    /// What was applied, when anything was.
    pub(super) fn in_force(&self) -> Result<Applied, ControlError> {
        let applied = self.reconciler.applied();
        match &self.applied.error {
            Some(error) if applied.services().len() == 0 => Err(ControlError::NotYet(format!("no policy is in force: {error}"))),
            _ => self.has_policy().map(|()| applied.clone()),
        }
    }

    pub(super) fn answer_waiting(&mut self) {
        for reply in std::mem::take(&mut self.waiting) {
            let snapshot = self.snapshot().unwrap_or_else(|error| {
                tracing::error!(%error, "status");
                let mut status = self.brief();
                status.applied.error.get_or_insert(error.to_string());
                Snapshot { status, ..Snapshot::default() }
            });
            // A requester that went away does not want the answer.
            let _ = reply.send(Snapshot { rollouts: self.all_rollouts(), ..snapshot });
        }
    }

    /// What needs no table.
    pub(super) fn brief(&self) -> Status {
        Status {
            agent: splitter_api::Agent {
                version: env!("CARGO_PKG_VERSION").into(),
                abi_version: ABI_VERSION,
                pid: std::process::id(),
                started: self.started,
                uptime: self.begin.elapsed().as_secs_f64(),
                pins: self.datapath.as_ref().map(|datapath| datapath.pins().display().to_string()).unwrap_or_default(),
                adopted: self.datapath.as_ref().is_some_and(Datapath::adopted),
                xdp: self.settings.xdp.name().into(),
                path: self.course.now.into(),
                path_reason: self.course.reason.clone(),
                state: self.settings.state.display().to_string(),
                state_error: self.rollouts.saving.error(),
            },
            desired: splitter_api::Desired {
                source: self.settings.source.clone(),
                read: self.desired.read,
                state: self.desired.state.into(),
                errors: self.desired.errors.clone(),
                warnings: self.desired.warnings.clone(),
                failing_lookups: self.desired.failing_lookups,
            },
            applied: self.applied.clone(),
            interfaces: self.datapath.as_ref().map(|datapath| status::interfaces(datapath.served())).unwrap_or_default(),
            attachments: splitter_api::Attachments { lost: self.attachments.lost, warnings: self.attachments.warnings.clone() },
            rollout_looks: self.rollouts.pace(),
            rollout_events: self.rollouts.told.iter().map(|((service, event), count)| (service.clone(), event.clone(), *count)).collect(),
            ..Status::default()
        }
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, ControlError> {
        let clock = self.clock().map_err(|e| ControlError::Kernel(e.to_string()))?;
        let owners = self.rollouts.entries.values().filter(|entry| !entry.state.yielded && entry.state.is_owner());
        Ok(Snapshot {
            status: self.brief(),
            tables: self.datapath.as_ref().map(|datapath| datapath.tables.clone()),
            services: self.reconciler.applied().clone(),
            runtime: self.runtime.clone(),
            findings: self.janitor.findings().clone(),
            clock,
            rates: self.rates.clone(),
            rollouts: Vec::new(),
            owners: owners.map(|entry| entry.state.service.clone()).collect(),
        })
    }

    pub(super) fn explain(&mut self, request: &ExplainRequest) -> Result<Explanation, ControlError> {
        self.bring_forward(&request.service)?;
        let planned = self.planned(&request.service)?;
        let clock = self.clock().map_err(|e| ControlError::Kernel(e.to_string()))?;
        let Some(datapath) = &self.datapath else { return Err(ControlError::Kernel(NO_MAPS.into())) };
        let suspect = |backend: u32| {
            let until = counters::suspect_until(&datapath.tables, backend).ok().flatten();
            until.is_some_and(|until| is_suspected(until, clock.ticks))
        };
        explain::explain(&datapath.tables, planned, request, suspect)
    }
}
