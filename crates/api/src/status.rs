//! `/v1/status`, `/v1/flows`, `/v1/explain` and the weights of a service.

use super::RolloutStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub agent: Agent,
    /// What the source last said, and whether it was taken.
    pub desired: Desired,
    /// What the kernel runs.
    pub applied: Applied,
    pub interfaces: Vec<Interface>,
    #[serde(default)]
    pub attachments: Attachments,
    /// Sorted by name.
    pub services: Vec<Service>,
    /// Packets and events by reason, only those that happened; see `splitter_common::abi::Reason`.
    pub reasons: Vec<ReasonCount>,
    /// Entries and limits of the flow tables.
    pub tables: Vec<Table>,
    /// Rollouts of the policy, started or not, sorted by service.
    #[serde(default)]
    pub rollouts: Vec<RolloutStatus>,
    /// Transitions of rollouts since the agent's start: service, event, count.
    #[serde(default)]
    pub rollout_events: Vec<(String, String, u64)>,
    /// Seconds of CPU that a look of the judge costs, and seconds between two.
    #[serde(default)]
    pub rollout_looks: (f64, f64),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Agent {
    pub version: String,
    pub abi_version: u32,
    pub pid: u32,
    pub started: f64,
    /// Seconds since then, by a clock that nobody sets.
    #[serde(default)]
    pub uptime: f64,
    /// bpffs directory that holds this node's pins.
    pub pins: String,
    /// Whether the maps were taken over from an earlier agent.
    pub adopted: bool,
    /// `off`, `native`, `generic`.
    pub xdp: String,
    /// Which way new flows take whose service does not say, `stack` or `redirect`, and why.
    #[serde(default)]
    pub path: String,
    #[serde(default)]
    pub path_reason: String,
    /// Directory of what must outlive the agent.
    #[serde(default)]
    pub state: String,
    /// Why nothing can be written there now: a restart would take up an earlier state. Null when it can.
    #[serde(default)]
    pub state_error: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Desired {
    /// The policy's path.
    pub source: String,
    /// When it was last read.
    pub read: f64,
    /// `ok`, or `rejected`: then `errors` says why and the last good state stays applied.
    pub state: String,
    /// `PATH:LINE:COL: message`, one a line.
    pub errors: Vec<String>,
    /// Of the policy, and of the addresses of its names.
    pub warnings: Vec<String>,
    /// Names of backends whose last lookup failed: their last addresses stay.
    #[serde(default)]
    pub failing_lookups: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Grows with every change that the kernel took.
    pub generation: u64,
    pub at: f64,
    pub services: usize,
    /// How long the last apply took, milliseconds.
    pub apply_ms: f64,
    /// Set when the last apply failed half-way; the next try converges.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub ifindex: u32,
    /// What is attached: `tcx-ingress`, `tcx-egress`, `clsact-ingress`, `clsact-egress`, `xdp-native`, `xdp-generic`.
    pub programs: Vec<String>,
    /// What should be attached and is not: refused by the kernel, or taken away and not put back yet.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Packets to peers skip the veth's queue.
    pub peer_redirect: bool,
}

impl Interface {
    /// Packets of this interface are not looked at in one direction or both. XDP is an acceleration: without it TC does the work.
    pub fn is_blind(&self) -> bool {
        self.programs.is_empty() || self.missing.iter().any(|hook| !hook.starts_with("xdp-"))
    }
}

/// What there is to say about all interfaces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Attachments {
    /// Times since the agent's start that somebody else detached one of its programs; each was noticed and put back.
    pub lost: u64,
    /// An `--interface` that leads to none, and that nothing is attached at all; one sentence each.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub mode: String,
    pub split_by: String,
    pub on_weight_change: String,
    /// `mode: http`: what a weight change does to pinned connections, `keep` or `reset`.
    #[serde(default)]
    pub pinned_on_weight_change: String,
    /// `ADDRESS:PORT/PROTOCOL`.
    pub frontends: Vec<String>,
    /// Which way its new flows take through the node: `stack` or `redirect`.
    #[serde(default)]
    pub path: String,
    /// What becomes of packets to the frontends' addresses that no service has, `refuse` or `pass`, and whether pings are answered.
    #[serde(default)]
    pub unserved: String,
    #[serde(default)]
    pub ping: bool,
    /// `policy`, `rollout`, `cli` when `splitter weight` set the weights after the policy was read, or `kernel`: the agent found them there when it
    /// came, could not tell where they are from, and kept them.
    pub weights_from: String,
    /// The policy's own weights, by version, where others count; null where the policy's count.
    #[serde(default)]
    pub policy_weights: Option<BTreeMap<String, u32>>,
    /// `mode: http`: heads of requests that wait now, for their end or for a backend.
    #[serde(default)]
    pub heads: u64,
    /// `mode: http`: what clients suffered for want of room for a head, by reason.
    #[serde(default)]
    pub heads_lost: BTreeMap<String, u64>,
    pub versions: Vec<Version>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Version {
    pub name: String,
    pub id: u32,
    pub weight: u32,
    /// Asked share of new connections, 0..=1.
    pub weight_ratio: f64,
    /// Achieved share of the connections (`mode: http`: of the requests) since the weights last changed, 0..=1; null before the first.
    pub observed_ratio: Option<f64>,
    pub connections: u64,
    /// TCP handshakes completed, UDP flows begun; of these, TCP connections that have ended.
    #[serde(default)]
    pub opened: u64,
    #[serde(default)]
    pub closed: u64,
    /// Flows now: TCP established, UDP.
    pub flows: u64,
    /// `mode: http`: of these, connections that stay with their backend: requests on them are counted as far as they can be read, but not decided.
    #[serde(default)]
    pub pinned: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub resets_client: u64,
    pub resets_backend: u64,
    pub refused: u64,
    pub timeouts: u64,
    /// `mode: http`: requests given to this version.
    #[serde(default)]
    pub requests: u64,
    /// Requests a second, over the last few seconds; null for other modes, and before the second look.
    #[serde(default)]
    pub request_rate: Option<f64>,
    /// Responses by class: `1xx` to `5xx`, `other`; empty for other modes.
    #[serde(default)]
    pub codes: BTreeMap<String, u64>,
    /// Requests whose connection came from another version.
    #[serde(default)]
    pub switches: u64,
    /// What became of its trials.
    #[serde(default)]
    pub trials: Trials,
    /// Trials whose clients wait for an answer now.
    #[serde(default)]
    pub pending: u64,
    /// SYN to SYN-ACK at the node.
    pub connect: Latency,
    /// First request byte to first response byte.
    pub first_byte: Latency,
    pub backends: Vec<Backend>,
}

/// A trial is a client's connection (`mode: http`: a request, `udp`: a flow), whatever number of backends is tried for it. Those that the
/// weights sent to a version, and those that a rule did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    pub drawn: Outcomes,
    pub ruled: Outcomes,
}

