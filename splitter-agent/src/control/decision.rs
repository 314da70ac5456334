//! The kernel's decision made again in userspace, over what was applied: for `explain`, and to find flows that belong elsewhere now.

use crate::{
    model::{Protocol, SplitBy},
    plan::{self, MaglevTable},
    reconcile::Planned,
};
use splitter_common::{
    abi::{Addr, MAGLEV_CHUNK, TCP, UDP, backend_state},
    decide, maglev,
};

/// What the decision reads. Ports in host order.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub client: Addr,
    pub client_port: u16,
    pub vip: Addr,
    pub vip_port: u16,
    pub proto: u8,
}

/// Whom a key gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index of the version; `None` when all weights are 0.
    pub version: Option<usize>,
    /// Index of the rule that matched.
    pub rule: Option<usize>,
    pub bucket: u32,
}

/// Key of the bucket and backend hashes.
pub fn key(planned: &Planned, facts: &Facts) -> u64 {
    match planned.model.split_by {
        SplitBy::ClientIp => decide::client_key(&facts.client),
        // Without a request only the connection is known.
        SplitBy::Connection | SplitBy::Request | SplitBy::Header(_) | SplitBy::Cookie(_) => {
            decide::connection_key(&facts.client, facts.client_port, &facts.vip, facts.vip_port, facts.proto)
        }
    }
}

pub fn decide(planned: &Planned, facts: &Facts) -> Decision {
    let record = &planned.image.record;
    let bucket = decide::bucket(record.salt, key(planned, facts));
    let rule = rule(planned, &facts.client);
    let version = match rule {
        Some(rule) => Some(planned.model.rules[rule].version),
        None => decide::pick(record, bucket),
    };
    Decision { version, rule, bucket }
}

/// The rule of the longest prefix that holds a client; of equal ones the first.
pub fn rule(planned: &Planned, client: &Addr) -> Option<usize> {
    let client = plan::ip(client);
    let matching = planned.model.rules.iter().enumerate().filter(|(_, rule)| rule.source.contains(client));
    matching.max_by_key(|(i, rule)| (rule.source.prefix, std::cmp::Reverse(*i))).map(|(i, _)| i)
}

/// The backend's id that a new flow of this version would get.
pub fn backend(planned: &Planned, version: usize, key: u64, suspect: impl Fn(u32) -> bool) -> Option<u32> {
    let slot = planned.image.record.versions.get(version)?;
    let ready = |id: u32| {
        let row = planned.image.backends.iter().find(|(known, _)| *known == id);
        row.is_some_and(|(_, row)| row.state == backend_state::READY || row.state == backend_state::DRAINING)
    };
    if slot.size <= 1 {
        return Some(slot.table).filter(|id| slot.size == 1 && ready(*id));
    }
    let table = planned.image.tables.iter().find(|table| table.version == slot.version)?;
    let chunks = MaglevTable::chunks(table);
    let candidates = (0..decide::BACKEND_TRIES).filter_map(|attempt| {
        let at = maglev::slot(decide::backend_hash(planned.image.record.salt, key, attempt), slot.size) as usize;
        chunks.get(at / MAGLEV_CHUNK).map(|(_, chunk)| chunk.backends[at % MAGLEV_CHUNK])
    });
    let candidates: Vec<u32> = candidates.filter(|id| ready(*id)).collect();
    candidates.iter().find(|id| !suspect(**id)).or_else(|| candidates.first()).copied()
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
