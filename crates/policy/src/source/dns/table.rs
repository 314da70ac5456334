//! What is known of each name, when to ask again, and who leaves. Time is given.

use super::{Answer, CEILING, FLOOR, MOST};
use crate::{
    model::BackendState,
    source::resolve::{Endpoints, Found, Query},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};
use tokio::time::Instant;

/// After the first failure, and at most.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    names: BTreeMap<Query, Name>,
    /// What was found before this process began, as far as nobody has asked for it yet.
    remembered: Found,
}

#[derive(Debug)]
struct Name {
    /// With the time when it is over, for one that is no longer in the answer.
    addresses: BTreeMap<SocketAddr, Option<Instant>>,
    failure: Option<String>,
    failures: u32,
    /// Nobody has answered yet.
    pending: bool,
    asked: bool,
    next: Instant,
}

impl Table {
    pub fn new(remembered: Found) -> Self {
        Self { names: BTreeMap::new(), remembered }
    }

    /// These, and no others. New ones are due at once.
    pub fn want(&mut self, queries: &BTreeSet<Query>, now: Instant) {
        self.names.retain(|query, _| queries.contains(query));
        for query in queries {
            if self.names.contains_key(query) {
                continue;
            }
            let remembered = self.remembered.remove(query).unwrap_or_default().backends;
            let until = |state| (state != BackendState::Ready).then(|| now + query.lookup.drain);
            let addresses = remembered.into_iter().map(|(address, state)| (address, until(state))).collect();
            let name = Name { addresses, failure: None, failures: 0, pending: true, asked: false, next: now };
            self.names.insert(query.clone(), name);
        }
    }

    pub fn ask_all(&mut self, now: Instant) {
        self.names.values_mut().for_each(|name| name.next = now);
    }

    /// At most `room` that are due, which count as asked from now on.
    pub fn take_due(&mut self, now: Instant, room: usize) -> Vec<Query> {
        let due = self.names.iter_mut().filter(|(_, name)| !name.asked && name.next <= now).take(room);
        due.map(|(query, name)| {
            name.asked = true;
            query.clone()
        })
        .collect()
    }

    /// When somebody has drained, or, if `room`, a name is due that is not asked.
    pub fn next(&self, room: bool) -> Option<Instant> {
        let leaving = self.names.values().flat_map(|name| name.addresses.values().flatten().copied());
        let due = self.names.values().filter(|name| room && !name.asked).map(|name| name.next);
        due.chain(leaving).min()
    }

    /// Forgets who has drained; whether there were such.
    pub fn expire(&mut self, now: Instant) -> bool {
        let mut changed = false;
        for name in self.names.values_mut() {
            let before = name.addresses.len();
            name.addresses.retain(|_, until| until.is_none_or(|until| until > now));
            changed |= name.addresses.len() != before;
        }
        changed
    }

    /// Takes an answer; whether anything is different from before.
    pub fn answered(&mut self, query: &Query, answer: Result<Answer, String>, now: Instant) -> bool {
        let Some(name) = self.names.get_mut(query) else { return false };
        name.asked = false;
        let before = (std::mem::take(&mut name.pending), name.failure.take());
        match answer {
            Ok(answer) => {
                name.failures = 0;
                name.next = now + answer.ttl.clamp(FLOOR, CEILING);
                let count = answer.addresses.len();
                let addresses: BTreeSet<_> = answer.addresses.into_iter().take(MOST).collect();
                if count > MOST {
                    name.failure = Some(format!("it has {count} addresses, and the first {MOST} are taken"));
                }
                let changed = name.take(addresses, now + query.lookup.drain);
                changed || before != (false, name.failure.clone())
            }
            Err(failure) => {
                name.next = now + RETRY.saturating_mul(1 << name.failures.min(10)).min(CEILING);
                name.failures += 1;
                name.failure = Some(failure);
                before != (false, name.failure.clone())
            }
        }
    }

    pub fn found(&self) -> Found {
        let states = |name: &Name| {
            let state = |until: &Option<Instant>| if until.is_none() { BackendState::Ready } else { BackendState::Draining };
            name.addresses.iter().map(|(address, until)| (*address, state(until))).collect()
        };
        let endpoints = |name: &Name| Endpoints { backends: states(name), failure: name.failure.clone(), pending: name.pending };
        self.names.iter().map(|(query, name)| (query.clone(), endpoints(name))).collect()
    }
}

impl Name {
    /// The addresses of an answer; whether somebody came or left.
    fn take(&mut self, addresses: BTreeSet<SocketAddr>, until: Instant) -> bool {
        let mut changed = false;
        for (address, leaves) in &mut self.addresses {
            if leaves.is_none() && !addresses.contains(address) {
                *leaves = Some(until);
                changed = true;
            }
        }
        for address in addresses {
            changed |= self.addresses.insert(address, None) != Some(None);
        }
        changed
    }
}
