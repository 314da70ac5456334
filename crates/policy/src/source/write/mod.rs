//! Model -> YAML that is read as an equal model: fields in the order of the documentation, none that is as it is by default.
//!
//! The counterpart of `decode`, `http`, `lookup` and `rollout`, which own the defaults. What lookups have found is not written: the lookups are.

mod rollout;
mod tree;

#[cfg(test)]
pub(super) mod tests;

use super::{decode::API_VERSION, lookup};
use crate::model::{
    Backend, BackendState, Certificate, Cidr, Condition, Http, Lookup, OnWeightChange, Pinned, Service, Snat, SplitBy, Text, Tls, TooLong,
    Unavailable, Unserved, Version, Vip, Way,
};
use std::{borrow::Borrow, time::Duration};
use tree::{Map, Tree, list, one, text, word};

/// The services' documents, in this order.
pub fn write<S: Borrow<Service>>(services: impl IntoIterator<Item = S>) -> String {
    let documents: Vec<String> = services.into_iter().map(|service| tree::document(&object(service.borrow()))).collect();
    if documents.is_empty() {
        // A file without a document is an error: nothing is meant.
        return format!("apiVersion: {API_VERSION}\nkind: TrafficSplitList\nitems: []\n");
    }
    documents.join("---\n")
}

fn object(service: &Service) -> Tree {
    let (mut object, mut metadata) = (Map::default(), Map::default());
    let (namespace, name) = service.name.split_once('/').map_or((None, &*service.name), |(namespace, name)| (Some(namespace), name));
    metadata.put("name", text(name));
    metadata.put("namespace", namespace.map(text));
    object.put("apiVersion", word(API_VERSION));
    object.put("kind", word("TrafficSplit"));
    object.put("metadata", Tree::from(metadata));
    object.put("spec", spec(service));
    object.into()
}

fn spec(service: &Service) -> Tree {
    let name = |index: usize| service.versions.get(index).map(|version| text(&version.name));
    let mut spec = Map::default();
    let frontend = |frontend: &crate::model::Frontend| {
        let mut fields = Map::default();
        fields.put("address", text(frontend.address.ip()));
        fields.put("port", word(frontend.address.port()));
        // The protocol is the mode's.
        fields.into()
    };
    spec.put("frontends", list(service.frontends.iter().map(frontend)));
    spec.put("mode", word(service.mode.name()));
    spec.put("tls", service.tls.as_ref().map(tls));
    spec.put("splitBy", split_by(service));
    spec.put("versions", list(service.versions.iter().map(version)));
    match &service.http {
        Some(http) => of_http(http, name, &mut spec),
        None => spec.put(
            "rules",
            list(service.rules.iter().map(|rule| {
                let mut fields = Map::default();
                fields.put("match", one("sourceCidr", network(&rule.source)));
                fields.put("version", name(rule.version));
                fields.into()
            })),
        ),
    }
    spec.put(
        "onWeightChange",
        match service.on_weight_change {
            OnWeightChange::Keep => None,
            OnWeightChange::Reset => Some(word("reset")),
            OnWeightChange::Drain(time) => Some(one("drain", duration(time))),
        },
    );
    spec.put("pinned", (service.pinned == Pinned::Reset).then(|| word("reset")));
    spec.put("rollout", service.rollout.as_ref().map(|rollout| rollout::rollout(rollout, service)));
    spec.put(
        "snat",
        match service.snat {
            Snat::Auto => None,
            Snat::Always => Some(word("always")),
            Snat::Never => Some(word("never")),
        },
    );
    spec.put("path", (service.path != Way::Auto).then(|| word(service.path.name())));
    spec.put("vip", (service.vip != Vip::default()).then(|| vip(service.vip)));
    spec.into()
}

fn tls(tls: &Tls) -> Tree {
    let files = |certificate: &Certificate| {
        let mut fields = Map::default();
        fields.put("certFile", text(certificate.cert_file.display()));
        fields.put("keyFile", text(certificate.key_file.display()));
        fields.into()
    };
    one("certificates", Tree::List(tls.certificates.iter().map(files).collect()))
}

