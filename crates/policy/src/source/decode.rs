//! A YAML document -> drafts of services.
//!
//! Owns the fields of `TrafficSplit` and `TrafficSplitList`, their defaults and limits, and what this build knows but does not serve.
//! What concerns several objects, and warnings, are in `check`.

use super::{
    At, Report,
    draft::{Draft, Places},
    fields::{Context, Fields, kind},
    http, lookup, network, rollout, rules, tls,
    yaml::{Kind, Node},
};
use crate::model::{
    Backend, BackendState, Frontend, Lookup, Mode, OnWeightChange, Pinned, Protocol, Service, Snat, Unserved, Version, Vip, Way,
};
use splitter_common::abi::MAX_VERSIONS;
use std::net::SocketAddr;

pub const API_VERSION: &str = "splitter.dev/v1alpha1";
const KIND: &str = "TrafficSplit";
const LIST: &str = "TrafficSplitList";
const INSTEAD: &str =
    "use `mode: http` for HTTP/1.1 in clear text, `mode: https` for it over TLS, else `mode: tcp` with rules on `sourceCidr`";

/// Adds the document's objects. True for an explicit empty list.
pub fn document(path: &str, node: &Node<'_>, drafts: &mut Vec<Draft>, report: &mut Report) -> bool {
    let mut context = Context { path, object: None, report };
    let Kind::Map(entries) = &node.kind else {
        context.error(node.at, format!("a document must be an object with apiVersion and kind, not {}", kind(node)));
        return false;
    };
    let is_list = entries.iter().any(|e| e.key == "kind" && matches!(&e.value.kind, Kind::Scalar { text, .. } if text == LIST));
    if !is_list {
        drafts.push(object(node, false, context));
        return false;
    }
    context.object = Some(LIST.to_owned());
    let Some(fields) = context.fields(node, LIST, &["apiVersion", "kind", "metadata", "items"]) else { return false };
    api_version(&fields, true, &mut context);
    let items = match fields.entry("items") {
        Some(entry) => context.list(&entry.value, "items"),
        None => context.required(&fields, "items", "items", "items: []").map(|_| &[][..]),
    };
    for item in items.unwrap_or_default() {
        drafts.push(object(item, true, Context { path, object: None, report: context.report }));
    }
    items.is_some_and(<[_]>::is_empty)
}

fn api_version(fields: &Fields<'_>, required: bool, context: &mut Context<'_>) {
    let example = "apiVersion: splitter.dev/v1alpha1";
    let node = match fields.optional("apiVersion") {
        None if !required => return,
        _ => context.required(fields, "apiVersion", "apiVersion", example),
    };
    if let Some(node) = node
        && let Some(text) = context.string(node, "apiVersion")
        && text != API_VERSION
    {
        context.error(node.at, format!("apiVersion `{text}` is not known; write `{example}`"));
    }
}

/// One TrafficSplit; in a list, apiVersion and kind may be left out.
fn object(node: &Node<'_>, in_list: bool, mut context: Context<'_>) -> Draft {
    context.object = Some(title(node));
    let before = context.report.errors.len();
    let mut draft = Draft {
        path: context.path.to_owned(),
        object: title(node),
        name: None,
        frontends: Vec::new(),
        places: Places::default(),
        service: None,
    };
    let Some(fields) = context.fields(node, KIND, &["apiVersion", "kind", "metadata", "spec"]) else { return draft };
    api_version(&fields, !in_list, &mut context);
    if (!in_list || fields.optional("kind").is_some())
        && let Some(node) = context.required(&fields, "kind", "kind", "kind: TrafficSplit")
    {
        context.word(node, "kind", if in_list { &[(KIND, ())] } else { &[(KIND, ()), (LIST, ())] });
    }
    if let Some(node) = context.required(&fields, "metadata", "metadata", "metadata: {name: checkout}") {
        draft.name = metadata(node, &mut context);
    }
    let Some(spec) = context.required(&fields, "spec", "spec", "spec: {frontends: [], mode: tcp, versions: []}") else { return draft };
    let service = spec_of(spec, &mut draft, &mut context);
    if context.report.errors.len() == before
        && let (Some(mut service), Some((name, at))) = (service, &draft.name)
    {
        service.name.clone_from(name);
        service.origin = format!("{}:{}:{}", context.path, at.line, at.column);
        draft.service = Some(service);
    }
    draft
}

