//! Golden images of a few policies, and when numbers and tables change.

use super::{Generations, Ids, ServiceImage, backend_key, dump, plan};
use crate::model::*;
use splitter_common::{abi::identity_kind, decide};

fn backend(address: &str) -> Backend {
    Backend { address: address.parse().unwrap(), state: BackendState::Ready }
}

fn version(name: &str, weight: u32, backends: &[&str]) -> Version {
    Version { name: name.into(), weight, backends: backends.iter().map(|a| backend(a)).collect() }
}

fn checkout() -> Service {
    Service {
        name: "checkout".into(),
        frontends: vec![Frontend { address: "10.9.9.9:80".parse().unwrap(), protocol: Protocol::Tcp }],
        mode: Mode::Tcp,
        split_by: SplitBy::Connection,
        versions: vec![version("v1", 95, &["10.2.1.2:8080", "10.2.1.3:8080"]), version("v2", 5, &["10.2.2.2:8080"])],
        rules: Vec::new(),
        on_weight_change: OnWeightChange::Keep,
        snat: Snat::Auto,
        rollout: None,
        origin: String::new(),
    }
}

fn rule(source: &str, version: usize) -> Rule {
    let (address, prefix) = source.split_once('/').unwrap();
    Rule { source: Cidr { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }, version }
}

fn ids() -> Ids {
    Ids::new(1_000, 1_000, [], &[])
}

#[test]
fn tcp_with_two_versions_is_golden() {
    let image = plan(&checkout(), &mut ids(), &mut Generations::default(), |_| None).unwrap();
    assert_eq!(dump([&image]), include_str!("golden/checkout.txt"));
}

#[test]
fn udp_with_rules_and_states_is_golden() {
    let mut service = checkout();
    service.name = "team/dns".into();
    service.mode = Mode::Udp;
    service.split_by = SplitBy::ClientIp;
    service.snat = Snat::Always;
    service.frontends = vec![
        Frontend { address: "[fd09::9]:53".parse().unwrap(), protocol: Protocol::Udp },
        Frontend { address: "[fd09::9]:5353".parse().unwrap(), protocol: Protocol::Udp },
    ];
    service.versions = vec![
        version("stable", 1, &["[fd02::1]:53", "[fd02::2]:53", "[fd02::3]:53"]),
        version("next", 0, &["[fd02::4]:53"]),
        version("empty", 0, &[]),
    ];
    service.versions[0].backends[1].state = BackendState::Draining;
    service.versions[1].backends[0].state = BackendState::Down;
    service.rules = vec![rule("fd01:7::/32", 1), rule("0.0.0.0/0", 1), rule("fd01:7::/32", 0), rule("::/0", 0)];
    let image = plan(&service, &mut ids(), &mut Generations::default(), |_| None).unwrap();
    assert_eq!(dump([&image]), include_str!("golden/dns.txt"));
}

#[test]
fn nobody_owns_a_bucket_without_weight() {
    let mut service = checkout();
    service.versions.iter_mut().for_each(|version| version.weight = 0);
    let image = plan(&service, &mut ids(), &mut Generations::default(), |_| None).unwrap();
    assert!((0..=31).all(|shift| decide::pick(&image.record, 1 << shift).is_none()));
}

#[test]
fn a_weight_change_changes_the_record_alone() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let before = plan(&checkout(), &mut ids, &mut generations, |_| None).unwrap();
    let mut service = checkout();
    service.versions[1].weight = 50;
    let after = plan(&service, &mut ids, &mut generations, |_| Some((before.record, before.rules.clone()))).unwrap();
    assert_ne!(before.record, after.record);
    assert_eq!(ServiceImage { record: before.record, ..after }, before);
}

#[test]
fn a_changed_membership_gets_a_new_table_and_an_unchanged_one_keeps_it() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let mut service = checkout();
    let first = plan(&service, &mut ids, &mut generations, |_| None).unwrap();
    service.versions[0].backends.reverse();
    let same = plan(&service, &mut ids, &mut generations, |_| None).unwrap();
    assert_eq!(first.tables, same.tables, "the order of backends does not matter");
    service.versions[0].backends.push(backend("10.2.1.4:8080"));
    let more = plan(&service, &mut ids, &mut generations, |_| None).unwrap();
    assert_eq!(more.tables[0].generation, first.tables[0].generation + 1);
    let built = more.tables[0].chunks();
    assert!(built.iter().all(|(_, chunk)| chunk.backends.iter().all(|id| more.backends.iter().any(|(known, _)| known == id))));
}

#[test]
fn tables_do_not_depend_on_the_ids() {
    let endpoints = |ids: &mut Ids| {
        let image = plan(&checkout(), ids, &mut Generations::default(), |_| None).unwrap();
        let port_and_addr = |id: u32| image.backends.iter().find(|(known, _)| *known == id).map(|(_, row)| row.addr).unwrap();
        image.tables[0].chunks().iter().flat_map(|(_, chunk)| chunk.backends[..61].to_vec()).map(port_and_addr).collect::<Vec<_>>()
    };
    let mut others = ids();
    others.id(identity_kind::BACKEND, backend_key("checkout", "v1", "10.2.1.3:8080".parse().unwrap(), "tcp")).unwrap();
    assert_eq!(endpoints(&mut ids()), endpoints(&mut others));
}

#[test]
fn rules_and_slots_that_change_together_get_a_new_number() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let mut service = checkout();
    service.rules = vec![rule("10.1.7.0/24", 1)];
    let before = plan(&service, &mut ids, &mut generations, |_| None).unwrap();
    let previous = |_| Some((before.record, before.rules.clone()));
    // Another version for the same network, but the slots stay: in place. So do slots that move under the same rules: one write.
    service.rules = vec![rule("10.1.7.0/24", 0)];
    assert_eq!(plan(&service, &mut ids, &mut generations, previous).unwrap().id, before.id);
    service.rules = vec![rule("10.1.7.0/24", 1)];
    service.versions.reverse();
    assert_eq!(plan(&service, &mut ids, &mut generations, previous).unwrap().id, before.id);
    service.rules = vec![rule("10.1.7.0/24", 0)];
    let after = plan(&service, &mut ids, &mut generations, previous).unwrap();
    assert_ne!(after.id, before.id);
    assert!(after.rules.iter().all(|(key, _)| key.service == after.id.to_be_bytes()));
    assert!(after.backends.iter().all(|(_, backend)| backend.service == after.id));
}
