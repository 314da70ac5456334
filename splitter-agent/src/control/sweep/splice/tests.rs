use super::super::AWAITED;
use super::*;
use splitter_datapath::reconcile::Bits;
use splitter_datapath::{Memory, NEXTHOP_OWNERS, NEXTHOPS, Plain, Typed, read};

const CLOCK: Clock = Clock { ticks: 77, ticks_per_second: 250, heads: 5_000 };

fn zeroed<T: Plain>() -> T {
    read(&[])
}

fn ago(seconds: u32) -> u32 {
    CLOCK.ticks.wrapping_sub(seconds * 250)
}

fn ports(source: u16, destination: u16) -> u32 {
    u32::from_ne_bytes([source.to_be_bytes(), destination.to_be_bytes()].concat().try_into().unwrap())
}

fn word(last: u8) -> [u32; 1] {
    [u32::from_ne_bytes([10, 0, 0, last])]
}

const CLIENT: u8 = 1;
const VIP: u8 = 9;

/// The client's side of a connection from a port.
fn key(port: u16) -> FlowKey<V4> {
    FlowKey { src: word(CLIENT), dst: word(VIP), ports: ports(port, 80), proto: 6 }
}

/// A flow to backend 1, whose client was heard of so many seconds ago.
fn flow(port: u16, state: u8, flags: u8, idle: u32) -> Spliced<V4> {
    Spliced {
        src: word(CLIENT),
        dst: word(101),
        ports: ports(port, 8080),
        nexthop: 3,
        owner: owner(1, flags),
        last: ago(idle),
        state,
        service: 7,
        ..zeroed()
    }
}

/// A leg of the client's port to a backend.
fn leg(port: u16, backend: u8, flags: u8, idle: u32) -> (FlowKey<V4>, Leg<V4>) {
    let key = FlowKey { src: word(100 + backend), dst: word(CLIENT), ports: ports(8080, port), proto: 6 };
    let leg = Leg {
        src: word(VIP),
        dst: word(CLIENT),
        ports: ports(80, port),
        nexthop: 4,
        forward: 5,
        owner: owner(u32::from(backend), flags),
        last: ago(idle),
        state: splice_state::ESTABLISHED,
        ..zeroed()
    };
    (key, leg)
}

fn live(backends: &[u32]) -> Option<Bits> {
    let mut live = Bits::default();
    backends.iter().for_each(|backend| live.set(*backend));
    Some(live)
}

fn sweep(janitor: &mut Janitor, memory: &mut Memory) {
    janitor.begin();
    while !janitor.step(memory, CLOCK).unwrap() {}
    for table in [Table::Spliced4, Table::Legs4, Table::Snat4] {
        assert_eq!(janitor.findings().entries[&table], memory.entries(table).count() as u64, "{table}");
    }
}

fn put<V: Plain>(memory: &mut Memory, table: Typed<FlowKey<V4>, V>, entries: &[(FlowKey<V4>, V)]) {
    table.put(memory, entries).unwrap();
}

fn is_there(memory: &Memory, port: u16) -> bool {
    V4::SPLICED.get(memory, key(port)).unwrap().is_some()
}

#[test]
fn a_flow_ends_when_client_and_backend_are_silent() {
    for (state, flags, limit, counted) in [
        (splice_state::ESTABLISHED, 0, ESTABLISHED, 3),
        (splice_state::ESTABLISHED, splice_flag::FIN, HALF_CLOSED, 3),
        (splice_state::ESTABLISHED, splice_flag::PEER_FIN, HALF_CLOSED, 3),
        (splice_state::ESTABLISHED, splice_flag::PINNED, ESTABLISHED, 3),
        (splice_state::OPENING, 0, HALF_OPEN, 0),
        (splice_state::ANSWERED, 0, HALF_OPEN, 0),
    ] {
        let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
        for (port, client, backend) in [(1, limit + 1, limit + 1), (2, limit + 1, 1), (3, 1, limit + 1), (4, limit - 1, limit - 1)] {
            put(&mut memory, V4::SPLICED, &[(key(port), flow(port, state, flags, client))]);
            put(&mut memory, V4::LEGS, &[leg(port, 1, 0, backend)]);
        }
        sweep(&mut janitor, &mut memory);
        let left: Vec<u16> = (1..=4).filter(|port| is_there(&memory, *port)).collect();
        assert_eq!(left, [2, 3, 4], "state {state} flags {flags}");
        assert!(V4::LEGS.get(&memory, leg(1, 1, 0, 0).0).unwrap().is_none(), "the leg in use goes along");
        assert_eq!(memory.entries(Table::Legs4).count(), 3, "and no other");
        assert_eq!(janitor.findings().flows.get(&1).copied().unwrap_or(0), counted, "state {state}");
    }
}

