//! Screens as they are drawn, and what keys do.

use super::*;
use crate::cli::out::printable_json;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    text::Span,
};
use splitter_api::{Answer, Backend, Finding, Interface, Latency, RolloutPoint, RolloutStatus, Service, Version};
use state::Page;

fn version(name: &str, weight: u32, connections: u64, failed: u64) -> Version {
    let latency = |value| Latency { count: connections, p50: Some(value), p90: Some(value), p99: Some(value * 8.0), ..Latency::default() };
    let backend = |last: u32, suspect| Backend { address: format!("10.2.1.{last}:8080"), id: last, state: "ready".into(), suspect };
    Version {
        name: name.into(),
        weight,
        weight_ratio: f64::from(weight) / 100.0,
        observed_ratio: Some(f64::from(weight) / 100.0),
        connections,
        flows: connections / 10,
        bytes_in: connections * 1000,
        bytes_out: connections * 5000,
        refused: failed,
        connect: latency(0.000_2),
        first_byte: latency(0.001_5),
        backends: vec![backend(2, false), backend(3, failed > 0)],
        ..Version::default()
    }
}

fn service(name: &str, connections: u64, failed: u64) -> Service {
    Service {
        name: name.into(),
        mode: "tcp".into(),
        split_by: "connection".into(),
        on_weight_change: "keep".into(),
        pinned_on_weight_change: "keep".into(),
        path: "redirect".into(),
        unserved: "refuse".into(),
        ping: false,
        frontends: vec!["10.9.9.9:80/TCP".into()],
        weights_from: "policy".into(),
        policy_weights: None,
        heads: 0,
        heads_lost: Default::default(),
        versions: vec![version("v1", 95, connections * 19, 0), version("v2", 5, connections, failed)],
    }
}

fn status(services: Vec<Service>) -> Status {
    let mut status = Status { services, ..Status::default() };
    (status.agent.version, status.agent.started) = ("0.1.0".into(), 1_000.0);
    (status.desired.state, status.applied.generation) = ("ok".into(), 7);
    status.interfaces = vec![Interface { name: "eth0".into(), ..Interface::default() }];
    status.tables = vec![splitter_api::Table { name: "tcp4".into(), entries: 250, max_entries: 1_000, memory: 0 }];
    // As it comes from the agent: through the border.
    serde_json::from_slice(&printable_json(&serde_json::to_vec(&status).unwrap())).unwrap()
}

/// Two looks, ten seconds apart, with ten connections a second to each v1 and one failure of v2 in both seconds.
fn top(services: impl Fn(u64) -> Vec<Service>) -> Top {
    let mut top = Top::new(Column::Service);
    top.update(Event::Size(80, 24));
    for look in 0..2 {
        top.update(Event::Status(Box::new(status(services(look))), look as f64 * 10.0, 5_000.0 + look as f64 * 10.0));
    }
    top
}

fn screen(top: &Top) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(top.size.0, top.size.1)).unwrap();
    terminal.draw(|frame| view::draw(frame, top, 5_010.0, 1.0)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    // A wide character takes two cells, the second of them empty.
    let line = |row: u16| {
        let (mut text, mut column) = (String::new(), 0);
        while column < top.size.0 {
            let symbol = buffer[(column, row)].symbol();
            text += symbol;
            column += Span::raw(symbol).width().max(1) as u16;
        }
        text
    };
    (0..top.size.1).map(|row| line(row).trim_end().to_owned()).collect()
}

