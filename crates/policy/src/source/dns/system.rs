//! The resolver of this host: `/etc/hosts`, then the servers and search list of `/etc/resolv.conf`, or servers that are named. Both files are read for
//! each lookup: there are few, and what they say counts at once.

use super::{Answer, Resolver};
use crate::source::{network, resolve::Query};
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::RData},
    system_conf::read_system_conf,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// See the module.
#[derive(Debug)]
pub struct System {
    servers: Vec<SocketAddr>,
}

impl System {
    /// Asks these servers; without any, those of the host.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    fn resolver(&self, ipv6: bool) -> Result<TokioResolver, String> {
        let (config, mut options) = if self.servers.is_empty() {
            read_system_conf().map_err(|error| format!("/etc/resolv.conf: {error}"))?
        } else {
            let servers = self.servers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|connection| connection.port = server.port());
                config
            });
            (ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default())
        };
        options.ip_strategy = if ipv6 { LookupIpStrategy::Ipv6Only } else { LookupIpStrategy::Ipv4Only };
        // How long an answer counts is decided elsewhere.
        options.cache_size = 0;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build().map_err(|error| error.to_string())
    }
}

impl Resolver for System {
    async fn resolve(&self, query: &Query) -> Result<Answer, String> {
        let resolver = self.resolver(query.ipv6)?;
        let mut answer = Answer { addresses: BTreeSet::new(), ttl: Duration::MAX };
        match query.lookup.port {
            Some(port) => add(&resolver, &query.lookup.name, port, query.ipv6, &mut answer).await?,
            None => services(&resolver, query, &mut answer).await?,
        }
        if answer.addresses.is_empty() {
            return Err("it has no address that a host can have".into());
        }
        Ok(answer)
    }
}

/// The targets of SRV records (RFC 2782) of the lowest priority; their weights do not count.
async fn services(resolver: &TokioResolver, query: &Query, answer: &mut Answer) -> Result<(), String> {
    let found = resolver.srv_lookup(&query.lookup.name[..]).await.map_err(|error| said(&error, "SRV record"))?;
    answer.ttl = left(found.valid_until());
    let records = found.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) if srv.port != 0 && !srv.target.is_root() => Some(srv),
        _ => None,
    });
    let records: Vec<_> = records.collect();
    let Some(first) = records.iter().map(|srv| srv.priority).min() else { return Err("it has no SRV record".into()) };
    let mut failure = None;
    for srv in records.iter().filter(|srv| srv.priority == first) {
        let target = srv.target.to_string();
        if let Err(error) = add(resolver, &target, srv.port, query.ipv6, answer).await {
            failure = Some(format!("{target}: {error}"));
        }
    }
    // A target without an address is a server that is gone; that none has one is a fault.
    match failure {
        Some(failure) if answer.addresses.is_empty() => Err(failure),
        _ => Ok(()),
    }
}

async fn add(resolver: &TokioResolver, name: &str, port: u16, ipv6: bool, answer: &mut Answer) -> Result<(), String> {
    let what = if ipv6 { "IPv6 address" } else { "IPv4 address" };
    let found = resolver.lookup_ip(name).await.map_err(|error| said(&error, what))?;
    answer.ttl = answer.ttl.min(left(found.valid_until()));
    let usable = |address: &IpAddr| address.is_ipv6() == ipv6 && network::usable(*address).is_ok();
    answer.addresses.extend(found.iter().filter(usable).map(|address| SocketAddr::new(address, port)));
    Ok(())
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// For people.
fn said(error: &NetError, what: &str) -> String {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(found)) if found.response_code == ResponseCode::NXDomain => "there is no such name".into(),
        NetError::Dns(DnsError::NoRecordsFound(found)) if found.response_code == ResponseCode::NoError => format!("it has no {what}"),
        NetError::Dns(DnsError::NoRecordsFound(found)) => format!("the DNS server says: {}", found.response_code),
        NetError::Timeout | NetError::NoConnections => "no answer from the DNS servers".into(),
        other => format!("lookup failed: {other}"),
    }
}
