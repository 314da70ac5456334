//! `splitter top`: the node live. Redraws at an interval; q, Ctrl-C or the end of standard input ends it.

use super::{
    out::{self, Style},
    status::{deviation, head, select},
    table::{Table, bytes, count, plain, seconds, share},
};
use crate::{
    admin::client::Client,
    observed::{Status, Version},
};
use anyhow::Result;
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use std::{
    collections::HashMap,
    io::{self, IsTerminal, Read, Stdin},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal, time,
};

pub async fn run(client: &Client, service: Option<&str>, interval: Duration, iterations: Option<u64>) -> Result<()> {
    let mut before: Option<(Instant, Status)> = None;
    let screen = Screen::open();
    let mut keys = Keys::open();
    let mut ticks = time::interval(interval);
    let mut looks = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = keys.quit() => return Ok(()),
            _ = signal::ctrl_c() => return Ok(()),
        }
        let mut status = client.status().await?;
        if let Some(name) = service {
            select(&mut status, name)?;
        }
        let taken = Instant::now();
        let elapsed = before.as_ref().map(|(at, _)| taken.duration_since(*at).as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        screen.draw(&frame(&status, before.as_ref().map(|(_, s)| s), elapsed, now, out::colour()))?;
        before = Some((taken, status));
        looks += 1;
        if iterations.is_some_and(|end| looks >= end) {
            return Ok(());
        }
    }
}

fn frame(status: &Status, before: Option<&Status>, elapsed: Option<f64>, now: f64, colour: bool) -> String {
    let old: HashMap<(&str, &str), &Version> = before
        .into_iter()
        .flat_map(|s| &s.services)
        .flat_map(|s| s.versions.iter().map(|v| ((s.name.as_str(), v.name.as_str()), v)))
        .collect();
    let titles = [
        "<SERVICE",
        "<VERSION",
        ">ASKED",
        ">ACHIEVED",
        ">CONN/s",
        ">REQ/s",
        ">FLOWS",
        ">IN/s",
        ">OUT/s",
        ">FAILED/s",
        ">CONNECT p99",
        ">FIRST BYTE p50",
        ">p99",
    ];
    let mut table = Table::new(&titles);
    for service in &status.services {
        for (index, version) in service.versions.iter().enumerate() {
            let old = old.get(&(service.name.as_str(), version.name.as_str()));
            let rate = |of: fn(&Version) -> u64| {
                let (old, elapsed) = (old?, elapsed.filter(|e| *e > 0.0)?);
                Some(of(version).saturating_sub(of(old)) as f64 / elapsed)
            };
            let number = |rate: Option<f64>| rate.map_or("-".to_owned(), |r| count(r.round() as u64));
            let failed = rate(|v| v.refused + v.timeouts + v.resets_backend + v.codes.get("5xx").copied().unwrap_or(0));
            table.row([
                (if index == 0 { service.name.clone() } else { String::new() }, Style::Bold),
                plain(&version.name),
                plain(share(Some(version.weight_ratio))),
                (share(version.observed_ratio), deviation(version)),
                plain(number(rate(|v| v.connections))),
                plain(if version.codes.is_empty() { "-".to_owned() } else { number(rate(|v| v.requests)) }),
                plain(count(version.flows)),
                plain(rate(|v| v.bytes_in).map_or("-".to_owned(), bytes)),
                plain(rate(|v| v.bytes_out).map_or("-".to_owned(), bytes)),
                (number(failed), if failed.is_some_and(|f| f > 0.0) { Style::Red } else { Style::Plain }),
                plain(seconds(version.connect.p99)),
                plain(seconds(version.first_byte.p50)),
                plain(seconds(version.first_byte.p99)),
            ]);
        }
    }
    format!("{}\n{}", head(status, now, colour), table.render(colour))
}

/// The alternate screen of a terminal, or plain lines one frame after the other.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn open() -> Self {
        let terminal = io::stdout().is_terminal();
        if terminal {
            // Alternate screen, cursor hidden.
            let _ = out::print("\x1b[?1049h\x1b[?25l");
        }
        Self { terminal }
    }

    fn draw(&self, frame: &str) -> Result<()> {
        if !self.terminal {
            return out::print(&format!("{frame}\n"));
        }
        // Terminals that do not know their size say 0.
        let rows = termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let height = if rows == 0 { 24 } else { rows.max(3) };
        let lines: Vec<_> = frame.lines().collect();
        let shown = if lines.len() < height { lines.len() } else { height - 2 };
        let mut text = "\x1b[H".to_owned();
        for line in &lines[..shown] {
            text += &format!("{line}\x1b[K\r\n");
        }
        if shown < lines.len() {
            text += &format!("... {} more lines: name a service, or use `splitter status`\x1b[K\r\n", lines.len() - shown);
        }
        out::print(&(text + "\x1b[J\x1b[2mq ends\x1b[0m"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            let _ = out::print("\x1b[?25h\x1b[?1049l");
        }
    }
}

/// Single key presses of a terminal; restores its mode at the end.
struct Keys {
    input: Option<(AsyncFd<Stdin>, Termios)>,
}

impl Keys {
    fn open() -> Self {
        let open = || {
            let input = io::stdin();
            let saved = termios::tcgetattr(&input).ok().filter(|_| input.is_terminal())?;
            let mut raw = saved.clone();
            raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
            // A read returns at once, with what there is.
            raw.special_codes[SpecialCodeIndex::VMIN] = 0;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            termios::tcsetattr(&input, OptionalActions::Now, &raw).ok()?;
            // SAFETY: descriptor 0 of `Stdin` is the same, and open, as long as the process lives.
            let input = unsafe { AsyncFd::register_with_interest(input, Interest::READABLE) }.ok()?;
            Some((input, saved))
        };
        Self { input: open() }
    }

    /// Returns when q was pressed; never without a terminal.
    async fn quit(&mut self) {
        let Some((input, _)) = &mut self.input else { return std::future::pending().await };
        while let Ok(mut ready) = input.readable_mut().await {
            let mut keys = [0; 16];
            match ready.get_inner_mut().read(&mut keys) {
                Ok(count) if keys[..count].iter().any(|key| b"qQ\x03\x04\x1b".contains(key)) => return,
                Ok(_) => ready.clear_ready(),
                Err(_) => break,
            }
        }
        std::future::pending().await
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some((input, saved)) = &self.input {
            let _ = termios::tcsetattr(input.get_ref(), OptionalActions::Now, saved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Service;

    #[test]
    fn rates_need_two_looks() {
        let status = |connections| Status {
            services: vec![Service {
                name: "checkout".into(),
                versions: vec![Version { name: "v1".into(), connections, bytes_in: connections * 1024, ..Version::default() }],
                ..Service::default()
            }],
            ..Status::default()
        };
        let first = frame(&status(100), None, None, 0.0, false);
        assert!(first.lines().last().unwrap().contains("  -  "), "{first}");
        let second = frame(&status(300), Some(&status(100)), Some(2.0), 0.0, false);
        let row = second.lines().last().unwrap();
        assert!(row.contains(" 100 ") && row.contains("100.0 KiB"), "{second}");
    }
}
