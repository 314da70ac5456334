//! What the actor knows at one moment, for readers that walk the kernel's tables on a thread of their own. Cheap to make at any number of
//! services: it shares what was applied. Changes nothing.

use super::{
    ControlError, live,
    rates::Rates,
    status,
    store::Runtime,
    sweep::{Clock, Findings},
    weights,
};
use crate::{
    datapath::{Kernel, TableError},
    observed::{FlowRow, RolloutStatus, Status},
    reconcile::Applied,
};
use std::{collections::HashSet, sync::Arc};

/// See the module.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// What needs no table.
    pub(super) status: Status,
    /// `None` when there are none.
    pub(super) tables: Option<Kernel>,
    pub(super) services: Applied,
    pub(super) runtime: Runtime,
    pub(super) findings: Arc<Findings>,
    pub(super) clock: Clock,
    pub(super) rates: Rates,
    pub(super) rollouts: Vec<RolloutStatus>,
    /// Services whose weights come from a rollout.
    pub(super) owners: HashSet<String>,
}

impl Snapshot {
    /// The whole status. What cannot be read is missing, and `applied.error` says so.
    pub fn status(mut self) -> Status {
        self.status.rollouts = std::mem::take(&mut self.rollouts);
        if let Err(error) = self.observe() {
            tracing::error!(%error, "status");
            self.status.applied.error.get_or_insert(error.to_string());
        }
        self.status
    }

    fn observe(&mut self) -> Result<(), TableError> {
        let (Some(tables), findings) = (&self.tables, &self.findings) else { return Ok(()) };
        let status = &mut self.status;
        status.tables = status::tables(tables, findings);
        status.reasons = status::reasons(tables)?;
        status.services = status::services(tables, &self.services, &self.runtime, findings, self.clock, &self.rates)?;
        for service in status.services.iter_mut().filter(|service| service.weights_from == "cli") {
            if self.owners.contains(&service.name) {
                service.weights_from = "rollout".into();
            }
        }
        Ok(())
    }

    /// The live flows, of one service or of all.
    ///
    /// # Errors
    /// When there is no such service, or a table cannot be read.
    pub fn flows(&self, service: Option<&str>) -> Result<Vec<FlowRow>, ControlError> {
        if let Some(name) = service {
            weights::planned(&self.services, name)?;
        }
        let Some(tables) = &self.tables else { return Ok(Vec::new()) };
        live::rows(tables, &self.services, service, self.clock).map_err(|e| ControlError::Kernel(e.to_string()))
    }
}