/// `TrafficSplit NAME`, read leniently: it only titles messages.
fn title(node: &Node<'_>) -> String {
    let child = |node: &'_ Node<'_>, name: &str| -> Option<String> {
        let Kind::Map(entries) = &node.kind else { return None };
        let Kind::Map(inner) = &entries.iter().find(|e| e.key == "metadata")?.value.kind else { return None };
        match &inner.iter().find(|e| e.key == name)?.value.kind {
            Kind::Scalar { text, .. } => Some(text.to_string()),
            _ => None,
        }
    };
    match (child(node, "namespace"), child(node, "name")) {
        (Some(namespace), Some(name)) => format!("{KIND} {namespace}/{name}"),
        (None, Some(name)) => format!("{KIND} {name}"),
        _ => format!("{KIND} (no name)"),
    }
}

fn metadata(node: &Node<'_>, context: &mut Context<'_>) -> Option<(String, At)> {
    let fields = context.fields(node, "metadata", &["name", "namespace", "labels", "annotations"])?;
    for (field, what) in [("labels", "metadata.labels"), ("annotations", "metadata.annotations")] {
        if let Some(value) = fields.optional(field)
            && !matches!(value.kind, Kind::Map(_))
        {
            context.error(value.at, format!("{what} must be an object of strings, not {}", kind(value)));
        }
    }
    let namespace = match fields.optional("namespace") {
        Some(node) => Some(context.string(node, "metadata.namespace").filter(|text| label(text, node.at, "metadata.namespace", context))?),
        None => None,
    };
    let node = context.required(&fields, "name", "metadata.name", "name: checkout")?;
    let name = context.string(node, "metadata.name")?;
    let full = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    if full.len() > 253 || name.is_empty() || !name.split('.').all(is_label) {
        let shape = "lower-case letters, digits and `-`, in parts joined by `.`, each beginning and ending with a letter or digit, 63 \
                     characters a part and 253 in all";
        context.error(node.at, format!("metadata.name `{name}` is not a DNS name; use {shape}"));
        return None;
    }
    Some((full, node.at))
}

fn is_label(text: &str) -> bool {
    let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && !text.is_empty() && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-')
}

fn label(text: &str, at: At, what: &str, context: &mut Context<'_>) -> bool {
    let valid = is_label(text);
    if !valid {
        let shape = "lower-case letters, digits and `-`, beginning and ending with a letter or digit, at most 63 characters";
        context.error(at, format!("{what} `{text}` is not a DNS label; use {shape}"));
    }
    valid
}

const SPEC: &[&str] = &[
    "frontends",
    "mode",
    "splitBy",
    "versions",
    "rules",
    "canary",
    "whenUnavailable",
    "whenTooLong",
    "onWeightChange",
    "pinned",
    "rollout",
    "snat",
    "path",
    "vip",
    "tls",
];

