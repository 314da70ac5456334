//! Golden images of a few policies, and when numbers and tables change.

use super::{Generations, Ids, Previous, ServiceImage, backend_key, dump, http, plan};
use splitter_common::{
    abi::{self, identity_kind, service_flag::STACK},
    decide,
};
use splitter_policy::model::*;

fn backend(address: &str) -> Backend {
    Backend { address: address.parse().unwrap(), state: BackendState::Ready }
}

fn version(name: &str, weight: u32, backends: &[&str]) -> Version {
    Version { name: name.into(), weight, backends: backends.iter().map(|a| backend(a)).collect(), lookups: Vec::new(), found: 0 }
}

fn checkout() -> Service {
    Service {
        name: "checkout".into(),
        frontends: vec![Frontend { address: "10.9.9.9:80".parse().unwrap(), protocol: Protocol::Tcp }],
        mode: Mode::Tcp,
        split_by: SplitBy::Connection,
        versions: vec![version("v1", 95, &["10.2.1.2:8080", "10.2.1.3:8080"]), version("v2", 5, &["10.2.2.2:8080"])],
        rules: Vec::new(),
        http: None,
        tls: None,
        on_weight_change: OnWeightChange::Keep,
        pinned: Default::default(),
        snat: Snat::Auto,
        path: Default::default(),
        vip: Default::default(),
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
    let image = plan(&checkout(), 1500, &mut ids(), &mut Generations::default(), |_| None).unwrap();
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
    let image = plan(&service, 1500, &mut ids(), &mut Generations::default(), |_| None).unwrap();
    assert_eq!(dump([&image]), include_str!("golden/dns.txt"));
}

#[test]
fn nobody_owns_a_bucket_without_weight() {
    let mut service = checkout();
    service.versions.iter_mut().for_each(|version| version.weight = 0);
    let image = plan(&service, 1500, &mut ids(), &mut Generations::default(), |_| None).unwrap();
    assert!((0..=31).all(|shift| decide::pick(&image.record, 1 << shift).is_none()));
}

#[test]
fn a_weight_change_changes_the_record_alone() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let before = plan(&checkout(), 1500, &mut ids, &mut generations, |_| None).unwrap();
    let mut service = checkout();
    service.versions[1].weight = 50;
    let after = plan(&service, 1500, &mut ids, &mut generations, |_| Some(Previous::from(&before))).unwrap();
    assert_ne!(before.record, after.record);
    assert_eq!(ServiceImage { record: before.record, ..after }, before);
}

#[test]
fn a_changed_membership_gets_a_new_table_and_an_unchanged_one_keeps_it() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let mut service = checkout();
    let first = plan(&service, 1500, &mut ids, &mut generations, |_| None).unwrap();
    service.versions[0].backends.reverse();
    let same = plan(&service, 1500, &mut ids, &mut generations, |_| None).unwrap();
    assert_eq!(first.tables, same.tables, "the order of backends does not matter");
    service.versions[0].backends.push(backend("10.2.1.4:8080"));
    let more = plan(&service, 1500, &mut ids, &mut generations, |_| None).unwrap();
    assert_eq!(more.tables[0].generation, first.tables[0].generation + 1);
    let built = more.tables[0].chunks();
    assert!(built.iter().all(|(_, chunk)| chunk.backends.iter().all(|id| more.backends.iter().any(|(known, _)| known == id))));
}

