//! Between two portions: whose turn it is, and what the tables hold.

use super::*;
use crate::{Memory, TableError};
use splitter_policy::model::{
    Backend as Server, BackendState, Frontend, Http, Mode, OnWeightChange, Protocol, Service as Model, Snat as Translation, SplitBy,
    Version,
};
use std::net::SocketAddr;

/// Service `number` with one backend in each version, at these ports of the VIP.
fn model(number: u8, weights: [u32; 2], ports: &[u16]) -> Arc<Model> {
    let version = |index: u8| Version {
        name: format!("v{index}"),
        weight: weights[usize::from(index)],
        backends: vec![Server { address: SocketAddr::from(([10, 2, number, index], 80)), state: BackendState::Ready }],
        lookups: Vec::new(),
        found: 0,
    };
    let frontend = |port: &u16| Frontend { address: SocketAddr::from(([10, 9, 9, 9], *port)), protocol: Protocol::Tcp };
    Arc::new(Model {
        name: format!("s{number}"),
        frontends: ports.iter().map(frontend).collect(),
        mode: Mode::Tcp,
        split_by: SplitBy::Connection,
        versions: vec![version(0), version(1)],
        rules: Vec::new(),
        http: None,
        tls: None,
        on_weight_change: OnWeightChange::Keep,
        pinned: Default::default(),
        snat: Translation::Auto,
        path: Default::default(),
        vip: Default::default(),
        rollout: None,
        origin: String::new(),
    })
}

fn single() -> Reconciler {
    Reconciler { portion: 1, ..Reconciler::new() }
}

/// The rest of a work; every state in between is looked at.
fn finish(reconciler: &mut Reconciler, memory: &mut Memory, work: &mut Work, mut look: impl FnMut(&Memory)) -> Report {
    loop {
        let portion = reconciler.advance(memory, work).unwrap();
        look(memory);
        if let Some(report) = portion.report {
            return report;
        }
    }
}

fn owner_of(memory: &Memory, port: u16) -> Option<u32> {
    let frontend = Frontend { address: SocketAddr::from(([10, 9, 9, 9], port)), protocol: Protocol::Tcp };
    FRONTENDS.get(memory, plan::frontend_key(&frontend)).unwrap()
}

fn weights(memory: &Memory, id: u32) -> [u64; 2] {
    let record = SERVICES.get(memory, id).unwrap().unwrap();
    [record.versions[0].end, record.versions[1].end]
}

/// A frontend that moves is answered for by one of its two services at any time, whichever of them is written first.
#[test]
fn frontends_that_move_are_never_gone() {
    let before = vec![model(0, [1, 0], &[80, 81]), model(1, [1, 0], &[82, 83])];
    let after = vec![model(0, [1, 0], &[80, 82]), model(1, [1, 0], &[81, 83])];
    for restart in [false, true] {
        let (mut reconciler, mut memory) = (single(), Memory::new());
        reconciler.apply(&mut memory, &before).unwrap();
        let ids = [owner_of(&memory, 80), owner_of(&memory, 83)];
        if restart {
            reconciler = single();
        }
        let mut work = reconciler.begin(&memory, Arc::new(after.clone())).unwrap();
        let report = finish(&mut reconciler, &mut memory, &mut work, |memory| {
            (80..84).for_each(|port| assert!(ids.contains(&owner_of(memory, port)), "{port} is nobody's"));
        });
        assert_eq!(report.changed, 2);
        assert_eq!([80, 82].map(|port| owner_of(&memory, port)), [ids[0]; 2]);
        assert_eq!([81, 83].map(|port| owner_of(&memory, port)), [ids[1]; 2]);
    }
}

