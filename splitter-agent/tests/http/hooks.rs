//! Requests at the XDP hooks and through a hairpin: wherever the programs run, the split is the same.

use crate::{
    stage::{Stage, V1, V2, both_families, count, kinds, mix, tagged},
    support::{Bed, vip},
    wire::{TO_V1, TO_V2, Wire, get, seen_client},
};
use splitter_lab::{
    lab::Options,
    load::{Plan, Reuse},
};

fn split_alike(stage: &Stage, what: &str) {
    for v6 in [false, true] {
        let kept = mix(vip(v6), kinds("/", V1, V2, V1));
        stage.mixed(what, kept.clone(), count(1_500, 50_000));
        stage.mixed(what, Plan { reuse: Reuse::New, ..kept.clone() }, count(500, 50_000));
        stage.mixed(what, Plan { kinds: kinds("/bytes/50000", V1, V2, V1), ..kept }, count(200, 5_000));
    }
}

/// What XDP cannot finish it leaves to TC untouched.
#[test]
fn xdp_splits_as_tc_does() {
    for (name, xdp) in [("hxdpgen", "generic"), ("hxdpnat", "native")] {
        // A veth's packets carry unfinished checksums, which XDP cannot finish: an uplink's do not.
        let options = Options { offloads: false, ..Options::default() };
        let splits = both_families(&tagged(100, 0));
        let mut bed = Bed::prepare(name, options, &splits);
        (bed.site.xdp, bed.site.interfaces) = (xdp, vec!["c0:uplink", "b*:uplink"]);
        split_alike(&Stage::begin(bed, &splits, None), xdp);
    }
}

/// Clients and backends on one segment: answers would bypass the node without source translation.
#[test]
fn a_hairpin_is_split_too() {
    let splits = both_families(&tagged(100, 0));
    let mut bed = Bed::prepare("hhairpin", Options { shared_segment: true, ..Options::default() }, &splits);
    bed.site.interfaces = vec!["c0"];
    split_alike(&Stage::begin(bed, &splits, None), "a hairpin");
}

/// Backends see the node, on every leg of a connection, and answer it: also where their answers would come by the node anyway.
#[test]
fn a_translated_source_is_split_too() {
    let splits = both_families(&tagged(100, 0).with("snat: always"));
    let stage = Stage::new("hsnat", &splits);
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        for (tag, expected) in [(TO_V1, V1), (TO_V2, V2), (TO_V1, V1), (TO_V2, V2)] {
            let answer = wire.ask(get("/facts", &[tag]));
            let seen = seen_client(&answer);
            assert!(expected.contains(&answer.version.as_str()), "{tag}: {answer:?}");
            assert!(seen.ip() != stage.lab.client_ip(0, v6) && (1_024..32_768).contains(&seen.port()), "{tag}: the backend saw {seen}");
        }
    }
    split_alike(&stage, "with a translated source");
}
