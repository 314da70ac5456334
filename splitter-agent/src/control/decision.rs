//! The kernel's decision made again in userspace, over what was applied: for `explain`, and to find flows that belong elsewhere now. It is the kernel's
//! own, `splitter_common::decide`; here are the look-ups.

use splitter_common::{
    abi::{Addr, MaglevChunk, MaglevKey, TCP, UDP},
    decide::{
        self, Choice, Lookups, Request, Search,
        select::{self, steady_key},
    },
    http::Plain,
};
use splitter_datapath::{
    plan::{self, MaglevTable},
    reconcile::Planned,
};
use splitter_policy::model::Protocol;
use std::{cell::OnceCell, cmp::Reverse};

pub use splitter_common::decide::Facts;

/// Whom a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index of the version; `None` when all weights are 0 and no rule names one.
    pub version: Option<usize>,
    /// The backend's id that a new flow gets; `None`: nobody serves.
    pub backend: Option<u32>,
}

/// Decides for a new flow or, with `request`, for the first request of a connection. `suspect`: whether a backend gets no new flow while others can.
pub fn select(planned: &Planned, facts: &Facts, request: Option<&Request>, suspect: impl Fn(u32) -> bool) -> Decision {
    let look = Applied { planned, suspect, chunks: OnceCell::new() };
    let mut choice = Choice::nobody(planned.image.id, 0);
    decide::select(&look, &planned.image.record, facts, request, &mut choice);
    Decision { version: index_of(planned, choice.version), backend: Some(choice.backend).filter(|id| *id != 0) }
}

/// Index of the version that a new flow gets. Where a request decides: by its connection alone.
pub fn version(planned: &Planned, facts: &Facts) -> Option<usize> {
    let look = Applied { planned, suspect: |_| false, chunks: OnceCell::new() };
    let mut choice = Choice::nobody(planned.image.id, 0);
    select::version(&look, &planned.image.record, facts, None, &mut choice)
}

/// The bucket of a new flow.
pub fn bucket(planned: &Planned, facts: &Facts) -> u32 {
    let record = &planned.image.record;
    decide::bucket(record.salt, steady_key(record.split_by, facts))
}

/// The rule of layer 4 of the longest prefix that holds a client; of equal ones the first.
pub fn rule(planned: &Planned, client: &Addr) -> Option<usize> {
    let client = plan::ip(client);
    let matching = planned.model.rules.iter().enumerate().filter(|(_, rule)| rule.source.contains(client));
    matching.max_by_key(|(i, rule)| (rule.source.prefix, Reverse(*i))).map(|(i, _)| i)
}

/// Index of a version by its id.
pub fn index_of(planned: &Planned, version: u32) -> Option<usize> {
    planned.image.record.versions.iter().take(planned.model.versions.len()).position(|slot| slot.version == version)
}

/// The look-ups of one decision.
struct Applied<'a, S> {
    planned: &'a Planned,
    suspect: S,
    /// Of the one version whose table was looked into: it is built when it is asked for.
    chunks: OnceCell<Vec<(MaglevKey, MaglevChunk)>>,
}

impl<S: Fn(u32) -> bool> Lookups for &Applied<'_, S> {
    type Loop = Plain;

    fn rule(self, _: u32, client: &Addr) -> Option<u32> {
        rule(self.planned, client).map(|rule| self.planned.model.rules[rule].version as u32)
    }
    fn backend(self, id: u32) -> Option<(u32, u8)> {
        let row = self.planned.image.backends.iter().find(|(known, _)| *known == id);
        row.map(|(_, row)| (row.version, row.state))
    }
    fn maglev(self, key: &MaglevKey, at: u32) -> Option<u32> {
        let chunks = self.chunks.get_or_init(|| {
            let table = self.planned.image.tables.iter().find(|table| table.version == key.version);
            table.map(MaglevTable::chunks).unwrap_or_default()
        });
        let (_, chunk) = chunks.get(key.chunk as usize).filter(|(known, _)| known == key)?;
        chunk.backends.get(at as usize).copied()
    }
    fn is_suspect(self, backend: u32) -> bool {
        (self.suspect)(backend)
    }
    fn with_search<R>(self, run: impl FnOnce(&mut Search) -> R) -> Option<R> {
        Some(run(&mut Search::new()))
    }
}

pub const fn protocol_name(proto: u8) -> &'static str {
    match proto {
        TCP => "tcp",
        UDP => "udp",
        _ => "?",
    }
}

pub const fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

#[cfg(test)]
mod tests;
