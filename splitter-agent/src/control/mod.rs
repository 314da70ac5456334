//! The one owner of the node's state: what the policy wants, what the command line overrode, what the kernel runs.
//!
//! [`Control`] is a handle; behind it one actor on its own thread does everything in order, so that nothing here is locked. Owns timers
//! and persistence. Must not read policies (sources do) or speak HTTP (`admin` does).

mod actor;
mod applying;
mod change;
mod counters;
mod decision;
mod explain;
mod files;
mod hold;
mod live;
mod look;
mod path;
mod proxied;
mod questions;
mod rates;
mod request;
mod rollouts;
mod snapshot;
mod stamps;
mod status;
mod store;
mod sweep;
pub mod trace;
pub mod wanted;
mod weights;

use actor::Message;
pub use hold::Hold;
pub use request::head as head_of;
use splitter_api::{
    ExplainRequest, Explanation, FlowQuery, FlowRow, PolicyText, RolloutEvent, RolloutStatus, ServiceNames, Status, StatusQuery,
    TraceEvent, TraceRequest, WeightChange, WeightRequest,
};
use splitter_datapath::reconcile::Services;
use splitter_policy::model::{Policy, Way};
use splitter_rollout::Word;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
pub use store::last_policy;
use thiserror::Error;
use tokio::sync::{Mutex, mpsc, oneshot};

/// How `--xdp` asks for the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    #[default]
    Off,
    /// In the driver (Linux 5.9 for links).
    Native,
    /// In the stack, on any interface; slower than TC, for tests.
    Generic,
}

/// What the agent is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Globs; `!GLOB` excludes, the suffix `:uplink` marks what XDP is for. Empty: every Ethernet interface that is up.
    pub interfaces: Vec<String>,
    pub xdp: Xdp,
    /// Directory on a bpffs; by default one that belongs to this network namespace.
    pub pins: Option<PathBuf>,
    /// Directory for the last good state.
    pub state: PathBuf,
    /// TCP flows that each family's table can hold; only used when the maps are made.
    pub max_flows: Option<u32>,
    /// The policy's path, for status.
    pub source: String,
    /// What the policy said when it was read first. Without, the last good one counts until [`Control::load`] brings another.
    pub policy: Option<Services>,
    /// Which way new flows take, where their service does not say.
    pub path: Way,
    /// Backends of http services are asked whether they agree to TCP timestamps, and clients get them where all do.
    pub timestamps: bool,
    /// The programs tell what they do, in the log.
    pub debug_programs: bool,
}

/// What the sources say.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// What is to be applied; `None`: nothing new.
    pub policy: Option<Policy>,
    /// Why the objects that were read last are refused, `PATH:LINE:COL: message`; a policy beside them is of older ones.
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
    /// Names of backends whose last lookup failed.
    pub failing_lookups: usize,
    /// Objects were read; else only addresses have changed.
    pub read: bool,
}

/// Why a request was not served; the text is for the user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Kernel(String),
    /// No policy was read yet.
    #[error("{0}")]
    NotYet(String),
    /// Too many ask.
    #[error("{0}")]
    Busy(String),
}

/// Requests that wait for the actor; more wait for room.
const QUEUE: usize = 64;

const ENDED: &str = "the control loop has ended: restart the agent";

/// Handle to the actor; cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    sender: mpsc::Sender<Message>,
    /// One large answer is made at a time: of 40,000 services it takes more than a hundred megabytes.
    reading: Arc<Mutex<()>>,
}

impl Control {
    /// Loads or adopts programs and maps, attaches them, restores the last good state, starts the timers. The task ends after
    /// [`Control::shutdown`] or when every handle is gone. Serves the network namespace of the thread that polls this.
    ///
    /// # Errors
    /// Without the privileges, a bpffs or a kernel that is new enough, when the pinned maps are of another ABI, and when another agent lives on
    /// the same pins or state.
    pub async fn start(settings: Settings) -> anyhow::Result<(Control, tokio::task::JoinHandle<()>)> {
        let hold = Hold::take(settings.pins.as_deref(), &settings.state).await?;
        Self::start_on(settings, hold).await
    }

