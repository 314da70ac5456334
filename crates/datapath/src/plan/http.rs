//! What `mode: http` needs beside the layer-4 image: compiled rules and the segment size that clients are told.

use splitter_common::{
    abi::{HttpRules, MAX_VERSIONS, http_subject, service_flag},
    http::compiler::Compiler,
};
use splitter_policy::model::{self, BackendState, Condition, Mode, SplitBy, TooLong, Unavailable};
use std::{collections::HashMap, net::SocketAddr, sync::Arc};

/// The rules of a service of `mode: http` over the ids of its versions. A service without rules has an empty value: the kernel's scanner
/// wants one.
pub fn rules(service: &model::Service, versions: &[u32]) -> Option<Arc<HttpRules>> {
    let http = service.http.as_ref()?;
    let mut compiler = Compiler::default();
    // Whatever exceeds a limit was refused when the policy was read; a policy restored from an older agent's state may still hold it,
    // and loses those rules.
    let _ = match &service.split_by {
        SplitBy::Header(name) => compiler.key(http_subject::HEADER, name.as_bytes()),
        SplitBy::Cookie(name) => compiler.key(http_subject::COOKIE, name.as_bytes()),
        SplitBy::Connection | SplitBy::ClientIp | SplitBy::Request => Ok(()),
    };
    for (_, rule) in possible(service, http) {
        if let Some(version) = versions.get(rule.version) {
            let _ = compiler.rule(rule.conditions.iter().map(Condition::predicate), *version);
        }
    }
    Some(compiler.finish().map_or_else(|| Arc::new(HttpRules::empty()), Arc::from))
}

/// The rules that some client can meet, with their positions in the policy: those that are compiled, in the same order. A network of the
/// other family matches nobody; as a mapped prefix `::/0` would match all.
pub fn possible<'a>(service: &'a model::Service, http: &'a model::Http) -> impl Iterator<Item = (usize, &'a model::HttpRule)> {
    let vip = service.frontends.first().map(|frontend| frontend.address);
    let possible = move |rule: &model::HttpRule| vip.is_some_and(|vip| rule.conditions.iter().all(|c| c.is_possible(vip)));
    http.rules.iter().enumerate().filter(move |(_, rule)| possible(rule))
}

/// TCP payload bytes of a full segment without options (RFC 9293, 3.7.1) on paths of `mtu` bytes: no more than Ethernet carries, no less
/// than every path must.
pub fn mss(service: &model::Service, mtu: u32) -> u16 {
    let ipv4 = service.frontends.iter().any(|frontend| frontend.address.is_ipv4());
    let (headers, least) = if ipv4 { (40, 536) } else { (60, 1220) };
    mtu.min(1500).saturating_sub(headers).max(least) as u16
}

/// Whether clients get TCP timestamps: when all backends are known to agree to them, not when one is known not to, else as before.
/// `agree`: what backends have said; `None`: nobody gets them.
pub fn stamps(service: &model::Service, agree: Option<&HashMap<SocketAddr, bool>>, before: u8) -> u8 {
    let Some(agree) = agree else { return 0 };
    let backends = || service.versions.iter().flat_map(|version| &version.backends).filter(|backend| backend.state != BackendState::Down);
    let said = |what: Option<bool>| backends().any(|backend| agree.get(&backend.address).copied() == what);
    if service.mode != Mode::Http || said(Some(false)) {
        return 0;
    }
    if said(None) { before & service_flag::STAMPS } else { service_flag::STAMPS }
}

/// Index of the version that gets what cannot be read: the kernel takes the first one with weight when it has none.
fn baseline(service: &model::Service) -> usize {
    let named = service.rollout.as_ref().map_or(0, |rollout| rollout.baseline);
    if named < MAX_VERSIONS { named } else { 0 }
}

/// Bits of [`service_flag`] that the policy says.
pub fn flags(service: &model::Service) -> u8 {
    let Some(http) = service.http.as_ref() else { return 0 };
    let unavailable = match http.unavailable {
        Unavailable::Reset => service_flag::RESET,
        Unavailable::Status => 0,
    };
    let long = match http.too_long {
        TooLong::Baseline => (baseline(service) as u8) << service_flag::BASELINE,
        TooLong::Weight => service_flag::LONG_BY_WEIGHT,
        TooLong::Status => service_flag::LONG_REFUSED,
    };
    unavailable | long
}
