//! The policy as the rest of the agent sees it: valid by construction, without a trace of YAML.
//!
//! Owns the types and their invariants; imports nothing of the agent. Sources build these values, the plan reads them.

mod rollout;

pub use rollout::*;

use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// Everything that one source says, services sorted by name. Names are unique; no two services share a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub services: Vec<Service>,
}

/// One TrafficSplit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `metadata.name` (`namespace/name` when a namespace is given).
    pub name: String,
    /// At least one.
    pub frontends: Vec<Frontend>,
    pub mode: Mode,
    pub split_by: SplitBy,
    /// 1..=8, in the policy's order, unique names.
    pub versions: Vec<Version>,
    /// In the policy's order.
    pub rules: Vec<Rule>,
    pub on_weight_change: OnWeightChange,
    pub snat: Snat,
    /// How its canary is promoted, when it is.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// Where the object stands, for messages: file:line:col.
    pub origin: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frontend {
    pub address: SocketAddr,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// `mode`. What this build cannot serve is refused when the policy is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    #[default]
    Connection,
    ClientIp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub name: String,
    /// Relative; the sum of a service's weights may be anything, 0 too (then nobody is served, and `check` warns).
    pub weight: u32,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Same family as every frontend of the service.
    pub address: SocketAddr,
    pub state: BackendState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    #[default]
    Ready,
    /// Keeps its flows, takes no new one.
    Draining,
    /// Gives up its flows.
    Down,
}

/// A rule that layer 4 can decide: a source network. The longest matching prefix wins; of equal ones the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub source: Cidr,
    /// Index into [`Service::versions`].
    pub version: usize,
}

/// A network; host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cidr {
    pub address: std::net::IpAddr,
    pub prefix: u8,
}

/// What happens to live flows whose key a weight change gives to another version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnWeightChange {
    #[default]
    Keep,
    Reset,
    /// Keep for this long, then reset.
    Drain(Duration),
}

/// `snat`: whether the node puts its own address in the place of the client's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snat {
    /// Only where client and backend sit behind the same interface: there the reply would bypass the node.
    #[default]
    Auto,
    Always,
    Never,
}
