//! The live table: redrawn in place on a terminal, a line a second elsewhere. On standard error, so that a report on standard output stays clean.

use super::{VERSIONS, Weights, report::share, requests, traffic::View};
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

const BAR: usize = 30;

pub struct Screen {
    began: Instant,
    tty: bool,
    /// Lines of the table that stand on the terminal now.
    drawn: usize,
    next: Instant,
}

impl Screen {
    /// `live`: a terminal may be redrawn; else lines even there.
    pub fn new(live: bool) -> Screen {
        let now = Instant::now();
        Screen { began: now, tty: live && std::io::stderr().is_terminal(), drawn: 0, next: now }
    }

    /// Shows the phase as it stands; returns at once when it is too early.
    pub fn draw(&mut self, name: &str, asked: Weights, view: &View) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + if self.tty { Duration::from_millis(200) } else { Duration::from_secs(1) };
        let seconds = self.began.elapsed().as_secs_f64();
        if self.tty {
            let table = table(name, asked, view, seconds);
            self.erase();
            self.drawn = table.lines().count();
            eprint!("{table}");
            // A terminal that is gone is no reason to stop.
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{}", line(name, asked, view, seconds));
        }
    }

    /// The table of this phase stays; the next begins below.
    pub fn settle(&mut self) {
        if self.drawn > 0 {
            eprintln!();
        }
        self.drawn = 0;
        self.next = Instant::now();
    }

    pub fn note(&mut self, text: &str) {
        eprintln!("  {text}");
    }

    pub fn close(&mut self) {
        self.settle();
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            eprint!("\x1b[{}A\x1b[J", self.drawn);
        }
    }
}

fn ms(value: Option<Duration>) -> String {
    value.map_or("-".into(), |value| format!("{:.2} ms", value.as_secs_f64() * 1e3))
}

/// A share as a bar.
pub fn bar(share: f64) -> String {
    let full = (share * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(full.min(BAR)), "░".repeat(BAR - full.min(BAR)))
}

/// Thousands apart.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn table(name: &str, asked: Weights, view: &View, seconds: f64) -> String {
    let fresh = view.fresh();
    let mut text = format!("  \x1b[1m{name}\x1b[0m   {seconds:.1} s\n");
    text += &format!(
        "  {:<8}{:>7}{:>10}  {:<BAR$}{:>13}{:>10}{:>11}{:>11}\n",
        "version", "asked", "achieved", "", "connections", "requests", "p50", "p99"
    );
    for ((version, _), weight) in VERSIONS.iter().zip(asked) {
        let counts = fresh.versions.get(*version).cloned().unwrap_or_default();
        let achieved = share(counts.connections, fresh.connections());
        let (asked, quantile) =
            (share(u64::from(weight), asked.iter().map(|weight| u64::from(*weight)).sum()), |q| counts.latency.quantile(q));
        text += &format!(
            "  {version:<8}{:>6.1}%{:>9.2}%  {}{:>13}{:>10}{:>11}{:>11}\n",
            asked * 100.0,
            achieved * 100.0,
            bar(achieved),
            count(counts.connections),
            count(counts.requests),
            ms(quantile(0.5)),
            ms(quantile(0.99)),
        );
    }
    text += &requests::table(asked, &view.tagged);
    let colour = if view.failed() == 0 { "\x1b[32m" } else { "\x1b[31m" };
    text += &format!("  errors  {colour}{}\x1b[0m", view.failed());
    text += &format!("       kept connections: {} requests, p50 {}\n", count(view.kept.requests()), ms(view.kept.latency().quantile(0.5)));
    text
}

fn line(name: &str, asked: Weights, view: &View, seconds: f64) -> String {
    let fresh = view.fresh();
    let version = |((version, _), weight): (&(&str, &[usize]), u32)| {
        let connections = fresh.versions.get(*version).map_or(0, |counts| counts.connections);
        format!("{version} asked {weight} got {:.2}%", share(connections, fresh.connections()) * 100.0)
    };
    let versions: Vec<String> = VERSIONS.iter().zip(asked).map(version).collect();
    let latency = fresh.latency();
    format!(
        "  {seconds:>5.1} s  {name:<14} {}  {} connections  {} errors  p50 {}  p99 {}\n{:27}{}",
        versions.join("  "),
        count(fresh.connections()),
        view.failed(),
        ms(latency.quantile(0.5)),
        ms(latency.quantile(0.99)),
        "",
        requests::line(asked, &view.tagged)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!((count(7), count(1234), count(1_234_567)), ("7".into(), "1,234".into(), "1,234,567".into()));
        assert_eq!(bar(0.5).chars().filter(|c| *c == '█').count(), BAR / 2);
        assert_eq!(ms(Some(Duration::from_micros(1250))), "1.25 ms");
    }
}
