//! `splitter status`: what the node does now.

use super::{
    args,
    check::plural,
    in_format,
    out::{self, Style},
    show,
    table::{Table, age, bytes, count, plain, seconds, share, since},
};
use anyhow::Result;
use splitter_api::{Interface, Service, Status, StatusQuery, Version, client::Client};
use std::time::{SystemTime, UNIX_EPOCH};

pub async fn run(client: &Client, arguments: args::Status) -> Result<()> {
    let (output, query) = arguments.request();
    let status = in_format(client, output).select(&query).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    show(output, &status, |status| text(status, &query, now, out::colour()))
}

fn text(status: &Status, query: &StatusQuery, now: f64, colour: bool) -> String {
    let mut text = head(status, now, colour);
    if status.services.is_empty() {
        text += "no services\n";
    } else {
        text += "\n";
        text += &services(&status.services, colour);
    }
    if query.limit == Some(status.services.len()) && status.applied.services > status.services.len() {
        text += &format!("of {}, no more than --limit asks for\n", plural(status.applied.services, "service"));
    }
    // Who is named is shown in full.
    for service in status.services.iter().filter(|service| query.services.contains(&service.name)) {
        text += &details(service, colour);
    }
    text
}

/// The agent, its policy and its warnings, in a few lines.
pub fn head(status: &Status, now: f64, colour: bool) -> String {
    let Status { agent, desired, applied, interfaces, .. } = status;
    let line = |title: &str, value: String| format!("{}{value}\n", Style::Dim.paint(&format!("{title:<11}"), colour));
    let adopted = if agent.adopted { ", took over from an earlier agent" } else { "" };
    // The wall clock may have been set since; an agent of an earlier version tells no other.
    let up = if agent.uptime > 0.0 { age(agent.uptime) } else { since(now, agent.started) };
    let mut text = line("agent", format!("{} (pid {}), up {up}{adopted}", agent.version, agent.pid));
    let state = match desired.state.as_str() {
        "ok" => Style::Green.paint("ok", colour),
        other => Style::Red.paint(other, colour),
    };
    text += &match desired.read {
        0.0 => line("policy", format!("{} not read yet", desired.source)),
        read => line("policy", format!("{} {state}, read {} ago", desired.source, since(now, read))),
    };
    for error in &desired.errors {
        text += &line("", Style::Red.paint(error, colour));
    }
    for warning in &desired.warnings {
        text += &line("", Style::Yellow.paint(&format!("warning: {warning}"), colour));
    }
    let age = if applied.at == 0.0 { String::new() } else { format!(", {} ago in {:.1} ms", since(now, applied.at), applied.apply_ms) };
    let kept = if desired.errors.is_empty() { "" } else { " (the last good policy)" };
    text += &line("applied", format!("generation {}, {}{age}{kept}", applied.generation, plural(applied.services, "service")));
    if let Some(error) = &applied.error {
        text += &line("", Style::Red.paint(&format!("the last change was not applied, it is tried again: {error}"), colour));
    }
    if let Some(error) = &agent.state_error {
        let what = format!("cannot be written, a restart would take up an earlier state: {error}");
        text += &line("state", Style::Red.paint(&what, colour));
    }
    for (from, title) in [("kernel", "drift"), ("cli", "by hand")] {
        let mut drifting = status.services.iter().filter(|service| service.weights_from == from);
        for service in drifting.by_ref().take(NAMED) {
            text += &line(title, Style::Yellow.paint(&format!("{}: {}", service.name, drift(service)), colour));
        }
        let more = drifting.count();
        if more > 0 {
            text += &line("", Style::Yellow.paint(&format!("and {more} more"), colour));
        }
    }
    for full in status.nearly_full() {
        text += &line("filling", Style::Yellow.paint(&full, colour));
    }
    for service in status.services.iter().filter(|service| !service.heads_lost.is_empty()).take(NAMED) {
        let lost: Vec<String> = service.heads_lost.iter().map(|(reason, times)| format!("{reason} {times}")).collect();
        text += &line("heads lost", Style::Yellow.paint(&format!("{}: {}", service.name, lost.join(", ")), colour));
    }
    let names: Vec<_> = interfaces.iter().map(|interface| self::interface(interface, colour)).collect();
    let names = if names.is_empty() { Style::Yellow.paint("none: no traffic is split; see --interface", colour) } else { names.join(", ") };
    text += &line("interfaces", names);
    if !agent.path.is_empty() {
        text += &line("path", format!("{} ({})", agent.path, agent.path_reason));
    }
    for warning in &status.attachments.warnings {
        text += &line("", Style::Yellow.paint(&format!("warning: {warning}"), colour));
    }
    text
}

