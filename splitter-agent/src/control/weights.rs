//! Weights between the policy and the command line: checks of a request, and which of the two counts. Pure.

use super::{
    ControlError,
    store::{Override, Weights},
};
use splitter_api::WeightRequest;
use splitter_datapath::reconcile::{Applied, Planned, Services};
use splitter_policy::model::Service;
use std::{collections::BTreeMap, sync::Arc};

/// Names that a message lists.
const NAMES: usize = 20;

pub fn of(service: &Service) -> Weights {
    service.versions.iter().map(|version| (version.name.clone(), version.weight)).collect()
}

/// `a, b, c`, shortened.
pub fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMES);
    names.truncate(NAMES);
    let all = if names.is_empty() { "none".into() } else { names.join(", ") };
    if more > 0 { format!("{all} and {more} more") } else { all }
}

/// A service that the node runs.
///
/// # Errors
/// When there is none of this name; the text lists those that are.
pub fn planned<'a>(applied: &'a Applied, name: &str) -> Result<&'a Planned, ControlError> {
    applied.service(name).ok_or_else(|| {
        let known = list(applied.services().map(|planned| planned.model.name.as_str()));
        ControlError::NotFound(format!("there is no service {name:?}; the node runs: {known}"))
    })
}

/// The weights that a request leads to, in the order of the service's versions.
pub fn merge(service: &Service, request: &WeightRequest) -> Result<Vec<u32>, ControlError> {
    if request.weights.is_empty() {
        return Err(ControlError::Invalid("no weights given: name at least one VERSION=WEIGHT".into()));
    }
    for name in request.weights.keys() {
        if service.versions.iter().all(|version| version.name != *name) {
            let known = list(service.versions.iter().map(|version| version.name.as_str()));
            return Err(ControlError::Invalid(format!("service {} has no version {name:?}; it has: {known}", service.name)));
        }
    }
    Ok(service.versions.iter().map(|version| request.weights.get(&version.name).copied().unwrap_or(version.weight)).collect())
}

/// A service of a policy.
pub fn find<'a>(policy: &'a [Arc<Service>], name: &str) -> Option<&'a Arc<Service>> {
    let index = policy.binary_search_by(|service| service.name.as_str().cmp(name)).ok()?;
    policy.get(index)
}

/// Drops the overrides whose service has other weights in the policy than when they were made; returns the names.
pub fn expire(overrides: &mut BTreeMap<String, Override>, policy: &[Arc<Service>]) -> Vec<String> {
    let stays = |name: &str, kept: &Override| find(policy, name).is_some_and(|service| of(service) == kept.base);
    let gone: Vec<String> = overrides.iter().filter(|(name, kept)| !stays(name, kept)).map(|(name, _)| name.clone()).collect();
    gone.iter().for_each(|name| {
        overrides.remove(name);
    });
    gone
}

/// The policy with the overrides put in.
pub fn effective(policy: &Services, overrides: &BTreeMap<String, Override>) -> Services {
    if overrides.is_empty() {
        return policy.clone();
    }
    let one = |service: &Arc<Service>| match overrides.get(&service.name) {
        None => service.clone(),
        Some(kept) => {
            let mut service = Service::clone(service);
            for version in &mut service.versions {
                version.weight = kept.weights.get(&version.name).copied().unwrap_or(version.weight);
            }
            Arc::new(service)
        }
    };
    Arc::new(policy.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_policy::model::*;

    fn service(weights: &[(&str, u32)]) -> Service {
        let version = |(name, weight): &(&str, u32)| Version {
            name: (*name).into(),
            weight: *weight,
            backends: Vec::new(),
            lookups: Vec::new(),
            found: 0,
        };
        Service {
            name: "checkout".into(),
            frontends: Vec::new(),
            mode: Mode::Tcp,
            split_by: SplitBy::Connection,
            versions: weights.iter().map(version).collect(),
            rules: Vec::new(),
            http: None,
            tls: None,
            on_weight_change: OnWeightChange::Keep,
            pinned: Default::default(),
            snat: Snat::Auto,
            path: Default::default(),
            vip: Default::default(),
            rollout: None,
            origin: String::new(),
        }
    }

    fn request(weights: &[(&str, u32)]) -> WeightRequest {
        WeightRequest { weights: weights.iter().map(|(name, weight)| (name.to_string(), *weight)).collect(), dry_run: false }
    }

    #[test]
    fn requests_are_merged_or_refused_with_the_known_names() {
        let service = service(&[("v1", 95), ("v2", 5)]);
        assert_eq!(merge(&service, &request(&[("v2", 50)])), Ok(vec![95, 50]));
        let Err(ControlError::Invalid(message)) = merge(&service, &request(&[("v3", 1)])) else { panic!("accepted") };
        assert!(message.contains("\"v3\"") && message.contains("v1, v2"), "{message}");
        assert!(merge(&service, &request(&[])).is_err());
    }

    #[test]
    fn an_override_lasts_until_the_policy_changes_its_weights() {
        let before = service(&[("v1", 95), ("v2", 5)]);
        let kept = Override { base: of(&before), weights: of(&service(&[("v1", 0), ("v2", 1)])), kept: false };
        let mut overrides = BTreeMap::from([("checkout".to_string(), kept)]);
        let mut policy = Services::new(vec![Arc::new(before)]);
        assert!(expire(&mut overrides, &policy).is_empty());
        assert_eq!(effective(&policy, &overrides)[0].versions[1].weight, 1);
        Arc::make_mut(&mut Arc::make_mut(&mut policy)[0]).snat = Snat::Never;
        assert!(expire(&mut overrides, &policy).is_empty(), "other changes do not matter");
        Arc::make_mut(&mut Arc::make_mut(&mut policy)[0]).versions[1].weight = 6;
        assert_eq!(expire(&mut overrides, &policy), ["checkout"]);
        assert_eq!(effective(&policy, &overrides)[0].versions[1].weight, 6);
    }

    #[test]
    fn long_lists_are_shortened() {
        let names: Vec<String> = (0..25).map(|i| format!("s{i:02}")).collect();
        assert!(list(names.iter().map(String::as_str)).ends_with("s19 and 5 more"));
        assert_eq!(list([].into_iter()), "none");
    }
}
