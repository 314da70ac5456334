use super::*;

const fn map(name: &'static str, role: Role, layout: u32) -> Layout {
    Layout { name, role, layout, key_size: 4, value_size: 8, entries: 100 }
}

const OURS: [Layout; 5] = [
    map("CONFIG", Role::Filled, 1),
    map("SERVICES", Role::Filled, 2),
    map("MAGLEV", Role::Filled, 1),
    map("COUNTERS", Role::Anew, 3),
    map("TCP4", Role::Kept, 2),
];

fn pin(file: &str) -> Pinned {
    let (map, layout) = parse(file).unwrap();
    Pinned { map: map.into(), layout, sizes: Some((4, 8, 500)) }
}

fn judged(files: &str) -> Result<Adoption, String> {
    let found: Vec<_> = files.split_whitespace().map(pin).collect();
    let told = |differ: Vec<Differs>| differ.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Adoption::judge(&found, const { &OURS }.iter(), &["OLD"]).map_err(told)
}

/// The pins that are used, and the maps whose entries are copied.
fn uses(files: &str) -> (String, String) {
    let adoption = judged(files).unwrap();
    assert_eq!(adoption.is_refilled(), adoption.renewed().any(|map| map == "CONFIG"), "{files}");
    let files: Vec<_> = OURS.iter().map(|layout| adoption.file(layout.name)).collect();
    (files.join(" "), OURS.iter().map(|layout| layout.name).filter(|map| adoption.copies(map)).collect::<Vec<_>>().join(" "))
}

#[test]
fn names_tell_layouts() {
    for (file, said) in [
        ("TCP4", Some(("TCP4", Some(1)))),
        ("TCP4-2", Some(("TCP4", Some(2)))),
        ("NEXTHOP_OWNERS-31", Some(("NEXTHOP_OWNERS", Some(31)))),
        ("TCP4-next", Some(("TCP4", None))),
        ("TC_CALLS-aside-12", None),
        ("TCP4-1", None),
        ("TCP4-x", None),
    ] {
        assert_eq!(parse(file), said, "{file}");
    }
    for layout in [1, 2, 12] {
        assert_eq!(parse(&pin_name("TCP4", layout)), Some(("TCP4", Some(layout))));
    }
    assert_eq!(parse(&next_name("TCP4")), Some(("TCP4", None)));
}

#[test]
fn what_is_the_same_is_taken_over() {
    let all = "CONFIG SERVICES-2 MAGLEV COUNTERS-3 TCP4-2";
    assert_eq!(uses(all), (all.into(), String::new()));
    assert_eq!(judged(all).unwrap().renewed().count(), 0);
    // A map that the other agent had not got is made; one that this one has not got any more does not matter.
    assert_eq!(uses("CONFIG SERVICES-2 MAGLEV OLD").0, all);
}

/// Of the policy's maps all, since a record of one names entries of others; what did not change keeps its entries.
#[test]
fn a_map_of_the_policy_is_made_anew_with_its_fellows() {
    let next = "CONFIG-next SERVICES-next MAGLEV-next COUNTERS-3 TCP4-2";
    assert_eq!(uses("CONFIG SERVICES MAGLEV COUNTERS-3 TCP4-2"), (next.into(), "CONFIG MAGLEV".into()));
    assert_eq!(uses("CONFIG SERVICES-3 MAGLEV COUNTERS-3 TCP4-2").0, next, "an older agent does the same");
    assert_eq!(
        uses("CONFIG SERVICES-2 COUNTERS-3 TCP4-2"),
        (next.into(), "CONFIG SERVICES".into()),
        "one that was not there is to be filled"
    );
    let mut found: Vec<_> = "CONFIG SERVICES-2 MAGLEV TCP4-2".split_whitespace().map(pin).collect();
    found[2].sizes = Some((4, 16, 700));
    let adoption = Adoption::judge(&found, const { &OURS }.iter(), &[]).unwrap();
    assert!(adoption.is_refilled() && !adoption.copies("MAGLEV"), "other bytes are another layout, whatever the name says");
    assert_eq!(adoption.entries(&OURS[2], None), Some(700));
}

#[test]
fn counts_begin_anew_alone() {
    assert_eq!(uses("CONFIG SERVICES-2 MAGLEV COUNTERS TCP4-2"), ("CONFIG SERVICES-2 MAGLEV COUNTERS-next TCP4-2".into(), String::new()));
}

