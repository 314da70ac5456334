//! The case `program-cost` and `service-scale`: which rows, in which order, and how they are printed.

use super::cost::{self, Case};
use crate::lab::{Lab, Options};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{ffi::CString, path::Path};

const fn case(name: &'static str, xdp: bool, ipv6: bool, services: u32, flows: u32) -> Case {
    Case { name, xdp, ipv6, services, flows, foreign: false }
}

/// Rows of `program-cost`.
pub const PROGRAM_COST: [Case; 12] = [
    case("tc-tcp-established-1", false, false, 1, 1),
    case("tc-tcp-established", false, false, 1, 1_000),
    case("tc-tcp-established-100000", false, false, 1, 100_000),
    case("tc6-tcp-established", false, true, 1, 1_000),
    case("tc6-tcp-established-100000", false, true, 1, 100_000),
    case("xdp-tcp-established-1", true, false, 1, 1),
    case("xdp-tcp-established", true, false, 1, 1_000),
    case("xdp-tcp-established-100000", true, false, 1, 100_000),
    case("xdp6-tcp-established", true, true, 1, 1_000),
    case("xdp6-tcp-established-100000", true, true, 1, 100_000),
    Case { name: "tc-foreign", xdp: false, ipv6: false, services: 40_000, flows: 40_000, foreign: true },
    Case { name: "xdp-foreign", xdp: true, ipv6: false, services: 40_000, flows: 40_000, foreign: true },
];

/// Rows of `service-scale`: the same flows, spread over the services.
pub const SERVICE_SCALE: [Case; 4] = [
    case("tc-1-service", false, false, 1, 40_000),
    case("tc-1000-services", false, false, 1_000, 40_000),
    case("tc-40000-services", false, false, 40_000, 40_000),
    case("tc-1-service-again", false, false, 1, 40_000),
];

/// Measures rows in a namespace of their own.
pub fn measure(name: &str, cases: &[Case], objects: &Path, quick: bool) -> Result<Vec<Value>> {
    let lab = Lab::with("cost", Options { backends: 1, ..Options::default() })?;
    // One gateway leads to all backends, so that next hops are found as on a router.
    lab.node.batch(
        "neigh replace 10.2.1.2 lladdr 02:00:00:00:00:99 dev b1 nud permanent\nneigh replace fd02:1::2 lladdr 02:00:00:00:00:99 dev b1 nud permanent\n\
         route add 10.0.0.0/8 via 10.2.1.2 dev b1\nroute add fd02::/64 via fd02:1::2 dev b1\n",
    )?;
    let (rounds, repeat) = if quick { (3, 200_000) } else { (9, 1_000_000) };
    let mut rows = Vec::new();
    for case in cases {
        let cost = lab.node.run(|| -> Result<_> {
            pin_to_one_cpu();
            cost::run(objects, *case, index("c0")?, index("b1")?, rounds, repeat)
        })??;
        let (low, high) = cost.range();
        eprintln!("{name:14} {:28} {:7.1} ns  ({low:.1} to {high:.1})", case.name, cost.median());
        rows.push(json!({
            "case": name, "subject": case.name, "metric": "ns_per_packet", "value": round(cost.median()),
            "min": round(low), "max": round(high), "flows": case.flows, "services": case.services,
        }));
    }
    Ok(rows)
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn index(name: &str) -> Result<u32> {
    let c = CString::new(name)?;
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(c.as_ptr()) };
    if index == 0 { Err(std::io::Error::last_os_error()).with_context(|| format!("no interface {name}")) } else { Ok(index) }
}

fn pin_to_one_cpu() {
    // SAFETY: a zeroed set is valid; the calling thread only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(1, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
