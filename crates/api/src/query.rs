//! What `GET /v1/status`, `/v1/flows` and `/v1/services` can be asked for, as the keys and values of the URL's query. A stable surface.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Order of services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatusSort {
    /// By name
    #[default]
    Name,
    /// Most live flows first
    Flows,
    /// Most connections first
    Connections,
    /// Most requests first
    Requests,
    /// Most failed connections and 5xx responses first
    Failed,
    /// Largest 99th percentile of the first byte first
    Latency,
}

/// Query of `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusQuery {
    /// Names, or patterns with `*` and `?`; none: every service.
    pub services: Vec<String>,
    pub sort: StatusSort,
    /// Most services of the answer.
    pub limit: Option<usize>,
}

/// Order of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowSort {
    /// Longest idle first
    Idle,
    /// Latest packet first
    Recent,
    /// By the client's address and port
    Client,
    /// By the backend's address and port
    Backend,
}

/// What `splitter flows` calls the states of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowState {
    /// TCP, handshake not complete
    HalfOpen,
    /// TCP
    Established,
    /// TCP, one or both sides have closed
    Closing,
    /// UDP without an answer
    Unreplied,
    /// UDP with an answer
    Replied,
    /// http: a request's head is not complete
    Gathering,
    /// http: a connection to a backend is being opened
    Opening,
    /// http: answered by the node itself
    Answered,
    /// http: in any state, requests are not read any more
    Pinned,
}

/// Query of `GET /v1/flows`. Without `sort` a limit ends the walk over the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowQuery {
    /// A name, or a pattern with `*` and `?`.
    pub service: Option<String>,
    /// A network, `ADDRESS/PREFIX`, or an address.
    pub client: Option<String>,
    pub version: Option<String>,
    /// `ADDRESS` or `ADDRESS:PORT`.
    pub backend: Option<String>,
    pub state: Option<FlowState>,
    pub sort: Option<FlowSort>,
    /// Most rows of the answer.
    pub limit: Option<usize>,
}

/// A row of `GET /v1/services`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNames {
    pub name: String,
    pub versions: Vec<String>,
}

/// The name of a value of a closed set, as users write it.
pub fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn parse<T: ValueEnum>(key: &str, text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let known: Vec<_> = T::value_variants().iter().filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned())).collect();
        format!("`{key}` must be one of {}, not `{text}`", known.join(", "))
    })
}

fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| format!("`limit` must be a whole number from 1, not `{text}`"))
}

impl StatusQuery {
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs: Vec<_> = self.services.iter().map(|name| ("service", name.clone())).collect();
        if self.sort != StatusSort::Name {
            pairs.push(("sort", name_of(self.sort)));
        }
        pairs.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        pairs
    }

    /// # Errors
    /// When the key is not known or the value is not one of its.
    pub fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "service" => self.services.push(value),
            "sort" => self.sort = parse(key, &value)?,
            "limit" => self.limit = Some(limit(&value)?),
            _ => return Err(format!("unknown query key `{key}`; known: service, sort, limit")),
        }
        Ok(())
    }
}

impl FlowQuery {
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let texts = [("service", &self.service), ("client", &self.client), ("version", &self.version), ("backend", &self.backend)];
        let mut pairs: Vec<_> = texts.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        pairs.extend(self.state.map(|state| ("state", name_of(state))));
        pairs.extend(self.sort.map(|sort| ("sort", name_of(sort))));
        pairs.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        pairs
    }

    /// # Errors
    /// As [`StatusQuery::set`].
    pub fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "service" => self.service = Some(value),
            "client" => self.client = Some(value),
            "version" => self.version = Some(value),
            "backend" => self.backend = Some(value),
            "state" => self.state = Some(parse(key, &value)?),
            "sort" => self.sort = Some(parse(key, &value)?),
            "limit" => self.limit = Some(limit(&value)?),
            _ => return Err(format!("unknown query key `{key}`; known: service, client, version, backend, state, sort, limit")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_go_there_and_back() {
        let status = StatusQuery { services: vec!["a".into(), "b/*".into()], sort: StatusSort::Failed, limit: Some(3) };
        let mut back = StatusQuery::default();
        status.pairs().into_iter().for_each(|(key, value)| back.set(key, value).unwrap());
        assert_eq!(back, status);
        let flows = FlowQuery {
            service: Some("a".into()),
            client: Some("10.0.0.0/8".into()),
            version: Some("v2".into()),
            backend: Some("[fd00::1]:80".into()),
            state: Some(FlowState::HalfOpen),
            sort: Some(FlowSort::Idle),
            limit: Some(1),
        };
        let mut back = FlowQuery::default();
        flows.pairs().into_iter().for_each(|(key, value)| back.set(key, value).unwrap());
        assert_eq!(back, flows);
        assert!(StatusQuery::default().pairs().is_empty() && FlowQuery::default().pairs().is_empty());
    }

    #[test]
    fn wrong_values_name_the_right_ones() {
        let mut query = FlowQuery::default();
        assert!(query.set("state", "open".into()).unwrap_err().contains("half-open, established"));
        assert!(query.set("limit", "0".into()).unwrap_err().contains("from 1"));
        assert!(query.set("name", "x".into()).unwrap_err().contains("known: service, client"));
        assert!(StatusQuery::default().set("sort", "idle".into()).unwrap_err().contains("name, flows"));
    }
}