#[test]
fn maps_of_connections_are_never_made_anew() {
    let refused = |files: &str| judged(files).unwrap_err();
    assert_eq!(refused("CONFIG SERVICES-2 MAGLEV COUNTERS-3 TCP4"), "TCP4 (layout 1, this program has 2)");
    assert_eq!(refused("CONFIG SERVICES MAGLEV COUNTERS-3 TCP4-3"), "TCP4 (layout 3, this program has 2)");
    assert_eq!(refused("CONFIG SERVICES-2 MAGLEV QUIC-2 TCP4-2"), "QUIC (layout 2, this program does not know the map)");
    assert_eq!(refused("CONFIG QUIC TCP4"), "QUIC (layout 1, this program does not know the map), TCP4 (layout 1, this program has 2)");
    let mut found = [pin("CONFIG"), pin("TCP4-2")];
    found[1].sizes = Some((4, 9, 500));
    let differ = Adoption::judge(&found, const { &OURS }.iter(), &[]).unwrap_err();
    assert_eq!(differ[0].to_string(), "TCP4 (layout 2 in both, with other sizes)");
}

/// Wherever an agent ended while it took over, the next one fills maps of its own: what is pinned may be older than what is attached.
#[test]
fn an_end_half_way_is_seen() {
    let next = "CONFIG-next SERVICES-next MAGLEV-next COUNTERS-3 TCP4-2";
    for files in [
        "CONFIG CONFIG-next SERVICES SERVICES-next MAGLEV MAGLEV-next COUNTERS-3 TCP4-2",
        "CONFIG SERVICES-2 MAGLEV MAGLEV-next COUNTERS-3 TCP4-2",
        "CONFIG-next SERVICES-next MAGLEV-next COUNTERS-3 TCP4-2",
        "CONFIG SERVICES SERVICES-2 MAGLEV COUNTERS-3 TCP4-2",
    ] {
        assert_eq!(uses(files).0, next, "{files}");
    }
}

#[test]
fn what_replaces_a_map_is_not_smaller() {
    let entries = |files: &str, map: usize, wanted| judged(files).unwrap().entries(&OURS[map], wanted);
    let same = "CONFIG SERVICES-2 MAGLEV COUNTERS-3 TCP4-2";
    assert_eq!(entries(same, 3, Some(900)), Some(500), "what is taken over has its size");
    assert_eq!(entries("CONFIG SERVICES-2 MAGLEV COUNTERS TCP4-2", 3, Some(900)), Some(900));
    assert_eq!(entries("CONFIG SERVICES-2 MAGLEV COUNTERS TCP4-2", 3, Some(200)), Some(500));
    assert_eq!(entries("CONFIG SERVICES MAGLEV COUNTERS-3 TCP4-2", 2, None), Some(500));
    assert_eq!(Adoption::of_nothing(&[], OURS_REF.iter()).entries(&OURS[2], None), None);
}

const OURS_REF: &[Layout] = &OURS;

#[test]
fn pins_get_their_names_when_nobody_uses_the_others() {
    let directory = std::env::temp_dir().join(format!("splitter-adopt-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(directory.join(pins::LINKS)).unwrap();
    let before = "CONFIG SERVICES MAGLEV COUNTERS TCP4-2 OLD";
    let mut adoption = judged(before).unwrap();
    let made = "CONFIG-next SERVICES-next MAGLEV-next COUNTERS-next";
    for file in before.split(' ').chain(made.split(' ')).chain(["TC_CALLS", "TC_CALLS-aside-7"]) {
        fs::write(directory.join(file), file).unwrap();
    }
    assert_eq!(pins_of(&directory, "CONFIG"), ["CONFIG", "CONFIG-next"].map(|file| directory.join(file)));
    adoption.settle(&directory).unwrap();
    let after = ["CONFIG", "COUNTERS-3", "MAGLEV", "SERVICES-2", "TCP4-2", "TC_CALLS", "TC_CALLS-aside-7", "links"];
    assert_eq!(pins::entries(&directory), after);
    assert_eq!(fs::read_to_string(directory.join("MAGLEV")).unwrap(), "MAGLEV-next");
    assert!(adoption.renewed().next().is_none() && !adoption.is_refilled());
    assert_eq!(adoption.file("SERVICES"), "SERVICES-2");
    fs::write(directory.join("MAGLEV-next"), "").unwrap();
    drop_next(&directory).unwrap();
    assert_eq!(pins::entries(&directory), after);
    fs::remove_dir_all(&directory).unwrap();
}
