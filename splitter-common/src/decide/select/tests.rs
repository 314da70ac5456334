//! The search among backends against a plain reading of what it promises, and the parts against the whole.

use super::*;
use crate::{
    abi::{TCP, mapped},
    decide::{intervals, salt},
    http::Plain,
};
use proptest::prelude::*;

/// Version ids are 11, 12, ...; backend ids those of `rows`.
#[derive(Debug)]
struct World {
    service: Service,
    /// Id, version id, state, whether it is suspect.
    rows: Vec<(u32, u32, u8, bool)>,
    rule: Option<u32>,
}

const CHUNKS: usize = 8;

impl World {
    fn row(&self, id: u32) -> Option<&(u32, u32, u8, bool)> {
        self.rows.iter().find(|row| row.0 == id)
    }
    /// Backend of a place of a version's table.
    fn entry(&self, version: u32, place: usize) -> u32 {
        let members: Vec<u32> = self.rows.iter().filter(|row| row.1 == version).map(|row| row.0).collect();
        // Not in turn: two places of a row may have the same.
        members[place * place % members.len()]
    }
}

impl Lookups for &World {
    type Loop = Plain;
    fn rule(self, _: u32, _: &Addr) -> Option<u32> {
        self.rule
    }
    fn backend(self, id: u32) -> Option<(u32, u8)> {
        self.row(id).map(|row| (row.1, row.2))
    }
    fn maglev(self, chunk: &MaglevKey, at: u32) -> Option<u32> {
        assert!(chunk.table == 7 && at < MAGLEV_CHUNK as u32 && chunk.chunk < CHUNKS as u32);
        Some(self.entry(chunk.version, chunk.chunk as usize * MAGLEV_CHUNK + at as usize))
    }
    fn is_suspect(self, backend: u32) -> bool {
        self.row(backend).is_some_and(|row| row.3)
    }
    fn with_search<R>(self, run: impl FnOnce(&mut Search) -> R) -> Option<R> {
        Some(run(&mut Search::new()))
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let state = prop_oneof![
        4 => Just(backend_state::READY),
        1 => Just(backend_state::DRAINING),
        1 => Just(backend_state::DOWN),
        1 => Just(backend_state::LEAVING),
    ];
    let version = (0..3u32, prop::collection::vec((state, prop::bool::weighted(0.3)), 0..5));
    (prop::collection::vec(version, 1..=MAX_VERSIONS), 0..4u8, prop::option::weighted(0.3, 0..8u32)).prop_map(
        |(versions, split_by, rule)| {
            let weights: Vec<u32> = versions.iter().map(|(weight, _)| *weight).collect();
            let rule = rule.map(|rule| rule % versions.len() as u32);
            let mut service = Service { salt: salt(b"checkout"), split_by, version_count: versions.len() as u8, ..Default::default() };
            service.has_rules = u8::from(rule.is_some());
            let (ends, mut rows) = (intervals(&weights).unwrap_or([0; MAX_VERSIONS]), Vec::new());
            for (i, (_, members)) in versions.iter().enumerate() {
                let first = rows.len() as u32 + 1;
                let version = i as u32 + 11;
                rows.extend(members.iter().zip(first..).map(|((state, suspect), id)| (id, version, *state, *suspect)));
                let (size, table) = match members.len() {
                    0 => (0, 0),
                    1 => (1, first),
                    _ => ((CHUNKS * MAGLEV_CHUNK) as u32, 7),
                };
                service.versions[i] = VersionSlot { end: ends[i], version, size, table, ready: members.len() as u32 };
            }
            World { service, rows, rule }
        },
    )
}

fn facts(port: u16) -> Facts {
    Facts { client: mapped([10, 1, 0, 2]), vip: mapped([10, 9, 9, 9]), client_port: port, vip_port: 80, proto: TCP }
}

/// What a search promises.
fn expected(world: &World, version: u32, port: u16, avoid: Avoid) -> u32 {
    let Some(slot) = world.service.versions.iter().find(|slot| slot.version == version) else { return 0 };
    let serves = |id: &u32| world.row(*id).is_some_and(|row| matches!(row.2, backend_state::READY | backend_state::DRAINING));
    if slot.size <= 1 {
        return if slot.size == 1 && serves(&slot.table) { slot.table } else { 0 };
    }
    let key = steady_key(world.service.split_by, &facts(port));
    let candidates: Vec<u32> = (0..if avoid.tried == 0 { 24 } else { 128 })
        .map(|attempt| world.entry(version, maglev::slot(backend_hash(world.service.salt, key, attempt), slot.size) as usize))
        .filter(serves)
        .collect();
    let fresh = || candidates.iter().copied().filter(|id| !avoid.has(*id));
    let healthy = fresh().find(|id| !world.row(*id).unwrap().3);
    let again = || candidates.iter().copied().find(|id| *id != avoid.last).or(candidates.first().copied());
    healthy.or_else(|| fresh().next()).or_else(again).unwrap_or(0)
}

fn requests() -> impl Strategy<Value = Request> {
    let ruled = prop_oneof![3 => Just(NO_RULE), 1 => Just(BASELINE_RULED), 2 => 11..21u32];
    (any::<u32>(), any::<Option<u64>>(), ruled).prop_map(|(at, key, ruled)| Request { at, key, ruled })
}

proptest! {
    #[test]
    fn the_first_healthy_candidate_gets_it(world in worlds(), port: u16, last in 0..12u32, tried in prop_oneof![Just(0u32), any::<u32>()]) {
        let mut choice = Choice { avoid: Avoid { last, tried }, ..Choice::nobody(1, 0) };
        let decided = select(&world, &world.service, &facts(port), None, &mut choice);
        prop_assert_eq!(decided, choice.version != 0);
        if let Some(rule) = world.rule {
            prop_assert_eq!((choice.version, choice.ruled), (11 + rule, 1));
        }
        prop_assert_eq!(choice.backend, expected(&world, choice.version, port, choice.avoid));
    }

    /// Who is with a backend of the version stays while it is ready, and while it drains and nobody healthy is left.
    #[test]
    fn a_connection_of_http_keeps_its_backend(world in worlds(), port: u16, in_use in 0..12u32, request in requests()) {
        let mut choice = Choice::nobody(1, in_use);
        if !select(&world, &world.service, &facts(port), Some(&request), &mut choice) {
            prop_assert!(choice.none == Reason::NoVersion && choice.backend == 0);
            return Ok(());
        }
        let state = world.row(in_use).filter(|row| row.1 == choice.version).map(|row| row.2);
        let other = expected(&world, choice.version, port, choice.avoid);
        let healthy = world.row(other).is_some_and(|row| !row.3);
        match state {
            Some(backend_state::READY) => prop_assert_eq!(choice.backend, in_use),
            Some(backend_state::DRAINING) if !healthy => prop_assert_eq!(choice.backend, in_use),
            _ => prop_assert_eq!(choice.backend, other),
        }
    }

    /// As the kernel's http path takes them.
    #[test]
    fn the_parts_are_the_whole(world in worlds(), port: u16, in_use in 0..12u32, request in requests()) {
        let (mut whole, mut parts) = (Choice::nobody(1, in_use), Choice::nobody(1, in_use));
        let (look, service, facts) = (&world, &world.service, &facts(port));
        let decided = select(look, service, facts, Some(&request), &mut whole);
        let index = version(look, service, facts, Some(&request), &mut parts);
        if index.is_some() && !stays(look, &mut parts) {
            backend(look, service, facts, &mut parts);
            drained(look, &mut parts);
        }
        prop_assert_eq!((decided, whole), (index.is_some(), parts));
    }
}