/// Weights that are set while a policy is applied are in the kernel before the next portion, and stay.
#[test]
fn a_weight_change_does_not_wait_for_the_end() {
    let (mut reconciler, mut memory) = (single(), Memory::new());
    let policy = |weight| (0..10u8).map(|i| model(i, [weight, 1], &[80 + u16::from(i)])).collect::<Vec<_>>();
    reconciler.apply(&mut memory, &policy(1)).unwrap();
    let ids: Vec<u32> = (80..90).map(|port| owner_of(&memory, port).unwrap()).collect();
    let mut work = reconciler.begin(&memory, Arc::new(policy(3))).unwrap();
    reconciler.advance(&mut memory, &mut work).unwrap();
    let before: Vec<_> = ids.iter().map(|id| weights(&memory, *id)).collect();
    assert_eq!(before.iter().filter(|ends| **ends != before[9]).count(), 1, "one portion is one service here");
    // The first is written, the last still waits.
    assert!(reconciler.advance_service(&mut memory, &mut work, "s0").unwrap().is_none());
    assert_eq!(reconciler.advance_service(&mut memory, &mut work, "s9").unwrap().unwrap().reweighted, ["s9"]);
    for name in ["s0", "s9"] {
        reconciler.set_weights(&mut memory, name, &[0, 1]).unwrap();
    }
    let all = weights(&memory, ids[0]);
    assert_eq!((all[0], weights(&memory, ids[9])), (0, all));
    assert_eq!(weights(&memory, ids[5]), before[5], "the others are not written yet");
    let mut states = 0;
    let report = finish(&mut reconciler, &mut memory, &mut work, |memory| {
        states += 1;
        assert_eq!([weights(memory, ids[0]), weights(memory, ids[9])], [all; 2]);
    });
    assert_eq!(report.changed, 10);
    assert!(states >= 9, "{states}");
    assert_ne!(weights(&memory, ids[5]), before[5]);
    // What was set by hand is not the policy's: the next apply finds exactly these two.
    assert_eq!(reconciler.apply(&mut memory, &policy(3)).unwrap().reweighted, ["s0", "s9"]);
}

/// A new service that is named can be had before its turn.
#[test]
fn a_new_service_can_be_brought_forward() {
    let (mut reconciler, mut memory) = (single(), Memory::new());
    let policy: Vec<_> = (0..5u8).map(|i| model(i, [1, 1], &[80 + u16::from(i)])).collect();
    let mut work = reconciler.begin(&memory, Arc::new(policy)).unwrap();
    assert!(reconciler.advance_service(&mut memory, &mut work, "s4").unwrap().is_some());
    assert!(reconciler.advance_service(&mut memory, &mut work, "s4").unwrap().is_none());
    assert!(reconciler.advance_service(&mut memory, &mut work, "s7").unwrap().is_none());
    assert_eq!((owner_of(&memory, 84).is_some(), owner_of(&memory, 83).is_some()), (true, false));
    assert_eq!(finish(&mut reconciler, &mut memory, &mut work, |_| {}).changed, 5);
    assert_eq!(reconciler.services().len(), 5);
}

/// Services that are the same objects are not even compared; what else changed is found.
#[test]
fn only_what_may_differ_is_planned() {
    let (mut reconciler, mut memory) = (single(), Memory::new());
    let mut policy: Vec<_> = (0..9u8).map(|i| model(i, [1, 1], &[80 + u16::from(i)])).collect();
    reconciler.apply(&mut memory, &policy).unwrap();
    let todo = |reconciler: &mut Reconciler, memory: &mut Memory, policy: &[Arc<Model>]| {
        let mut work = reconciler.begin(memory, Arc::new(policy.to_vec())).unwrap();
        let todo: Vec<_> = work.todo.iter().map(|index| policy[*index].name.clone()).chain(work.removed.clone()).collect();
        finish(reconciler, memory, &mut work, |_| {});
        todo
    };
    assert!(todo(&mut reconciler, &mut memory, &policy).is_empty());
    policy[4] = model(4, [1, 2], &[84]);
    policy[6] = Arc::new(Model { origin: "a.yaml:7:1".into(), ..Model::clone(&policy[6]) });
    policy.remove(2);
    assert_eq!(todo(&mut reconciler, &mut memory, &policy), ["s4", "s2"]);
    assert_eq!(reconciler.service("s6").unwrap().model.origin, "a.yaml:7:1");
    policy.insert(2, model(2, [1, 1], &[82]));
    assert_eq!(todo(&mut reconciler, &mut memory, &policy), ["s2"]);
    // The same object, but not what the kernel has: weights were set by hand.
    reconciler.set_weights(&mut memory, "s7", &[5, 1]).unwrap();
    assert_eq!(todo(&mut reconciler, &mut memory, &policy), ["s7"]);
}

/// An agent that comes back knows from the kernel which weights its policy changes.
#[test]
fn what_changed_while_nobody_was_there_is_told() {
    let mut memory = Memory::new();
    let policy = |weight| vec![model(0, [weight, 1], &[80]), model(1, [1, 1], &[81])];
    single().apply(&mut memory, &policy(1)).unwrap();
    assert_eq!(single().apply(&mut memory, &policy(1)).unwrap().reweighted, [""; 0]);
    assert_eq!(single().apply(&mut memory, &policy(2)).unwrap().reweighted, ["s0"]);
}

