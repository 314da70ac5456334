//! `splitter top`: the node live, on all of a terminal; plain snapshots elsewhere.
//!
//! | file | owns |
//! |---|---|
//! | `state` | what is known, and what keys and looks do to it |
//! | `rows` | rates, successes, order |
//! | `view`, `detail` | drawing |
//! | `terminal` | the terminal: its mode, its keys, its restoration |

mod detail;
mod plain;
mod rows;
mod state;
pub mod terminal;
mod view;

pub use detail::rollout as rollout_lines;
pub use rows::Column;

use super::{args, out, status};
use anyhow::Result;
use ratatui::crossterm::event::Event as Input;
use rows::Looks;
use splitter_api::{
    Status, StatusQuery,
    client::{Client, Refused},
};
use state::{Event, Next, Top};
use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use terminal::Screen;
use tokio::time;

/// Phases in which a rollout does nothing any more.
pub fn ended(phase: &str) -> bool {
    matches!(phase, "promoted" | "rolled-back" | "aborted")
}

pub async fn run(client: &Client, options: args::Top) -> Result<()> {
    let query = StatusQuery { services: options.services, ..StatusQuery::default() };
    // Without an agent there is nothing to show: said before the screen changes.
    let status = client.select(&query).await?;
    let session = Session { client, query, interval: options.interval.into(), iterations: options.iterations, began: Instant::now() };
    if io::stdout().is_terminal() { session.screen(status, options.sort).await } else { session.snapshots(status, options.sort).await }
}

struct Session<'a> {
    client: &'a Client,
    query: StatusQuery,
    interval: Duration,
    iterations: Option<u64>,
    began: Instant,
}

fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl Session<'_> {
    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    async fn screen(&self, status: Status, sort: Column) -> Result<()> {
        let mut screen = Screen::open()?;
        let mut top = Top::new(sort);
        let (columns, rows) = screen.size();
        top.update(Event::Size(columns, rows));
        top.update(Event::Status(Box::new(status), self.now(), wall()));
        let mut looks = 1;
        loop {
            screen.draw(|frame| view::draw(frame, &top, wall(), self.interval.as_secs_f64()))?;
            if self.iterations.is_some_and(|end| looks >= end) {
                return Ok(());
            }
            // Keys are served while the agent is asked: it may be slow, or gone.
            let look = async {
                time::sleep(self.interval).await;
                self.client.select(&self.query).await
            };
            tokio::pin!(look);
            let answer = loop {
                tokio::select! {
                    answer = &mut look => break answer,
                    input = screen.event() => {
                        let Some(input) = input else { return Ok(()) };
                        let next = match input {
                            Input::Key(key) => top.update(Event::Key(key)),
                            Input::Resize(columns, rows) => top.update(Event::Size(columns, rows)),
                            _ => Next::Go,
                        };
                        if next == Next::Quit {
                            return Ok(());
                        }
                        screen.draw(|frame| view::draw(frame, &top, wall(), self.interval.as_secs_f64()))?;
                    }
                }
            };
            looks += 1;
            let event = match answer {
                Ok(status) => Event::Status(Box::new(status), self.now(), wall()),
                Err(error) => Event::Lost(error.to_string(), self.now()),
            };
            top.update(event);
        }
    }

    /// Without a terminal: one snapshot, or as many as were asked for. Rates need two looks.
    async fn snapshots(&self, status: Status, sort: Column) -> Result<()> {
        let mut looks = Looks::default();
        looks.note(&status, self.now());
        for _ in 0..self.iterations.unwrap_or(1) {
            time::sleep(self.interval).await;
            let status = match self.client.select(&self.query).await {
                Ok(status) => status,
                Err(error) if error.is::<Refused>() => return Err(error),
                Err(error) => {
                    out::print(&format!("{error}\n\n"))?;
                    continue;
                }
            };
            let mut rows = looks.note(&status, self.now());
            rows::sort(&mut rows, sort, false);
            out::print(&format!("{}\n{}\n", status::head(&status, wall(), false), plain::text(&rows)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "../../../tests/support/pty.rs"]
mod pty;
#[cfg(test)]
mod tests;
