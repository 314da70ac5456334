//! Which services and flows a reader wants: the queries of the admin API against what is applied. Pure.

use super::{ControlError, weights};
use splitter_api::{FlowQuery, FlowRow, FlowSort, PolicyText, ServiceNames, name_of};
use splitter_common::abi::Addr;
use splitter_datapath::{
    plan,
    reconcile::{Applied, Planned},
};
use splitter_policy::{
    model::{Cidr, Service},
    source,
};
use std::{
    cmp::Ordering,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Most rows of one answer.
const ROWS: usize = 100_000;
/// Rows beyond the limit that are gathered before the best are picked.
const SLACK: usize = 1_024;

/// Services by name or pattern (`*`, `?`), in no order; all of them without any.
///
/// # Errors
/// When nothing has the name, or nothing matches the pattern; the text lists what there is.
pub fn services<'a>(applied: &'a Applied, names: &[String]) -> Result<Vec<&'a Planned>, ControlError> {
    if names.is_empty() {
        return Ok(applied.services().collect());
    }
    let mut found: HashMap<&str, &Planned> = HashMap::new();
    for name in names {
        if !name.contains(['*', '?']) {
            let planned = weights::planned(applied, name)?;
            found.insert(&planned.model.name, planned);
            continue;
        }
        let before = found.len();
        let matching = applied.services().filter(|planned| splitter_datapath::glob(name, &planned.model.name));
        let matching: Vec<_> = matching.map(|planned| (planned.model.name.as_str(), planned)).collect();
        if matching.is_empty() && found.len() == before {
            let known = weights::list(applied.services().map(|planned| planned.model.name.as_str()));
            return Err(ControlError::NotFound(format!("no service matches {name:?}; the node runs: {known}")));
        }
        found.extend(matching);
    }
    Ok(found.into_values().collect())
}

/// The policy of services by name or pattern, weights as they are, written as YAML by name.
///
/// # Errors
/// As [`services`].
pub fn policy(applied: &Applied, names: &[String]) -> Result<PolicyText, ControlError> {
    let mut found = services(applied, names)?;
    found.sort_unstable_by(|a, b| a.model.name.cmp(&b.model.name));
    Ok(PolicyText { yaml: source::write(found.iter().map(|planned| &*planned.model)) })
}

/// Names of services that begin with `prefix`, with those of their versions, sorted.
pub fn names(applied: &Applied, prefix: &str) -> Vec<ServiceNames> {
    let services = applied.services().map(|planned| &planned.model).filter(|model| model.name.starts_with(prefix));
    let one = |model: &Arc<Service>| ServiceNames {
        name: model.name.clone(),
        versions: model.versions.iter().map(|version| version.name.clone()).collect(),
    };
    let mut names: Vec<_> = services.map(one).collect();
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    names
}

/// Gathers the rows that a [`FlowQuery`] wants.
pub struct Wanted<'a> {
    /// By number.
    pub services: HashMap<u32, &'a Planned>,
    client: Option<Cidr>,
    version: Option<String>,
    backend: Option<(IpAddr, Option<u16>)>,
    /// As rows say it, or `pinned`.
    state: Option<String>,
    sort: Option<FlowSort>,
    limit: usize,
    rows: Vec<FlowRow>,
}

impl<'a> Wanted<'a> {
    /// # Errors
    /// When there is no such service or version, or an address is none.
    pub fn new(applied: &'a Applied, query: &FlowQuery) -> Result<Self, ControlError> {
        let services = services(applied, query.service.as_slice())?;
        if let Some(name) = &query.version {
            let all = || services.iter().flat_map(|planned| planned.model.versions.iter().map(|version| version.name.as_str()));
            if !all().any(|known| known == name) {
                let mut known: Vec<_> = all().collect();
                known.sort_unstable();
                known.dedup();
                let known = weights::list(known.into_iter());
                return Err(ControlError::NotFound(format!("there is no version {name:?}; there are: {known}")));
            }
        }
        Ok(Self {
            services: services.into_iter().map(|planned| (planned.image.id, planned)).collect(),
            client: query.client.as_deref().map(network).transpose().map_err(ControlError::Invalid)?,
            version: query.version.clone(),
            backend: query.backend.as_deref().map(backend).transpose().map_err(ControlError::Invalid)?,
            state: query.state.map(name_of),
            sort: query.sort,
            limit: query.limit.map_or(ROWS, |limit| limit.min(ROWS)),
            rows: Vec::new(),
        })
    }

    /// No further row changes the answer.
    pub fn is_full(&self) -> bool {
        self.sort.is_none() && self.rows.len() >= self.limit
    }

    pub fn client(&self, client: &Addr) -> bool {
        self.client.is_none_or(|network| network.contains(plan::ip(client)))
    }

    /// `version`: empty while there is none.
    pub fn version(&self, version: &str) -> bool {
        self.version.as_ref().is_none_or(|wanted| wanted == version)
    }

    /// `backend`: with its port in network order; `None` while there is none.
    pub fn backend(&self, backend: Option<(&Addr, [u8; 2])>) -> bool {
        let Some((address, port)) = self.backend else { return true };
        backend.is_some_and(|(addr, bytes)| plan::ip(addr) == address && port.is_none_or(|port| port == u16::from_be_bytes(bytes)))
    }

