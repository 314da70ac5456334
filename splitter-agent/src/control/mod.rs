//! The one owner of the node's state: what the policy wants, what the command line overrode, what the kernel runs.
//!
//! [`Control`] is a handle; behind it one actor on its own thread does everything in order, so that nothing here is locked. Owns timers
//! and persistence. Must not read policies (sources do) or speak HTTP (`admin` does).

use crate::{
    model::Policy,
    observed::{ExplainRequest, Explanation, FlowRow, Status, WeightChange, WeightRequest},
};
use std::path::{Path, PathBuf};
use thiserror::Error;

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
}

/// What a source read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Errors are `PATH:LINE:COL: message`.
    pub result: Result<Policy, Vec<String>>,
    pub warnings: Vec<String>,
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
}

/// Handle to the actor; cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {}

impl Control {
    /// Loads or adopts programs and maps, attaches them, restores the last good state, starts the timers. The task ends after
    /// [`Control::shutdown`] or when every handle is gone.
    ///
    /// # Errors
    /// Without the privileges, a bpffs or a kernel of at least 6.6, and when the pinned maps are of another ABI.
    pub async fn start(settings: Settings) -> anyhow::Result<(Control, tokio::task::JoinHandle<()>)> {
        let _ = settings;
        anyhow::bail!("not there yet")
    }

    /// Takes what the source said; a rejected policy is only recorded. Returns when it is applied.
    pub async fn load(&self, loaded: Loaded) {
        let _ = loaded;
    }

    pub async fn status(&self) -> Status {
        Status::default()
    }

    /// The live flows, of one service or of all.
    pub async fn flows(&self, service: Option<String>) -> Result<Vec<FlowRow>, ControlError> {
        let _ = service;
        Ok(Vec::new())
    }

    pub async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        let _ = request;
        Err(ControlError::Kernel("not there yet".into()))
    }

    /// One map write, then the bookkeeping.
    pub async fn set_weights(&self, service: &str, request: WeightRequest) -> Result<WeightChange, ControlError> {
        let _ = (service, request);
        Err(ControlError::Kernel("not there yet".into()))
    }

    /// Stops timers and persists; the kernel goes on as last decided.
    pub async fn shutdown(&self) {}
}

/// Removes every link, map and pin of this network namespace (or of `pins`); returns what was removed, one line each. Idempotent.
pub fn detach(pins: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let _ = pins;
    Ok(Vec::new())
}
