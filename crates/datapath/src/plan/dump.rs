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
    let split = ["connection", "client-ip", "request", "value"].get(usize::from(record.split_by)).unwrap_or(&"?");
    let snat = ["auto", "always", "never"].get(usize::from(record.snat)).unwrap_or(&"?");
    let path = if record.flags & service_flag::STACK != 0 { " path=stack" } else { "" };
    writeln!(out, "SERVICES {} salt={:016x} split-by={split} snat={snat} rules={}{path}", image.id, record.salt, record.has_rules)?;
    if record.mode == service_mode::HTTP {
        let unavailable = if record.flags & service_flag::RESET != 0 { "reset" } else { "503" };
        let long = match record.flags & (service_flag::LONG_BY_WEIGHT | service_flag::LONG_REFUSED) {
            0 => format!("slot {}", usize::from(record.flags >> service_flag::BASELINE) % MAX_VERSIONS),
            service_flag::LONG_BY_WEIGHT => "weight".into(),
            _ => "431".into(),
        };
        let stamps = if record.flags & service_flag::STAMPS != 0 { " timestamps" } else { "" };
        writeln!(out, "  http mss={} unavailable={unavailable} too-long={long}{stamps}", record.mss)?;
    }
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
    if let Some(rules) = &image.http {
        http_rules(out, image.id, rules)?;
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

fn http_rules(out: &mut String, service: u32, rules: &HttpRules) -> std::fmt::Result {
    let text = |at: u16, len: u8| String::from_utf8_lossy(&rules.pool[usize::from(at)..usize::from(at) + usize::from(len)]).into_owned();
    let count = (rules.rule_count, rules.name_count, rules.predicate_count);
    writeln!(out, "HTTP_RULES {service} rules={} names={} predicates={} pool={} bytes", count.0, count.1, count.2, rules.pool_len)?;
    writeln!(out, "  filter {:016x}", rules.name_filter)?;
    for (i, rule) in rules.rules.iter().take(usize::from(count.0)).enumerate() {
        writeln!(out, "  rule {i} mask={:016x} -> version {}", rule.mask, rule.version)?;
    }
    for (i, name) in rules.names.iter().take(usize::from(count.1)).enumerate() {
        let subject = ["header", "cookie", "query", "path", "method", "source"].get(usize::from(name.subject)).unwrap_or(&"?");
        let key = if usize::from(rules.key_name) == i { " (key)" } else { "" };
        writeln!(out, "{}", format!("  {subject} {}{key}", text(name.at, name.len)).trim_end())?;
        for bit in name.first..name.first.saturating_add(name.count) {
            let predicate = &rules.predicates[usize::from(bit)];
            let kind = ["exact", "prefix", "present", "segment"].get(usize::from(predicate.kind)).unwrap_or(&"?");
            let value = if name.subject == http_subject::SOURCE { network(rules, predicate) } else { text(predicate.at, predicate.len) };
            writeln!(out, "{}", format!("    bit {bit} {kind} {value}").trim_end())?;
        }
    }
    Ok(())
}

fn network(rules: &HttpRules, predicate: &HttpPredicate) -> String {
    let mut addr = Addr::default();
    let at = usize::from(predicate.at);
    addr.copy_from_slice(&rules.pool[at..at + 16]);
    format!("{}/{}", std::net::Ipv6Addr::from(addr), predicate.len)
}
