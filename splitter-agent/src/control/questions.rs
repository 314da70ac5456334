//! What the actor answers without changing anything: status, flows, explanations.

use super::{
    ControlError,
    actor::{Actor, FRESH, NO_MAPS},
    counters, explain, live, status,
};
use crate::{
    datapath::Datapath,
    observed::{self, ExplainRequest, Explanation, FlowRow, Status},
};
use splitter_common::abi::ABI_VERSION;

impl Actor {
    pub(super) fn status(&mut self) -> Status {
        if self.swept.elapsed() > FRESH && self.datapath.is_some() {
            if !self.janitor.is_sweeping() {
                self.reconciler.sweep_begins();
                self.janitor.begin();
            }
            while !self.sweep_step() {}
        }
        let mut status = Status {
            agent: observed::Agent {
                version: env!("CARGO_PKG_VERSION").into(),
                abi_version: ABI_VERSION,
                pid: std::process::id(),
                started: self.started,
                pins: self.datapath.as_ref().map(|datapath| datapath.pins().display().to_string()).unwrap_or_default(),
                adopted: self.datapath.as_ref().is_some_and(Datapath::adopted),
                xdp: self.settings.xdp.name().into(),
            },
            desired: observed::Desired {
                source: self.settings.source.clone(),
                read: self.desired.read,
                state: self.desired.state.into(),
                errors: self.desired.errors.clone(),
                warnings: self.desired.warnings.clone(),
            },
            applied: self.applied.clone(),
            ..Status::default()
        };
        if let Err(error) = self.observe(&mut status) {
            tracing::error!(%error, "status");
            status.applied.error.get_or_insert(error);
        }
        status
    }

    fn observe(&self, status: &mut Status) -> Result<(), String> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let (tables, findings) = (&datapath.tables, self.janitor.findings());
        let clock = self.clock().map_err(|e| text(&e))?;
        status.interfaces = status::interfaces(datapath.served());
        status.rollouts = self.all_rollouts();
        status.rollout_looks = self.rollouts.pace();
        status.rollout_events =
            self.rollouts.told.iter().map(|((service, event), count)| (service.clone(), event.clone(), *count)).collect();
        status.tables = status::tables(tables, findings);
        status.reasons = status::reasons(tables).map_err(|e| text(&e))?;
        status.services = status::services(tables, &self.reconciler, &self.runtime, findings, clock, &self.rates).map_err(|e| text(&e))?;
        for service in status.services.iter_mut().filter(|service| service.weights_from == "cli") {
            let entry = self.rollouts.entries.get(&service.name);
            if entry.is_some_and(|entry| !entry.state.yielded && entry.state.is_owner()) {
                service.weights_from = "rollout".into();
            }
        }
        Ok(())
    }

    pub(super) fn flows(&mut self, service: Option<String>) -> Result<Vec<FlowRow>, ControlError> {
        if let Some(name) = &service {
            self.planned(name)?;
        }
        let clock = self.clock().map_err(|e| ControlError::Kernel(e.to_string()))?;
        let Some(datapath) = &self.datapath else { return Ok(Vec::new()) };
        live::rows(&datapath.tables, &self.reconciler, service.as_deref(), clock).map_err(|e| ControlError::Kernel(e.to_string()))
    }

    pub(super) fn explain(&mut self, request: &ExplainRequest) -> Result<Explanation, ControlError> {
        let planned = self.planned(&request.service)?;
        let clock = self.clock().map_err(|e| ControlError::Kernel(e.to_string()))?;
        let Some(datapath) = &self.datapath else { return Err(ControlError::Kernel(NO_MAPS.into())) };
        let suspect = |backend: u32| {
            let until = counters::suspect_until(&datapath.tables, backend).ok().flatten();
            until.is_some_and(|until| until.wrapping_sub(clock.ticks) as i32 > 0)
        };
        explain::explain(&datapath.tables, planned, request, suspect)
    }
}
