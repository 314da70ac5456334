//! A map image as text: what golden tests compare and a person can read.

use super::{ServiceImage, ip};
use splitter_common::{abi::*, decide::SPACE};
use std::fmt::Write;

/// Services by number, tables by their first slots, everything that the kernel would see.
pub fn dump<'a>(images: impl IntoIterator<Item = &'a ServiceImage>) -> String {
    let mut images: Vec<_> = images.into_iter().collect();
    images.sort_by_key(|image| image.id);
    let mut out = String::new();
    for image in images {
        // Writing to a string cannot fail.
        let _ = service(&mut out, image);
    }
    out
}

fn service(out: &mut String, image: &ServiceImage) -> std::fmt::Result {
    let record = &image.record;
    let split = if record.split_by == split_by::CLIENT_IP { "client-ip" } else { "connection" };
    let snat = ["auto", "always", "never"].get(usize::from(record.snat)).unwrap_or(&"?");
    writeln!(out, "SERVICES {} salt={:016x} split-by={split} snat={snat} rules={}", image.id, record.salt, record.has_rules)?;
    for (i, slot) in record.versions.iter().take(usize::from(record.version_count)).enumerate() {
        let share = slot.end as f64 / SPACE as f64;
        writeln!(out, "  slot {i} version={} end={} ({share:.6}) size={} table={}", slot.version, slot.end, slot.size, slot.table)?;
    }
    for frontend in &image.frontends {
        let port = u16::from_be_bytes(frontend.port);
        writeln!(out, "FRONTENDS {} port {port} proto {} -> {}", ip(&frontend.addr), frontend.proto, image.id)?;
    }
    for (key, index) in &image.rules {
        let service = u32::from_be_bytes(key.service);
        writeln!(out, "RULES {service} {}/{} -> slot {index}", std::net::Ipv6Addr::from(key.addr), key.prefix_len - RULE_PREFIX_BASE)?;
    }
    for (id, backend) in &image.backends {
        let state = ["none", "ready", "draining", "down"].get(usize::from(backend.state)).unwrap_or(&"?");
        let port = u16::from_be_bytes(backend.port);
        writeln!(out, "BACKENDS {id} {} port {port} {state} version={} service={}", ip(&backend.addr), backend.version, backend.service)?;
    }
    for table in &image.tables {
        let chunks = table.chunks();
        let first: Vec<String> =
            chunks.first().map(|(_, chunk)| chunk.backends[..16].iter().map(u32::to_string).collect()).unwrap_or_default();
        writeln!(out, "MAGLEV version={} table={} {} chunks: {} ...", table.version, table.generation, chunks.len(), first.join(" "))?;
    }
    Ok(())
}
