//! Policies of any size: services that nobody calls, beside one that the lab serves.

use splitter_lab::lab::VIP4;
use std::{fmt::Write, net::Ipv4Addr};

/// Port of every frontend and of every backend.
pub const FRONT_PORT: u16 = 80;
pub const BACK_PORT: u16 = 8080;

/// The service that the lab's backends serve: versions `v1` and `v2` with backend 1 and 2 of the lab.
pub const REAL: &str = "real";

/// Addresses of the first frontend and the first backend of what is made up: neither is in the lab.
const FRONTS: u32 = u32::from_be_bytes([10, 64, 0, 0]);
const BACKS: u32 = u32::from_be_bytes([172, 16, 0, 0]);

/// [`REAL`] with the given weights.
pub fn real(v1: u32, v2: u32) -> String {
    let backend = |i| format!("\"10.2.{i}.2:{BACK_PORT}\"");
    service(REAL, VIP4, &[("v1", v1, backend(1)), ("v2", v2, backend(2))])
}

/// Service `i` of the made-up ones, three backends in two versions; `weight` is that of `v2` beside `v1=90`.
pub fn filler(i: u32, weight: u32) -> String {
    let backend = |n| format!("\"{}:{BACK_PORT}\"", Ipv4Addr::from(BACKS + 3 * i + n));
    let versions = [("v1", 90, format!("{}, {}", backend(0), backend(1))), ("v2", weight, backend(2))];
    service(&name(i), Ipv4Addr::from(FRONTS + i), &versions)
}

/// Name of the made-up service `i`.
pub fn name(i: u32) -> String {
    format!("filler-{i}")
}

fn service(name: &str, vip: Ipv4Addr, versions: &[(&str, u32, String)]) -> String {
    let mut text = format!(
        "---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec:\n  frontends:\n    \
         - {{address: {vip}, port: {FRONT_PORT}, protocol: TCP}}\n  mode: tcp\n  versions:\n"
    );
    for (name, weight, backends) in versions {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    - {{name: {name}, weight: {weight}, backends: [{backends}]}}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn made_up_services_share_nothing() {
        let texts: Vec<String> = (0..1000).map(|i| filler(i, 10)).collect();
        let backends: BTreeSet<&str> = texts.iter().flat_map(|text| text.split('"').filter(|part| part.ends_with(":8080"))).collect();
        assert_eq!(backends.len(), 3000);
        assert!(texts[256].contains("{address: 10.64.1.0, port: 80, protocol: TCP}") && texts[256].contains("name: filler-256"));
        assert!(real(95, 5).contains("    - {name: v2, weight: 5, backends: [\"10.2.2.2:8080\"]}\n"));
    }
}