    pub fn state(&self, state: &str, pinned: bool) -> bool {
        self.state.as_deref().is_none_or(|wanted| wanted == state || pinned && wanted == "pinned")
    }

    /// Adds a row that fits; `false` when no further one changes the answer.
    pub fn add(&mut self, row: FlowRow) -> bool {
        if self.is_full() {
            return false;
        }
        self.rows.push(row);
        if self.rows.len() >= self.limit.saturating_add(SLACK.max(self.limit)) {
            self.pick();
        }
        !self.is_full()
    }

    fn pick(&mut self) {
        let sort = self.sort;
        self.rows.sort_by(|a, b| order(sort, a, b));
        self.rows.truncate(self.limit);
    }

    /// In order, no more than wanted.
    pub fn into_rows(mut self) -> Vec<FlowRow> {
        self.pick();
        self.rows
    }
}

fn order(sort: Option<FlowSort>, a: &FlowRow, b: &FlowRow) -> Ordering {
    let address = |text: &str| text.parse::<SocketAddr>().ok();
    let first = match sort {
        None => Ordering::Equal,
        Some(FlowSort::Idle) => b.idle.total_cmp(&a.idle),
        Some(FlowSort::Recent) => a.idle.total_cmp(&b.idle),
        Some(FlowSort::Client) => address(&a.client).cmp(&address(&b.client)),
        Some(FlowSort::Backend) => address(&a.backend).cmp(&address(&b.backend)),
    };
    first.then_with(|| (&a.service, &a.version, &a.client).cmp(&(&b.service, &b.version, &b.client)))
}

/// A network, or the address of one host.
///
/// # Errors
/// What is wrong, and an example.
pub fn network(text: &str) -> Result<Cidr, String> {
    source::cidr(text)
}

/// `ADDRESS` or `ADDRESS:PORT`.
///
/// # Errors
/// As [`network`].
pub fn backend(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, None));
    }
    let endpoint = text.parse::<SocketAddr>().map(|endpoint| (endpoint.ip(), Some(endpoint.port())));
    endpoint.map_err(|_| format!("`{text}` is no backend; write its address, with a port if it matters: 10.2.1.2, 10.2.1.2:8080"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_api::FlowState;

    fn row(client: &str, idle: f64) -> FlowRow {
        FlowRow { service: "web".into(), client: client.into(), idle, ..FlowRow::default() }
    }

    fn wanted(sort: Option<FlowSort>, limit: usize) -> Wanted<'static> {
        let services = HashMap::new();
        Wanted { services, client: None, version: None, backend: None, state: None, sort, limit, rows: Vec::new() }
    }

    #[test]
    fn a_limit_ends_an_unsorted_walk_and_keeps_the_best_of_a_sorted_one() {
        let mut first = wanted(None, 2);
        assert!(first.add(row("10.0.0.2:1", 1.0)));
        assert!(!first.add(row("10.0.0.1:1", 2.0)) && !first.add(row("10.0.0.0:1", 3.0)));
        assert_eq!(first.into_rows().iter().map(|row| row.idle).collect::<Vec<_>>(), [2.0, 1.0]);
        let mut longest = wanted(Some(FlowSort::Idle), 3);
        assert!((0..10_000).all(|idle| longest.add(row("10.0.0.1:1", f64::from(idle * 7 % 10_000)))));
        assert!(longest.rows.len() < 2 * SLACK, "memory is bounded");
        assert_eq!(longest.into_rows().iter().map(|row| row.idle).collect::<Vec<_>>(), [9_999.0, 9_998.0, 9_997.0]);
        let mut clients = wanted(Some(FlowSort::Client), 9);
        for client in ["10.0.0.10:1", "10.0.0.9:20", "10.0.0.9:3"] {
            clients.add(row(client, 0.0));
        }
        let rows = clients.into_rows();
        assert_eq!(rows.iter().map(|row| row.client.as_str()).collect::<Vec<_>>(), ["10.0.0.9:3", "10.0.0.9:20", "10.0.0.10:1"]);
    }

    #[test]
    fn backends_and_networks() {
        assert_eq!(backend("10.2.1.2:80"), Ok(("10.2.1.2".parse().unwrap(), Some(80))));
        assert_eq!(backend("fd00::1"), Ok(("fd00::1".parse().unwrap(), None)));
        assert!(backend("web").unwrap_err().contains("10.2.1.2:8080"));
        assert!(network("10.1.7.1/24").unwrap_err().contains("host bits"));
        let one = Wanted { backend: Some(("10.2.1.2".parse().unwrap(), Some(80))), ..wanted(None, 1) };
        let address = splitter_common::abi::mapped([10, 2, 1, 2]);
        assert!(one.backend(Some((&address, [0, 80]))) && !one.backend(Some((&address, [0, 81]))) && !one.backend(None));
    }

    #[test]
    fn states_are_what_rows_say() {
        let established = Wanted { state: Some(name_of(FlowState::Established)), ..wanted(None, 1) };
        assert!(established.state("established", true) && !established.state("closing", true));
        let pinned = Wanted { state: Some(name_of(FlowState::Pinned)), ..wanted(None, 1) };
        assert!(pinned.state("closing", true) && !pinned.state("established", false));
    }
}