/// Its client waits for the answer, half closed or not: however long that takes.
#[test]
fn who_is_owed_an_answer_is_waited_for() {
    let response = |flags, left: u32| {
        let (key, one) = leg(1, 1, flags, ORPHANED + HALF_CLOSED + 1);
        (key, Leg { next: 5, body_end: 5u32.wrapping_add(left), ..one })
    };
    let owing = [response(leg_flag::AWAIT, 0), response(leg_flag::CHUNKED, 0), response(leg_flag::UNSURE, 0), response(0, 1)];
    let done = [response(0, 0), response(0, 1u32.wrapping_neg()), response(leg_flag::UNSURE | leg_flag::FIN, 0)];
    for (backends, leaving, flags) in [
        (live(&[1]), live(&[]), splice_flag::FIN),
        (live(&[]), live(&[1]), 0),
        (live(&[]), live(&[1]), splice_flag::FIN),
        // Nobody will answer.
        (live(&[]), live(&[]), 0),
    ] {
        let never = backends.as_ref().is_some_and(|bits| !bits.has(1)) && leaving.as_ref().is_some_and(|bits| !bits.has(1));
        for (one, waits) in owing.iter().map(|one| (one, !never)).chain(done.iter().map(|one| (one, false))) {
            let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
            put(&mut memory, V4::SPLICED, &[(key(1), flow(1, splice_state::ESTABLISHED, flags, ORPHANED + HALF_CLOSED + 1))]);
            put(&mut memory, V4::LEGS, &[*one]);
            janitor.set_live(backends.clone());
            janitor.set_leaving(leaving.clone().unwrap_or_default());
            sweep(&mut janitor, &mut memory);
            assert_eq!(is_there(&memory, 1), waits, "{flags} {:?}", one.1);
        }
    }
}

#[test]
fn a_leg_of_another_client_is_no_sign_of_life() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    put(&mut memory, V4::SPLICED, &[(key(1), flow(1, splice_state::ESTABLISHED, 0, ESTABLISHED + 1))]);
    let (leg_key, other) = leg(1, 1, 0, 0);
    put(&mut memory, V4::LEGS, &[(leg_key, Leg { dst: word(2), ..other })]);
    sweep(&mut janitor, &mut memory);
    assert!(!is_there(&memory, 1));
    assert_eq!(memory.entries(Table::Legs4).count(), 1, "it is not this flow's");
}

#[test]
fn flows_of_dead_backends_wait_for_a_packet() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    put(&mut memory, V4::SPLICED, &[(key(1), flow(1, splice_state::ESTABLISHED, 0, 0))]);
    put(&mut memory, V4::SPLICED, &[(key(2), flow(2, splice_state::ESTABLISHED, 0, ORPHANED + 1))]);
    put(&mut memory, V4::SPLICED, &[(key(3), Spliced { owner: Owner::NONE, ..begun(3, splice_state::GATHERING, 1, 1) })]);
    let parked = |idle| leg(1, 2, leg_flag::IDLE, idle);
    put(&mut memory, V4::LEGS, &[parked(0), leg(1, 1, 0, 0)]);
    sweep(&mut janitor, &mut memory);
    assert_eq!((memory.entries(Table::Spliced4).count(), janitor.findings().flows[&1]), (3, 2), "nobody said which backends live");
    janitor.set_live(live(&[]));
    sweep(&mut janitor, &mut memory);
    assert!(is_there(&memory, 1), "the one that was busy waits for its reset");
    assert!(!is_there(&memory, 2));
    assert!(is_there(&memory, 3), "no backend yet is no dead backend");
    assert!(janitor.findings().flows.is_empty());
    assert!(V4::LEGS.get(&memory, parked(0).0).unwrap().is_none(), "nobody can use an idle leg to a dead backend");
    assert!(V4::LEGS.get(&memory, leg(1, 1, 0, 0).0).unwrap().is_some());
}

