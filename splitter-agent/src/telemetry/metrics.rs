//! The observed state as OpenMetrics text.
//!
//! Owns metric names, labels and buckets: a stable surface. Labels are closed sets: services, versions, reasons. Reads a status;
//! keeps none.

use super::{
    families::{counters, gauge, gauges},
    rollouts,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter},
    registry::{Registry, Unit},
};
use splitter_api::{Latency, Status, Version};
use std::fmt;

/// Of what [`render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Of what [`plain`] returns.
pub const PLAIN_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the histograms' buckets, seconds.
const BOUNDS: [f64; 20] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The whole exposition, `# EOF` included.
pub fn render(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(status)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// The older text format, for readers that know no other: there, a counter's name has its `_total` in the head too.
pub fn plain(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let head = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
        match (head, lines.peek().and_then(|next| next.strip_prefix("# TYPE ")).and_then(|rest| rest.split_once(' '))) {
            (Some((name, help)), Some((_, "counter"))) => {
                lines.next();
                out += &format!("# HELP {name}_total {help}\n# TYPE {name}_total counter\n");
            }
            _ => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

#[derive(Debug)]
struct Exposition(Status);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.agent(&mut encoder)?;
        self.reasons(&mut encoder)?;
        self.tables(&mut encoder)?;
        self.versions(&mut encoder)?;
        rollouts::encode(&self.0, &mut encoder)
    }
}

impl Exposition {
    fn agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Status { agent, desired, applied, .. } = &self.0;
        // A gauge of 1 and not the type info, which readers of the older text format refuse.
        gauges(encoder, "splitter_build_info", "The running agent; always 1", [([("version", agent.version.as_str())], 1.0)].into_iter())?;
        gauge(
            encoder,
            "splitter_policy_errors",
            "Errors in the policy as last read; above 0 the last good one stays",
            desired.errors.len() as u64,
        )?;
        let failing = desired.failing_lookups as u64;
        gauge(encoder, "splitter_lookups_failing", "Names of backends whose last lookup failed; their last addresses stay", failing)?;
        gauge(encoder, "splitter_policy_generation", "Grows with every change that the kernel took", applied.generation)?;
        let writable = u64::from(agent.state_error.is_none());
        gauge(
            encoder,
            "splitter_state_writable",
            "1 while the state directory can be written, 0 when a restart would take up an earlier state",
            writable,
        )?;
        self.attachments(encoder)
    }

    fn attachments(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Status { interfaces, attachments, .. } = &self.0;
        let attached = interfaces.iter().filter(|interface| !interface.programs.is_empty()).count() as u64;
        gauge(encoder, "splitter_interfaces_attached", "Interfaces with programs of this agent; 0: no traffic is split", attached)?;
        let missing = interfaces.iter().map(|interface| interface.missing.len() as u64).sum();
        gauge(encoder, "splitter_attachments_missing", "Programs that should be on an interface now and are not", missing)?;
        let lost = "Programs that somebody else detached, and that were put back";
        ConstCounter::new(attachments.lost).encode(encoder.encode_descriptor(
            "splitter_attachments_lost",
            lost,
            None,
            MetricType::Counter,
        )?)
    }

    fn reasons(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kinds = |wanted: &'static [&'static str]| {
            self.0.reasons.iter().filter(move |r| wanted.contains(&r.kind.as_str())).map(|r| ([("reason", r.reason.as_str())], r.count))
        };
        let drops = "Packets dropped, or answered by the node instead of a backend, by reason";
        counters(encoder, "splitter_drops", drops, None, kinds(&["drop", "answer"]))?;
        let events = kinds(&["event", "pass"]).filter(|([(_, reason)], _)| !is_handover(reason));
        counters(encoder, "splitter_events", "Other notable events in the datapath, by reason", None, events)?;
        let handover = kinds(&["event", "pass"]).filter(|([(_, reason)], _)| is_handover(reason));
        counters(encoder, "splitter_handover", "Connections whose requests are no longer decided one by one, by reason", None, handover)?;
        self.heads(encoder)
    }

    /// Of services whose requests are read.
    fn heads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = || self.0.services.iter().filter(|service| service.mode == "http");
        let waiting = all().map(|service| ([("service", service.name.as_str())], service.heads as f64));
        gauges(encoder, "splitter_heads_waiting", "Heads of HTTP requests that wait for their end or for a backend", waiting)?;
        let lost = all().flat_map(|service| {
            let name = service.name.as_str();
            service.heads_lost.iter().map(move |(reason, count)| ([("service", name), ("reason", reason.as_str())], *count))
        });
        let help = "Packets of HTTP services dropped, or connections reset, for want of room for a head, by reason";
        counters(encoder, "splitter_heads_lost", help, None, lost)
    }

    fn tables(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tables = || self.0.tables.iter();
        let entries = tables().map(|t| ([("table", t.name.as_str())], t.entries as f64));
        gauges(encoder, "splitter_table_entries", "Entries of a flow table", entries)?;
        let limits = tables().map(|t| ([("table", t.name.as_str())], t.max_entries as f64));
        gauges(encoder, "splitter_table_max_entries", "Limit of a flow table", limits)
    }

    fn versions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = || self.each();
        let one = |value: fn(&Version) -> u64| all().map(move |(labels, v)| (labels, value(v)));
        counters(encoder, "splitter_connections", "Connections (UDP: flows) given to a version", None, one(|v| v.connections))?;
        counters(encoder, "splitter_opened", "TCP handshakes completed, UDP flows begun", None, one(|v| v.opened))?;
        counters(encoder, "splitter_closed", "TCP connections that have ended", None, one(|v| v.closed))?;
        gauges(encoder, "splitter_flows", "Flows now", all().map(|(labels, v)| (labels, v.flows as f64)))?;
        let pinned = all().filter(|(_, v)| !v.codes.is_empty()).map(|(labels, v)| (labels, v.pinned as f64));
        gauges(encoder, "splitter_pinned_flows", "HTTP: of the flows, connections that stay with their backend", pinned)?;
        gauges(encoder, "splitter_weight_ratio", "Asked share of new connections", all().map(|(labels, v)| (labels, v.weight_ratio)))?;
        let observed = all().filter_map(|(labels, v)| Some((labels, v.observed_ratio?)));
        gauges(
            encoder,
            "splitter_observed_ratio",
            "Achieved share of connections (HTTP: of requests) since the weights last changed",
            observed,
        )?;
        let bytes = all().flat_map(|(l, v)| with(l, "direction", [("in", v.bytes_in), ("out", v.bytes_out)]));
        counters(encoder, "splitter", "Bytes forwarded: in from clients, out to them", Some(&Unit::Bytes), bytes)?;
        let packets = all().flat_map(|(l, v)| with(l, "direction", [("in", v.packets_in), ("out", v.packets_out)]));
        counters(encoder, "splitter_packets", "Packets forwarded: in from clients, out to them", None, packets)?;
        let resets = all().flat_map(|(l, v)| with(l, "side", [("client", v.resets_client), ("backend", v.resets_backend)]));
        counters(encoder, "splitter_resets", "TCP connections reset, by the side that did", None, resets)?;
        let failures = all().flat_map(|(l, v)| with(l, "reason", [("refused", v.refused), ("timeout", v.timeouts)]));
        counters(encoder, "splitter_connect_failures", "Connections that a backend refused or did not answer", None, failures)?;
        let trials = all().flat_map(|([service, version], v)| {
            [("true", &v.trials.drawn), ("false", &v.trials.ruled)].into_iter().flat_map(move |(drawn, outcomes)| {
                outcomes.named().map(move |(outcome, count)| ([service, version, ("drawn", drawn), ("outcome", outcome)], count))
            })
        });
        let help = "Client connections (HTTP: requests) by what became of them, drawn by weight or sent by a rule; what is cut was answered before";
        counters(encoder, "splitter_trials", help, None, trials)?;
        let pending = all().map(|(labels, v)| (labels, v.pending as f64));
        gauges(encoder, "splitter_trials_pending", "Client connections (HTTP: requests) that wait for their first response byte", pending)?;
        let connect = "From the client's SYN to the backend's SYN-ACK, at the node";
        self.latency(encoder, "splitter_connect_duration", connect, |v| Some(&v.connect))?;
        let first_byte = "From the first byte of a request to the first byte of its response, at the node";
        self.latency(encoder, "splitter_first_byte_duration", first_byte, |v| (!is_http(v)).then_some(&v.first_byte))?;
        self.requests(encoder)
    }

    /// Of services whose requests are read.
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = || self.each().filter(|(_, version)| is_http(version));
        let codes = all().flat_map(|([service, version], v)| {
            CODES.map(move |code| ([service, version, ("code", code)], v.codes.get(code).copied().unwrap_or(0)))
        });
        counters(encoder, "splitter_requests", "HTTP requests answered, by class of their status", None, codes)?;
        let switches = all().map(|(labels, v)| (labels, v.switches));
        counters(encoder, "splitter_switches", "HTTP requests whose connection came from another version", None, switches)?;
        let duration = "From the first byte of an HTTP request to the first byte of its response, at the node";
        self.latency(encoder, "splitter_request_duration", duration, |v| is_http(v).then_some(&v.first_byte))
    }

    fn each(&self) -> impl Iterator<Item = ([(&'static str, &str); 2], &Version)> {
        self.0.services.iter().flat_map(|s| s.versions.iter().map(|v| ([("service", s.name.as_str()), ("version", v.name.as_str())], v)))
    }

    fn latency(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, of: fn(&Version) -> Option<&Latency>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, version) in self.each() {
            // Most versions of a large policy are idle; a histogram has 23 lines.
            let Some(latency) = of(version).filter(|latency| !latency.buckets.is_empty()) else { continue };
            let buckets = fold(&latency.buckets);
            // The count is that of the buckets, so that the exposition agrees with itself.
            let count = buckets.iter().map(|(_, n)| n).sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(latency.sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// Values of the label `code`.
const CODES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

fn is_http(version: &Version) -> bool {
    !version.codes.is_empty()
}

/// Reasons for which the kernel stops to decide a connection's requests one by one.
fn is_handover(reason: &str) -> bool {
    reason == "head_too_long" || reason.starts_with("pinned_")
}

/// Fine buckets (upper bound, samples) in the coarse ones: each goes where its upper bound fits, so no sample is counted below a
/// bound that it may exceed.
fn fold(fine: &[(f64, u64)]) -> Vec<(f64, u64)> {
    let mut coarse: Vec<(f64, u64)> = BOUNDS.iter().map(|bound| (*bound, 0)).chain([(f64::INFINITY, 0)]).collect();
    for (upper, samples) in fine {
        let index = BOUNDS.partition_point(|bound| bound < upper);
        coarse[index].1 += samples;
    }
    coarse
}

fn with<'a>(
    labels: [(&'static str, &'a str); 2],
    name: &'static str,
    values: [(&'static str, u64); 2],
) -> impl Iterator<Item = ([(&'static str, &'a str); 3], u64)> {
    values.into_iter().map(move |(value, count)| ([labels[0], labels[1], (name, value)], count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_api::{Interface, ReasonCount, Service, Table};

    fn status() -> Status {
        let latency =
            Latency { count: 6, buckets: vec![(0.000_09, 1), (0.0001, 1), (0.000_101, 2), (61.0, 2)], sum: 120.5, ..Latency::default() };
        let v1 = Version {
            name: "v1".into(),
            weight_ratio: 0.95,
            observed_ratio: Some(0.5),
            connections: 7,
            opened: 8,
            closed: 2,
            bytes_in: 10,
            bytes_out: 20,
            refused: 3,
            trials: splitter_api::Trials {
                drawn: splitter_api::Outcomes { begun: 9, answered: 6, cut: 1, refused: 3, ..splitter_api::Outcomes::default() },
                ruled: splitter_api::Outcomes { overdue: 2, ..splitter_api::Outcomes::default() },
            },
            pending: 5,
            connect: latency,
            ..Version::default()
        };
        let mut status = Status::default();
        status.agent.version = "0.1.0".into();
        let web = Version {
            name: "v2".into(),
            requests: 9,
            codes: [("2xx".to_owned(), 8), ("5xx".to_owned(), 1)].into(),
            switches: 4,
            first_byte: Latency { count: 1, buckets: vec![(0.002, 1)], sum: 0.002, ..Latency::default() },
            ..Version::default()
        };
        let service = |name: &str, version| Service { name: name.into(), versions: vec![version], ..Service::default() };
        let heads = Service { mode: "http".into(), heads: 12, heads_lost: [("head_share".to_owned(), 3)].into(), ..service("web", web) };
        status.services = vec![service("shop/checkout", v1), heads];
        let reason = |reason: &str, kind: &str| ReasonCount { reason: reason.into(), kind: kind.into(), count: 5 };
        status.reasons = vec![
            reason("no_version", "answer"),
            reason("service_unknown", "drop"),
            reason("no_next_hop", "event"),
            reason("pinned_request", "event"),
        ];
        status.attachments.lost = 3;
        let (programs, missing) = (vec!["tcx-ingress".into()], vec!["tcx-egress".into()]);
        status.interfaces = vec![Interface { programs, missing, ..Interface::default() }, Interface::default()];
        status.tables = vec![Table { name: "tcp4".into(), entries: 2, max_entries: 100, memory: 0 }];
        status
    }

    #[test]
    fn names_labels_and_values() {
        let text = render(status()).unwrap();
        for line in [
            "splitter_build_info{version=\"0.1.0\"} 1.0",
            "splitter_policy_errors 0",
            "splitter_interfaces_attached 1",
            "splitter_attachments_missing 1",
            "splitter_attachments_lost_total 3",
            "splitter_state_writable 1",
            "splitter_drops_total{reason=\"no_version\"} 5",
            "splitter_drops_total{reason=\"service_unknown\"} 5",
            "splitter_events_total{reason=\"no_next_hop\"} 5",
            "splitter_handover_total{reason=\"pinned_request\"} 5",
            "splitter_requests_total{service=\"web\",version=\"v2\",code=\"2xx\"} 8",
            "splitter_requests_total{service=\"web\",version=\"v2\",code=\"4xx\"} 0",
            "splitter_requests_total{service=\"web\",version=\"v2\",code=\"5xx\"} 1",
            "splitter_switches_total{service=\"web\",version=\"v2\"} 4",
            "splitter_request_duration_seconds_count{service=\"web\",version=\"v2\"} 1",
            "splitter_heads_waiting{service=\"web\"} 12.0",
            "splitter_heads_lost_total{service=\"web\",reason=\"head_share\"} 3",
            "splitter_table_entries{table=\"tcp4\"} 2.0",
            "splitter_table_max_entries{table=\"tcp4\"} 100.0",
            "splitter_connections_total{service=\"shop/checkout\",version=\"v1\"} 7",
            "splitter_weight_ratio{service=\"shop/checkout\",version=\"v1\"} 0.95",
            "splitter_observed_ratio{service=\"shop/checkout\",version=\"v1\"} 0.5",
            "splitter_bytes_total{service=\"shop/checkout\",version=\"v1\",direction=\"out\"} 20",
            "splitter_connect_failures_total{service=\"shop/checkout\",version=\"v1\",reason=\"refused\"} 3",
            "splitter_trials_total{service=\"shop/checkout\",version=\"v1\",drawn=\"true\",outcome=\"answered\"} 6",
            "splitter_trials_total{service=\"shop/checkout\",version=\"v1\",drawn=\"true\",outcome=\"cut\"} 1",
            "splitter_trials_total{service=\"shop/checkout\",version=\"v1\",drawn=\"false\",outcome=\"overdue\"} 2",
            "splitter_trials_total{service=\"web\",version=\"v2\",drawn=\"true\",outcome=\"refused\"} 0",
            "splitter_opened_total{service=\"shop/checkout\",version=\"v1\"} 8",
            "splitter_closed_total{service=\"shop/checkout\",version=\"v1\"} 2",
            "splitter_trials_pending{service=\"shop/checkout\",version=\"v1\"} 5.0",
            "splitter_connect_duration_seconds_count{service=\"shop/checkout\",version=\"v1\"} 6",
            "splitter_connect_duration_seconds_sum{service=\"shop/checkout\",version=\"v1\"} 120.5",
            "splitter_connect_duration_seconds_bucket{le=\"0.0001\",service=\"shop/checkout\",version=\"v1\"} 2",
            "splitter_connect_duration_seconds_bucket{le=\"0.00025\",service=\"shop/checkout\",version=\"v1\"} 4",
            "splitter_connect_duration_seconds_bucket{le=\"60.0\",service=\"shop/checkout\",version=\"v1\"} 4",
            "splitter_connect_duration_seconds_bucket{le=\"+Inf\",service=\"shop/checkout\",version=\"v1\"} 6",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n in\n{text}");
        }
        for absent in [
            "splitter_requests_total{service=\"shop",
            "splitter_first_byte_duration_seconds_count{service=\"web",
            "splitter_events_total{reason=\"pinned",
        ] {
            assert!(!text.contains(absent), "{absent} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    /// OpenMetrics 1.0: families in one piece, with HELP, TYPE, and the unit in the name; counters end in `_total`.
    #[test]
    fn families_are_as_openmetrics_asks() {
        let text = render(status()).unwrap();
        let mut families: Vec<(&str, [Option<&str>; 3])> = Vec::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            match line.strip_prefix("# ").map(|head| head.splitn(3, ' ').collect::<Vec<_>>()) {
                Some(head) => {
                    let [word, name, value] = head[..] else { panic!("{line}") };
                    if families.last().is_none_or(|(last, _)| *last != name) {
                        assert!(families.iter().all(|(other, _)| *other != name), "{name} stands in two places");
                        families.push((name, [None; 3]));
                    }
                    let kind = ["HELP", "TYPE", "UNIT"].iter().position(|known| *known == word).unwrap_or_else(|| panic!("{line}"));
                    assert_eq!(families.last_mut().unwrap().1[kind].replace(value), None, "{line}");
                }
                None => {
                    let (family, [help, kind, unit]) = families.last().expect("a sample has a head");
                    let name = line.split(['{', ' ']).next().unwrap();
                    let suffixes: &[&str] = match *kind {
                        Some("counter") => &["_total"],
                        Some("histogram") => &["_bucket", "_sum", "_count"],
                        Some("gauge") => &[""],
                        other => panic!("{family} is a {other:?}"),
                    };
                    assert!(help.is_some_and(|help| !help.is_empty()), "{family} has no help");
                    assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} in the family {family}");
                    assert!(unit.is_none_or(|unit| family.ends_with(&format!("_{unit}"))), "{family} is in {unit:?}");
                }
            }
        }
        assert!(families.len() > 20, "{families:?}");
    }

    #[test]
    fn the_older_format_names_counters_in_full() {
        let text = plain(&render(status()).unwrap());
        for line in ["# TYPE splitter_drops_total counter", "# TYPE splitter_bytes_total counter", "# TYPE splitter_flows gauge"] {
            assert!(text.lines().any(|l| l == line), "{line}\n in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }

    #[test]
    fn buckets_rise_to_the_count() {
        assert!(BOUNDS.is_sorted());
        assert_eq!(fold(&[(1e9, 3), (1e-9, 4)]).iter().map(|b| b.1).sum::<u64>(), 7);
    }
}
