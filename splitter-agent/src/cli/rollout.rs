//! `splitter rollout`: words to a rollout, and what it shows of itself: canary beside baseline, and what is missing to decide.

use super::{
    args::{RolloutCommand, RolloutWord},
    drill, in_format,
    out::{self, Style},
    show,
    table::{Table, age, count, plain, seconds, share, since},
};
use anyhow::Result;
use splitter_api::{Answer, Finding, RolloutEvent, RolloutPoint, RolloutRequest, RolloutStatus, client::Client};
use std::time::{SystemTime, UNIX_EPOCH};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub async fn run(client: &Client, command: RolloutCommand) -> Result<()> {
    match command {
        // Read by `follow`.
        RolloutCommand::Status(_) => Ok(()),
        RolloutCommand::History { service, output } => {
            show(output, &in_format(client, output).rollout_history(&service).await?, |events| history(events, out::colour()))
        }
        RolloutCommand::Start { word, freeze } => say(client, "start", word, freeze.override_freeze).await,
        RolloutCommand::Pause(word) => say(client, "pause", word, false).await,
        RolloutCommand::Resume { word, freeze } => say(client, "resume", word, freeze.override_freeze).await,
        RolloutCommand::Promote { word, freeze } => say(client, "promote", word, freeze.override_freeze).await,
        RolloutCommand::Abort(word) => say(client, "abort", word, false).await,
        RolloutCommand::Undo(word) => say(client, "undo", word, false).await,
        RolloutCommand::Drill { service, inject, restore, patience, output } => {
            let plan = drill::Plan { service: &service, inject: &inject, restore: restore.as_deref(), patience: patience.into() };
            show(output, &drill::run(&in_format(client, output), plan).await?, |drill| drill.text())
        }
    }
}

async fn say(client: &Client, action: &str, word: RolloutWord, override_freeze: bool) -> Result<()> {
    let RolloutWord { service, reason, dry_run, output } = word;
    let request = RolloutRequest { reason: reason.unwrap_or_default(), override_freeze, dry_run };
    let rollout = in_format(client, output).rollout_word(&service, action, &request).await?;
    show(output, &rollout, |rollout| said(rollout, dry_run))
}

/// What a word did, or would do, to the phase and to everybody's share.
fn said(rollout: &RolloutStatus, dry_run: bool) -> String {
    let RolloutStatus { service, canary, phase, note, .. } = rollout;
    let would = if dry_run { "would be " } else { "" };
    let shares = if note.is_empty() { String::new() } else { format!("  {note}\n") };
    format!("{service}: {would}{phase}, {canary} at {}{}\n{shares}", share(Some(rollout.share)), because(&rollout.reason))
}

pub fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn style(phase: &str) -> Style {
    match phase {
        "promoted" => Style::Green,
        "rolled-back" | "aborted" => Style::Red,
        "paused" | "waiting" => Style::Yellow,
        "running" => Style::Bold,
        _ => Style::Dim,
    }
}

pub fn list(all: &[RolloutStatus], colour: bool) -> String {
    if all.is_empty() {
        return "no service of the policy has a `rollout`\n".into();
    }
    let mut table = Table::new(&["<SERVICE", "<CANARY", "<PHASE", ">STEP", ">SHARE", "<REASON"]);
    for rollout in all {
        table.row([
            plain(&rollout.service),
            plain(&rollout.canary),
            (rollout.phase.clone(), style(&rollout.phase)),
            plain(format!("{}/{}", rollout.step + 1, rollout.steps.len())),
            plain(share(Some(rollout.share))),
            plain(&rollout.reason),
        ]);
    }
    table.render(colour)
}