    /// The same on directories that are held already.
    pub async fn start_on(settings: Settings, hold: Hold) -> anyhow::Result<(Control, tokio::task::JoinHandle<()>)> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (ready, started) = oneshot::channel();
        // A thread of its own: map walks block, and they must not hold up the listeners.
        let outside = tokio::runtime::Handle::current();
        let task = tokio::task::spawn_blocking(move || actor::run(settings, hold, receiver, ready, outside));
        match started.await {
            Ok(Ok(())) => Ok((Control { sender, reading: Arc::default() }, task)),
            Ok(Err(error)) => Err(error),
            Err(_) => anyhow::bail!(ENDED),
        }
    }

    /// Asks the actor and waits; `None` when it has ended.
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.sender.send(message(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Takes what the source said; a rejected policy is only recorded. Returns when it is applied.
    pub async fn load(&self, loaded: Loaded) {
        if self.ask(|reply| Message::Load(loaded, reply)).await.is_none() {
            tracing::error!("{ENDED}");
        }
    }

    pub async fn status(&self) -> Status {
        let _turn = self.reading.lock().await;
        let Some(snapshot) = self.ask(Message::Status).await else { return Status::default() };
        tokio::task::spawn_blocking(move || snapshot.status()).await.unwrap_or_default()
    }

    /// The status without what is read from the kernel: services, tables, reasons and rollouts are empty.
    pub async fn brief(&self) -> Status {
        self.ask(Message::Brief).await.unwrap_or_default()
    }

    /// The status with some of the services.
    ///
    /// # Errors
    /// When a service is named that there is not.
    pub async fn select(&self, query: StatusQuery) -> Result<Status, ControlError> {
        let _turn = self.reading.lock().await;
        let Some(snapshot) = self.ask(Message::Status).await else { return ended() };
        let status = tokio::task::spawn_blocking(move || snapshot.select(&query)).await;
        status.unwrap_or_else(|error| Err(ControlError::Kernel(error.to_string())))
    }

    /// Names of services that begin so, and of their versions. Reads no table.
    pub async fn names(&self, prefix: &str) -> Result<Vec<ServiceNames>, ControlError> {
        Ok(self.ask(Message::Flows).await.unwrap_or_else(ended)?.names(prefix))
    }

    /// The policy as it is in force, weights as they are now: of these services (or patterns), or of all.
    ///
    /// # Errors
    /// When a service is named that there is not, or no policy was read yet.
    pub async fn policy(&self, names: Vec<String>) -> Result<PolicyText, ControlError> {
        let applied = self.ask(Message::Policy).await.unwrap_or_else(ended)?;
        let text = tokio::task::spawn_blocking(move || wanted::policy(&applied, &names)).await;
        text.unwrap_or_else(|error| Err(ControlError::Kernel(error.to_string())))
    }

    /// The live flows that are asked for.
    pub async fn flows(&self, query: FlowQuery) -> Result<Vec<FlowRow>, ControlError> {
        let _turn = self.reading.lock().await;
        let snapshot = self.ask(Message::Flows).await.unwrap_or_else(ended)?;
        let rows = tokio::task::spawn_blocking(move || snapshot.flows(&query)).await;
        rows.unwrap_or_else(|error| Err(ControlError::Kernel(error.to_string())))
    }

    pub async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        self.ask(|reply| Message::Explain(request, reply)).await.unwrap_or_else(ended)
    }

    /// Decisions live, until the reader is dropped.
    ///
    /// # Errors
    /// When what is asked for is not there, or too many look.
    pub async fn trace(&self, request: TraceRequest) -> Result<trace::Reader, ControlError> {
        self.ask(|reply| Message::Trace(request, reply)).await.unwrap_or_else(ended)
    }

    /// Decisions that wait for their answers: readers are told when those have come.
    ///
    /// # Errors
    /// When what is asked for is not there.
    pub async fn waiting_decisions(&self, request: TraceRequest) -> Result<Vec<TraceEvent>, ControlError> {
        self.ask(|reply| Message::Waiting(request, reply)).await.unwrap_or_else(ended)
    }

    /// One map write, then the bookkeeping. `by`: who, for the audit log.
    pub async fn set_weights(&self, service: &str, request: WeightRequest, by: String) -> Result<WeightChange, ControlError> {
        let service = service.to_string();
        self.ask(|reply| Message::SetWeights(service, request, by, reply)).await.unwrap_or_else(ended)
    }

    /// Every rollout that the policy has, started or not.
    ///
    /// # Errors
    /// As long as no policy was read.
    pub async fn rollouts(&self) -> Result<Vec<RolloutStatus>, ControlError> {
        self.ask(Message::Rollouts).await.unwrap_or_else(ended)
    }

    pub async fn rollout(&self, service: &str) -> Result<RolloutStatus, ControlError> {
        let service = service.to_string();
        self.ask(|reply| Message::Rollout(service, reply)).await.unwrap_or_else(ended)
    }

    /// The audit log of one service, oldest first.
    pub async fn rollout_history(&self, service: &str) -> Result<Vec<RolloutEvent>, ControlError> {
        let service = service.to_string();
        self.ask(|reply| Message::RolloutHistory(service, reply)).await.unwrap_or_else(ended)
    }

    /// Start, pause, resume, promote or abort.
    pub async fn rollout_word(&self, service: &str, word: Word) -> Result<RolloutStatus, ControlError> {
        let service = service.to_string();
        self.ask(|reply| Message::RolloutWord(service, word, reply)).await.unwrap_or_else(ended)
    }

    /// Stops timers and persists; the kernel goes on as last decided.
    pub async fn shutdown(&self) {
        // An actor that has ended already has done so.
        let _ = self.ask(Message::Shutdown).await;
    }
}