#[test]
fn tables_do_not_depend_on_the_ids() {
    let endpoints = |ids: &mut Ids| {
        let image = plan(&checkout(), 1500, ids, &mut Generations::default(), |_| None).unwrap();
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
    let before = plan(&service, 1500, &mut ids, &mut generations, |_| None).unwrap();
    let previous = |_: u32| Some(Previous::from(&before));
    // Another version for the same network, but the slots stay: in place. So do slots that move under the same rules: one write.
    service.rules = vec![rule("10.1.7.0/24", 0)];
    assert_eq!(plan(&service, 1500, &mut ids, &mut generations, previous).unwrap().id, before.id);
    service.rules = vec![rule("10.1.7.0/24", 1)];
    service.versions.reverse();
    assert_eq!(plan(&service, 1500, &mut ids, &mut generations, previous).unwrap().id, before.id);
    service.rules = vec![rule("10.1.7.0/24", 0)];
    let after = plan(&service, 1500, &mut ids, &mut generations, previous).unwrap();
    assert_ne!(after.id, before.id);
    assert!(after.rules.iter().all(|(key, _)| key.service == after.id.to_be_bytes()));
    assert!(after.backends.iter().all(|(_, backend)| backend.service == after.id));
}

fn http_service() -> Service {
    let exact = |value: &str| Text::Exact(value.into());
    let rule = |conditions, version| HttpRule { conditions, version, line: 1, from_canary: false };
    let mut service = checkout();
    service.mode = Mode::Http;
    service.split_by = SplitBy::Cookie("uid".into());
    service.http = Some(Http {
        rules: vec![
            rule(vec![Condition::Header("X-Canary".into(), exact("always"))], 1),
            rule(vec![Condition::Source(Cidr { address: "fd00::".parse().unwrap(), prefix: 8 })], 0),
            rule(vec![Condition::PathPrefix("/beta".into()), Condition::Method("GET".into())], 1),
            rule(
                vec![
                    Condition::Cookie("canary".into(), Text::Present),
                    Condition::Query("debug".into(), exact("1")),
                    Condition::Header("x-canary".into(), Text::Prefix("al".into())),
                    Condition::Source(Cidr { address: "10.1.7.0".parse().unwrap(), prefix: 24 }),
                ],
                0,
            ),
        ],
        unavailable: Unavailable::Reset,
        too_long: Default::default(),
    });
    service
}

#[test]
fn http_with_rules_is_golden() {
    let image = plan(&http_service(), 1400, &mut ids(), &mut Generations::default(), |_| None).unwrap();
    assert_eq!(dump([&image]), include_str!("golden/http.txt"));
}

#[test]
fn clients_are_told_segments_that_fit() {
    let mut service = http_service();
    assert_eq!([68, 576, 1400, 1500, 9000].map(|mtu| http::mss(&service, mtu)), [536, 536, 1360, 1460, 1460]);
    service.frontends[0].address = "[fd09::9]:80".parse().unwrap();
    assert_eq!([1280, 1400, 1500, 65_536].map(|mtu| http::mss(&service, mtu)), [1220, 1340, 1440, 1440]);
}

#[test]
fn rules_of_http_are_replaced_in_place() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let mut service = http_service();
    let before = plan(&service, 1500, &mut ids, &mut generations, |_| None).unwrap();
    service.http.as_mut().unwrap().rules.remove(0);
    let rules = plan(&service, 1500, &mut ids, &mut generations, |_| Some(Previous::from(&before))).unwrap();
    assert!(rules.id == before.id && rules.http != before.http && rules.record == before.record);
    service.versions[1].weight = 50;
    let both = plan(&service, 1500, &mut ids, &mut generations, |_| Some(Previous::from(&before))).unwrap();
    assert_eq!(both.id, before.id, "live connections know the service by its number");
}

#[test]
fn a_service_that_becomes_http_keeps_its_numbers() {
    let (mut ids, mut generations) = (ids(), Generations::default());
    let tcp = plan(&checkout(), 1500, &mut ids, &mut generations, |_| None).unwrap();
    let http = plan(&http_service(), 1500, &mut ids, &mut generations, |_| Some(Previous::from(&tcp))).unwrap();
    assert_eq!((tcp.id, tcp.backends, tcp.tables), (http.id, http.backends, http.tables));
}

#[test]
fn a_path_is_of_every_mode() {
    for mode in [Mode::Tcp, Mode::Udp, Mode::Http] {
        for (said, node, expected) in
            [(Way::Auto, false, 0), (Way::Auto, true, STACK), (Way::Redirect, true, 0), (Way::Stack, false, STACK)]
        {
            let service = Service { mode, path: said, ..checkout() };
            assert_eq!(super::path(&service, node), expected, "{mode:?} {said:?}");
        }
    }
    assert_eq!(super::path(&Service { mode: Mode::Https, path: Way::Stack, ..checkout() }, true), 0);
}

/// The kernel has one backend, this node; the decision is that of `mode: http`, by the same numbers.
#[test]
fn https_is_decided_as_http_and_sent_to_the_node() {
    let mut http = checkout();
    (http.mode, http.http) = (Mode::Http, Some(Http::default()));
    let mut https = http.clone();
    https.mode = Mode::Https;
    let mut numbers = ids();
    let [clear, ended] = [&http, &https].map(|service| plan(service, 1500, &mut numbers, &mut Generations::default(), |_| None).unwrap());
    assert_eq!((&ended.record, ended.id, &ended.http), (&clear.record, clear.id, &clear.http));
    assert_eq!(clear.kernel(), &clear.record);
    let kernel = ended.kernel();
    assert_eq!((kernel.version_count, kernel.mode, kernel.snat), (1, abi::service_mode::L4, abi::snat::NEVER));
    let slot = kernel.versions[0];
    assert!(ended.record.versions.iter().all(|known| known.version != slot.version), "a version of its own");
    let (_, row) = ended.backends.iter().find(|(id, _)| *id == slot.table).unwrap();
    assert!(ended.is_node(row) && row.service == ended.id);
    assert_eq!((super::ip(&row.addr), u16::from_be_bytes(row.port)), (super::node::ADDRESSES[0].ip(), 15_443));
    assert_eq!(ended.backends.len(), clear.backends.len() + 1);
    assert_eq!(super::keys(&https).len(), super::keys(&http).len() + 2);
}