pub fn one(rollout: &RolloutStatus, now: f64, colour: bool) -> String {
    let RolloutStatus { service, canary, baseline, phase, pace, .. } = rollout;
    let phase = style(phase).paint(phase, colour);
    let mut text = format!("{}: {phase}, {canary} beside {baseline}{}\n", Style::Bold.paint(service, colour), because(&rollout.reason));
    let steps: Vec<String> = rollout
        .steps
        .iter()
        .enumerate()
        .map(|(index, step)| {
            let step = share(Some(*step));
            if index == rollout.step && rollout.share > 0.0 { Style::Bold.paint(&format!("[{step}]"), colour) } else { step }
        })
        .collect();
    text += &format!("steps  {} ({pace})\n", steps.join(" "));
    if rollout.since > 0.0 {
        // The judge's own clock: that of the wall may have been set.
        let step = rollout.step_seconds.map_or_else(|| since(now, rollout.since), age);
        let begun = if rollout.began > 0.0 { format!(", begun {} ago", since(now, rollout.began)) } else { String::new() };
        text += &format!("share  {} for {}{begun}\n", share(Some(rollout.share)), step);
    }
    if rollout.pinned > 0 {
        let flows = format!("`splitter flows {service} --state pinned`");
        text += &format!("pinned {} connections stay with their backends, whatever the share is: {flows}\n", count(rollout.pinned));
    }
    if let Some(left) = rollout.watched_for {
        text += &format!("watch  gates count for {} more; `splitter rollout undo {service}` goes back\n", age(left));
    }
    if let Some(left) = rollout.deadline {
        text += &format!("limit  taken back in {} if this step does not end (progressDeadline)\n", age(left));
    }
    if !rollout.findings.is_empty() {
        text += &format!("\n{}", findings(&rollout.findings, colour));
    }
    text += &sparklines(&rollout.points, canary, baseline);
    match &rollout.missing[..] {
        [] => {}
        missing => {
            text += &format!("\nmissing before the next step:\n{}", missing.iter().map(|line| format!("  {line}\n")).collect::<String>())
        }
    }
    text
}

fn findings(findings: &[Finding], colour: bool) -> String {
    let mut table = Table::new(&["<GATE", "<ANSWER", ">CANARY", ">BASELINE", ">REQUESTS", ">p", "<WHY"]);
    for finding in findings {
        let (answer, style) = match finding.answer {
            Answer::Pass => ("pass", Style::Green),
            Answer::Fail => ("FAIL", Style::Red),
            Answer::Unknown => ("unknown", Style::Yellow),
        };
        let value = |value: Option<f64>| measured(&finding.gate, value);
        table.row([
            plain(&finding.gate),
            (answer.to_owned(), style),
            plain(value(finding.canary)),
            plain(value(finding.baseline)),
            plain(finding.counts.map_or("-".into(), |counts| count(counts[0][0] as u64))),
            plain(finding.p_value.map_or("-".into(), |p| format!("{p:.2}"))),
            plain(&finding.text),
        ]);
    }
    table.render(colour)
}

/// What a gate saw, in its unit; what external gates measure has units of its own.
pub fn measured(gate: &str, value: Option<f64>) -> String {
    let is_time = gate.starts_with("latency p") || gate.starts_with("connect p");
    let is_share = matches!(gate, "errorRate" | "share");
    match value {
        Some(value) if !is_time && !is_share => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ if is_time => seconds(value),
        _ => share(value),
    }
}