/// A service without name and origin. Its value counts only when no error was added.
fn spec_of(node: &Node<'_>, draft: &mut Draft, context: &mut Context<'_>) -> Option<Service> {
    let fields = context.fields(node, "spec", SPEC)?;
    let mode = context.required(&fields, "mode", "spec.mode", "mode: tcp").and_then(|node| mode(node, context));
    if let Some(node) = context.required(&fields, "frontends", "spec.frontends", "frontends: [{address: 10.9.9.9, port: 80}]") {
        draft.frontends = frontends(node, mode, context);
    }
    let family = draft.frontends.first().map(|(f, _)| f.address);
    let example = "versions: [{name: v1, weight: 100, backends: [\"10.2.1.2:8080\"]}]";
    let versions = match context.required(&fields, "versions", "spec.versions", example) {
        Some(node) => {
            draft.places.list = Some(node.at);
            versions(node, family, &mut draft.places.versions, context)
        }
        None => Vec::new(),
    };
    for (version, at) in versions.iter().zip(&draft.places.versions) {
        looped(version, *at, &draft.frontends, context);
    }
    let split_by = http::split_by(&fields, mode, context);
    let (rules, http) = match mode {
        Some(Mode::Tcp | Mode::Udp) => (rules::layer4(&fields, &versions, &mut draft.places.rules, context), None),
        // Without a mode that is known, all fields are possible.
        Some(Mode::Http | Mode::Https) | None => {
            (Vec::new(), Some(http::http(&fields, &split_by, &versions, &mut draft.places, context)).filter(|_| mode.is_some()))
        }
    };
    let tls = tls::tls(&fields, mode, context);
    let rollout = fields.optional("rollout").and_then(|node| rollout::decode(node, &versions, &split_by, context));
    if let (Some(rollout), Some(node), Some(mode)) = (&rollout, fields.optional("rollout"), mode) {
        let by_http = http.iter().flat_map(|http| &http.rules).any(|rule| rule.version == rollout.canary);
        let ruled = by_http || rules.iter().any(|rule| rule.version == rollout.canary);
        rollout::doubts(rollout, node.at, ruled, mode, context);
    }
    let ending = fields.optional("onWeightChange");
    let on_weight_change = ending.and_then(|node| on_weight_change(node, context)).unwrap_or_default();
    if let (Some(node), Some(mode)) = (ending, mode)
        && mode.reads_requests()
        && on_weight_change != OnWeightChange::Keep
    {
        let hint = if mode == Mode::Http { "; remove it (`pinned` is for connections that cannot)" } else { "; remove it" };
        context.warn(
            node.at,
            format!("onWeightChange does nothing with `mode: {}`: each request follows the weights as they are{hint}", mode.name()),
        );
    }
    let pinned = match fields.optional("pinned") {
        Some(node) => {
            if mode == Some(Mode::Https) {
                context.warn(node.at, "pinned is of `mode: http`; here each request follows the weights as they are: remove it");
            } else if matches!(mode, Some(Mode::Tcp | Mode::Udp)) {
                context.warn(node.at, "pinned is of `mode: http`; here onWeightChange says what becomes of connections: remove it");
            }
            context.word(node, "spec.pinned", &[("keep", Pinned::Keep), ("reset", Pinned::Reset)])?
        }
        None => Pinned::Keep,
    };
    let snat = match fields.optional("snat") {
        Some(node) => context.word(node, "spec.snat", &[("auto", Snat::Auto), ("always", Snat::Always), ("never", Snat::Never)])?,
        None => Snat::Auto,
    };
    let path = match fields.optional("path") {
        Some(node) => path(node, mode, context)?,
        None => Way::Auto,
    };
    let vip = match fields.optional("vip") {
        Some(node) => vip(node, context)?,
        None => Vip::default(),
    };
    Some(Service {
        name: String::new(),
        frontends: draft.frontends.iter().map(|(frontend, _)| *frontend).collect(),
        mode: mode?,
        split_by,
        versions,
        rules,
        http,
        tls,
        on_weight_change,
        pinned,
        snat,
        path,
        vip,
        rollout,
        origin: String::new(),
    })
}

fn path(node: &Node<'_>, mode: Option<Mode>, context: &mut Context<'_>) -> Option<Way> {
    let path = context.word(node, "spec.path", &[Way::Auto, Way::Redirect, Way::Stack].map(|path| (path.name(), path)))?;
    if (path, mode) == (Way::Redirect, Some(Mode::Https)) {
        let why = "path: redirect is not of mode https: the node itself connects to the backends, by its stack; remove it";
        context.error(node.at, why.to_owned());
    }
    Some(path)
}

fn mode(node: &Node<'_>, context: &mut Context<'_>) -> Option<Mode> {
    let words = [
        ("tcp", Some(Mode::Tcp)),
        ("udp", Some(Mode::Udp)),
        ("http", Some(Mode::Http)),
        ("https", Some(Mode::Https)),
        ("http2", None),
        ("grpc", None),
        ("auto", None),
    ];
    let found = context.word(node, "spec.mode", &words)?;
    if found.is_none() {
        context.error(node.at, format!("mode {} is not available in this build; {INSTEAD}", kind(node)));
    }
    found
}

