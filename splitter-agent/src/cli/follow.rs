//! `splitter rollout status`: one look, or followed until the rollout ends; with an exit code that says how, for CI.
//!
//! Knows a rollout only by what the admin API says of it.

use super::{
    args::RolloutView,
    in_format,
    out::{self, Output},
    rollout::{because, clock, list, now, one},
    show,
    table::share,
    top::{ended, rollout_lines, terminal::Screen},
};
use anyhow::Result;
use hyper::StatusCode;
use ratatui::{
    crossterm::event::{Event, KeyCode, KeyModifiers},
    style::Stylize,
    text::Line,
    widgets::Paragraph,
};
use splitter_api::{
    RolloutStatus,
    client::{Client, Refused},
};
use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

/// Time between two looks.
const LOOKS: Duration = Duration::from_millis(500);
/// How long an agent may be away, as while it is upgraded, when no time was given.
const AWAY: Duration = Duration::from_secs(60);

/// How following ended; what `--wait` tells by its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    Promoted,
    RolledBack,
    Aborted,
    TimedOut,
    /// The policy has no such rollout, or nobody started it: why, for the user.
    Missing(String),
    /// The user had seen enough.
    Left,
}

impl Ending {
    fn of(phase: &str) -> Option<Self> {
        match phase {
            "promoted" => Some(Ending::Promoted),
            "rolled-back" => Some(Ending::RolledBack),
            "aborted" => Some(Ending::Aborted),
            _ => None,
        }
    }

    /// 2 is wrong usage, 1 every other failure.
    fn code(&self) -> u8 {
        match self {
            Ending::Promoted | Ending::Left => 0,
            Ending::RolledBack => 3,
            Ending::Aborted => 4,
            Ending::TimedOut => 5,
            Ending::Missing(_) => 6,
        }
    }
}

pub async fn run(client: &Client, view: RolloutView) -> Result<ExitCode> {
    let RolloutView { service, watch, wait, output } = view;
    let client = in_format(client, output);
    let Some(service) = service else {
        return show(output, &client.rollouts().await?, |all| list(all, out::colour())).map(|()| ExitCode::SUCCESS);
    };
    if !watch && wait.is_none() {
        return show(output, &client.rollout(&service).await?, |rollout| one(rollout, now(), out::colour())).map(|()| ExitCode::SUCCESS);
    }
    let screen = (watch && !output.is_json() && io::stdout().is_terminal()).then(Screen::open).transpose()?;
    let deadline = wait.flatten().map(|time| Instant::now() + Duration::from(time));
    let mut follow = Follow { client, service, waits: wait.is_some(), deadline, output, screen, told: None };
    let result = follow.until_ended().await;
    let Follow { screen, told, service, .. } = follow;
    let drawn = screen.is_some();
    drop(screen);
    if let Some((rollout, _)) = told.filter(|_| drawn) {
        out::print(&one(&rollout, now(), out::colour()))?;
    }
    let ending = result?;
    match &ending {
        Ending::TimedOut => eprintln!("splitter: the rollout of {service} has not ended in time; it goes on"),
        Ending::Missing(why) => eprintln!("splitter: {}", out::printable(why)),
        _ => {}
    }
    Ok(if wait.is_some() { ExitCode::from(ending.code()) } else { ExitCode::SUCCESS })
}

/// What is worth a line when it changes.
type Mark = (String, usize, u64);

fn mark(rollout: &RolloutStatus) -> Mark {
    (rollout.phase.clone(), rollout.step, rollout.share.to_bits())
}

struct Follow {
    client: Client,
    service: String,
    /// `--wait`.
    waits: bool,
    deadline: Option<Instant>,
    output: Output,
    screen: Option<Screen>,
    told: Option<(RolloutStatus, Mark)>,
}

