//! Entries of the flow tables as the agent handles them: the two directions of a flow and their SNAT entries belong together.

use crate::{Cursor, FlowTables, TableError, Tables, Typed};
use splitter_common::abi::*;

/// Ports of a key: source, destination, as they stand in memory (network order).
pub fn split_ports(ports: u32) -> ([u8; 2], [u8; 2]) {
    let [a, b, c, d] = ports.to_ne_bytes();
    ([a, b], [c, d])
}

fn join_ports(source: [u8; 2], destination: [u8; 2]) -> u32 {
    u32::from_ne_bytes([source[0], source[1], destination[0], destination[1]])
}

/// Key of the entry of the other direction; `None` when its SNAT half was evicted.
pub fn partner<F: FlowTables>(tables: &impl Tables, key: &FlowKey<F>, flow: &Flow<F>) -> Result<Option<FlowKey<F>>, TableError> {
    let (source, destination) = split_ports(key.ports);
    let reverse = flow.is(flow_flag::REVERSE);
    // The side that the entry keeps as it is, unless SNAT changes it too.
    let mut other = if reverse { (key.dst, destination) } else { (key.src, source) };
    if flow.is(flow_flag::SNAT) {
        let Some(snat) = translation(tables, *key)? else { return Ok(None) };
        other = (snat.addr, snat.port.to_ne_bytes());
    }
    let peer = flow.peer_port.to_ne_bytes();
    Ok(Some(if reverse {
        FlowKey { src: other.0, dst: flow.peer, ports: join_ports(other.1, peer), proto: key.proto }
    } else {
        FlowKey { src: flow.peer, dst: other.0, ports: join_ports(peer, other.1), proto: key.proto }
    }))
}

/// Key of the leg that a spliced flow uses; of no leg while it has none yet.
pub fn leg_in_use<F: FlowTables>(spliced: &Spliced<F>) -> FlowKey<F> {
    FlowKey { src: spliced.dst, dst: spliced.src, ports: spliced.ports.rotate_left(16), proto: u32::from(TCP) }
}

/// Key of the spliced flow that a leg belongs to.
pub fn client_of<F: FlowTables>(leg: &Leg<F>) -> FlowKey<F> {
    FlowKey { src: leg.dst, dst: leg.src, ports: leg.ports.rotate_left(16), proto: u32::from(TCP) }
}

/// Address and port that the backend of a spliced flow sees, when they are not the client's.
pub fn translated_source<F: FlowTables>(key: &FlowKey<F>, spliced: &Spliced<F>) -> Option<(F::Words, [u8; 2])> {
    let seen = (spliced.src, split_ports(spliced.ports).0);
    (seen != (key.src, split_ports(key.ports).0)).then_some(seen)
}

/// Removes flows, given by an entry of either direction: both entries and both SNAT entries.
pub fn remove<F: FlowTables, V>(
    tables: &mut impl Tables,
    table: Typed<FlowKey<F>, V>,
    entries: &[(FlowKey<F>, Flow<F>)],
) -> Result<(), TableError>
where
    V: crate::Plain,
{
    let (mut keys, mut translated) = (Vec::new(), Vec::new());
    for (key, flow) in entries {
        let other = partner(tables, key, flow)?;
        for key in [Some(*key), other].into_iter().flatten() {
            keys.push(key);
            if flow.is(flow_flag::SNAT) {
                translated.push(key);
            }
        }
    }
    table.delete(tables, &keys)?;
    forget_translations(tables, &translated)
}

/// The other half of a flow's translation, whether the flow was answered or not.
pub fn translation<F: FlowTables>(tables: &impl Tables, key: FlowKey<F>) -> Result<Option<Snat<F>>, TableError> {
    Ok(match F::SNAT.get(tables, key)? {
        None => F::CLAIMS.get(tables, key)?,
        found => found,
    })
}

/// Removes these halves.
pub fn forget_translations<F: FlowTables>(tables: &mut impl Tables, keys: &[FlowKey<F>]) -> Result<(), TableError> {
    F::SNAT.delete(tables, keys)?;
    F::CLAIMS.delete(tables, keys)
}

/// Takes all flows from backends that `gone` names; returns how many entries that were. Established TCP stays in the tables, of no backend
/// any more: the kernel resets both ends with the flow's next packet, whichever side sends it. The rest is removed.
pub fn purge(tables: &mut impl Tables, gone: &dyn Fn(u32) -> bool) -> Result<usize, TableError> {
    Ok(purge_family::<V4>(tables, gone)? + purge_family::<V6>(tables, gone)?)
}

fn purge_family<F: FlowTables>(tables: &mut impl Tables, gone: &dyn Fn(u32) -> bool) -> Result<usize, TableError> {
    let orphaned = each_of(
        tables,
        F::TCP,
        |flow| *flow,
        gone,
        |tables, found| {
            let orphans: Vec<_> = found.iter().map(|(key, flow)| (*key, orphan(*flow, None))).collect();
            F::TCP.put(tables, &orphans)
        },
    )?;
    let datagrams = each_of(tables, F::UDP, |flow| *flow, gone, |tables, found| remove(tables, F::UDP, found))?;
    let half_open = each_of(tables, F::HALF, |half: &HalfOpen<F>| half.flow, gone, |tables, found| remove(tables, F::HALF, found))?;
    Ok(orphaned + datagrams + half_open)
}

/// The backend id that is never given: its state is "gone" for ever.
pub const NOBODY: u32 = 0;

/// An established flow's entry, of no backend any more: the kernel resets both ends with the flow's next packet. `other`: the entry of the other
/// direction, whose FIN this one may not have seen.
pub fn orphan<F: Family>(flow: Flow<F>, other: Option<Flow<F>>) -> Flow<F> {
    let fins = other.map_or(0, |other| other.flags() & (flow_flag::FIN | flow_flag::PEER_FIN));
    Flow { owner: owner(NOBODY, flow.flags() | fins), ..flow }
}

fn each_of<F: FlowTables, V: crate::Plain, T: Tables>(
    tables: &mut T,
    table: Typed<FlowKey<F>, V>,
    flow: impl Fn(&V) -> Flow<F>,
    gone: &dyn Fn(u32) -> bool,
    act: impl Fn(&mut T, &[(FlowKey<F>, Flow<F>)]) -> Result<(), TableError>,
) -> Result<usize, TableError> {
    let (mut cursor, mut count, mut more) = (Cursor::default(), 0, true);
    while more {
        let mut found = Vec::new();
        more = table.scan(tables, &mut cursor, |key, value| {
            let flow = flow(&value);
            if gone(flow.backend()) {
                found.push((key, flow));
            }
        })?;
        count += found.len();
        act(tables, &found)?;
    }
    Ok(count)
}