fn split_by(service: &Service) -> Option<Tree> {
    let default = if service.mode.reads_requests() { SplitBy::Request } else { SplitBy::Connection };
    (service.split_by != default).then(|| match &service.split_by {
        SplitBy::Connection => word("connection"),
        SplitBy::ClientIp => word("client-ip"),
        SplitBy::Request => word("request"),
        SplitBy::Header(name) => one("header", text(name)),
        SplitBy::Cookie(name) => one("cookie", text(name)),
    })
}

fn version(version: &Version) -> Tree {
    let mut fields = Map::default();
    fields.put("name", text(&version.name));
    fields.put("weight", word(version.weight));
    let named = version.backends.len().saturating_sub(version.found);
    let backends = version.backends.iter().take(named).map(backend).chain(version.lookups.iter().map(looked_up));
    fields.put("backends", Tree::List(backends.collect()));
    fields.into()
}

fn backend(backend: &Backend) -> Tree {
    let state = match backend.state {
        BackendState::Ready => return text(backend.address),
        BackendState::Draining => "draining",
        BackendState::Down => "down",
    };
    let mut fields = Map::default();
    fields.put("address", text(backend.address));
    fields.put("state", word(state));
    fields.into()
}

fn looked_up(lookup: &Lookup) -> Tree {
    let mut fields = Map::default();
    fields.put("dns", text(&lookup.name));
    fields.put("port", lookup.port.map(word));
    fields.put("drain", (lookup.drain != lookup::DRAIN).then(|| duration(lookup.drain)));
    fields.into()
}

fn of_http(http: &Http, name: impl Fn(usize) -> Option<Tree>, spec: &mut Map) {
    let written = http.rules.iter().filter(|rule| !rule.from_canary).map(|rule| {
        let mut fields = Map::default();
        fields.put("match", matched(&rule.conditions));
        fields.put("version", name(rule.version));
        fields.into()
    });
    spec.put("rules", list(written));
    // The first of the rules that the line stands for is for who wants the canary.
    spec.put("canary", http.rules.iter().find(|rule| rule.from_canary).and_then(|rule| name(rule.version)));
    spec.put("whenUnavailable", (http.unavailable == Unavailable::Reset).then(|| word("reset")));
    spec.put(
        "whenTooLong",
        match http.too_long {
            TooLong::Baseline => None,
            TooLong::Weight => Some(word("weight")),
            TooLong::Status => Some(word(431)),
        },
    );
}

fn matched(conditions: &[Condition]) -> Tree {
    let named = |name: &str, value: &Text| {
        let mut fields = Map::default();
        fields.put("name", text(name));
        match value {
            Text::Exact(value) => fields.put("value", text(value)),
            Text::Prefix(value) => fields.put("prefix", text(value)),
            Text::Present => fields.put("present", word(true)),
        }
        Tree::from(fields)
    };
    let mut fields: Vec<(&str, Vec<Tree>)> = Vec::new();
    for condition in conditions {
        let (field, value) = match condition {
            Condition::Header(name, value) => ("header", named(name, value)),
            Condition::Cookie(name, value) => ("cookie", named(name, value)),
            Condition::Query(name, value) => ("query", named(name, value)),
            Condition::Path(path) => ("path", text(path)),
            Condition::PathPrefix(path) => ("pathPrefix", text(path)),
            Condition::Method(method) => ("method", text(method)),
            Condition::Source(source) => ("sourceCidr", network(source)),
        };
        match fields.last_mut().filter(|(last, _)| *last == field) {
            Some((_, values)) => values.push(value),
            None => fields.push((field, vec![value])),
        }
    }
    let mut out = Map::default();
    for (field, mut values) in fields {
        let one = if values.len() == 1 { values.pop() } else { None };
        out.put(field, one.unwrap_or(Tree::List(values)));
    }
    out.into()
}

fn vip(vip: Vip) -> Tree {
    let mut fields = Map::default();
    fields.put("ping", vip.ping.then(|| word(true)));
    fields.put("unserved", (vip.unserved == Unserved::Pass).then(|| word("pass")));
    fields.into()
}

fn network(network: &Cidr) -> Tree {
    text(format_args!("{}/{}", network.address, network.prefix))
}

/// In the largest unit that leaves nothing over.
fn duration(time: Duration) -> Tree {
    let millis = time.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let whole = units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => word(format_args!("{}{name}", millis / unit)),
        None if millis == 0 => word("0s"),
        None => word(format_args!("{millis}ms")),
    }
}