/// What became of trials: each ends as one of these at most, and what is `cut` was `answered` before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    pub begun: u64,
    /// The first response byte came.
    pub answered: u64,
    /// Every backend that was tried refused, by RST or ICMP.
    pub refused: u64,
    /// No backend had answered the SYN when the client gave up.
    pub unopened: u64,
    /// The client gave up before the first response byte.
    pub abandoned: u64,
    /// The backend ended it before the first response byte.
    pub closed: u64,
    /// The backend ended it in the middle of the response.
    pub cut: u64,
    /// The node refused it, for want of a backend.
    pub unavailable: u64,
    /// It ended, however, after the client had waited for too long.
    pub overdue: u64,
}

impl Outcomes {
    /// Names and counts of what trials end as.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("answered", self.answered),
            ("refused", self.refused),
            ("unopened", self.unopened),
            ("abandoned", self.abandoned),
            ("closed", self.closed),
            ("cut", self.cut),
            ("unavailable", self.unavailable),
            ("overdue", self.overdue),
        ]
    }
}

/// Quantiles in seconds; null without samples.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    /// Non-empty buckets: upper bound in seconds, samples in it. For metrics; not in the JSON.
    #[serde(skip)]
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all samples (by midpoints), seconds.
    #[serde(skip)]
    pub sum: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Backend {
    pub address: String,
    pub id: u32,
    /// `ready`, `draining`, `down`.
    pub state: String,
    /// Refused or ignored a connection lately: gets no new one while others can.
    pub suspect: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReasonCount {
    pub reason: String,
    /// `drop`, `pass`, `answer`, `event`.
    pub kind: String,
    pub count: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// `tcp4`, `udp6`, `half4`, ...
    pub name: String,
    pub entries: u64,
    pub max_entries: u64,
    /// Bytes of kernel memory.
    pub memory: u64,
}

impl Table {
    /// Nine tenths of it are in use; three quarters of the slots for heads, of which a service leaves some to the others. What has ended may
    /// fill its table: the oldest makes room.
    pub fn is_nearly_full(&self) -> bool {
        if self.name.starts_with("closing") {
            return false;
        }
        let (tenths, of) = if self.name == "stashes" { (3, 4) } else { (9, 10) };
        self.max_entries > 0 && self.entries * of >= self.max_entries * tenths
    }
}

impl Status {
    /// Tables that are nearly full, in words.
    pub fn nearly_full(&self) -> Vec<String> {
        let full = self.tables.iter().filter(|table| table.is_nearly_full());
        full.map(|table| format!("{}: {} of {} entries", table.name, table.entries, table.max_entries)).collect()
    }
}

/// A row of `GET /v1/flows`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FlowRow {
    pub service: String,
    pub version: String,
    /// `tcp`, `udp`.
    pub protocol: String,
    /// `ADDRESS:PORT`.
    pub client: String,
    pub frontend: String,
    pub backend: String,
    /// `half-open`, `established`, `closing`, `unreplied`, `replied`; of http also `gathering` (a head is not complete), `opening` (a
    /// connection to a backend) and `answered` (by the node itself). Without a backend yet `version` and `backend` are empty.
    pub state: String,
    /// http: requests are not read any more, the connection stays with its backend.
    #[serde(default)]
    pub pinned: bool,
    /// Seconds since the last packet.
    pub idle: f64,
    /// The node's address and port that the backend sees, when translated.
    pub snat: Option<String>,
}

