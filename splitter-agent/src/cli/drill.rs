//! `splitter rollout drill`: breaks the canary by the operator's own command, waits for the judge, and takes the fault away again, whatever
//! happens in between: an interrupt, a terminal that closes, an agent that dies.

use anyhow::{Context, Result, anyhow, bail};
use splitter_api::client::Client;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::{
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};

/// Time between two looks at the rollout.
const LOOK: Duration = Duration::from_millis(50);

/// What was asked for.
pub struct Plan<'a> {
    pub service: &'a str,
    pub inject: &'a str,
    pub restore: Option<&'a str>,
    /// Longest wait for the rollback.
    pub patience: Duration,
}

/// What a drill found.
#[derive(Debug, serde::Serialize)]
pub struct Drill {
    service: String,
    /// Whether the canary was taken back in time.
    taken_back: bool,
    /// From the injection's end to the rollback, seconds.
    seconds: Option<f64>,
    reason: String,
}

impl Drill {
    pub fn text(&self) -> String {
        match self.seconds {
            Some(seconds) => format!("{}: taken back {seconds:.2} s after the fault was there: {}\n", self.service, self.reason),
            None => format!("{}: NOT taken back: {}\n", self.service, self.reason),
        }
    }
}

/// What would end this program, and must not before the fault is gone.
struct Signals([(&'static str, Signal); 3]);

impl Signals {
    fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self([
            ("SIGINT", catch(SignalKind::interrupt())?),
            ("SIGTERM", catch(SignalKind::terminate())?),
            ("SIGHUP", catch(SignalKind::hangup())?),
        ]))
    }

    async fn next(&mut self) -> &'static str {
        let [(a, interrupt), (b, terminate), (c, hangup)] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => *a,
            _ = terminate.recv() => *b,
            _ = hangup.recv() => *c,
        }
    }
}

/// Runs a drill. The restore command runs once the injection was begun, in any case; only SIGKILL prevents it.
pub async fn run(client: &Client, plan: Plan<'_>) -> Result<Drill> {
    let before = client.rollout(plan.service).await?;
    if before.phase != "running" {
        bail!(
            "the rollout of {0} is {1}: a drill needs one that runs (`splitter rollout status {0}` says what helps)",
            plan.service,
            before.phase
        );
    }
    let mut signals = Signals::catch()?;
    let result = tokio::select! {
        biased;
        name = signals.next() => Err(anyhow!("the drill was ended by {name}")),
        result = break_and_wait(client, &plan) => result,
    };
    let Some(restore) = plan.restore else { return result };
    if result.is_err() {
        eprintln!("splitter: the fault is being taken away: {restore}");
    }
    match (shell(restore, true).await, result) {
        (Ok(()), result) => result,
        (Err(error), Ok(_)) => Err(error.context("THE FAULT MAY STILL BE THERE")),
        (Err(error), Err(first)) => Err(anyhow!("{first:#}; and THE FAULT MAY STILL BE THERE: {error:#}")),
    }
}

async fn break_and_wait(client: &Client, plan: &Plan<'_>) -> Result<Drill> {
    shell(plan.inject, false).await?;
    let (injected, began) = (SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()), Instant::now());
    let found =
        |seconds: Option<f64>, reason: String| Drill { service: plan.service.into(), taken_back: seconds.is_some(), seconds, reason };
    loop {
        // An agent that hangs is no longer waited for than one that does not judge.
        let left = plan.patience.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
        let asked = timeout(left, client.rollout(plan.service)).await;
        let status = asked.unwrap_or_else(|_| Err(anyhow!("the agent does not answer")))?;
        if status.phase == "rolled-back" {
            return Ok(found(Some((status.since - injected).max(0.0)), status.reason));
        }
        if began.elapsed() > plan.patience {
            bail!("{}", found(None, format!("within {:?}", plan.patience)).text().trim_end());
        }
        sleep(LOOK).await;
    }
}

/// `deaf`: the interrupt of a terminal, which goes to all of its processes, does not end the command.
async fn shell(script: &str, deaf: bool) -> Result<()> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).kill_on_drop(true);
    if deaf {
        // SAFETY: only a function that is safe between fork and exec is called (signal-safety(7)).
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                Ok(())
            });
        }
    }
    let status = command.status().await.with_context(|| format!("cannot run `{script}`"))?;
    if status.success() { Ok(()) } else { bail!("`{script}` ended with {status}") }
}
