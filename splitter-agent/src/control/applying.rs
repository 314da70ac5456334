//! Applying a policy. It is done in portions, between which the actor serves others: a weight change waits for one portion, not for 40,000
//! services. Sweeps of the flow tables wait: only the end says which backends may have flows.

use super::{
    ControlError, Loaded,
    actor::{Actor, NO_MAPS, sizes, unix_now},
    proxied::Proxied,
    weights,
};
use splitter_datapath::{
    Datapath, DatapathError, Table, Tables,
    reconcile::{Portion, ReconcileError, Reconciler, Services, Work},
};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Portions are done one after the other for this long before others get their turn.
const TURN: Duration = Duration::from_millis(5);

/// A policy on its way into the kernel.
pub(super) struct Applying {
    work: Work,
    begin: Instant,
    /// Keep the policy as the last good one when it is applied.
    save: bool,
    /// From the source, which waits: rollouts learn of it in the end.
    reply: Option<oneshot::Sender<()>>,
    /// Something changed meanwhile that concerns services which are written already.
    again: bool,
}

impl Actor {
    /// Takes what the source said. Answers when it is applied, or refused.
    pub(super) fn load(&mut self, loaded: Loaded, reply: oneshot::Sender<()>) {
        self.finish_applying();
        if loaded.read {
            self.desired.read = unix_now();
        }
        self.desired.warnings = loaded.warnings;
        self.desired.failing_lookups = loaded.failing_lookups;
        self.desired.state = if loaded.errors.is_empty() { "ok" } else { "rejected" };
        self.desired.errors = loaded.errors;
        let Some(policy) = loaded.policy else {
            // A requester that went away does not want the answer.
            let _ = reply.send(());
            return;
        };
        let mut reweighted = self.reweighted_rollouts(&policy.services);
        self.desired.services = Services::new(policy.services);
        let expired = weights::expire(&mut self.runtime.overrides, &self.desired.services);
        for name in &expired {
            tracing::info!(service = name, "the policy's weights have changed: those set since are dropped");
        }
        self.begin_applying(true, Some(reply));
        reweighted.extend(expired.into_iter().filter(|name| !reweighted.contains(name)).collect::<Vec<_>>());
        self.rollouts_stand_back(&reweighted);
        self.apply_for_a_turn();
    }

    /// Brings the kernel to the desired services with their overrides, at once. `save`: keep them as the last good ones.
    pub(super) fn apply(&mut self, save: bool) {
        self.begin_applying(save, None);
        self.finish_applying();
    }

    /// The same, between other things.
    pub(super) fn apply_soon(&mut self, save: bool) {
        match &mut self.applying {
            Some(applying) => applying.again = true,
            None => {
                self.begin_applying(save, None);
                self.apply_for_a_turn();
            }
        }
    }

    pub(super) fn finish_applying(&mut self) {
        while self.applying.is_some() {
            self.apply_for_a_turn();
        }
    }

    fn begin_applying(&mut self, save: bool, reply: Option<oneshot::Sender<()>>) {
        let begin = Instant::now();
        match self.begin_work() {
            Ok(work) => self.applying = Some(Applying { work, begin, save, reply, again: false }),
            Err(error) => {
                self.applied.apply_ms = begin.elapsed().as_secs_f64() * 1e3;
                self.not_applied(error, reply);
            }
        }
    }

    fn begin_work(&mut self) -> Result<Work, String> {
        self.make_room().map_err(|error| error.to_string())?;
        self.begin_proxy()?;
        let services = weights::effective(&self.desired.services, &self.runtime.overrides);
        let datapath = self.datapath.as_mut().ok_or(NO_MAPS)?;
        self.reconciler.begin(&datapath.tables, services).map_err(|error| error.to_string())
    }

    /// Portions, until others want their turn.
    pub(super) fn apply_for_a_turn(&mut self) {
        let turn = Instant::now();
        while let Some(applying) = &mut self.applying {
            let portion = match &mut self.datapath {
                Some(datapath) => self.reconciler.advance(&mut datapath.tables, &mut applying.work).map_err(|error| error.to_string()),
                None => Err(NO_MAPS.into()),
            };
            self.took(portion);
            if turn.elapsed() > TURN {
                return;
            }
        }
    }

