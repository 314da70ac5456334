//! Gates that ask others, and hooks: sent off to the runtime that also serves the listeners, so that nobody outside holds up a look.

use crate::outside::{self, Subject};
use splitter_api::RolloutEvent;
use splitter_policy::model::{External, Hook};
use splitter_rollout::Reading;
use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
};
use tokio::{runtime::Handle, sync::Mutex};

/// An answer, for a service.
pub struct Answered {
    pub service: String,
    /// Of the rollout that asked: answers to an earlier one are dropped.
    pub began: f64,
    pub reading: Reading,
}

pub struct Errands {
    runtime: Handle,
    sender: mpsc::Sender<Answered>,
    receiver: mpsc::Receiver<Answered>,
    /// Hooks of one service are told one after the other.
    turns: HashMap<String, Arc<Mutex<()>>>,
}

impl Errands {
    pub fn new(runtime: Handle) -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { runtime, sender, receiver, turns: HashMap::new() }
    }

    /// Answers since the last call.
    pub fn answered(&self) -> impl Iterator<Item = Answered> + '_ {
        self.receiver.try_iter()
    }

    pub fn ask(&self, gate: External, subject: Subject, began: f64) {
        let sender = self.sender.clone();
        self.runtime.spawn(async move {
            let outside::Answer { passed, value, text } = outside::ask(&gate, &subject).await;
            let reading = Reading { gate: gate.name, passed, value, text };
            // Nobody listens any more when the agent ends.
            let _ = sender.send(Answered { service: subject.service, began, reading });
        });
    }

    pub fn tell(&mut self, hooks: &[Hook], subject: Subject, event: RolloutEvent) {
        if hooks.is_empty() {
            return;
        }
        let (hooks, turn) = (hooks.to_vec(), self.turns.entry(event.service.clone()).or_default().clone());
        self.runtime.spawn(async move {
            let _turn = turn.lock().await;
            for hook in &hooks {
                if let Err(error) = outside::tell(hook, &subject, &event).await {
                    tracing::warn!(%error, service = event.service, event = event.event, "a rollout's hook was not told");
                }
            }
        });
    }
}