/// Compares with the golden screen; empty lines at the end of the body are left out on both sides. `SPLITTER_GOLDEN=write` in the
/// environment writes it anew, to be looked at.
fn golden(top: &Top, name: &str) {
    let lines = screen(top);
    let (foot, body) = lines.split_last().unwrap();
    let seen = format!("{}\n{foot}\n", body.join("\n").trim_end());
    let path = format!("{}/src/cli/top/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("SPLITTER_GOLDEN").is_some() {
        std::fs::write(&path, &seen).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(seen == expected, "{path}:\n--- the screen:\n{seen}--- expected:\n{expected}---");
}

fn press(top: &mut Top, keys: &[KeyCode]) -> Next {
    let mut next = Next::Go;
    for key in keys {
        next = top.update(Event::Key(KeyEvent::new(*key, KeyModifiers::NONE)));
    }
    next
}

fn write(top: &mut Top, text: &str) {
    press(top, &text.chars().map(KeyCode::Char).collect::<Vec<_>>());
}

fn forty(look: u64) -> Vec<Service> {
    (0..40).map(|number| service(&format!("shop/service-{number:02}"), 10 + look * number, look * number / 20)).collect()
}

#[test]
fn one_service() {
    golden(&top(|look| vec![service("checkout", 10 + look * 100, look * 20)]), "one");
}

#[test]
fn forty_services_scroll() {
    let mut top = top(forty);
    golden(&top, "forty");
    assert_eq!(press(&mut top, &[KeyCode::PageDown, KeyCode::Down, KeyCode::Up]), Next::Go);
    assert_eq!(top.selected, 10, "ten services of two lines fit");
    assert!(screen(&top).iter().any(|line| line.starts_with("shop/service-10")));
    press(&mut top, &[KeyCode::End]);
    let last = screen(&top);
    assert!(last[22].starts_with("                v2") && last[21].starts_with("shop/service-39"), "{last:#?}");
    press(&mut top, &[KeyCode::PageUp, KeyCode::Home]);
    assert_eq!((top.selected, top.first), (0, 0));
    // The last line of the services is not hidden by the keys, at whatever height.
    for rows in 6..40 {
        top.update(Event::Size(80, rows));
        press(&mut top, &[KeyCode::End]);
        assert!(screen(&top).iter().any(|line| line.starts_with("shop/service-39")), "{rows} rows");
    }
}

#[test]
fn long_names_are_cut_and_marked() {
    let name = format!("a-namespace-with-a-very-long-name/{}", "checkout-".repeat(20));
    let mut top = top(|look| {
        let mut long = service(&name, 10 + look * 100, 0);
        long.versions[0].name = "release-2026-11-30".into();
        vec![long, service("例え/サービス", 10, 0)]
    });
    golden(&top, "long");
    for columns in [1, 20, 40, 79, 81, 120, 200, 400] {
        top.update(Event::Size(columns, 24));
        press(&mut top, &[KeyCode::Enter]);
        screen(&top);
        press(&mut top, &[KeyCode::Esc]);
        screen(&top);
    }
}

#[test]
fn control_characters_are_written_out() {
    let mut top = top(|look| vec![service("a\x1b[2Jb\u{9b}c\u{202e}d", 10 + look * 100, 0)]);
    golden(&top, "control");
    press(&mut top, &[KeyCode::Enter]);
    assert!(screen(&top)[3].starts_with("a\\x1b[2Jb\\x9bc\\u{202e}d"), "{:#?}", screen(&top));
}

fn rollout() -> RolloutStatus {
    RolloutStatus {
        service: "checkout".into(),
        canary: "v2".into(),
        baseline: "v1".into(),
        phase: "running".into(),
        reason: "step 2 of 4".into(),
        steps: vec![0.01, 0.05, 0.5, 1.0],
        step: 1,
        share: 0.05,
        began: 4_000.0,
        since: 4_980.0,
        findings: vec![Finding {
            gate: "errorRate".into(),
            answer: Answer::Unknown,
            canary: Some(0.02),
            baseline: Some(0.001),
            counts: Some([[420.0, 8.0], [8_000.0, 8.0]]),
            text: "the canary's error rate is below 5% with 99% confidence only after about 800 more requests".into(),
            ..Finding::default()
        }],
        points: (0..12u32)
            .map(|at| RolloutPoint { errors: [Some(f64::from(at) / 100.0), Some(0.01)], latency: [Some(0.01), None] })
            .collect(),
        missing: vec!["30 s of this step".into()],
        ..RolloutStatus::default()
    }
}

#[test]
fn a_service_is_opened_with_its_rollout_and_scrolls() {
    let look = |look: u64| vec![service("checkout", 10 + look * 100, look * 20), service("web", 1, 0)];
    let mut top = top(look);
    press(&mut top, &[KeyCode::Enter]);
    let mut status = status(look(2));
    status.rollouts = vec![rollout()];
    top.update(Event::Status(Box::new(status.clone()), 20.0, 5_020.0));
    golden(&top, "opened");
    assert!(top.lines > top.body());
    press(&mut top, &[KeyCode::PageDown, KeyCode::PageDown, KeyCode::PageDown]);
    let shown = screen(&top).join("\n");
    assert!(shown.contains("30 s of this step") && shown.contains("lines 8-27 of 27"), "{shown}");
    press(&mut top, &[KeyCode::Home]);
    assert_eq!(top.scroll, 0);
    // The service goes away while it is looked at.
    status.services.remove(0);
    top.update(Event::Status(Box::new(status), 21.0, 5_021.0));
    assert!(screen(&top).join("\n").contains("no service checkout any more"));
    press(&mut top, &[KeyCode::Esc]);
    assert_eq!(top.page, Page::List);
}

#[test]
fn only_q_and_control_c_quit() {
    let mut top = top(forty);
    let keys = [KeyCode::Up, KeyCode::Down, KeyCode::PageUp, KeyCode::PageDown, KeyCode::Esc, KeyCode::Enter, KeyCode::Esc, KeyCode::Left];
    for key in keys {
        assert_eq!(press(&mut top, &[key]), Next::Go, "{key:?}");
    }
    write(&mut top, "/q");
    assert_eq!(top.filter, "q", "a letter of the filter is no command");
    assert_eq!(press(&mut top, &[KeyCode::Esc]), Next::Go);
    assert_eq!(press(&mut top, &[KeyCode::Char('q')]), Next::Quit);
    assert_eq!(top.update(Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL))), Next::Quit);
    write(&mut top, "/");
    assert_eq!(top.update(Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL))), Next::Quit);
}