fn frontends(node: &Node<'_>, mode: Option<Mode>, context: &mut Context<'_>) -> Vec<(Frontend, At)> {
    let mut found: Vec<(Frontend, At)> = Vec::new();
    let Some(items) = context.list(node, "spec.frontends") else { return found };
    if items.is_empty() {
        context.error(node.at, "spec.frontends is empty; add for example `{address: 10.9.9.9, port: 80}`");
    }
    for (index, item) in items.iter().enumerate() {
        let Some(frontend) = frontend(item, &format!("spec.frontends[{index}]"), mode, context) else { continue };
        match found.first() {
            Some((first, at)) if first.address.is_ipv4() != frontend.address.is_ipv4() => {
                let first = first.address.ip();
                context.error(item.at, format!("all frontends of a service must be of one family, and {first} on line {} is of the other; make a second TrafficSplit", at.line));
            }
            _ => {}
        }
        if let Some((_, first)) = found.iter().find(|(f, _)| *f == frontend) {
            context.error(item.at, format!("this frontend stands twice (first on line {}); remove one", first.line));
        }
        found.push((frontend, item.at));
    }
    found
}

fn frontend(node: &Node<'_>, what: &str, mode: Option<Mode>, context: &mut Context<'_>) -> Option<Frontend> {
    let fields = context.fields(node, what, &["address", "port", "protocol"])?;
    let address = context.required(&fields, "address", &format!("{what}.address"), "address: 10.9.9.9").and_then(|node| {
        let text = context.string(node, &format!("{what}.address"))?;
        network::address(text).map_err(|message| context.error(node.at, message)).ok()
    });
    let port = context
        .required(&fields, "port", &format!("{what}.port"), "port: 80")
        .and_then(|node| context.number(node, &format!("{what}.port"), 1, 65535));
    let protocol = match fields.optional("protocol") {
        Some(node) => {
            let protocol = context.word(node, &format!("{what}.protocol"), &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)])?;
            match (mode, protocol) {
                (Some(Mode::Tcp), Protocol::Udp) => {
                    context
                        .error(node.at, "mode tcp needs TCP frontends; write `protocol: TCP`, or `mode: udp` in a TrafficSplit of its own");
                }
                (Some(mode @ (Mode::Http | Mode::Https)), Protocol::Udp) => {
                    context.error(node.at, format!("mode {} needs TCP frontends; write `protocol: TCP`", mode.name()));
                }
                (Some(Mode::Udp), Protocol::Tcp) => {
                    context
                        .error(node.at, "mode udp needs UDP frontends; write `protocol: UDP`, or `mode: tcp` in a TrafficSplit of its own");
                }
                _ => {}
            }
            protocol
        }
        None if mode == Some(Mode::Udp) => Protocol::Udp,
        None => Protocol::Tcp,
    };
    Some(Frontend { address: SocketAddr::new(address?, port? as u16), protocol })
}

fn versions(node: &Node<'_>, family: Option<SocketAddr>, places: &mut Vec<At>, context: &mut Context<'_>) -> Vec<Version> {
    let mut found: Vec<Version> = Vec::new();
    let Some(items) = context.list(node, "spec.versions") else { return found };
    if items.is_empty() || items.len() > MAX_VERSIONS {
        let message = format!("a service must have 1 to {MAX_VERSIONS} versions, not {}", items.len());
        context.error(items.get(MAX_VERSIONS).map_or(node.at, |n| n.at), message);
    }
    for (index, item) in items.iter().enumerate() {
        let version = version(item, &format!("spec.versions[{index}]"), family, context);
        if let Some(earlier) = found.iter().position(|v| v.name == version.name && !v.name.is_empty()) {
            let line = places[earlier].line;
            context.error(item.at, format!("version {} stands twice (first on line {line}); give each its own name", version.name));
        }
        found.push(version);
        places.push(item.at);
    }
    found
}

/// Keeps its place in the list when it is wrong: with an empty name, so that rules do not complain as well.
fn version(node: &Node<'_>, what: &str, family: Option<SocketAddr>, context: &mut Context<'_>) -> Version {
    let mut version = Version { name: String::new(), weight: 0, backends: Vec::new(), lookups: Vec::new(), found: 0 };
    let Some(fields) = context.fields(node, what, &["name", "weight", "backends"]) else { return version };
    if let Some(node) = context.required(&fields, "name", &format!("{what}.name"), "name: v1")
        && let Some(name) = context.string(node, &format!("{what}.name"))
        && label(name, node.at, &format!("{what}.name"), context)
    {
        version.name = name.to_owned();
    }
    let field = format!("{what}.weight");
    if let Some(node) = context.required(&fields, "weight", &field, "weight: 100") {
        version.weight = context.number(node, &field, 0, u32::MAX).unwrap_or(0);
    }
    let field = format!("{what}.backends");
    if let Some(entry) = fields.entry("backends")
        && !matches!(entry.value.kind, Kind::Null)
    {
        (version.backends, version.lookups) = backends(&entry.value, &field, family, context);
    } else {
        context.required(&fields, "backends", &field, "backends: [\"10.2.1.2:8080\"]");
    }
    version
}