fn ended<T>() -> Result<T, ControlError> {
    Err(ControlError::Kernel(ENDED.into()))
}

/// Whether an agent has made maps here before, which the next one takes over as they are. `pins` as in [`Settings`].
pub fn has_maps(pins: Option<&Path>) -> bool {
    splitter_datapath::directory(pins, false).is_ok_and(|pins| splitter_datapath::has_maps(&pins))
}

/// The directory of pins as the agent uses it. Mounts a bpffs where there is none.
///
/// # Errors
/// Without one, or the right to mount it.
pub fn pins(explicit: Option<&Path>) -> anyhow::Result<PathBuf> {
    Ok(splitter_datapath::directory(explicit, true)?)
}

/// Removes every link, map and pin of this network namespace (or of `pins`); returns what was removed, one line each. Idempotent.
///
/// # Errors
/// Also while an agent lives on them: what would be removed is what it serves with.
pub fn detach(pins: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let Some(pins) = existing(pins)? else { return Ok(Vec::new()) };
    let _vacant = hold::vacant(&pins)?;
    Ok(splitter_datapath::remove(&pins)?)
}

/// Ends the agent that lives on these pins, and waits until it is gone; its pid when there was one.
///
/// # Errors
/// When it cannot be asked from here, or does not end in time.
pub fn stop(pins: Option<&Path>) -> anyhow::Result<Option<u32>> {
    existing(pins)?.map_or(Ok(None), |pins| hold::stop(&pins))
}

/// The directory of pins; `None` without a bpffs, where nothing is pinned.
fn existing(pins: Option<&Path>) -> Result<Option<PathBuf>, splitter_datapath::DatapathError> {
    match splitter_datapath::directory(pins, false) {
        Ok(pins) => Ok(Some(pins)),
        Err(splitter_datapath::DatapathError::NoBpffs(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<Xdp> for splitter_datapath::XdpMode {
    fn from(xdp: Xdp) -> Self {
        match xdp {
            Xdp::Off => Self::Off,
            Xdp::Native => Self::Native,
            Xdp::Generic => Self::Generic,
        }
    }
}

impl Xdp {
    fn name(self) -> &'static str {
        match self {
            Xdp::Off => "off",
            Xdp::Native => "native",
            Xdp::Generic => "generic",
        }
    }
}

#[cfg(test)]
mod tests;
