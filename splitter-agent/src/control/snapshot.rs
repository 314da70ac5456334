//! What the actor knows at one moment, for readers that walk the kernel's tables on a thread of their own. Cheap to make at any number of
//! services: it shares what was applied. Changes nothing.

use super::{
    ControlError, live,
    rates::Rates,
    status,
    store::Runtime,
    sweep::{Clock, Findings},
    wanted::{self, Wanted},
};
use splitter_api::{FlowQuery, FlowRow, RolloutStatus, ServiceNames, Status, StatusQuery};
use splitter_datapath::{
    Kernel, TableError,
    reconcile::{Applied, Planned},
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
    pub fn status(self) -> Status {
        // Every service is chosen without a name: that does not fail.
        self.select(&StatusQuery::default()).unwrap_or_default()
    }

    /// As [`Snapshot::status`], with some of the services and rollouts.
    ///
    /// # Errors
    /// When a service is named that there is not.
    pub fn select(mut self, query: &StatusQuery) -> Result<Status, ControlError> {
        let applied = self.services.clone();
        let chosen = wanted::services(&applied, &query.services)?;
        let rollouts = std::mem::take(&mut self.rollouts);
        let named =
            |rollout: &RolloutStatus| query.services.is_empty() || chosen.iter().any(|planned| planned.model.name == rollout.service);
        self.status.rollouts = rollouts.into_iter().filter(named).collect();
        if let Err(error) = self.observe(&applied, chosen, query) {
            tracing::error!(%error, "status");
            self.status.applied.error.get_or_insert(error.to_string());
        }
        Ok(self.status)
    }

    fn observe(&mut self, applied: &Applied, chosen: Vec<&Planned>, query: &StatusQuery) -> Result<(), TableError> {
        let (Some(tables), findings) = (&self.tables, &self.findings) else { return Ok(()) };
        let status = &mut self.status;
        status.tables = status::tables(tables, findings);
        status.reasons = status::reasons(tables)?;
        status.services = status::some(tables, applied, chosen, query, (&self.runtime, findings, self.clock, &self.rates))?;
        for service in status.services.iter_mut().filter(|service| service.weights_from == "cli") {
            if self.owners.contains(&service.name) {
                service.weights_from = "rollout".into();
            }
        }
        Ok(())
    }

    /// Names of services and versions.
    pub fn names(&self, prefix: &str) -> Vec<ServiceNames> {
        wanted::names(&self.services, prefix)
    }

    /// The live flows that are asked for.
    ///
    /// # Errors
    /// When there is no such service or version, an address is none, or a table cannot be read.
    pub fn flows(&self, query: &FlowQuery) -> Result<Vec<FlowRow>, ControlError> {
        let wanted = Wanted::new(&self.services, query)?;
        let Some(tables) = &self.tables else { return Ok(Vec::new()) };
        live::rows(tables, &self.services, wanted, self.clock).map_err(|e| ControlError::Kernel(e.to_string()))
    }
}
