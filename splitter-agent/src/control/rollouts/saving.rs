//! Whether state can be written. What cannot is tried again until it can; meanwhile a metric, `/readyz` and `status` say so.

use super::Actor;
use crate::control::store::StoreError;
use std::collections::BTreeMap;

/// What the last try of each kind of file said.
#[derive(Default)]
pub(in crate::control) struct Saving {
    failed: BTreeMap<&'static str, String>,
    /// Everything is to be written again.
    rewrite: bool,
}

impl Saving {
    /// Notes how a try went; whether it was fine. Told once, not at every try.
    pub(in crate::control) fn note(&mut self, what: &'static str, result: Result<(), StoreError>) -> bool {
        match result {
            Ok(()) => {
                if self.failed.remove(what).is_some() {
                    tracing::info!(what, "saved again");
                }
                true
            }
            Err(error) => {
                let error = error.to_string();
                if self.failed.get(what) != Some(&error) {
                    tracing::error!(error, what, "not saved: a restart would take up an earlier state; it is tried again");
                }
                self.failed.insert(what, error);
                false
            }
        }
    }

    pub(in crate::control) fn fine(&self, what: &str) -> bool {
        !self.failed.contains_key(what)
    }

    /// What is wrong now.
    pub(in crate::control) fn error(&self) -> Option<String> {
        self.failed.values().next().cloned()
    }
}

impl Actor {
    /// Every second: what could not be written is tried again. Rollouts that may move see to themselves, as often.
    pub(in crate::control) fn save_again(&mut self) {
        if self.rollouts.saving.rewrite {
            self.rollouts.saving.rewrite = false;
            let mut entries = std::mem::take(&mut self.rollouts.entries);
            for entry in entries.values_mut() {
                self.keep(entry);
            }
            self.rollouts.entries = entries;
            self.rollouts.rounds.changed();
            self.save_runtime();
            self.store.save_policy(self.desired.services.clone());
        } else if !self.rollouts.saving.fine("weights") {
            self.save_runtime();
        }
    }

    /// Every few seconds: whether state could be written, were there something to write.
    pub(in crate::control) fn look_at_state(&mut self) {
        let probed = self.rollouts.files.probe();
        let lost = probed.as_ref().is_err_and(StoreError::is_missing) && self.make_state_anew();
        let probed = if lost { self.rollouts.files.probe() } else { probed };
        if self.rollouts.saving.note("the state directory", probed) {
            // A line that is missing in the log was told when it happened; the next one can be written.
            self.rollouts.saving.note("the audit log", Ok(()));
        }
    }

    /// The state directory is gone: makes it anew; what is known is written again within a second. `false` when that is not possible.
    pub(in crate::control) fn make_state_anew(&mut self) -> bool {
        let directory = self.rollouts.files.directory().display().to_string();
        let made = self.rollouts.files.make();
        if made.is_ok() {
            tracing::warn!(directory, "the state directory was gone: it is made anew with all that is known; the audit log begins anew");
            self.rollouts.saving.rewrite = true;
        }
        self.rollouts.saving.note("the state directory", made.map(drop))
    }
}
