//! `GET /v1/trace`: one JSON object a line; `GET /v1/trace/waiting`: a list.

use serde::{Deserialize, Serialize};

/// What a reader wants to see. All that is named must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceRequest {
    pub service: Option<String>,
    /// Of the service.
    pub version: Option<String>,
    /// A network, or an address.
    pub client: Option<String>,
    /// Decisions a second that a CPU may tell at most; their answers come in any case.
    pub rate: Option<u32>,
}

impl TraceRequest {
    /// Takes a pair of a URL's query.
    ///
    /// # Errors
    /// For the user.
    pub fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "service" => self.service = Some(value),
            "version" => self.version = Some(value),
            "client" => self.client = Some(value),
            "rate" => self.rate = Some(value.parse().map_err(|_| format!("the rate `{value}` is not a whole number"))?),
            _ => return Err(format!("unknown query key `{key}`; known: service, version, client, rate")),
        }
        Ok(())
    }

    /// The pairs that [`TraceRequest::set`] takes.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let rate = self.rate.map(|rate| rate.to_string());
        let pairs = [("service", &self.service), ("version", &self.version), ("client", &self.client), ("rate", &rate)];
        pairs.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TraceLine {
    Event(Box<TraceEvent>),
    Lost(TraceLost),
}

/// What the reader has not been shown, since it began. Sent when it changes, and once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceLost {
    /// Decisions that came faster than `rate`.
    pub over_limit: u64,
    /// Events that found no room on their way to the agent.
    pub ring_full: u64,
    /// Lines that this reader did not take in time.
    pub reader_slow: u64,
}

/// A decision, with what became of it where that is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Of the decision.
    pub time: f64,
    /// `ADDRESS:PORT`.
    pub client: String,
    pub frontend: String,
    /// `tcp`, `udp`, `http`.
    pub protocol: String,
    pub service: String,
    /// Null when none was chosen.
    pub version: Option<String>,
    /// Null when nobody serves.
    pub backend: Option<String>,
    /// `rule`, `weight`, `baseline` (the head is too long), `connection` (it stays where it is), `none`.
    pub decided_by: String,
    /// Position from 0, and the match.
    pub rule: Option<String>,
    /// Of 2^32, when the weights decided.
    pub bucket: Option<u32>,
    /// The connection stays with its backend from here on, and its requests are not read any more: `reason` says why.
    pub pinned: bool,
    /// Begun by a packet in the middle of a connection.
    pub recovered: bool,
    /// Nobody serves.
    pub refused: bool,
    /// Why it is refused or pinned, as in `splitter_events_total`.
    pub reason: Option<String>,
    pub method: Option<String>,
    /// The first 64 bytes, without the query; `...` stands for the rest.
    pub path: Option<String>,
    /// Only where those are asked for that wait: the answer may still come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
    /// `mode: http`: of the answer; null when there was none within five seconds, or when it is a reset.
    pub status: Option<u16>,
    /// `mode: http`: seconds from the request's way to the backend to the first byte of the response.
    pub first_byte: Option<f64>,
}
