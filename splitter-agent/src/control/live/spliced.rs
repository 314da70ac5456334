//! Live connections of http services: as rows, and the one of a client that is asked about.

use super::{Then, endpoint, key4, key6, version_name};
use crate::control::{
    decision::{self, Facts},
    sweep::Clock,
    wanted::Wanted,
};
use splitter_api::FlowRow;
use splitter_common::abi::*;
use splitter_datapath::{
    Cursor, FlowTables, TableError, Tables, plan,
    reconcile::{
        Applied, Planned,
        flows::{client_of, leg_in_use, split_ports, translated_source},
    },
};
use splitter_policy::model::{Mode, Pinned};
use std::collections::{HashMap, HashSet};

/// What is known of the leg in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub version: String,
    /// `ADDRESS:PORT`.
    pub backend: String,
    /// Requests are not decided any more.
    pub pinned: bool,
}

fn has<F: FlowTables>(spliced: &Spliced<F>, flags: u8) -> bool {
    spliced.owner.is(flags)
}

fn state<F: FlowTables>(spliced: &Spliced<F>) -> &'static str {
    match spliced.state {
        splice_state::GATHERING => "gathering",
        splice_state::OPENING => "opening",
        splice_state::ANSWERED => "answered",
        _ if has(spliced, splice_flag::FIN | splice_flag::PEER_FIN) => "closing",
        _ => "established",
    }
}

/// Adds the rows of one family.
pub(super) fn rows<F: FlowTables>(
    tables: &impl Tables,
    applied: &Applied,
    clock: Clock,
    wanted: &mut Wanted<'_>,
) -> Result<(), TableError> {
    let (mut cursor, mut more) = (Cursor::default(), true);
    while more && !wanted.is_full() {
        let mut found = Vec::new();
        more = F::SPLICED.scan(tables, &mut cursor, |key, spliced| found.push((key, spliced)))?;
        for (key, spliced) in found {
            let Some(planned) = wanted.services.get(&spliced.service).copied() else { continue };
            let version = if is_served(&spliced) { version_name(planned, applied.owner(spliced.owner.backend()).1) } else { "" };
            if fits(wanted, (&key, &spliced), version) && !wanted.add(row(tables, planned, version, (&key, &spliced), clock)?) {
                break;
            }
        }
    }
    Ok(())
}

/// Pinned connections whose key the weights give to another version than they have. Where a request's own value is the key, or each request is
/// drawn, the connection's key stands for them: nobody reads what they ask for.
pub(super) fn strays<F: FlowTables>(
    tables: &mut impl Tables,
    (applied, known): (&Applied, &HashMap<u32, &Planned>),
    services: &HashSet<u32>,
    then: Then,
) -> Result<u64, TableError> {
    let wanted = services.iter().filter_map(|id| known.get(id).copied()).filter(|planned| planned.model.pinned == Pinned::Reset);
    let wanted: HashMap<u32, &Planned> = wanted.filter(|planned| planned.model.mode == Mode::Http).map(|p| (p.image.id, p)).collect();
    if wanted.is_empty() {
        return Ok(0);
    }
    let (mut cursor, mut more, mut found) = (Cursor::default(), true, Vec::new());
    while more {
        more = F::SPLICED.scan(tables, &mut cursor, |key, spliced| {
            let Some(planned) = wanted.get(&spliced.service) else { return };
            let version = applied.owner(spliced.owner.backend()).1;
            if is_to_move(&spliced) && decision::index_of(planned, version) != decision::version(planned, &facts::<F>(&key)) {
                found.push(key);
            }
        })?;
    }
    if then == Then::End {
        for key in &found {
            // Again: it may have moved on since the scan.
            if let Some(spliced) = F::SPLICED.get(tables, *key)?.filter(is_to_move) {
                let owner = spliced.owner.with(splice_flag::RESET);
                F::SPLICED.replace(tables, *key, Spliced { owner, ..spliced })?;
                // Its leg looks at the flow when it is time to look its route up.
                let leg_key = leg_in_use(&spliced);
                if let Some(leg) = F::LEGS.get(tables, leg_key)?.filter(|leg| client_of(leg) == *key) {
                    F::LEGS.replace(tables, leg_key, Leg { last: leg.last.wrapping_sub(REFRESH_TICKS), ..leg })?;
                }
            }
        }
    }
    Ok(found.len() as u64)
}

