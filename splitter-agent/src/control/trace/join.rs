//! A request and what became of it are two events of the kernel: this waits for the second. Time is given by the events.

use splitter_common::abi::{TraceEvent, trace_flag, trace_kind};
use std::collections::{HashMap, VecDeque};

/// How long a decision waits for its answer, nanoseconds.
const PATIENCE: u64 = 5_000_000_000;
/// Decisions that wait; more are told without their answers.
const WAITING: usize = 8192;

/// A connection: client, frontend.
type Key = ([u32; 4], [u32; 4], u16, u16);

/// A decision, and its end where that is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Without it, only how the node refused is known.
    pub decided: TraceEvent,
    pub ended: Option<TraceEvent>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Join {
    waiting: HashMap<Key, TraceEvent>,
    /// In the order of their times; what has been answered meanwhile is still in it.
    order: VecDeque<(u64, Key)>,
}

impl Join {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes an event; adds what can be told now.
    pub fn take(&mut self, event: TraceEvent, told: &mut Vec<Told>) {
        let key = (event.client, event.vip, event.client_port, event.vip_port);
        match event.kind {
            trace_kind::DECIDED => {
                // A request for which no answer was seen: its successor is here.
                if let Some(decided) = self.waiting.remove(&key) {
                    told.push(Told { decided, ended: None });
                }
                // What is pinned without a request of its own has no answer of its own either.
                let answered = event.flags & trace_flag::HTTP != 0 && event.text_len != 0;
                if !answered || self.waiting.len() >= WAITING {
                    told.push(Told { decided: event, ended: None });
                    return;
                }
                self.waiting.insert(key, event);
                self.order.push_back((event.time, key));
            }
            trace_kind::ANSWERED => {
                // Without its request it was asked before anybody looked.
                if let Some(decided) = self.waiting.remove(&key) {
                    told.push(Told { decided, ended: Some(event) });
                }
            }
            _ => {
                let decided = self.waiting.remove(&key).unwrap_or(event);
                told.push(Told { decided, ended: Some(event) });
            }
        }
    }

    /// Decisions that wait for their ends, in the order in which they were made.
    pub fn waiting(&self) -> Vec<Told> {
        let mut waiting: Vec<_> = self.waiting.values().map(|decided| Told { decided: *decided, ended: None }).collect();
        waiting.sort_by_key(|told| told.decided.time);
        waiting
    }

    /// Tells what has waited in vain.
    pub fn expire(&mut self, now: u64, told: &mut Vec<Told>) {
        while let Some((time, key)) = self.order.front().copied() {
            let current = self.waiting.get(&key).is_some_and(|event| event.time == time);
            if current && now.saturating_sub(time) < PATIENCE {
                return;
            }
            self.order.pop_front();
            if current && let Some(decided) = self.waiting.remove(&key) {
                told.push(Told { decided, ended: None });
            }
        }
    }
}
