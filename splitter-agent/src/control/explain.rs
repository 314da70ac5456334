//! `splitter explain`: which version a request would get, and why, by the same functions as the kernel.

use super::{
    ControlError,
    decision::{self, Facts},
    live, request,
    status::shares,
};
use splitter_api::{ExplainRequest, Explanation};
use splitter_datapath::{TableError, Tables, plan, reconcile::Planned};
use splitter_policy::model::{Rule, SplitBy};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `suspect`: whether a backend gets no new flow while others can.
pub fn explain(
    tables: &impl Tables,
    planned: &Planned,
    request: &ExplainRequest,
    suspect: impl Fn(u32) -> bool,
) -> Result<Explanation, ControlError> {
    let mut answer = Explanation { service: planned.model.name.clone(), shares: shares(planned), ..Explanation::default() };
    let http = planned.model.mode.reads_requests();
    let Some(client) = request.client.as_deref().or(http.then_some("")) else {
        answer.decided_by = "undecided".into();
        answer.reason = format!("Without a client's address only the odds are known; name one with --client{}.", ignored(request));
        return Ok(answer);
    };
    // Whoever is not named stands for no client.
    let named = !client.is_empty();
    let first = planned.model.frontends.first().map_or(Ipv4Addr::UNSPECIFIED.into(), |frontend| frontend.address.ip());
    let nobody = if first.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (ip, port) = if named { parse_client(client)? } else { (nobody, None) };
    let Some(frontend) = planned.model.frontends.iter().find(|frontend| frontend.address.is_ipv4() == ip.is_ipv4()) else {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        return Err(ControlError::Invalid(format!("service {} has no {family} frontend: {ip} cannot reach it", planned.model.name)));
    };
    let facts = Facts {
        client: plan::addr(ip),
        client_port: port.unwrap_or(0),
        vip: plan::addr(frontend.address.ip()),
        vip_port: frontend.address.port(),
        proto: plan::proto(frontend.protocol),
    };
    if http {
        let head = request::head(request, &frontend.address.to_string())?;
        let mut read = request::read(planned, head.as_bytes(), &facts.client);
        if !named {
            read.forget_source();
        }
        let live = if named && port.is_some() { connection(tables, planned, &facts)? } else { None };
        if let Some(live) = live.as_ref().filter(|live| live.pinned) {
            answer.reason = format!(
                "The connection exists and is pinned: it stays with version {} at {}, its requests are not read any more.",
                live.version, live.backend
            );
            answer.decided_by = "flow".into();
            answer.version = Some(live.version.clone());
            answer.backend = Some(live.backend.clone());
            return Ok(answer);
        }
        request::explain(planned, request, &read, (&facts, named, port.is_some()), &mut answer, suspect)?;
        if let Some(live) = live {
            answer.reason.push_str(&format!(" The connection exists, its last request went to version {}.", live.version));
            if answer.version.as_ref() == Some(&live.version) {
                // Whoever keeps its version keeps its backend.
                answer.backend = Some(live.backend);
            }
        }
        return Ok(answer);
    }
    if port.is_some() && existing(tables, planned, &facts, &mut answer).map_err(|e| ControlError::Kernel(e.to_string()))? {
        return Ok(answer);
    }
    decide(planned, &facts, port, &mut answer, suspect);
    let several = planned.model.frontends.len() > 1 && planned.model.split_by == SplitBy::Connection && answer.bucket.is_some();
    if several && answer.decided_by == "weight" {
        answer.reason.push_str(&format!(" This is for {}; each frontend decides for itself.", frontend.address));
    }
    answer.reason.push_str(&ignored(request));
    Ok(answer)
}

/// `IP` or `IP:PORT`, `[IP]:PORT`.
fn parse_client(text: &str) -> Result<(IpAddr, Option<u16>), ControlError> {
    let whole = text.parse::<SocketAddr>().map(|address| (address.ip(), Some(address.port())));
    let (ip, port) = whole
        .or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, None)))
        .map_err(|_| ControlError::Invalid(format!("{text:?} is not a client: write IP or IP:PORT, for IPv6 with a port [IP]:PORT")))?;
    Ok((ip.to_canonical(), port))
}