fn backends(node: &Node<'_>, what: &str, family: Option<SocketAddr>, context: &mut Context<'_>) -> (Vec<Backend>, Vec<Lookup>) {
    let (mut found, mut lookups) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashMap::new();
    let one = lookup::is(node).then(|| std::slice::from_ref(node));
    let items = one.or_else(|| context.list(node, what)).unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        let what = if one.is_some() { what.to_owned() } else { format!("{what}[{index}]") };
        if lookup::is(item) {
            lookups.extend(lookup::lookup(item, &what, &lookups, context));
            continue;
        }
        let Some(backend) = backend(item, &what, context) else { continue };
        let address = backend.address;
        if let Some(family) = family
            && family.is_ipv4() != address.is_ipv4()
        {
            let (want, got) = if family.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            let vip = family.ip();
            context.error(item.at, format!("backend {address} is {got}, but the frontend {vip} is {want}; both must be of one family"));
        }
        if let Some(first) = seen.insert(address, item.at) {
            context.error(item.at, format!("backend {address} stands twice in this version (first on line {}); remove one", first.line));
        }
        found.push(backend);
    }
    (found, lookups)
}

fn backend(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Backend> {
    let (address, state) = match &node.kind {
        Kind::Map(_) => {
            let fields = context.fields(node, what, &["address", "state"])?;
            let states = [("ready", BackendState::Ready), ("draining", BackendState::Draining), ("down", BackendState::Down)];
            let state = match fields.optional("state") {
                Some(node) => context.word(node, &format!("{what}.state"), &states),
                None => Some(BackendState::Ready),
            };
            (context.required(&fields, "address", &format!("{what}.address"), "address: \"10.2.1.2:8080\"")?, state?)
        }
        _ => (node, BackendState::Ready),
    };
    let text = context.string(address, what)?;
    match network::endpoint(text) {
        Ok(address) => Some(Backend { address, state }),
        Err(message) => {
            context.error(address.at, message);
            None
        }
    }
}

/// A backend that is a frontend of the same service would come round again.
fn looped(version: &Version, at: At, frontends: &[(Frontend, At)], context: &mut Context<'_>) {
    for backend in &version.backends {
        if frontends.iter().any(|(f, _)| f.address == backend.address) {
            let message = format!(
                "backend {} of version {} is this service's own frontend; name the server behind it",
                backend.address, version.name
            );
            context.error(at, message);
        }
    }
}

fn vip(node: &Node<'_>, context: &mut Context<'_>) -> Option<Vip> {
    let fields = context.fields(node, "spec.vip", &["ping", "unserved"])?;
    let ping = match fields.optional("ping") {
        Some(node) => context.boolean(node, "spec.vip.ping")?,
        None => false,
    };
    let unserved = match fields.optional("unserved") {
        Some(node) => context.word(node, "spec.vip.unserved", &[("refuse", Unserved::Refuse), ("pass", Unserved::Pass)])?,
        None => Unserved::Refuse,
    };
    Some(Vip { ping, unserved })
}

fn on_weight_change(node: &Node<'_>, context: &mut Context<'_>) -> Option<OnWeightChange> {
    if !matches!(node.kind, Kind::Map(_)) {
        let words = [("keep", Some(OnWeightChange::Keep)), ("reset", Some(OnWeightChange::Reset)), ("drain", None)];
        let found = context.word(node, "spec.onWeightChange", &words)?;
        if found.is_none() {
            context.error(node.at, "drain needs a time; write `onWeightChange: {drain: 30s}`");
        }
        return found;
    }
    let fields = context.fields(node, "spec.onWeightChange", &["drain"])?;
    let node = context.required(&fields, "drain", "spec.onWeightChange.drain", "drain: 30s")?;
    let Kind::Scalar { text, .. } = &node.kind else {
        context.error(node.at, format!("spec.onWeightChange.drain must be a duration such as 30s, not {}", kind(node)));
        return None;
    };
    network::duration(text).map(OnWeightChange::Drain).map_err(|message| context.error(node.at, message)).ok()
}
