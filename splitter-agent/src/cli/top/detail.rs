//! The page of one service: versions, backends, and the rollout with its evidence. Lines, so that it can be scrolled.

use super::{
    rows::Row,
    state::{Page, Top},
    view::{achieved, failed, fit, number, phase_style, success},
};
use crate::cli::{
    rollout::{bar, measured},
    table::{count, seconds, share, since},
};
use ratatui::{
    style::{Style, Stylize},
    text::{Line, Span},
};
use splitter_api::{Answer, Finding, RolloutPoint, RolloutStatus, Service};

/// All lines of the opened service; none on the list.
pub fn lines(top: &Top) -> Vec<Line<'static>> {
    let Page::Service(name) = &top.page else { return Vec::new() };
    let Some((service, row, rollout)) = top.opened() else {
        return vec![Line::from(format!("the agent has no service {name} any more; Esc goes back")).yellow()];
    };
    let width = usize::from(top.size.0);
    let mut parts = vec![head(service, width)];
    parts.push(part("versions", versions(top, &row.versions, width)));
    parts.push(part("backends", backends(service)));
    parts.extend(rollout.map(|rollout| part("rollout", self::rollout(rollout, top.wall, width))));
    let roomy = parts.iter().map(|part| part.len() + 1).sum::<usize>() < top.body();
    let gap = |part: Vec<Line<'static>>| part.into_iter().chain(roomy.then(Line::default));
    parts.into_iter().flat_map(gap).collect()
}

fn part(title: &str, lines: Vec<Line<'static>>) -> Vec<Line<'static>> {
    std::iter::once(heading(title)).chain(lines).collect()
}

fn heading(text: &str) -> Line<'static> {
    Line::from(text.to_uppercase()).bold().cyan()
}

fn head(service: &Service, width: usize) -> Vec<Line<'static>> {
    let from = match service.weights_from.as_str() {
        "cli" => "`splitter weight`",
        "rollout" => "its rollout",
        _ => "the policy",
    };
    let facts = format!("{}  splitBy {}  onWeightChange {}  weights from {from}", service.mode, service.split_by, service.on_weight_change);
    vec![
        Line::from(fit(&service.name, width, false)).bold(),
        Line::from(fit(&facts, width, false)),
        Line::from(fit(&service.frontends.join(", "), width, false)).dim(),
    ]
}

fn versions(top: &Top, rows: &[Row], width: usize) -> Vec<Line<'static>> {
    let wide = width >= 110;
    let mut titles = vec![("VERSION", 10), ("WEIGHT", 7), ("ASKED", 6), ("ACHIEVED", 8), ("RATE/s", 8), ("SUCCESS", 8), ("FAILED/s", 8)];
    titles.extend([("FLOWS", 7), ("P99", 9)]);
    if wide {
        titles.extend([("P50", 9), ("CONNECT", 9)]);
    }
    let cell = |at: usize, text: &str| fit(text, titles[at].1, at > 0);
    let title: Vec<String> = titles.iter().enumerate().map(|(at, (title, _))| cell(at, title)).collect();
    let mut lines = vec![Line::from(title.join(" ")).dim()];
    for row in rows {
        let plain = |text: String| (text, Style::new());
        let mut cells = vec![
            (row.name.clone(), Style::new().bold()),
            plain(count(row.weight.into())),
            plain(share(Some(row.asked))),
            achieved(row),
            plain(number(row.rate)),
            success(row),
            failed(row),
            plain(count(row.flows)),
            plain(seconds(row.p99)),
        ];
        if wide {
            cells.extend([plain(seconds(row.p50)), plain(seconds(row.connect))]);
        }
        let spans = cells.iter().enumerate().flat_map(|(at, (text, style))| [Span::styled(cell(at, text), *style), Span::from(" ")]);
        lines.push(Line::from(spans.collect::<Vec<_>>()));
    }
    let rates: Vec<(String, Vec<Option<f64>>)> = rows.iter().map(|row| (row.name.clone(), history(top, &row.name))).collect();
    if rates.iter().flat_map(|(_, rates)| rates).flatten().next().is_some() {
        lines.extend(sparks("rate/s", &rates, width, number));
    }
    lines
}

fn history(top: &Top, version: &str) -> Vec<Option<f64>> {
    let of = |look: &Vec<(String, Option<f64>)>| look.iter().find(|(name, _)| name == version).and_then(|(_, rate)| *rate);
    top.history.iter().map(of).collect()
}

fn backends(service: &Service) -> Vec<Line<'static>> {
    let all = service.versions.iter().flat_map(|version| version.backends.iter().map(move |backend| (version, backend)));
    let mut lines = Vec::new();
    for (version, backend) in all {
        let (state, style) = match (backend.state.as_str(), backend.suspect) {
            ("ready", true) => ("suspect: refused or did not answer lately".to_owned(), Style::new().yellow()),
            ("ready", false) => ("ready".to_owned(), Style::new().green()),
            ("down", _) => ("down".to_owned(), Style::new().red()),
            (state, _) => (state.to_owned(), Style::new().yellow()),
        };
        let place = format!("{} {} ", fit(&version.name, 10, false), fit(&backend.address, 24, false));
        lines.push(Line::from(vec![Span::from(place), Span::styled(state, style)]));
    }
    if lines.is_empty() { vec![Line::from("none: every request is refused").red()] } else { lines }
}

