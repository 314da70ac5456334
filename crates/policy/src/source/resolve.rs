//! Objects, and the addresses that were found for their names -> services.
//!
//! Pure: who finds addresses is an [`super::EndpointSource`]. A service without lookups comes out as it went in, the same allocation.

use crate::model::{Backend, BackendState, Frontend, Lookup, Policy, Service, Version};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

/// What is looked up: a name, and the family of the service's frontends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Query {
    pub lookup: Lookup,
    pub ipv6: bool,
}

/// What is known of a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Ready, or draining since they left the answer.
    pub backends: BTreeMap<SocketAddr, BackendState>,
    /// Why the last lookup brought nothing: then the backends are older than that.
    pub failure: Option<String>,
    /// Nobody has answered yet, in one way or the other.
    pub pending: bool,
}

/// By query.
pub type Found = BTreeMap<Query, Endpoints>;

/// What the policy asks for.
pub fn queries(policy: &Policy) -> BTreeSet<Query> {
    let services = policy.services.iter();
    services.flat_map(|service| service.versions.iter().flat_map(|version| of_version(service, version))).collect()
}

fn of_version<'a>(service: &Service, version: &'a Version) -> impl Iterator<Item = Query> + use<'a> {
    let ipv6 = service.frontends.first().is_some_and(|frontend| frontend.address.is_ipv6());
    version.lookups.iter().map(move |lookup| Query { lookup: lookup.clone(), ipv6 })
}

/// What services that were resolved before say of the queries, for the time until somebody answers. Where a version has several lookups, each gets what
/// all have found; the first answers tell them apart.
pub fn remembered(services: &[Arc<Service>]) -> Found {
    let mut found = Found::new();
    for service in services {
        for version in &service.versions {
            for query in of_version(service, version) {
                let of_port = |backend: &&Backend| query.lookup.port.is_none_or(|port| backend.address.port() == port);
                let backends: Vec<_> = version.backends.iter().filter(of_port).map(|backend| (backend.address, backend.state)).collect();
                found.entry(query).or_default().backends.extend(backends);
            }
        }
    }
    found
}

/// The services, and what people should know of their lookups.
pub fn resolve(policy: &Policy, found: &Found) -> (Policy, Vec<String>) {
    let mut warnings = Vec::new();
    let services = policy.services.iter().map(|service| {
        if service.versions.iter().all(|version| version.lookups.is_empty()) {
            return service.clone();
        }
        let mut service = Service::clone(service);
        for index in 0..service.versions.len() {
            let (backends, findings) = backends(&service, &service.versions[index], found);
            let title = format!("{}: TrafficSplit {}: version {}", service.origin, service.name, service.versions[index].name);
            warnings.extend(findings.into_iter().map(|finding| format!("{title}: {finding}")));
            let version = &mut service.versions[index];
            version.found = backends.len() - version.backends.len();
            version.backends = backends;
        }
        Arc::new(service)
    });
    (Policy { services: services.collect() }, warnings)
}

/// What the policy names comes first and keeps its state; an address that several lookups give is ready when one says so.
fn backends(service: &Service, version: &Version, found: &Found) -> (Vec<Backend>, Vec<String>) {
    let (mut backends, mut warnings) = (version.backends.clone(), Vec::new());
    let named: HashMap<SocketAddr, usize> = backends.iter().enumerate().map(|(index, backend)| (backend.address, index)).collect();
    let mut discovered = BTreeMap::new();
    for query in of_version(service, version) {
        let Some(endpoints) = found.get(&query) else { continue };
        for (address, state) in &endpoints.backends {
            if service.frontends.iter().any(|Frontend { address: own, .. }| own == address) {
                warnings.push(format!("dns {} gives {address}, which is this service's own frontend: left out", query.lookup.name));
            } else if !named.contains_key(address) {
                let known = discovered.entry(*address).or_insert(*state);
                if *state == BackendState::Ready {
                    *known = *state;
                }
            }
        }
        warnings.extend(failure(&query, endpoints));
    }
    backends.extend(discovered.into_iter().map(|(address, state)| Backend { address, state }));
    let ready = backends.iter().any(|backend| backend.state == BackendState::Ready);
    if version.weight > 0 && !version.lookups.is_empty() && !ready {
        warnings.push(format!("weight {} but no ready backend: its share is refused", version.weight));
    }
    (backends, warnings)
}