/// Body of `POST /v1/explain`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExplainRequest {
    pub service: String,
    /// `IP` or `IP:PORT`.
    pub client: Option<String>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub cookies: Vec<(String, String)>,
    pub path: Option<String>,
    pub method: Option<String>,
    /// Of the target, without `?`; appended to the path.
    #[serde(default)]
    pub query: Option<String>,
    /// The whole head as it would be sent, in the place of all parts above but the client.
    #[serde(default)]
    pub head: Option<String>,
    /// TCP sequence number of the request's first byte: makes `splitBy: request` certain, together with the client's port.
    #[serde(default)]
    pub sequence: Option<u32>,
}

/// What a request would get, and why.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Explanation {
    pub service: String,
    /// The version, or null: when the answer depends on what was not given (`shares` then tells the odds), or nobody would serve it.
    pub version: Option<String>,
    /// The backend that a new connection would get.
    pub backend: Option<String>,
    /// `rule`, `weight`, `baseline` (a head that is too long), `flow` (an existing flow keeps its version), `undecided`, `none`, `refused` (a request
    /// answered with 400 or 431).
    pub decided_by: String,
    /// One sentence for a person.
    pub reason: String,
    /// The rule that matched, as it stands in the policy: its position from 0 and its match.
    pub rule: Option<String>,
    /// Where that rule stands: `FILE:LINE`.
    #[serde(default)]
    pub rule_origin: Option<String>,
    /// Bucket of the key, of 2^32.
    pub bucket: Option<u32>,
    /// Asked share of each version.
    pub shares: BTreeMap<String, f64>,
}

/// Body of `PUT /v1/services/NAME/weights`. Versions not named keep their weight.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WeightRequest {
    pub weights: BTreeMap<String, u32>,
    #[serde(default)]
    pub dry_run: bool,
}

/// Its answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WeightChange {
    pub service: String,
    pub before: BTreeMap<String, u32>,
    pub after: BTreeMap<String, u32>,
    /// False for a dry run.
    pub applied: bool,
    pub generation: u64,
    /// Time that the kernel write took, microseconds.
    pub write_us: f64,
    /// Live flows that `onWeightChange` will end: 0 with `keep`.
    pub flows_to_end: u64,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ApiError {
    /// What is wrong and what to do.
    pub error: String,
}

/// `GET /v1/policy`: what is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// Documents of TrafficSplit by name, with the weights as they are now.
    pub yaml: String,
}