/// A rollout with its evidence. `now`: Unix seconds.
pub fn rollout(rollout: &RolloutStatus, now: f64, width: usize) -> Vec<Line<'static>> {
    let RolloutStatus { canary, baseline, phase, .. } = rollout;
    let mut lines = vec![Line::from(vec![
        Span::styled(phase.clone(), phase_style(phase)),
        Span::from(format!(": {canary} beside {baseline}, at {}", share(Some(rollout.share)))),
        Span::from(if rollout.since > 0.0 { format!(" for {}", since(now, rollout.since)) } else { String::new() }),
    ])];
    if !rollout.reason.is_empty() {
        lines.extend(wrapped(&rollout.reason, width));
    }
    let mut steps = vec![Span::from("steps ")];
    for (index, step) in rollout.steps.iter().enumerate() {
        let text = share(Some(*step));
        let here = index == rollout.step && rollout.share > 0.0;
        steps.push(if here { Span::from(format!("[{text}] ")).bold() } else { Span::from(format!("{text} ")) });
    }
    lines.push(Line::from(steps));
    for finding in &rollout.findings {
        lines.extend(self::finding(finding, width));
    }
    lines.extend(evidence(&rollout.points, canary, baseline, width));
    if !rollout.missing.is_empty() {
        lines.push(Line::from("missing before the next step:").yellow());
        lines.extend(rollout.missing.iter().flat_map(|text| wrapped(text, width)));
    }
    lines
}

fn finding(finding: &Finding, width: usize) -> Vec<Line<'static>> {
    let (answer, style) = match finding.answer {
        Answer::Pass => ("pass", Style::new().green()),
        Answer::Fail => ("FAIL", Style::new().red().bold()),
        Answer::Unknown => ("unknown", Style::new().yellow()),
    };
    let value = |value: Option<f64>| measured(&finding.gate, value);
    let requests = finding.counts.map_or("-".into(), |counts| count(counts[0][0] as u64));
    let mut lines = vec![Line::from(vec![
        Span::from(format!("{} ", fit(&finding.gate, 16, false))),
        Span::styled(fit(answer, 8, false), style),
        Span::from(format!("canary {}  baseline {}  requests {requests}", value(finding.canary), value(finding.baseline))),
    ])];
    if !finding.text.is_empty() {
        lines.extend(wrapped(&finding.text, width));
    }
    lines
}

/// Errors and latency as they went, canary above baseline, on one scale.
fn evidence(points: &[RolloutPoint], canary: &str, baseline: &str, width: usize) -> Vec<Line<'static>> {
    let of = |pick: fn(&RolloutPoint) -> [Option<f64>; 2]| {
        let side = |side: usize| points.iter().map(|point| pick(point)[side]).collect::<Vec<_>>();
        [(canary.to_owned(), side(0)), (baseline.to_owned(), side(1))]
    };
    let (errors, latency) = (of(|point| point.errors), of(|point| point.latency));
    let seen = |values: &[(String, Vec<Option<f64>>)]| values[0].1.iter().any(Option::is_some);
    let mut lines = Vec::new();
    if seen(&errors) {
        lines.extend(sparks("errors", &errors, width, share));
    }
    if seen(&latency) {
        lines.extend(sparks("latency", &latency, width, seconds));
    }
    lines
}

/// A line for each name: the last values that fit as bars on one scale, and the last one as a number.
fn sparks(what: &str, values: &[(String, Vec<Option<f64>>)], width: usize, show: impl Fn(Option<f64>) -> String) -> Vec<Line<'static>> {
    const NAMES: usize = 8 + 11;
    let room = width.saturating_sub(NAMES + 12).clamp(10, 120);
    let top = values.iter().flat_map(|(_, values)| values).flatten().fold(0.0, |a: f64, b| a.max(*b));
    let line = |(at, (name, values)): (usize, &(String, Vec<Option<f64>>))| {
        let shown = &values[values.len().saturating_sub(room)..];
        let bars: String = shown.iter().map(|value| bar(*value, top)).collect();
        Line::from(vec![
            Span::from(fit(if at == 0 { what } else { "" }, 8, false)).dim(),
            Span::from(fit(name, 10, false) + " "),
            Span::from(bars).cyan(),
            Span::from(format!(" {}", show(values.last().copied().flatten()))),
        ])
    };
    values.iter().enumerate().map(line).collect()
}

/// A text below what it is about, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(3).max(20);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && Span::raw(lines[last].as_str()).width() + 1 + Span::raw(word).width() > room {
            lines.push(word.to_owned());
        } else {
            let gap = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{gap}{word}");
        }
    }
    lines.into_iter().map(|line| Line::from(fit(&format!("  {line}"), width, false)).dim()).collect()
}