/// Two lines a signal, on one scale: canary above baseline.
fn sparklines(points: &[RolloutPoint], canary: &str, baseline: &str) -> String {
    let mut text = String::new();
    let width = canary.len().max(baseline.len());
    for (name, of) in [("errors ", (|point| point.errors) as fn(&RolloutPoint) -> [Option<f64>; 2]), ("latency", |point| point.latency)] {
        let top = points.iter().flat_map(of).flatten().fold(0.0, f64::max);
        if !points.iter().any(|point| of(point)[0].is_some()) {
            continue;
        }
        for (side, version) in [canary, baseline].into_iter().enumerate() {
            let line: String = points.iter().map(|point| bar(of(point)[side], top)).collect();
            let last = points.last().and_then(|point| of(point)[side]);
            let last = if name == "latency" { seconds(last) } else { share(last) };
            text += &format!("{} {version:width$}  {line} {last}\n", if side == 0 { name } else { "       " });
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

pub fn bar(value: Option<f64>, top: f64) -> char {
    match value {
        None => ' ',
        Some(value) if top > 0.0 => BARS[((value / top * 7.0).round() as usize).min(7)],
        Some(_) => BARS[0],
    }
}

fn history(events: &[RolloutEvent], colour: bool) -> String {
    if events.is_empty() {
        return "nothing happened yet: `splitter rollout start` begins\n".into();
    }
    let mut table = Table::new(&["<TIME", "<EVENT", "<BY", ">FROM", "<", ">TO", "<REASON"]);
    for event in events {
        let (from, to) = if event.event == "weights" {
            let weights = |weights: &std::collections::BTreeMap<String, u32>| {
                weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(" ")
            };
            (weights(&event.weights_from), weights(&event.weights_to))
        } else {
            (share(Some(event.from)), share(Some(event.to)))
        };
        table.row([
            plain(clock(event.at)),
            (event.event.clone(), style(&event.event)),
            plain(&event.by),
            plain(from),
            plain("->"),
            plain(to),
            plain(&event.reason),
        ]);
    }
    table.render(colour)
}

/// `2026-11-21 11:07:38.4Z` in UTC (Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
pub fn clock(at: f64) -> String {
    let (whole, tenth) = (at.max(0.0) as u64, (at.max(0.0).fract() * 10.0) as u64);
    let (days, rest) = (whole / 86_400 + 719_468, whole % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{tenth}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> RolloutStatus {
        RolloutStatus {
            service: "web".into(),
            canary: "v2".into(),
            baseline: "v1".into(),
            phase: "running".into(),
            steps: vec![0.01, 0.5, 1.0],
            step: 1,
            share: 0.5,
            began: 100.0,
            since: 160.0,
            pace: "fixed".into(),
            findings: vec![
                Finding {
                    gate: "errorRate".into(),
                    answer: Answer::Unknown,
                    canary: Some(0.004),
                    baseline: Some(0.001),
                    counts: Some([[1234.0, 5.0], [9000.0, 9.0]]),
                    p_value: Some(0.3),
                    text: "more requests".into(),
                    ..Finding::default()
                },
                Finding { gate: "latency p99".into(), answer: Answer::Pass, canary: Some(0.0123), ..Finding::default() },
            ],
            missing: vec!["30 s of this step".into()],
            points: vec![
                RolloutPoint { errors: [None, Some(0.0)], latency: [None, None] },
                RolloutPoint { errors: [Some(0.02), Some(0.0)], latency: [Some(0.01), Some(0.005)] },
            ],
            ..RolloutStatus::default()
        }
    }

    #[test]
    fn canary_stands_beside_baseline() {
        assert_eq!(
            one(&rollout(), 190.0, false),
            "web: running, v2 beside v1\n\
             steps  1% [50%] 100% (fixed)\n\
             share  50% for 30s, begun 1m30s ago\n\n\
             GATE         ANSWER     CANARY  BASELINE  REQUESTS     p  WHY\n\
             errorRate    unknown      0.4%      0.1%     1,234  0.30  more requests\n\
             latency p99  pass     12.30 ms         -         -     -\n\n\
             errors  v2   █ 2%\n\
             \x20       v1  ▁▁ 0%\n\
             latency v2   █ 10.00 ms\n\
             \x20       v1   ▅ 5.00 ms\n\n\
             missing before the next step:\n  30 s of this step\n"
        );
        let text = list(&[rollout()], false);
        assert!(text.contains("web      v2      running   2/3    50%"), "{text}");
    }

    #[test]
    fn the_history_is_a_timeline() {
        let event = RolloutEvent {
            at: 1_795_259_258.42,
            event: "advanced".into(),
            by: "gates".into(),
            from: 0.01,
            to: 0.05,
            ..RolloutEvent::default()
        };
        let text = history(&[event], false);
        assert!(text.contains("2026-11-21 11:07:38.4Z  advanced  gates    1%  ->  5%"), "{text}");
        assert!(history(&[], false).contains("rollout start"));
    }

    #[test]
    fn a_word_says_what_became_of_the_shares() {
        let note = "v1 0% -> 95%, v2 100% -> 5%".to_owned();
        let status = RolloutStatus { share: 0.05, note, ..rollout() };
        assert_eq!(said(&status, false), "web: running, v2 at 5%\n  v1 0% -> 95%, v2 100% -> 5%\n");
        assert_eq!(said(&status, true), "web: would be running, v2 at 5%\n  v1 0% -> 95%, v2 100% -> 5%\n");
    }

    #[test]
    fn a_promoted_canary_shows_the_watch_and_the_way_back() {
        let status = RolloutStatus { phase: "promoted".into(), share: 1.0, watched_for: Some(480.0), missing: Vec::new(), ..rollout() };
        let text = one(&status, 190.0, false);
        assert!(text.contains("watch  gates count for 8m00s more; `splitter rollout undo web` goes back\n"), "{text}");
    }

    /// Somebody set the wall clock by six minutes: the step is as old as it is.
    #[test]
    fn the_age_of_a_step_is_the_judges() {
        let status = RolloutStatus { step_seconds: Some(4.0), ..rollout() };
        let text = one(&status, 190.0 + 360.0, false);
        assert!(text.contains("share  50% for 4s"), "{text}");
    }
}
