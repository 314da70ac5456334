//! Live flows: as rows for people, and those that belong to another version since a weight change.

pub mod spliced;

use super::{
    decision::{self, Facts},
    sweep::Clock,
    wanted::Wanted,
};
use splitter_api::FlowRow;
use splitter_common::abi::*;
use splitter_datapath::{
    Cursor, FlowTables, Plain, TableError, Tables, Typed, plan,
    reconcile::{Applied, Planned, flows},
};
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

/// A forward entry, resolved.
struct Entry<'a, F: Family> {
    key: FlowKey<F>,
    flow: Flow<F>,
    planned: &'a Planned,
    version: u32,
}

impl<F: FlowTables> Entry<'_, F> {
    fn facts(&self) -> Facts {
        let (source, destination) = flows::split_ports(self.key.ports);
        Facts {
            client: F::mapped(&self.key.src),
            client_port: u16::from_be_bytes(source),
            vip: F::mapped(&self.key.dst),
            vip_port: u16::from_be_bytes(destination),
            proto: self.key.proto as u8,
        }
    }
}

fn by_number(applied: &Applied) -> HashMap<u32, &Planned> {
    applied.services().map(|planned| (planned.image.id, planned)).collect()
}

/// Visits the forward entries of a table that belong to some services (by number), until `each` says that it has seen enough; that counts
/// from the next portion on.
fn visit<F: FlowTables, V: Plain>(
    tables: &impl Tables,
    (applied, services): (&Applied, &HashMap<u32, &Planned>),
    table: Typed<FlowKey<F>, V>,
    flow: impl Fn(&V) -> Flow<F>,
    mut each: impl FnMut(Entry<'_, F>) -> bool,
) -> Result<(), TableError> {
    let mut cursor = Cursor::default();
    let (mut more, mut wanted) = (true, true);
    while more && wanted {
        more = table.scan(tables, &mut cursor, |key, value| {
            let flow = flow(&value);
            let (service, version) = applied.owner(flow.backend());
            if !flow.is(flow_flag::REVERSE)
                && let Some(planned) = services.get(&service)
            {
                wanted = each(Entry { key, flow, planned, version });
            }
        })?;
    }
    Ok(())
}

/// Rows of `splitter flows`, those that are wanted.
pub fn rows(tables: &impl Tables, applied: &Applied, mut wanted: Wanted<'_>, clock: Clock) -> Result<Vec<FlowRow>, TableError> {
    family_rows::<V4>(tables, applied, clock, &mut wanted)?;
    family_rows::<V6>(tables, applied, clock, &mut wanted)?;
    spliced::rows::<V4>(tables, applied, clock, &mut wanted)?;
    spliced::rows::<V6>(tables, applied, clock, &mut wanted)?;
    Ok(wanted.into_rows())
}

fn family_rows<F: FlowTables>(tables: &impl Tables, applied: &Applied, clock: Clock, wanted: &mut Wanted<'_>) -> Result<(), TableError> {
    let plain = |flow: &Flow<F>| *flow;
    let services = wanted.services.clone();
    let mut broken = None;
    let mut add = |entry: Entry<'_, F>, state: &dyn Fn(&Flow<F>) -> Option<&'static str>| {
        let Some(state) = state(&entry.flow) else { return true };
        let (backend, port) = (F::mapped(&entry.flow.peer), entry.flow.peer_port.to_ne_bytes());
        let fits = wanted.client(&F::mapped(&entry.key.src))
            && wanted.backend(Some((&backend, port)))
            && wanted.state(state, false)
            && wanted.version(version_name(entry.planned, entry.version));
        if !fits {
            return !wanted.is_full();
        }
        match row(tables, &entry, state, clock) {
            Ok(row) => wanted.add(row),
            Err(error) => broken.replace(error).is_some(),
        }
    };
    let closing = flow_flag::FIN | flow_flag::PEER_FIN;
    let of = (applied, &services);
    visit(tables, of, F::TCP, plain, |e| add(e, &|flow| Some(if flow.is(closing) { "closing" } else { "established" })))?;
    visit(tables, of, F::UDP, plain, |e| add(e, &|flow| Some(if flow.is(flow_flag::REPLIED) { "replied" } else { "unreplied" })))?;
    let half = |half: &HalfOpen<F>| half.flow;
    visit(tables, of, F::HALF, half, |e| add(e, &|flow| (!flow.is(flow_flag::ESTABLISHED)).then_some("half-open")))?;
    visit(tables, of, F::CLOSING, plain, |e| add(e, &|_| Some("closing")))?;
    broken.map_or(Ok(()), Err)
}

/// `ADDRESS:PORT`; the port in network order.
pub fn endpoint(addr: &Addr, port: [u8; 2]) -> String {
    SocketAddr::new(plan::ip(addr), u16::from_be_bytes(port)).to_string()
}

fn version_name(planned: &Planned, version: u32) -> &str {
    if planned.image.node.as_ref().is_some_and(|node| node.versions[0].version == version) {
        // Whose a connection is says each of its requests.
        return "-";
    }
    let mut slots = planned.image.record.versions.iter().zip(&planned.model.versions);
    slots.find(|(slot, _)| slot.version == version).map_or("?", |(_, version)| version.name.as_str())
}

fn row<F: FlowTables>(tables: &impl Tables, entry: &Entry<'_, F>, state: &str, clock: Clock) -> Result<FlowRow, TableError> {
    let (source, destination) = flows::split_ports(entry.key.ports);
    let translated = if entry.flow.is(flow_flag::SNAT) { flows::translation(tables, entry.key)? } else { None };
    Ok(FlowRow {
        service: entry.planned.model.name.clone(),
        version: version_name(entry.planned, entry.version).into(),
        protocol: decision::protocol_name(entry.key.proto as u8).into(),
        client: endpoint(&F::mapped(&entry.key.src), source),
        frontend: endpoint(&F::mapped(&entry.key.dst), destination),
        backend: endpoint(&F::mapped(&entry.flow.peer), entry.flow.peer_port.to_ne_bytes()),
        state: state.into(),
        pinned: false,
        idle: clock.age(entry.flow.last),
        snat: translated.map(|snat| endpoint(&F::mapped(&snat.addr), snat.port.to_ne_bytes())),
    })
}

/// The version of an existing flow of a client's endpoint, with its backend. Not of http.
pub fn find(tables: &impl Tables, planned: &Planned, facts: &Facts) -> Result<Option<(String, String)>, TableError> {
    if plan::ip(&facts.client).is_ipv4() {
        find_in::<V4>(tables, planned, facts, key4(facts))
    } else {
        find_in::<V6>(tables, planned, facts, key6(facts))
    }
}

fn key4(facts: &Facts) -> FlowKey<V4> {
    let word = |addr: &Addr| [u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]])];
    FlowKey { src: word(&facts.client), dst: word(&facts.vip), ports: ports(facts), proto: u32::from(facts.proto) }
}