impl Follow {
    async fn until_ended(&mut self) -> Result<Ending> {
        let mut away: Option<Instant> = None;
        loop {
            match self.client.rollout(&self.service).await {
                Ok(rollout) => {
                    away = None;
                    if let Some(ending) = self.tell(rollout)? {
                        return Ok(ending);
                    }
                }
                Err(error) => {
                    let refused = error.downcast_ref::<Refused>().map(|refused| refused.status);
                    if self.waits && matches!(refused, Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST)) {
                        return Ok(Ending::Missing(error.to_string()));
                    }
                    let since = *away.get_or_insert_with(Instant::now);
                    // An agent that is there and does not know is asked again only when it has read no policy yet.
                    if refused.is_some_and(|status| status != StatusCode::SERVICE_UNAVAILABLE) || since.elapsed() > AWAY {
                        return Err(error);
                    }
                    if self.told.is_none() && refused.is_none() {
                        return Err(error);
                    }
                    self.draw(Some(&error.to_string()))?;
                }
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Ending::TimedOut);
            }
            if self.sleep().await? {
                return Ok(Ending::Left);
            }
        }
    }

    /// Shows a look; how it ends, if it does.
    fn tell(&mut self, rollout: RolloutStatus) -> Result<Option<Ending>> {
        let new = mark(&rollout);
        let changed = self.told.as_ref().is_none_or(|(_, old)| *old != new);
        if changed && self.screen.is_none() {
            let line = match self.output {
                Output::Json => out::json(&rollout, false)?,
                Output::Table => line(&rollout, now()),
            };
            out::print(&line)?;
        }
        let ending = match Ending::of(&rollout.phase) {
            None if self.waits && rollout.phase == "idle" => {
                let service = &self.service;
                Some(Ending::Missing(format!("the rollout of {service} was not started: splitter rollout start {service}")))
            }
            ending => ending,
        };
        self.told = Some((rollout, new));
        self.draw(None)?;
        Ok(ending)
    }

    fn draw(&mut self, error: Option<&str>) -> Result<()> {
        let (Some(screen), Some((rollout, _))) = (&mut self.screen, &self.told) else { return Ok(()) };
        screen.draw(|frame| {
            let mut lines = vec![Line::from(rollout.service.clone()).bold()];
            lines.extend(error.map(|error| Line::from(error.to_owned()).red()));
            lines.extend(rollout_lines(rollout, now(), usize::from(frame.area().width)));
            lines.push(Line::from(if ended(&rollout.phase) { "" } else { "q ends watching; the rollout goes on" }).dim());
            frame.render_widget(Paragraph::new(lines), frame.area());
        })
    }

    /// Until the next look; whether the user has seen enough.
    async fn sleep(&mut self) -> Result<bool> {
        let mut pause = std::pin::pin!(tokio::time::sleep(LOOKS));
        loop {
            let Some(screen) = &mut self.screen else {
                pause.await;
                return Ok(false);
            };
            tokio::select! {
                () = &mut pause => return Ok(false),
                input = screen.event() => match input {
                    Some(Event::Key(key)) if key.code == KeyCode::Char('q') || key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(true),
                    None => return Ok(true),
                    Some(_) => self.draw(None)?,
                },
            }
        }
    }
}

fn line(rollout: &RolloutStatus, now: f64) -> String {
    let RolloutStatus { service, canary, phase, .. } = rollout;
    let step = if rollout.steps.is_empty() { String::new() } else { format!(", step {} of {}", rollout.step + 1, rollout.steps.len()) };
    format!("{} {service}: {phase}, {canary} at {}{step}{}\n", clock(now), share(Some(rollout.share)), because(&rollout.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_told_apart() {
        let endings = [Ending::Promoted, Ending::RolledBack, Ending::Aborted, Ending::TimedOut, Ending::Missing(String::new())];
        assert_eq!(endings.map(|ending| ending.code()), [0, 3, 4, 5, 6]);
        for (phase, ending) in [("promoted", Some(Ending::Promoted)), ("running", None), ("paused", None), ("some-new-phase", None)] {
            assert_eq!(Ending::of(phase), ending, "{phase}");
        }
    }

    #[test]
    fn a_change_is_a_line() {
        let rollout = RolloutStatus {
            service: "web".into(),
            canary: "v2".into(),
            phase: "running".into(),
            steps: vec![0.1, 1.0],
            share: 0.1,
            ..RolloutStatus::default()
        };
        assert_eq!(line(&rollout, 1_795_259_258.0), "2026-11-21 11:07:38.0Z web: running, v2 at 10%, step 1 of 2\n");
        let later = RolloutStatus { missing: vec!["5 s".into()], ..rollout.clone() };
        assert_eq!(mark(&rollout), mark(&later), "what changes at every look is no change");
        assert_ne!(mark(&rollout), mark(&RolloutStatus { share: 1.0, ..rollout }));
    }
}
