//! `splitter trace`: decisions live, a line each.

use super::{
    args::Trace,
    out::{self, Output, Style, printable},
    table::{self, seconds},
};
use anyhow::{Result, bail};
use splitter_api::{TraceEvent, TraceLine, TraceLost, client::Client};
use std::{fmt::Write, mem::MaybeUninit};
use tokio::signal::unix::{SignalKind, signal};

pub async fn run(client: &Client, trace: Trace) -> Result<()> {
    let (output, count, request) = trace.request();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // What is shown is made safe here.
    let mut lines = client.verbatim().trace(&request).await?;
    let (mut shown, mut lost) = (0, TraceLost::default());
    let ended = loop {
        if count.is_some_and(|count| shown >= count) {
            break Some(true);
        }
        let line = tokio::select! {
            line = lines.next() => line,
            _ = interrupt.recv() => break None,
            _ = terminate.recv() => break None,
        };
        match line {
            Ok(Some(TraceLine::Event(event))) => {
                show(&event, output)?;
                shown += 1;
            }
            Ok(Some(TraceLine::Lost(now))) => lost = now,
            Ok(None) => break Some(false),
            Err(error) => {
                tell(&lost);
                return Err(error);
            }
        }
    };
    if ended.is_none() {
        // What still waits may be what somebody waited for. An agent that is gone is no error to who has seen enough.
        let left = usize::try_from(count.map_or(u64::MAX, |count| count - shown)).unwrap_or(usize::MAX);
        for event in client.verbatim().waiting_decisions(&request).await.unwrap_or_default().iter().take(left) {
            show(event, output)?;
        }
    }
    tell(&lost);
    if ended == Some(false) {
        bail!("the agent has ended: decisions go on without it, but nobody tells of them");
    }
    Ok(())
}

fn show(event: &TraceEvent, output: Output) -> Result<()> {
    let text = if output.is_json() { out::json(event, false)? } else { one(event, out::colour()) + "\n" };
    out::print(&text)
}

/// What was not shown, on standard error: standard output is the events'.
fn tell(lost: &TraceLost) {
    for line in not_shown(lost) {
        eprintln!("{line}");
    }
}

fn not_shown(lost: &TraceLost) -> Vec<String> {
    let rows = [
        (lost.over_limit, "over the limit, which --rate sets"),
        (lost.ring_full, "the agent was too slow"),
        (lost.reader_slow, "they were not taken in time"),
    ];
    rows.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{} more were not shown: {why}", table::count(*count))).collect()
}

/// A decision on one line: time, client, service, version, backend, request, answer, reason.
fn one(event: &TraceEvent, colour: bool) -> String {
    let mut line = Style::Dim.paint(&clock(event.time), colour);
    // Writing to a string cannot fail.
    let _ = write!(line, "  {:<21}  {}", event.client, Style::Bold.paint(&printable(&event.service), colour));
    let version = event.version.as_deref().map(printable);
    let _ = write!(line, "  {}", Style::Green.paint(version.as_deref().unwrap_or("-"), colour));
    let _ = write!(line, "  {}", event.backend.as_deref().unwrap_or("-"));
    match (&event.method, &event.path) {
        (Some(method), path) => {
            let path = path.as_deref().map(|path| format!(" {}", printable(path))).unwrap_or_default();
            let _ = write!(line, "  {}{path}", printable(method));
        }
        _ => {
            let _ = write!(line, "  {}", event.protocol);
        }
    }
    line.push_str("  ");
    line.push_str(&answer(event, colour));
    let why = match (event.decided_by.as_str(), &event.rule, event.bucket) {
        ("rule", Some(rule), _) => format!("rule {}", printable(rule)),
        ("weight", _, Some(bucket)) => format!("bucket {bucket}"),
        (other, ..) => other.to_owned(),
    };
    if event.decided_by != "none" {
        let _ = write!(line, "  {}", Style::Dim.paint(&format!("({why})"), colour));
    }
    if event.recovered {
        line.push_str("  taken up in the middle");
    }
    line
}