#[test]
fn the_filter_shows_what_fits() {
    let mut top = top(forty);
    write(&mut top, "/Service-1");
    assert_eq!(top.visible().len(), 10);
    assert!(screen(&top).last().unwrap().starts_with(" /Service-1▏"));
    press(&mut top, &[KeyCode::Backspace, KeyCode::Char('3'), KeyCode::Char('9'), KeyCode::Enter]);
    assert_eq!(top.visible().iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["shop/service-39"]);
    assert!(screen(&top)[1].starts_with("services 1 of 40"), "{:#?}", screen(&top));
    press(&mut top, &[KeyCode::Enter]);
    assert_eq!(top.page, Page::Service("shop/service-39".into()));
    press(&mut top, &[KeyCode::Esc, KeyCode::Esc]);
    assert_eq!((top.visible().len(), top.selected), (40, 39), "the selection stays on its service");
}

#[test]
fn columns_sort_by_their_letter_and_show_it() {
    let mut top = top(forty);
    write(&mut top, "t");
    assert_eq!((top.sort, top.services[0].name.as_str()), (Column::Rate, "shop/service-39"));
    assert!(screen(&top)[2].contains("RATE/s▼"), "{:#?}", screen(&top));
    write(&mut top, "t");
    assert!(top.reversed && screen(&top)[2].contains("RATE/s▲"));
    write(&mut top, "u");
    assert_eq!((top.sort, top.reversed), (Column::Success, false));
    let lowest = top.services.iter().filter_map(|service| service.versions[1].success).fold(1.0, f64::min);
    assert!(lowest < 1.0 && top.services[0].versions[1].success == Some(lowest));
    write(&mut top, "sS");
    assert_eq!(top.sort, Column::Success);
    write(&mut top, "vr");
    assert_eq!(top.services[0].name, "shop/service-39");
    for letter in "vhtudf59cioal".chars() {
        assert!(view::column_of(letter).is_some(), "{letter}");
    }
}

#[test]
fn an_agent_that_is_away_is_shown_and_comes_back() {
    let mut top = top(|look| vec![service("checkout", 10 + look * 100, 0)]);
    top.update(Event::Lost("no agent answers on /run/splitter/admin.sock".into(), 12.0));
    top.update(Event::Lost("no agent answers on /run/splitter/admin.sock".into(), 17.0));
    let shown = screen(&top);
    assert!(shown[2].starts_with("nothing new for 5 s, asking again: no agent answers"), "{shown:#?}");
    assert!(shown[0].contains("gone") && shown[4].starts_with("checkout"), "{shown:#?}");
    top.update(Event::Status(Box::new(status(vec![service("checkout", 300, 0)])), 20.0, 5_020.0));
    let shown = screen(&top);
    assert!(shown[0].contains(" up ") && shown[3].starts_with("checkout"), "{shown:#?}");
}

#[test]
fn the_help_fits() {
    let mut top = top(|look| vec![service("checkout", 10 + look * 100, 0)]);
    press(&mut top, &[KeyCode::Char('?')]);
    golden(&top, "help");
    press(&mut top, &[KeyCode::Char('q')]);
    assert!(!top.help, "any key closes it, and only that");
}

#[test]
fn what_is_wrong_stands_above_the_services() {
    let mut wrong = status(vec![service("checkout", 1, 0)]);
    wrong.interfaces.clear();
    wrong.desired.errors = vec!["p.yaml:1:2: unknown field".into()];
    let mut top = Top::new(Column::Service);
    top.update(Event::Status(Box::new(wrong), 0.0, 0.0));
    let shown = screen(&top);
    assert!(shown[2].contains("rejected") && shown[3].starts_with("attached to no interface"), "{shown:#?}");
}

#[test]
fn the_snapshot_has_every_column() {
    let mut looks = Looks::default();
    looks.note(&status(forty(0)), 0.0);
    let text = plain::text(&looks.note(&status(forty(1)), 10.0));
    assert!(
        text.starts_with("SERVICE") && text.contains("SUCCESS") && text.contains("shop/service-39") && text.lines().count() == 81,
        "{text}"
    );
}