/// A work that nobody ends, or that another failure overtakes, is not taken for done.
#[test]
fn a_dropped_work_is_begun_again() -> Result<(), TableError> {
    let (mut reconciler, mut memory) = (single(), Memory::new());
    let policy: Vec<_> = (0..4u8).map(|i| model(i, [1, 1], &[80 + u16::from(i)])).collect();
    let mut work = reconciler.begin(&memory, Arc::new(policy.clone())).unwrap();
    reconciler.advance(&mut memory, &mut work).unwrap();
    drop(work);
    assert_eq!(reconciler.apply(&mut memory, &policy).unwrap().changed, 3);
    // What it would have removed is removed by the next.
    drop(reconciler.begin(&memory, Arc::new(policy[1..].to_vec())).unwrap());
    reconciler.apply(&mut memory, &policy[1..]).unwrap();
    assert_eq!((reconciler.services().len(), owner_of(&memory, 80)), (3, None));
    let mut work = reconciler.begin(&memory, Arc::new(policy.clone())).unwrap();
    reconciler.numbers = None;
    assert!(matches!(reconciler.advance(&mut memory, &mut work), Err(ReconcileError::Unsure)));
    assert_eq!(reconciler.apply(&mut memory, &policy).unwrap().changed, 1);
    reconciler.prune(&mut memory)
}

/// Half of a policy that does not fit is not applied.
#[test]
fn what_does_not_fit_changes_nothing() {
    let mut memory = Memory::new().with_limit(Table::Backends, 9);
    let mut reconciler = single();
    let policy = |count: u8| (0..count).map(|i| model(i, [1, 1], &[80 + u16::from(i)])).collect::<Vec<_>>();
    reconciler.apply(&mut memory, &policy(3)).unwrap();
    let entries = |memory: &Memory| Table::ALL.iter().map(|table| memory.entries(*table).count()).collect::<Vec<_>>();
    let before = entries(&memory);
    for _ in 0..2 {
        let error = reconciler.apply(&mut memory, &policy(5)).unwrap_err().to_string();
        assert!(error.contains("more backends than the maps hold (8)"), "{error}");
        assert_eq!(entries(&memory), before);
    }
    // With the last of them every number is taken, which is no obstacle.
    assert_eq!(reconciler.apply(&mut memory, &policy(4)).unwrap().changed, 1);
    assert_eq!(single().apply(&mut memory, &policy(4)).unwrap().changed, 0);
}

#[test]
fn timestamps_are_promised_when_all_backends_agree() {
    let mut service = Arc::unwrap_or_clone(model(1, [1, 0], &[80]));
    (service.mode, service.http) = (Mode::Http, Some(Http::default()));
    let down = SocketAddr::from(([10, 2, 1, 9], 80));
    service.versions[0].backends.push(Server { address: down, state: BackendState::Down });
    let [a, b] = [0, 1].map(|version: usize| service.versions[version].backends[0].address);
    let service = Arc::new(service);
    let (mut reconciler, mut memory) = (Reconciler::new(), Memory::new());
    let mut promised = |reconciler: &mut Reconciler, said: Option<&[(SocketAddr, bool)]>| {
        reconciler.set_stamps(said.map(|said| said.iter().copied().collect()));
        reconciler.apply(&mut memory, std::slice::from_ref(&service)).unwrap();
        SERVICES.get(&memory, 1).unwrap().map(|record| record.flags & service_flag::STAMPS != 0)
    };
    assert_eq!(promised(&mut reconciler, Some(&[])), Some(false), "nobody was asked");
    assert_eq!(promised(&mut reconciler, Some(&[(a, true)])), Some(false), "one has not answered");
    assert_eq!(promised(&mut reconciler, Some(&[(a, true), (b, true), (down, false)])), Some(true));
    assert_eq!(promised(&mut reconciler, Some(&[(a, true)])), Some(true), "nothing speaks against it");
    assert_eq!(promised(&mut Reconciler::new(), Some(&[])), Some(true), "an agent that takes over does not know yet");
    assert_eq!(promised(&mut reconciler, Some(&[(b, false)])), Some(false));
    assert_eq!(promised(&mut reconciler, Some(&[(a, true), (b, true)])), Some(true));
    assert_eq!(promised(&mut reconciler, None), Some(false), "switched off");
}