/// The client's live connection to an http service, at any frontend.
fn connection(tables: &impl Tables, planned: &Planned, facts: &Facts) -> Result<Option<live::spliced::Live>, ControlError> {
    for frontend in &planned.model.frontends {
        let here = Facts { vip: plan::addr(frontend.address.ip()), vip_port: frontend.address.port(), ..*facts };
        if frontend.address.is_ipv4() == plan::ip(&facts.client).is_ipv4() {
            let found = live::spliced::find(tables, planned, &here).map_err(|e| ControlError::Kernel(e.to_string()))?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// Fills the answer from a live flow of the client at any frontend.
fn existing(tables: &impl Tables, planned: &Planned, facts: &Facts, answer: &mut Explanation) -> Result<bool, TableError> {
    for frontend in &planned.model.frontends {
        let here = Facts {
            vip: plan::addr(frontend.address.ip()),
            vip_port: frontend.address.port(),
            proto: plan::proto(frontend.protocol),
            ..*facts
        };
        if frontend.address.is_ipv4() != plan::ip(&facts.client).is_ipv4() {
            continue;
        }
        if let Some((version, backend)) = live::find(tables, planned, &here)? {
            answer.reason = format!("The flow exists: it stays with version {version} at {backend} whatever the weights are now.");
            answer.decided_by = "flow".into();
            answer.bucket = Some(decision::bucket(planned, &here));
            answer.version = Some(version);
            answer.backend = Some(backend);
            return Ok(true);
        }
    }
    Ok(false)
}

fn decide(planned: &Planned, facts: &Facts, port: Option<u16>, answer: &mut Explanation, suspect: impl Fn(u32) -> bool) {
    let decision = decision::select(planned, facts, None, suspect);
    let (rule, bucket) = (decision::rule(planned, &facts.client), decision::bucket(planned, facts));
    let by_port = planned.model.split_by == SplitBy::Connection && port.is_none();
    answer.rule = rule.map(|rule| describe(rule, &planned.model.rules[rule]));
    if rule.is_none() && by_port {
        answer.decided_by = "undecided".into();
        answer.reason =
            "Each connection decides by its source port: name one with --client IP:PORT; only the odds are known otherwise.".into();
        return;
    }
    if !by_port {
        answer.bucket = Some(bucket);
    }
    let Some(version) = decision.version else {
        answer.decided_by = "none".into();
        answer.reason = "All weights are 0 and no rule matches: new connections are refused.".into();
        return;
    };
    let name = &planned.model.versions[version].name;
    answer.version = Some(name.clone());
    answer.decided_by = if rule.is_some() { "rule" } else { "weight" }.into();
    answer.reason = match &answer.rule {
        Some(rule) => format!("The client is in the network of rule {rule}: version {name}."),
        None => format!("Bucket {bucket} of 4294967296 falls into the interval of version {name}."),
    };
    // The backend follows from the key too, so that it is open when the port is.
    let single = planned.image.record.versions[version].size == 1;
    if by_port && !single {
        return;
    }
    match decision.backend {
        Some(id) => {
            let row = planned.image.backends.iter().find(|(known, _)| *known == id);
            answer.backend = row.map(|(_, row)| live::endpoint(&row.addr, row.port));
        }
        None => answer.reason.push_str(" It has no backend that takes new connections: they are refused."),
    }
}

/// Position from 0, and the match as the policy writes it.
pub(super) fn describe(position: usize, rule: &Rule) -> String {
    format!("{position}: sourceCidr {}/{}", rule.source.address, rule.source.prefix)
}

fn ignored(request: &ExplainRequest) -> String {
    let given = !request.headers.is_empty()
        || !request.cookies.is_empty()
        || request.path.is_some()
        || request.method.is_some()
        || request.query.is_some()
        || request.head.is_some();
    if given { " Headers, cookies, path and method do not matter: the service is not HTTP.".into() } else { String::new() }
}