fn failure(query: &Query, endpoints: &Endpoints) -> Option<String> {
    let name = &query.lookup.name;
    let what = match endpoints.backends.len() {
        0 => "there is no address yet".to_owned(),
        1 => "the last address stays".to_owned(),
        count => format!("the last {count} addresses stay"),
    };
    match &endpoints.failure {
        Some(failure) => Some(format!("dns {name}: {failure}; {what}")),
        None if endpoints.pending => Some(format!("dns {name}: not answered yet; {what}")),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn policy(backends: &str) -> Policy {
        let text = format!(
            "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: a}}\nspec:\n  mode: tcp\n  frontends: [{{address: \
             10.9.9.9, port: 80}}]\n  versions: [{{name: v1, weight: 1, backends: {backends}}}]\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        std::fs::write(&path, text).unwrap();
        super::super::load(Path::new(&path)).result.unwrap()
    }

    fn endpoints(ready: &[&str], draining: &[&str], failure: Option<&str>) -> Endpoints {
        let of = |list: &[&str], state| list.iter().map(|a| (a.parse().unwrap(), state)).collect::<Vec<_>>();
        let backends = [of(ready, BackendState::Ready), of(draining, BackendState::Draining)].concat();
        Endpoints { backends: backends.into_iter().collect(), failure: failure.map(Into::into), pending: false }
    }

    fn shown(policy: &Policy, found: &Found) -> (Vec<String>, Vec<String>) {
        let (policy, warnings) = resolve(policy, found);
        let show = |backend: &Backend| match backend.state {
            BackendState::Ready => backend.address.to_string(),
            state => format!("{} {state:?}", backend.address),
        };
        (policy.services[0].versions[0].backends.iter().map(show).collect(), warnings)
    }

    #[test]
    fn addresses_become_backends() {
        let policy = policy("[{dns: a.internal, port: 80}, {address: \"10.2.1.2:80\", state: down}, {dns: b.internal, port: 80}]");
        let all: Vec<Query> = queries(&policy).into_iter().collect();
        assert_eq!(all.iter().map(|query| &query.lookup.name[..]).collect::<Vec<_>>(), ["a.internal", "b.internal"]);
        let found = Found::from([
            (all[0].clone(), endpoints(&["10.2.1.9:80", "10.2.1.2:80", "10.9.9.9:80"], &["10.2.1.3:80"], None)),
            (all[1].clone(), endpoints(&["10.2.1.3:80"], &["10.2.1.4:80"], Some("no answer"))),
        ]);
        let (backends, warnings) = shown(&policy, &found);
        assert_eq!(backends, ["10.2.1.2:80 Down", "10.2.1.3:80", "10.2.1.4:80 Draining", "10.2.1.9:80"], "the policy's word counts first");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("p.yaml:3:18: TrafficSplit a: version v1: dns a.internal gives 10.9.9.9:80"), "{warnings:?}");
        assert!(warnings[1].ends_with("dns b.internal: no answer; the last 2 addresses stay"), "{warnings:?}");
    }

    #[test]
    fn what_was_found_before_is_remembered() {
        let policy = policy("{dns: a.internal, port: 80}");
        let query = queries(&policy).into_iter().next().unwrap();
        let (empty, warnings) = resolve(&policy, &Found::new());
        assert!(empty.services[0].versions[0].backends.is_empty());
        assert!(warnings[0].ends_with("weight 1 but no ready backend: its share is refused"), "{warnings:?}");
        let found = Found::from([(query, endpoints(&["10.2.1.2:80"], &["10.2.1.3:80"], None))]);
        let (resolved, warnings) = resolve(&policy, &found);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(resolve(&policy, &remembered(&resolved.services)).0, resolved);
    }

    #[test]
    fn who_looks_nothing_up_is_not_touched() {
        let policy = policy("[\"10.2.1.2:80\"]");
        assert!(queries(&policy).is_empty());
        assert!(Arc::ptr_eq(&resolve(&policy, &Found::new()).0.services[0], &policy.services[0]));
    }
}