/// `c0 (tcx-ingress, tcx-egress missing)`.
fn interface(interface: &Interface, colour: bool) -> String {
    let missing = interface.missing.iter().map(|program| Style::Red.paint(&format!("{program} missing"), colour));
    let programs: Vec<_> = interface.programs.iter().cloned().chain(missing).collect();
    format!("{} ({})", interface.name, programs.join(", "))
}

/// Services whose weights are not the policy's, that are named one by one.
const NAMED: usize = 5;

/// Where the running weights are from, and what the policy says.
fn drift(service: &Service) -> String {
    let running: Vec<String> = service.versions.iter().map(|version| format!("{}={}", version.name, version.weight)).collect();
    let (running, policy) = (running.join(" "), service.policy_weights.iter().flatten());
    let policy = policy.map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(" ");
    match service.weights_from.as_str() {
        "kernel" => format!("the kernel ran {running} when this agent came and still does; the policy says {policy}"),
        _ => format!("{running}; the policy says {policy}"),
    }
}

fn services(services: &[Service], colour: bool) -> String {
    let http = services.iter().any(|service| !service.versions.iter().all(|version| version.codes.is_empty()));
    let pinned = services.iter().flat_map(|service| &service.versions).any(|version| version.pinned > 0);
    let mut head = vec!["<SERVICE", "<VERSION", ">WEIGHT", ">ASKED", ">ACHIEVED", ">CONNS", ">FLOWS"];
    if pinned {
        head.push(">PINNED");
    }
    head.push(">FAILED");
    if http {
        head.extend([">REQUESTS", ">REQ/s", ">4xx", ">5xx"]);
    }
    head.extend([">CONNECT p50", ">p99", ">FIRST BYTE p50", ">p99"]);
    let mut table = Table::new(&head);
    for service in services {
        for (index, version) in service.versions.iter().enumerate() {
            let name = if index == 0 { service.name.clone() } else { String::new() };
            let failed = version.refused + version.timeouts + version.resets_backend;
            let mut row = vec![
                (name, Style::Bold),
                plain(&version.name),
                plain(version.weight.to_string()),
                plain(share(Some(version.weight_ratio))),
                (share(version.observed_ratio), deviation(version)),
                plain(count(version.connections)),
                plain(count(version.flows)),
            ];
            if pinned {
                row.push(plain(count(version.pinned)));
            }
            row.push((count(failed), if failed > 0 { Style::Red } else { Style::Plain }));
            if http {
                row.extend(requests(version));
            }
            row.extend([
                plain(seconds(version.connect.p50)),
                plain(seconds(version.connect.p99)),
                plain(seconds(version.first_byte.p50)),
                plain(seconds(version.first_byte.p99)),
            ]);
            table.row(row);
        }
    }
    table.render(colour)
}

/// Requests, their rate, and responses that are errors; dashes where requests are not read.
fn requests(version: &Version) -> [(String, Style); 4] {
    if version.codes.is_empty() {
        return ["-"; 4].map(plain);
    }
    let code = |class: &str| version.codes.get(class).copied().unwrap_or(0);
    let rate = version.request_rate.map_or("-".to_owned(), |rate| count(rate.round() as u64));
    let server = code("5xx");
    let style = if server > 0 { Style::Red } else { Style::Plain };
    [plain(count(version.requests)), plain(rate), plain(count(code("4xx"))), (count(server), style)]
}

/// Yellow when the achieved share is off by more than chance explains: 4 standard errors of the binomial and half a percent.
pub fn deviation(version: &Version) -> Style {
    let Some(observed) = version.observed_ratio else { return Style::Dim };
    let p = version.weight_ratio;
    let decisions = if version.codes.is_empty() { version.connections } else { version.requests };
    let n = decisions as f64 / observed.max(1e-9);
    let bound = 4.0 * (p * (1.0 - p) / n.max(1.0)).sqrt() + 0.005;
    if (observed - p).abs() > bound { Style::Yellow } else { Style::Green }
}

