//! The cases `program-cost` and `service-scale`: cost of the kernel programs by PROG_TEST_RUN.
//!
//! The reference row of a subject is what the machine takes for the least that a translation must do over tables of the same sizes (a lookup;
//! TC: two checksum helpers, XDP: the writes; a redirect), measured in the same rounds.

use super::{
    Place, Row, Rows, Samples,
    rows::{again, rounded},
};
use anyhow::{Context, Result};
use splitter_lab::{
    kernel::{Case, Setting, pin_to_one_cpu, run},
    lab::{Lab, Options},
};
use std::ffi::CString;

const METRIC: &str = "ns_per_packet";

const fn established(name: &'static str, xdp: bool, ipv6: bool, flows: u32) -> Case {
    Case { name, xdp, ipv6, services: 1, flows, foreign: false, reference: true, http: false }
}

const fn spliced(name: &'static str, xdp: bool, ipv6: bool, flows: u32) -> Case {
    Case { http: true, ..established(name, xdp, ipv6, flows) }
}

const fn foreign(name: &'static str, xdp: bool) -> Case {
    Case { name, xdp, ipv6: false, services: 40_000, flows: 40_000, foreign: true, reference: false, http: false }
}

const COST: [Case; 16] = [
    established("tc-tcp-established-1", false, false, 1),
    established("tc-tcp-established", false, false, 1_000),
    established("tc-tcp-established-100000", false, false, 100_000),
    established("tc6-tcp-established", false, true, 1_000),
    established("tc6-tcp-established-100000", false, true, 100_000),
    established("xdp-tcp-established-1", true, false, 1),
    established("xdp-tcp-established", true, false, 1_000),
    established("xdp-tcp-established-100000", true, false, 100_000),
    established("xdp6-tcp-established", true, true, 1_000),
    established("xdp6-tcp-established-100000", true, true, 100_000),
    spliced("tc-http-established", false, false, 1_000),
    spliced("tc-http-established-100000", false, false, 100_000),
    spliced("tc6-http-established", false, true, 1_000),
    spliced("xdp-http-established", true, false, 1_000),
    foreign("tc-foreign", false),
    foreign("xdp-foreign", true),
];

const fn scaled(name: &'static str, xdp: bool, services: u32, flows: u32) -> Case {
    Case { name, xdp, ipv6: false, services, flows, foreign: false, reference: false, http: false }
}

/// The same flows, spread over the services: the usual thousand, and so many that each of 40,000 services has one, whose counters and
/// backends then are in no cache.
const SCALE: [[Case; 3]; 4] = [
    [
        scaled("tc-1-service", false, 1, 1_000),
        scaled("tc-1000-services", false, 1_000, 1_000),
        scaled("tc-40000-services", false, 40_000, 1_000),
    ],
    [
        scaled("xdp-1-service", true, 1, 1_000),
        scaled("xdp-1000-services", true, 1_000, 1_000),
        scaled("xdp-40000-services", true, 40_000, 1_000),
    ],
    [
        scaled("tc-1-service-40000-flows", false, 1, 40_000),
        scaled("tc-1000-services-40000-flows", false, 1_000, 40_000),
        scaled("tc-40000-services-40000-flows", false, 40_000, 40_000),
    ],
    [
        scaled("xdp-1-service-40000-flows", true, 1, 40_000),
        scaled("xdp-1000-services-40000-flows", true, 1_000, 40_000),
        scaled("xdp-40000-services-40000-flows", true, 40_000, 40_000),
    ],
];

pub fn cost(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let bench = Bench::new(place, quick)?;
    for case in COST {
        let twice = ["tc-tcp-established", "xdp-tcp-established", "tc-http-established"].contains(&case.name);
        let second = twice.then_some(Case { reference: false, ..case });
        let cases: Vec<Case> = [case].into_iter().chain(second).collect();
        let mut costs = bench.measure(&cases)?.into_iter();
        let (ours, reference) = costs.next().unwrap_or_default();
        let name = format!("reference-{}", case.name);
        if case.reference {
            rows.add_median(&name, METRIC, &reference, None).more.insert("flows", case.flows.into());
        }
        let ratios = case.reference.then(|| (name.as_str(), ours.ratios(&reference)));
        let row = rows.add_paired(case.name, METRIC, &ours, ratios);
        describe(row, case);
        if case.reference {
            row.more.insert("over_reference_ns", rounded(ours.median() - reference.median()).into());
        }
        if let Some((second, _)) = costs.next() {
            describe(rows.add_paired(&again(case.name), METRIC, &second, Some((case.name, second.ratios(&ours)))), case);
        }
    }
    Ok(())
}

pub fn scale(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let bench = Bench::new(place, quick)?;
    for cases in SCALE {
        let first = cases[0];
        let costs = bench.measure(&[cases.as_slice(), &[first]].concat())?;
        let names = cases.iter().map(|case| case.name.to_owned()).chain([again(first.name)]);
        for ((name, case), (ours, _)) in names.zip(cases.iter().chain([&first])).zip(&costs) {
            let ratios = (name != first.name).then(|| (first.name, ours.ratios(&costs[0].0)));
            describe(rows.add_paired(&name, METRIC, ours, ratios), *case);
        }
    }
    Ok(())
}

fn describe(row: &mut Row, case: Case) {
    row.more.insert("flows", case.flows.into());
    row.more.insert("services", case.services.into());
}

/// A network in which next hops are found as on a router.
struct Bench<'a> {
    lab: Lab,
    place: &'a Place,
    rounds: usize,
    repeat: u32,
}

impl Bench<'_> {
    fn new(place: &Place, quick: bool) -> Result<Bench<'_>> {
        let lab = Lab::with("cost", Options { backends: 1, ..Options::default() })?;
        // One gateway leads to all backends.
        lab.node.batch(
            "link set c0 address 02:00:00:00:00:02\nneigh replace 10.2.1.2 lladdr 02:00:00:00:00:99 dev b1 nud permanent\nneigh replace fd02:1::2 lladdr 02:00:00:00:00:99 dev b1 nud permanent\n\
             route add 10.0.0.0/8 via 10.2.1.2 dev b1\nroute add fd02::/64 via fd02:1::2 dev b1\n",
        )?;
        let (rounds, repeat) = if quick { (3, 200_000) } else { (9, 1_000_000) };
        Ok(Bench { lab, place, rounds, repeat })
    }

    /// In turns, by case: the real program, and the reference (empty when the case has none).
    fn measure(&self, cases: &[Case]) -> Result<Vec<(Samples, Samples)>> {
        let costs = self.lab.node.run(|| -> Result<_> {
            pin_to_one_cpu();
            let setting = Setting {
                objects: &self.place.objects,
                ingress: index("c0")?,
                egress: index("b1")?,
                rounds: self.rounds,
                repeat: self.repeat,
            };
            run(setting, cases)
        })??;
        Ok(costs.into_iter().map(|cost| (cost.rounds.into(), cost.reference.into())).collect())
    }
}

fn index(name: &str) -> Result<u32> {
    let c = CString::new(name)?;
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(c.as_ptr()) };
    if index == 0 { Err(std::io::Error::last_os_error()).with_context(|| format!("no interface {name}")) } else { Ok(index) }
}