#[test]
fn legs_stay_while_their_flow_names_them() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    let old = ESTABLISHED + 1;
    let one = Spliced { idle: [0, 2, 0], ..flow(1, splice_state::ESTABLISHED, 0, 0) };
    put(&mut memory, V4::SPLICED, &[(key(1), one)]);
    let legs = [
        leg(1, 1, 0, old),
        leg(1, 2, leg_flag::IDLE, old),
        leg(1, 3, leg_flag::IDLE, old),
        leg(1, 4, 0, old),
        leg(9, 1, 0, ORPHANED + 1),
        leg(8, 1, 0, ORPHANED - 1),
    ];
    put(&mut memory, V4::LEGS, &legs);
    janitor.set_live(live(&[1, 2, 3, 4]));
    sweep(&mut janitor, &mut memory);
    let left: Vec<bool> = legs.iter().map(|(key, _)| V4::LEGS.get(&memory, *key).unwrap().is_some()).collect();
    assert_eq!(left, [true, true, false, false, false, true], "in use, idle; not named twice; flow gone for long, just gone");
}

#[test]
fn what_splices_name_is_in_use() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    put(&mut memory, V4::SPLICED, &[(key(1), flow(1, splice_state::ESTABLISHED, 0, 0))]);
    put(&mut memory, V4::LEGS, &[leg(1, 1, 0, 0), leg(2, 6, 0, 0)]);
    let old = NextHop { ifindex: 7, checked: ago(61), ..NextHop::default() };
    for slot in 3..=6 {
        NEXTHOP_OWNERS.put_one(&mut memory, slot, old).unwrap();
        NEXTHOPS.put_one(&mut memory, slot, old).unwrap();
    }
    for _ in 0..3 {
        sweep(&mut janitor, &mut memory);
    }
    let slots: Vec<u8> = memory.entries(Table::NextHopOwners).map(|(key, _)| key[0]).collect();
    assert_eq!(slots, [3, 4, 5], "of the flow, of the leg in both directions");
    let findings = janitor.findings();
    let named = |kind, numbers: [u32; 3]| numbers.map(|number| findings.names(kind, number));
    assert_eq!(named(identity_kind::BACKEND, [1, 6, 7]), [true, true, false]);
    assert_eq!(named(identity_kind::SERVICE, [7, 1, 6]), [true, false, false]);
    assert_eq!(named(identity_kind::VERSION, [1, 6, 7]), [false; 3]);
}

#[test]
fn translations_of_http_live_and_end_with_their_flow() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    let snat = Snat { addr: word(50), port: 4, pad: 0 };
    for (port, idle) in [(1, 0), (2, ESTABLISHED + 1)] {
        // The backend sees the node's address and a port of its own.
        let spliced = Spliced { src: word(50), ports: ports(port + 100, 8080), ..flow(port, splice_state::ESTABLISHED, 0, idle) };
        let (leg_key, one) = leg(port, 1, 0, idle);
        let leg_key = FlowKey { dst: word(50), ports: ports(8080, port + 100), ..leg_key };
        put(&mut memory, V4::SPLICED, &[(key(port), spliced)]);
        put(&mut memory, V4::LEGS, &[(leg_key, one)]);
        put(&mut memory, V4::SNAT, &[(key(port), snat), (leg_key, snat)]);
    }
    sweep(&mut janitor, &mut memory);
    assert_eq!(memory.entries(Table::Snat4).count(), 2, "the idle flow's claims are free at once");
    assert!(janitor.findings().strays.is_empty(), "the others are in use");
    assert_eq!((memory.entries(Table::Legs4).count(), is_there(&memory, 1)), (1, true));
}