fn details(service: &Service, colour: bool) -> String {
    let mut text = format!(
        "\n{} {}, splitBy {}, onWeightChange {}, weights from {}\n{} {}\n\n",
        Style::Dim.paint("mode", colour),
        service.mode,
        service.split_by,
        service.on_weight_change,
        match service.weights_from.as_str() {
            "cli" => "`splitter weight`",
            "rollout" => "its rollout",
            "kernel" => "the kernel",
            _ => "the policy",
        },
        Style::Dim.paint("frontends", colour),
        service.frontends.join(", ")
    );
    if let Some(policy) = &service.policy_weights {
        let policy: Vec<String> = policy.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
        text += &format!("{} {}\n\n", Style::Dim.paint("the policy says", colour), policy.join(" "));
    }
    let pinned: u64 = service.versions.iter().map(|version| version.pinned).sum();
    if pinned > 0 {
        let of: Vec<String> = service.versions.iter().map(|version| format!("{} {}", version.name, count(version.pinned))).collect();
        let stay = match service.pinned_on_weight_change.as_str() {
            "reset" => "until a weight change moves them (pinned: reset)",
            _ => "whatever the weights are (pinned: keep)",
        };
        text += &format!(
            "{} {} of the connections stay where they are, {stay}: {}\n\n",
            Style::Dim.paint("pinned", colour),
            count(pinned),
            of.join(", ")
        );
    }
    let mut table = Table::new(&["<VERSION", "<BACKEND", "<STATE"]);
    let mut traffic =
        Table::new(&["<VERSION", ">IN", ">OUT", ">PACKETS IN", ">OUT", ">REFUSED", ">TIMEOUTS", ">RESETS CLIENT", ">BACKEND"]);
    for version in &service.versions {
        traffic.row([
            plain(&version.name),
            plain(bytes(version.bytes_in as f64)),
            plain(bytes(version.bytes_out as f64)),
            plain(count(version.packets_in)),
            plain(count(version.packets_out)),
            plain(count(version.refused)),
            plain(count(version.timeouts)),
            plain(count(version.resets_client)),
            plain(count(version.resets_backend)),
        ]);
        for backend in &version.backends {
            let (state, style) = match (backend.state.as_str(), backend.suspect) {
                ("ready", true) => ("ready, does not answer lately".to_owned(), Style::Yellow),
                ("ready", false) => ("ready".to_owned(), Style::Green),
                (state, _) => (state.to_owned(), Style::Yellow),
            };
            table.row([plain(&version.name), plain(&backend.address), (state, style)]);
        }
    }
    text += &traffic.render(colour);
    text.push('\n');
    text += &responses(service, colour);
    text + &table.render(colour)
}