/// Pinned, and nobody has asked for its end yet.
fn is_to_move<F: FlowTables>(spliced: &Spliced<F>) -> bool {
    spliced.state == splice_state::ESTABLISHED && has(spliced, splice_flag::PINNED) && !has(spliced, splice_flag::RESET)
}

fn facts<F: FlowTables>(key: &FlowKey<F>) -> Facts {
    let (source, destination) = split_ports(key.ports);
    Facts {
        client: F::mapped(&key.src),
        client_port: u16::from_be_bytes(source),
        vip: F::mapped(&key.dst),
        vip_port: u16::from_be_bytes(destination),
        proto: key.proto as u8,
    }
}

/// A backend has the connection.
fn is_served<F: FlowTables>(spliced: &Spliced<F>) -> bool {
    spliced.owner.backend() != 0 && spliced.state != splice_state::ANSWERED
}

fn fits<F: FlowTables>(wanted: &Wanted<'_>, (key, spliced): (&FlowKey<F>, &Spliced<F>), version: &str) -> bool {
    let served = is_served(spliced).then(|| F::mapped(&spliced.dst));
    wanted.client(&F::mapped(&key.src))
        && wanted.backend(served.as_ref().map(|backend| (backend, split_ports(spliced.ports).1)))
        && wanted.state(state(spliced), has(spliced, splice_flag::PINNED))
        && wanted.version(version)
}

fn row<F: FlowTables>(
    tables: &impl Tables,
    planned: &Planned,
    version: &str,
    (key, spliced): (&FlowKey<F>, &Spliced<F>),
    clock: Clock,
) -> Result<FlowRow, TableError> {
    let (source, destination) = split_ports(key.ports);
    let leg = F::LEGS.get(tables, leg_in_use(spliced))?.filter(|leg| client_of(leg) == *key);
    let idle = clock.age(spliced.last).min(leg.map_or(f64::INFINITY, |leg| clock.age(leg.last)));
    Ok(FlowRow {
        service: planned.model.name.clone(),
        version: version.into(),
        protocol: "tcp".into(),
        client: endpoint(&F::mapped(&key.src), source),
        frontend: endpoint(&F::mapped(&key.dst), destination),
        backend: if is_served(spliced) { endpoint(&F::mapped(&spliced.dst), split_ports(spliced.ports).1) } else { String::new() },
        state: state(spliced).into(),
        pinned: has(spliced, splice_flag::PINNED),
        idle,
        snat: translated_source(key, spliced).map(|(address, port)| endpoint(&F::mapped(&address), port)),
    })
}

/// A client's connection to an http service that has a leg.
pub fn find(tables: &impl Tables, planned: &Planned, facts: &Facts) -> Result<Option<Live>, TableError> {
    if plan::ip(&facts.client).is_ipv4() { find_in(tables, planned, key4(facts)) } else { find_in(tables, planned, key6(facts)) }
}

fn find_in<F: FlowTables>(tables: &impl Tables, planned: &Planned, key: FlowKey<F>) -> Result<Option<Live>, TableError> {
    let spliced = F::SPLICED.get(tables, key)?;
    let spliced = spliced.filter(is_served);
    Ok(spliced.map(|spliced| {
        let row = planned.image.backends.iter().find(|(id, _)| *id == spliced.owner.backend());
        Live {
            version: row.map_or("?", |(_, row)| version_name(planned, row.version)).into(),
            backend: endpoint(&F::mapped(&spliced.dst), split_ports(spliced.ports).1),
            pinned: has(&spliced, splice_flag::PINNED),
        }
    }))
}

#[cfg(test)]
mod tests;