/// The head's first byte came so many seconds ago.
fn begun(port: u16, state: u8, seconds: u32, idle: u32) -> Spliced<V4> {
    Spliced { stash: port, stashed: CLOCK.heads.wrapping_sub(seconds * 954), ..flow(port, state, 0, idle) }
}

#[test]
fn a_head_ages_by_its_first_byte() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    let (old, young) = (HALF_OPEN + 1, HALF_OPEN - 1);
    let flows = [
        begun(1, splice_state::GATHERING, old, 0),
        begun(2, splice_state::GATHERING, young, 9999),
        begun(3, splice_state::OPENING, old, old),
        begun(4, splice_state::OPENING, young, 9999),
        begun(5, splice_state::OPENING, old, 0),
        begun(6, splice_state::ESTABLISHED, 0, ESTABLISHED + 1),
    ];
    for flow in flows {
        put(&mut memory, V4::SPLICED, &[(key(flow.stash), flow)]);
    }
    put(&mut memory, V4::LEGS, &[leg(1, 1, 0, 0)]);
    sweep(&mut janitor, &mut memory);
    let left: Vec<u16> = (1..=6).filter(|port| is_there(&memory, *port)).collect();
    assert_eq!(left, [2, 4, 5], "acknowledgements keep no head that does not end; a request that has just begun is no idle one");
    assert_eq!(memory.entries(Table::Legs4).count(), 0, "the leg that kept being acknowledged goes along");
}

#[test]
fn slots_for_heads_are_counted_by_service() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    let word = |service: u64, flags: u64, ms: u32| {
        stash_word::TAKEN | flags | service << stash_word::SERVICE | u64::from(CLOCK.heads.wrapping_sub(ms))
    };
    let mut set = StashSet::default();
    set.words[..4].copy_from_slice(&[
        word(7, stash_word::ACKNOWLEDGED, 9_000),
        word(7, 0, 9_000),
        word(7, stash_word::ACKNOWLEDGED, 11_000),
        word(9, 0, 100),
    ]);
    STASH_SETS.put_one(&mut memory, 3, set).unwrap();
    STASH_SETS.put_one(&mut memory, 63, StashSet { words: [word(9, stash_word::ACKNOWLEDGED, 0); 16] }).unwrap();
    sweep(&mut janitor, &mut memory);
    let findings = janitor.findings();
    let heads = [7, 9, 1].map(|service| findings.heads(service));
    assert_eq!((findings.entries[&Table::Stashes], heads), (18, [1, 17, 0]), "those that anybody may take count as free");
}

#[test]
fn limits_of_the_sixth_version_are_the_same() {
    let (mut memory, mut janitor) = (Memory::new(), Janitor::default());
    let addr = |last: u32| [1, 2, 3, last];
    let client = FlowKey { src: addr(1), dst: addr(9), ports: ports(1, 80), proto: 6 };
    let busy = Spliced::<V6> {
        src: addr(1),
        dst: addr(101),
        ports: ports(1, 8080),
        owner: owner(1, 0),
        last: ago(AWAITED),
        state: splice_state::ESTABLISHED,
        ..zeroed()
    };
    let idle = FlowKey { ports: ports(2, 80), ..client };
    V6::SPLICED.put(&mut memory, &[(client, busy), (idle, Spliced { state: splice_state::ANSWERED, ..busy })]).unwrap();
    sweep(&mut janitor, &mut memory);
    assert_eq!(V6::SPLICED.get(&memory, client).unwrap(), Some(busy));
    assert_eq!(memory.entries(Table::Spliced6).count(), 1);
    assert_eq!((janitor.findings().entries[&Table::Spliced6], janitor.findings().flows[&1]), (1, 1));
}