/// Responses by class, and switches between versions; nothing for services that do not read requests.
fn responses(service: &Service, colour: bool) -> String {
    const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
    if service.versions.iter().all(|version| version.codes.is_empty()) {
        return String::new();
    }
    let mut table = Table::new(&["<VERSION", ">REQUESTS", ">1xx", ">2xx", ">3xx", ">4xx", ">5xx", ">OTHER", ">SWITCHES TO IT"]);
    for version in &service.versions {
        let mut row = vec![plain(&version.name), plain(count(version.requests))];
        row.extend(CLASSES.map(|class| plain(count(version.codes.get(class).copied().unwrap_or(0)))));
        row.push(plain(count(version.switches)));
        table.row(row);
    }
    table.render(colour) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let version = |name: &str, weight, ratio, observed, connections| Version {
            name: name.into(),
            weight,
            weight_ratio: ratio,
            observed_ratio: observed,
            connections,
            ..Version::default()
        };
        let mut status = Status::default();
        status.desired.state = "rejected".into();
        status.desired.errors = vec!["p.yaml:3:1: wrong".into()];
        status.services = vec![Service {
            name: "checkout".into(),
            versions: vec![version("v1", 95, 0.95, Some(0.948), 9480), version("v2", 5, 0.05, Some(0.052), 520)],
            ..Service::default()
        }];
        status
    }

    fn named() -> StatusQuery {
        StatusQuery { services: vec!["checkout".into()], ..StatusQuery::default() }
    }

    #[test]
    fn shows_shares_and_errors() {
        let mut status = status();
        assert!(head(&status, 10.0, false).contains("not read yet"));
        status.desired.read = 4.0;
        let text = text(&status, &named(), 10.0, false);
        for part in ["p.yaml:3:1: wrong", "rejected", "(the last good policy)", "94.8%", "checkout  v1", "          v2"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn no_time_is_counted_from_1970() {
        let mut status = status();
        status.desired.read = 12.0;
        status.applied.generation = 3;
        let text = head(&status, 1.8e9, false);
        assert!(text.contains("up -") && text.contains("read - ago"), "{text}");
        assert!(!text.contains("20833d"), "{text}");
        (status.agent.started, status.agent.uptime, status.applied.at) = (12.0, 62.0, 1.8e9 - 5.0);
        let text = head(&status, 1.8e9, false);
        assert!(text.contains("up 1m02s") && text.contains("generation 3, 0 services, 5s ago in 0.0 ms"), "{text}");
    }

    #[test]
    fn what_is_not_attached_is_told() {
        let mut status = status();
        let (name, programs, missing) = ("b1".into(), vec!["tcx-ingress".into()], vec!["tcx-egress".into()]);
        status.interfaces = vec![Interface { name, programs, missing, ..Interface::default() }];
        status.attachments.warnings = vec!["--interface eht0: no interface has this name".into()];
        let text = head(&status, 10.0, false);
        assert!(text.contains("b1 (tcx-ingress, tcx-egress missing)") && text.contains("warning: --interface eht0: no"), "{text}");
    }

    #[test]
    fn a_drift_and_a_full_disk_are_shown() {
        let mut status = status();
        status.agent.state_error = Some("No space left on device".into());
        status.services[0].weights_from = "kernel".into();
        status.services[0].policy_weights = Some([("v1".to_owned(), 100), ("v2".to_owned(), 0)].into());
        let text = text(&status, &named(), 10.0, false);
        for part in [
            "state      cannot be written, a restart would take up an earlier state: No space left on device\n",
            "drift      checkout: the kernel ran v1=95 v2=5 when this agent came and still does; the policy says v1=100 v2=0\n",
            "weights from the kernel",
            "the policy says v1=100 v2=0\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        status.services[0].weights_from = "cli".into();
        let text = self::text(&status, &StatusQuery::default(), 10.0, false);
        assert!(text.contains("by hand    checkout: v1=95 v2=5; the policy says v1=100 v2=0\n"), "{text}");
    }

    #[test]
    fn pinned_connections_are_told() {
        let mut status = status();
        assert!(!text(&status, &named(), 10.0, false).to_lowercase().contains("pinned"));
        status.services[0].versions[1].pinned = 1_234;
        let text = text(&status, &named(), 10.0, false);
        for part in [
            "FLOWS  PINNED  FAILED",
            "pinned 1,234 of the connections stay where they are, whatever the weights are (pinned: keep): v1 0, v2 1,234\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        status.services[0].pinned_on_weight_change = "reset".into();
        assert!(self::text(&status, &named(), 10.0, false).contains("until a weight change moves them (pinned: reset)"));
    }

    #[test]
    fn what_fills_up_and_who_loses_heads_is_told() {
        let mut status = status();
        assert!(!head(&status, 10.0, false).contains("filling") && !head(&status, 10.0, false).contains("heads lost"));
        status.tables = vec![splitter_api::Table { name: "stashes".into(), entries: 800, max_entries: 1_024, memory: 0 }];
        status.services[0].heads_lost = [("head_late".to_owned(), 2), ("head_share".to_owned(), 7)].into();
        let text = head(&status, 10.0, false);
        assert!(text.contains("filling    stashes: 800 of 1024 entries\n"), "{text}");
        assert!(text.contains("heads lost checkout: head_late 2, head_share 7\n"), "{text}");
    }

    #[test]
    fn requests_are_shown_where_they_are_read() {
        let mut status = status();
        assert!(!text(&status, &named(), 10.0, false).contains("REQUESTS"));
        let version = &mut status.services[0].versions[1];
        version.codes = [("2xx".to_owned(), 900), ("5xx".to_owned(), 17)].into();
        (version.requests, version.request_rate, version.switches) = (917, Some(41.6), 33);
        let text = text(&status, &named(), 10.0, false);
        for part in ["REQ/s", " 917 ", " 42 ", " 900 ", " 17 ", "SWITCHES", " 33"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn only_deviations_beyond_chance_are_marked() {
        let mut status = status();
        let version = &mut status.services[0].versions[1];
        assert_eq!(deviation(version), Style::Green);
        version.observed_ratio = Some(0.2);
        version.connections = 20_000;
        assert_eq!(deviation(version), Style::Yellow);
        version.observed_ratio = None;
        assert_eq!(deviation(version), Style::Dim);
    }

    #[test]
    fn a_limit_is_told_and_only_named_services_are_shown_in_full() {
        let mut status = status();
        status.applied.services = 7;
        let query = StatusQuery { limit: Some(1), ..StatusQuery::default() };
        let text = super::text(&status, &query, 10.0, false);
        assert!(text.ends_with("of 7 services, no more than --limit asks for\n") && !text.contains("BACKEND"), "{text}");
        assert!(super::text(&status, &named(), 10.0, false).contains("BACKEND"));
    }
}