/// What became of it.
fn answer(event: &TraceEvent, colour: bool) -> String {
    let reason = event.reason.as_deref().unwrap_or("no reason");
    let mut text = match (event.refused, event.status) {
        (true, Some(status)) => Style::Red.paint(&format!("refused: {status}, {reason}"), colour),
        (true, None) => Style::Red.paint(&format!("refused: {reason}"), colour),
        (false, Some(status)) => {
            let style = match status {
                500.. => Style::Red,
                400.. => Style::Yellow,
                _ => Style::Plain,
            };
            format!("{} in {}", style.paint(&status.to_string(), colour), seconds(event.first_byte))
        }
        (false, None) if event.waiting => Style::Yellow.paint("no answer yet", colour),
        (false, None) if event.method.is_some() => Style::Yellow.paint("no answer seen", colour),
        (false, None) => "given".to_owned(),
    };
    if event.pinned {
        let _ = write!(text, ", pinned: {reason}");
    }
    text
}

/// The wall clock here, to the millisecond.
fn clock(at: f64) -> String {
    let seconds = at.floor() as libc::time_t;
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: a time and a struct to write to; zero is a valid value of every field.
    let parts = unsafe {
        libc::localtime_r(&seconds, parts.as_mut_ptr());
        parts.assume_init()
    };
    let milliseconds = ((at - at.floor()) * 1e3) as u32;
    format!("{:02}:{:02}:{:02}.{milliseconds:03}", parts.tm_hour, parts.tm_min, parts.tm_sec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> TraceEvent {
        TraceEvent {
            client: "10.1.0.2:40000".into(),
            protocol: "http".into(),
            service: "web".into(),
            version: Some("v2".into()),
            backend: Some("10.2.3.2:8080".into()),
            decided_by: "rule".into(),
            rule: Some("0: header x-canary=always".into()),
            method: Some("GET".into()),
            path: Some("/beta".into()),
            status: Some(200),
            first_byte: Some(0.0012),
            ..TraceEvent::default()
        }
    }

    fn text(event: &TraceEvent) -> String {
        one(event, false).split_once("  ").expect("a time").1.to_owned()
    }

    #[test]
    fn a_line_says_who_got_what_and_why() {
        let start = "10.1.0.2:40000         web  v2  10.2.3.2:8080";
        assert_eq!(text(&event()), format!("{start}  GET /beta  200 in 1.20 ms  (rule 0: header x-canary=always)"));
        let silent = TraceEvent { status: None, first_byte: None, ..event() };
        assert!(text(&silent).contains("no answer seen"));
        assert!(text(&TraceEvent { waiting: true, ..silent }).contains("no answer yet"));
        let pinned = TraceEvent { pinned: true, reason: Some("pinned_request".into()), ..event() };
        assert!(text(&pinned).contains("200 in 1.20 ms, pinned: pinned_request"));
        let weighed = TraceEvent {
            method: None,
            path: None,
            protocol: "tcp".into(),
            status: None,
            decided_by: "weight".into(),
            bucket: Some(7),
            ..event()
        };
        assert_eq!(text(&weighed), format!("{start}  tcp  given  (bucket 7)"));
    }

    #[test]
    fn a_refusal_says_why() {
        let nobody = TraceEvent {
            refused: true,
            status: Some(503),
            reason: Some("no_backend".into()),
            backend: None,
            decided_by: "none".into(),
            ..event()
        };
        assert_eq!(text(&nobody), "10.1.0.2:40000         web  v2  -  GET /beta  refused: 503, no_backend");
        let reset = TraceEvent { status: None, version: None, method: None, protocol: "tcp".into(), ..nobody };
        assert_eq!(text(&reset), "10.1.0.2:40000         web  -  -  tcp  refused: no_backend");
    }

    #[test]
    fn what_clients_send_cannot_draw_on_the_terminal() {
        let nasty = TraceEvent { path: Some("/\u{1b}[2J\u{202e}".into()), method: Some("G\u{7}".into()), ..event() };
        assert!(text(&nasty).contains("G\\x07 /\\x1b[2J\\u{202e}"), "{}", text(&nasty));
    }

    #[test]
    fn what_is_not_shown_is_told() {
        let lost = TraceLost { over_limit: 1_234, ring_full: 0, reader_slow: 1_000_000 };
        let lines = not_shown(&lost);
        assert_eq!(lines[0], "1,234 more were not shown: over the limit, which --rate sets");
        assert_eq!(lines[1], "1,000,000 more were not shown: they were not taken in time");
        assert_eq!(lines.len(), 2);
    }
}