    /// A service that still waits for its turn in what is being applied gets it now.
    ///
    /// # Errors
    /// When the kernel refuses; the whole apply is over then, and tried again later.
    pub(super) fn bring_forward(&mut self, name: &str) -> Result<(), ControlError> {
        let Some(applying) = &mut self.applying else { return Ok(()) };
        let datapath = self.datapath.as_mut().ok_or_else(|| ControlError::Kernel(NO_MAPS.into()))?;
        match self.reconciler.advance_service(&mut datapath.tables, &mut applying.work, name) {
            Ok(portion) => {
                self.took(Ok(portion.unwrap_or_default()));
                Ok(())
            }
            Err(error) => {
                self.took(Err(error.to_string()));
                Err(ControlError::Kernel(error.to_string()))
            }
        }
    }

    /// After an apply that failed half-way what the kernel holds is known only when it was read again.
    pub(super) fn make_sure(&mut self) -> Result<(), ControlError> {
        if self.reconciler.is_unsure() && self.applying.is_none() {
            self.begin_applying(true, None);
        }
        match &self.applied.error {
            Some(error) if self.reconciler.is_unsure() => Err(ControlError::Kernel(error.clone())),
            _ => Ok(()),
        }
    }

    /// What a portion did, or why not.
    fn took(&mut self, portion: Result<Portion, String>) {
        let portion = match portion {
            Ok(portion) => portion,
            Err(error) => {
                let Some(applying) = self.applying.take() else { return };
                self.applied.apply_ms = applying.begin.elapsed().as_secs_f64() * 1e3;
                return self.not_applied(error, applying.reply);
            }
        };
        self.layout += 1;
        self.publish_proxy();
        self.weights_changed_by_policy(&portion.reweighted);
        if let Some(report) = portion.report
            && let Some(applying) = self.applying.take()
        {
            self.all_applied(applying, report.changed > 0);
        }
    }

    fn all_applied(&mut self, applying: Applying, changed: bool) {
        let Applying { begin, save, reply, again, .. } = applying;
        self.applied.error = None;
        self.applied.services = self.reconciler.services().len();
        self.empty &= self.applied.services == 0;
        if changed || self.applied.at == 0.0 {
            (self.applied.at, self.applied.apply_ms) = (unix_now(), begin.elapsed().as_secs_f64() * 1e3);
        }
        if changed {
            self.applied.generation += 1;
        }
        let exists = |name: &String| self.reconciler.service(name).is_some();
        self.runtime.drains.retain(|name, _| exists(name));
        self.runtime.baselines.retain(|name, _| exists(name));
        self.save_runtime();
        if save {
            self.store.save_policy(self.desired.services.clone());
        }
        self.janitor.set_live(Some(self.reconciler.applied().live().clone()));
        self.janitor.set_leaving(self.reconciler.leaving());
        self.ask_for_stamps();
        self.leave_proxy();
        self.answer_source(reply);
        if again {
            self.apply_soon(false);
        }
    }

    fn not_applied(&mut self, error: String, reply: Option<oneshot::Sender<()>>) {
        tracing::error!(%error, "not applied; it is tried again every few seconds");
        self.applied.error = Some(error);
        self.janitor.set_live((!self.reconciler.is_unsure()).then(|| self.reconciler.applied().live().clone()));
        self.janitor.set_leaving(self.reconciler.leaving());
        self.answer_source(reply);
    }

    fn answer_source(&mut self, reply: Option<oneshot::Sender<()>>) {
        if let Some(reply) = reply {
            self.rollouts_meet_policy();
            // A requester that went away does not want the answer.
            let _ = reply.send(());
        }
    }

    /// Makes the maps anew when they are too small and nothing is in them.
    fn make_room(&mut self) -> Result<(), DatapathError> {
        if !self.empty {
            return Ok(());
        }
        let wanted = sizes(&self.settings, &self.desired.services);
        let small = |datapath: &Datapath| {
            datapath.tables.limit(Table::Counters) / 2 < wanted.versions || datapath.tables.limit(Table::Backends) / 2 < wanted.backends
        };
        if !self.datapath.as_ref().is_none_or(small) {
            return Ok(());
        }
        self.reconciler = Reconciler::new();
        // It looks into the maps that go.
        self.proxied = Proxied::default();
        self.reconciler.set_stamps(self.stamps.said());
        self.forget_ring();
        self.datapath = match self.datapath.take() {
            Some(datapath) => Some(datapath.recreate(wanted)?),
            None => Some(Datapath::open(&splitter_datapath::directory(self.settings.pins.as_deref(), true)?, wanted)?),
        };
        self.look_at_interfaces()
    }
}

impl From<ReconcileError> for ControlError {
    fn from(error: ReconcileError) -> Self {
        Self::Kernel(error.to_string())
    }
}
