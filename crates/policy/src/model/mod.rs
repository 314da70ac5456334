//! The policy as the rest of the agent sees it: valid by construction, without a trace of YAML.
//!
//! Owns the types and their invariants; imports nothing of the agent. Sources build these values, the plan reads them.

mod http;
mod rollout;

pub use http::{Condition, Http, HttpRule, Text, TooLong, Unavailable, in_segments};
pub use rollout::*;

use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Everything that one source says, services sorted by name. Names are unique; no two services share a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub services: Vec<Arc<Service>>,
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
    /// Of layer 4, in the policy's order.
    pub rules: Vec<Rule>,
    /// Of `mode: http` and `mode: https`, and only there.
    #[serde(default)]
    pub http: Option<Http>,
    /// Of `mode: https`, and only there.
    #[serde(default)]
    pub tls: Option<Tls>,
    pub on_weight_change: OnWeightChange,
    /// Of `mode: http`.
    #[serde(default)]
    pub pinned: Pinned,
    pub snat: Snat,
    #[serde(default)]
    pub path: Way,
    #[serde(default)]
    pub vip: Vip,
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
    /// HTTP/1.1 in clear text; TCP frontends.
    Http,
    /// HTTP/1.1 over TLS, which the node ends; TCP frontends, backends in clear text.
    Https,
}

impl Mode {
    /// As policies name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Every request is decided, not every connection.
    pub const fn reads_requests(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

/// `tls`: how clients of `mode: https` are met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// At least one. A client is shown the first that is for the name it asks for, else the first of all.
    pub certificates: Vec<Certificate>,
}

/// A chain of certificates and the key of its first, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// What is hashed to a bucket. The last three: where requests are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    #[default]
    Connection,
    ClientIp,
    /// Every request is drawn anew.
    Request,
    /// The value of this header; requests without it: the connection.
    Header(String),
    /// The value of this cookie; requests without it: the connection.
    Cookie(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub name: String,
    /// Relative; the sum of a service's weights may be anything, 0 too (then nobody is served, and `check` warns).
    pub weight: u32,
    /// Those that the policy names, and those that its lookups have found: see [`crate::source::resolve`].
    pub backends: Vec<Backend>,
    /// Names whose addresses are backends too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<Lookup>,
    /// How many of the backends lookups have found: the last ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub found: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// `{dns: NAME, port: PORT}`: backends that are looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lookup {
    /// A host name (A or AAAA records by the family of the frontends), or `_service._proto.name` (SRV records).
    pub name: String,
    /// Of every address; `None` with SRV records, which say it.
    pub port: Option<u16>,
    /// How long an address that is no longer in the answer keeps its connections.
    pub drain: Duration,
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
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// Whether an address lies in it; addresses of the other family do not.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        let same = |a: u128, b: u128, width: u32| prefix == 0 || (a ^ b) >> (width - prefix) == 0;
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }

    /// Whether all of it lies in the other.
    pub fn is_within(&self, other: &Self) -> bool {
        other.prefix <= self.prefix && other.contains(self.address)
    }
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

/// What a weight change does to connections of http services that stay with their backend whatever is requested on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pinned {
    #[default]
    Keep,
    /// Those whose connection the weights would now give to another version are reset.
    Reset,
}

/// Which way packets take through the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// As the agent is set up; of the agent: the stack where netfilter has rules for packets that are routed.
    #[default]
    Auto,
    /// From interface to interface, past the stack and netfilter.
    Redirect,
    /// Through the stack, which routes and filters them as packets to the backend's address.
    Stack,
}

impl Way {
    /// As policies and the command line name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Redirect => "redirect",
            Self::Stack => "stack",
        }
    }
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

/// `vip`: what the node does with what is sent to the addresses of the frontends and no service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Echo requests are answered.
    pub ping: bool,
    pub unserved: Unserved,
}

/// See [`Vip`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unserved {
    /// As a host without such a port answers.
    #[default]
    Refuse,
    /// The node's stack gets it.
    Pass,
}