fn key6(facts: &Facts) -> FlowKey<V6> {
    let words = |addr: &Addr| std::array::from_fn(|i| splitter_datapath::read::<u32>(&addr[4 * i..]));
    FlowKey { src: words(&facts.client), dst: words(&facts.vip), ports: ports(facts), proto: u32::from(facts.proto) }
}

fn ports(facts: &Facts) -> u32 {
    let [a, b] = facts.client_port.to_be_bytes();
    let [c, d] = facts.vip_port.to_be_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

fn find_in<F: FlowTables>(
    tables: &impl Tables,
    planned: &Planned,
    facts: &Facts,
    key: FlowKey<F>,
) -> Result<Option<(String, String)>, TableError> {
    let table = if facts.proto == TCP { F::TCP } else { F::UDP };
    let flow = match table.get(tables, key)? {
        Some(flow) => Some(flow),
        None => F::HALF.get(tables, key)?.map(|half| half.flow),
    };
    Ok(flow.map(|flow| {
        let row = planned.image.backends.iter().find(|(id, _)| *id == flow.backend());
        let version = row.map_or("?", |(_, row)| version_name(planned, row.version)).to_owned();
        (version, endpoint(&F::mapped(&flow.peer), flow.peer_port.to_ne_bytes()))
    }))
}

/// What to do with flows that belong elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Count,
    /// TCP: reset at the next packet; UDP: forgotten.
    End,
}

/// Flows of some services (by number) whose key now decides to another version than they have; returns how many. Of http services the pinned ones,
/// when their policy wants it.
pub fn strays(tables: &mut impl Tables, applied: &Applied, services: &HashSet<u32>, then: Then) -> Result<u64, TableError> {
    if services.is_empty() {
        return Ok(0);
    }
    Ok(family_strays::<V4>(tables, applied, services, then)? + family_strays::<V6>(tables, applied, services, then)?)
}

fn family_strays<F: FlowTables>(
    tables: &mut impl Tables,
    applied: &Applied,
    services: &HashSet<u32>,
    then: Then,
) -> Result<u64, TableError> {
    let mut count = 0;
    let known = by_number(applied);
    for table in [F::TCP, F::UDP] {
        let mut found = Vec::new();
        visit(
            tables,
            (applied, &known),
            table,
            |flow: &Flow<F>| *flow,
            |entry| {
                // Requests of http follow the weights by themselves.
                let http = entry.planned.model.mode.reads_requests();
                if http || !services.contains(&entry.planned.image.id) || entry.flow.is(flow_flag::RESET) {
                    return true;
                }
                let now = decision::version(entry.planned, &entry.facts());
                if now.map(|index| entry.planned.image.record.versions[index].version) != Some(entry.version) {
                    found.push((entry.key, entry.flow));
                }
                true
            },
        )?;
        count += found.len() as u64;
        match then {
            Then::Count => {}
            Then::End if table.0 == F::UDP.0 => flows::remove(tables, table, &found)?,
            Then::End => {
                for (key, flow) in found {
                    mark(tables, table, key)?;
                    if let Some(partner) = flows::partner(tables, &key, &flow)? {
                        mark(tables, table, partner)?;
                    }
                }
            }
        }
    }
    Ok(count + spliced::strays::<F>(tables, (applied, &known), services, then)?)
}

/// Asks the kernel to reset a flow. Reads again: the entry may have moved on since the scan.
fn mark<F: FlowTables>(tables: &mut impl Tables, table: Typed<FlowKey<F>, Flow<F>>, key: FlowKey<F>) -> Result<(), TableError> {
    if let Some(flow) = table.get(tables, key)? {
        let marked = Flow { owner: flow.owner.with(flow_flag::RESET), ..flow };
        table.replace(tables, key, marked)?;
    }
    Ok(())
}
