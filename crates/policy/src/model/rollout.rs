//! `rollout`: how a canary is promoted or taken back. Plain data with its defaults; imports nothing of the agent.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Parts in a million: 1% is 10,000.
pub type Ppm = u32;
/// The whole.
pub const ALL: Ppm = 1_000_000;

/// The field `rollout` of a TrafficSplit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Index into the service's versions.
    pub canary: usize,
    /// Index of the version that the canary is compared with; another one.
    pub baseline: usize,
    /// Shares of the canary: at least one, rising, from 1 to [`ALL`].
    pub steps: Vec<Ppm>,
    /// Where somebody, or some time, is waited for, by the index of the step that ends with it.
    #[serde(default)]
    pub pauses: BTreeMap<usize, Pause>,
    pub pace: Pace,
    /// A step lasts at least this long.
    pub dwell: Duration,
    /// The last step lasts at least this long before the canary counts as promoted.
    pub watch: Duration,
    /// After the promotion the canary is judged for this long; zero: not at all.
    #[serde(default)]
    pub watch_after: Duration,
    /// A step that lasts this long, pauses and freezes left out, takes the canary back.
    #[serde(default)]
    pub progress_deadline: Option<Duration>,
    /// Requests (connections without HTTP) that the canary must have had in a step before it advances.
    pub min_samples: u64,
    /// Time after a step's begin that counts neither for latency nor for promotion: caches and compilers warm up.
    pub warm_up: Duration,
    /// Probability of taking back a good canary, within a day of watching, over all gates of the node's own signals.
    pub false_alarm: Ppm,
    pub gates: Gates,
    /// Whose answers are evidence.
    #[serde(default)]
    pub judge: Judge,
    /// How often a canary that was taken back is tried again by itself.
    pub retries: u32,
    /// Time after a rollback before anything begins again.
    pub cool_down: Duration,
    /// Times in which nothing starts or advances. Rollbacks always work.
    pub freeze: Vec<Freeze>,
    pub hooks: Vec<Hook>,
}

/// Which requests (connections without HTTP) tell about a version. What a rule sends to the canary is not what its share would bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// Those that the weights drew.
    #[default]
    Drawn,
    /// Those that a rule sent.
    Ruled,
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// A step lasts its dwell, longer only while a gate has not enough data.
    #[default]
    Fixed,
    /// A step ends as soon as the evidence suffices, and more evidence is asked for larger shares.
    Adaptive,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    pub error_rate: Option<ErrorRate>,
    pub latency: Vec<Latency>,
    pub share: Option<ShareMismatch>,
    /// Gates that ask somebody else: unique names.
    pub external: Vec<External>,
}

/// Failures: what a client suffers. Refused, left without an answer, given up, cut in the middle, no backend; of HTTP also answers with some
/// statuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRate {
    /// Fails when the canary's rate is above this.
    pub max: Option<Ppm>,
    /// Fails when the canary's rate is above the concurrent baseline's by more than this part of it.
    pub max_increase: Ppm,
    /// Passes only when the canary's rate is shown to be below the baseline's plus this.
    pub margin: Ppm,
    /// Rates below this are never held against the canary in the comparison.
    pub ignore_below: Ppm,
    /// A request without an answer for this long has failed, whatever comes later; above zero.
    #[serde(default = "unanswered")]
    pub unanswered: Duration,
    /// Statuses that are failures: first and last of each span. Without HTTP of no meaning.
    #[serde(default = "codes")]
    pub codes: Vec<[u16; 2]>,
}

impl Default for ErrorRate {
    fn default() -> Self {
        Self { max: None, max_increase: 250_000, margin: 10_000, ignore_below: 1_000, unanswered: UNANSWERED, codes: vec![FAILING] }
    }
}

const fn unanswered() -> Duration {
    UNANSWERED
}

fn codes() -> Vec<[u16; 2]> {
    vec![FAILING]
}

/// Default of [`ErrorRate::unanswered`].
pub const UNANSWERED: Duration = Duration::from_secs(5);
/// Default of [`ErrorRate::codes`].
pub const FAILING: [u16; 2] = [500, 599];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub measure: Measure,
    /// Parts in a million, below [`ALL`].
    pub quantile: Ppm,
    /// Fails when the quantile is above this.
    pub max: Option<Duration>,
    /// Fails when the quantile is above the concurrent baseline's by more than this part of it.
    pub max_increase: Option<Ppm>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Measure {
    /// First byte of the request to first byte of the response.
    #[default]
    FirstByte,
    /// SYN to SYN-ACK.
    Connect,
}

/// Asked against achieved share of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMismatch {
    /// Part of the asked share by which the achieved one may differ.
    pub tolerance: Ppm,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    pub name: String,
    pub check: Check,
    pub every: Duration,
    pub timeout: Duration,
    /// Answers in a row that make it fail.
    pub failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// Passes on 2xx, fails on anything else that answers.
    Webhook { url: String },
    /// Passes on exit code 0, fails on 1; anything else, and a timeout, is no answer.
    Command { run: Vec<String> },
    /// A number within limits (thousandths), as text of a query or of a command's output.
    Value { from: Number, min: Option<i64>, max: Option<i64> },
    /// A request to each of the canary's backends.
    Http { method: String, path: String, headers: Vec<(String, String)>, body: String, status: u16, contains: Option<String> },
}

/// Where a number comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Number {
    /// The first sample of an instant query (Prometheus HTTP API).
    Prometheus { url: String, query: String },
    /// The first word of the output.
    Command { run: Vec<String> },
    /// Share of one CPU that a cgroup v2 uses.
    CgroupCpu { path: String },
    /// Share of `memory.max` that a cgroup v2 uses.
    CgroupMemory { path: String },
}

/// The end of a step that waits for an operator's `resume`, or for a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Goes on by itself after this long.
    pub duration: Option<Duration>,
}

/// Times in which nothing starts or advances: a span of each day of the week, of some dates, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// 0 Monday to 6 Sunday, on which it begins; empty: every day.
    pub days: Vec<u8>,
    /// Minutes after midnight; when `to` is not after `from`, it ends on the next day. Both 0: whole days.
    pub from: u16,
    pub to: u16,
    /// First and last day on which it begins: year, month, day.
    #[serde(default)]
    pub dates: Option<[(i16, i8, i8); 2]>,
    /// IANA name of the time zone; `None`: UTC.
    #[serde(default)]
    pub zone: Option<String>,
}

/// Told of every transition; the event goes as JSON, in the body or on standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    Webhook { url: String, timeout: Duration },
    Command { run: Vec<String>, timeout: Duration },
}
