//! The judgements of `doctor` on interfaces and routes: pure functions over what the host told, and over what is served or asked for.

use super::{Check, checks::shorten};
use splitter_api::Status;
use splitter_datapath::Link;
use splitter_policy::model::{Policy, Unserved};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// Addresses whose routes are looked at, at most: what is wrong with some thousand is seen at the first.
const ROUTES: usize = 4_096;

/// What the node is there for, by the policy that was named, else by the one that the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Each with its service.
    pub vips: BTreeMap<IpAddr, String>,
    pub backends: BTreeMap<IpAddr, String>,
    /// VIPs of which the stack gets what no service has.
    pub passed: BTreeSet<IpAddr>,
}

impl Needs {
    pub fn of(policy: &Policy) -> Self {
        let mut needs = Self::default();
        for service in &policy.services {
            needs.vips.extend(service.frontends.iter().map(|frontend| (frontend.address.ip(), service.name.clone())));
            if service.vip.unserved == Unserved::Pass {
                needs.passed.extend(service.frontends.iter().map(|frontend| frontend.address.ip()));
            }
            let backends = service.versions.iter().flat_map(|version| &version.backends);
            needs.backends.extend(backends.map(|backend| (backend.address.ip(), service.name.clone())));
        }
        needs
    }

    pub fn of_status(status: &Status) -> Self {
        let address = |text: &str| text.parse::<SocketAddr>().ok().map(|address| address.ip());
        let mut needs = Self::default();
        for service in &status.services {
            let frontends = service.frontends.iter().filter_map(|text| address(text.rsplit_once('/').map_or(text, |(address, _)| address)));
            let frontends: Vec<IpAddr> = frontends.collect();
            if service.unserved == "pass" {
                needs.passed.extend(&frontends);
            }
            needs.vips.extend(frontends.into_iter().map(|ip| (ip, service.name.clone())));
            let backends = service.versions.iter().flat_map(|version| &version.backends);
            needs.backends.extend(backends.filter_map(|backend| address(&backend.address)).map(|ip| (ip, service.name.clone())));
        }
        needs
    }

    /// Whose routes are asked for.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.keys().take(ROUTES).chain(self.backends.keys().take(ROUTES)).copied()
    }
}

/// Where packets to an address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Local,
    Out { interface: String, gateway: bool },
    None,
}

/// Interfaces that an agent serves, or would serve when it is told nothing else. `served`: names, as the agent says.
fn serves(link: &Link, served: Option<&BTreeSet<String>>) -> bool {
    match served {
        Some(names) => names.contains(&link.name),
        None => link.name != "lo" && link.ethernet && link.up && link.bridge.is_none(),
    }
}

/// Interfaces that are down, and devices that cannot be served.
pub fn interfaces(links: &[Link], served: Option<&BTreeSet<String>>, ways: &BTreeMap<IpAddr, Way>) -> Vec<Check> {
    const NAME: &str = "interfaces";
    let mut list = Vec::new();
    let addressed = |link: &Link| link.addr4.is_some() || link.addr6.is_some();
    // A bridge without ports has no carrier, and nobody misses it.
    let down = links.iter().filter(|link| link.name != "lo").filter(|link| match link.up {
        true => !link.carrier && link.kind.as_deref() != Some("bridge") && serves(link, served),
        false => served.is_some_and(|names| names.contains(&link.name)) || addressed(link),
    });
    let down: Vec<&str> = down.map(|link| link.name.as_str()).collect();
    if let Some(first) = down.first() {
        let found = format!("down, or without carrier: {}", shorten(&down));
        list.push(Check::warn(
            NAME,
            found,
            format!("ip link set {first} up, and look at its other end; or leave it out: --interface '!{first}'"),
        ));
    }
    let out = |way: &'_ Way| match way {
        Way::Out { interface, .. } => Some(interface.clone()),
        _ => None,
    };
    let used: BTreeSet<String> = ways.values().filter_map(out).collect();
    let bare = links.iter().filter(|link| link.up && !link.ethernet && link.name != "lo");
    let bare: Vec<String> = bare
        .map(|link| {
            let kind = link.kind.as_deref().unwrap_or("no Ethernet header");
            let used = if used.contains(link.name.as_str()) { ", and routes of the policy go there" } else { "" };
            format!("{} ({kind}{used})", link.name)
        })
        .collect();
    if !bare.is_empty() {
        let bare: Vec<&str> = bare.iter().map(String::as_str).collect();
        let found = format!("without Ethernet header, so never served: {}", shorten(&bare));
        list.push(Check::warn(NAME, found, "reach clients and backends by an Ethernet device; nothing, if none of them is behind these"));
    }
    let bridged = |name: &str| links.iter().any(|link| link.name == name && serves(link, served));
    let ports = links.iter().filter(|link| link.up).filter_map(|link| Some((&link.name, link.bridge.as_ref()?)));
    let ports: Vec<_> = ports.filter(|(_, bridge)| !bridged(bridge)).collect();
    if let Some((_, bridge)) = ports.first() {
        let shown: Vec<String> = ports.iter().map(|(name, bridge)| format!("{name} ({bridge})")).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        let found = format!("ports of bridges that are not served, and ports never are: {}", shorten(&shown));
        let remedy = format!("--interface {bridge}, and ip link set {bridge} up; nothing, if neither clients nor backends are behind it");
        list.push(Check::warn(NAME, found, remedy));
    }
    // Not read: nothing is known.
    if links.is_empty() {
        list.push(Check::warn(NAME, "not checked: the kernel does not list them", "look at `ip link`"));
    } else if list.is_empty() {
        let number = links.iter().filter(|link| serves(link, served)).count();
        let which = if served.is_some() { "all that are served" } else { "which an agent serves by default" };
        list.push(Check::ok(NAME, format!("{number} up, {which}")));
    }
    list
}

/// Routes to backends: there, and out of interfaces that are served.
pub fn backends(needs: &Needs, ways: &BTreeMap<IpAddr, Way>, served: Option<&BTreeSet<String>>) -> Vec<Check> {
    const NAME: &str = "routes";
    let mut list = Vec::new();
    let known = || needs.backends.iter().filter_map(|(ip, service)| Some((ip, service, ways.get(ip)?)));
    let unreachable: Vec<String> =
        known().filter(|(_, _, way)| **way == Way::None).map(|(ip, service, _)| format!("{ip} ({service})")).collect();
    if !unreachable.is_empty() {
        let shown: Vec<&str> = unreachable.iter().map(String::as_str).collect();
        let found = format!("none to {}: their share of the traffic fails", named(&shown, "backend", "backends"));
        list.push(Check::fail(NAME, found, "add the route (ip route get ADDRESS shows what is missing), or take these backends out"));
    }
    let aside: BTreeSet<&str> = known()
        .filter_map(|(_, _, way)| match way {
            Way::Out { interface, .. } if served.is_some_and(|names| !names.contains(interface)) => Some(interface.as_str()),
            _ => None,
        })
        .collect();
    if !aside.is_empty() {
        let aside: Vec<&str> = aside.into_iter().collect();
        let found = format!("backends are behind {}, which the agent does not serve: their answers pass it by", shorten(&aside));
        list.push(Check::fail(NAME, found, format!("start the agent with --interface {} as well", aside[0])));
    }
    if list.is_empty() && !needs.backends.is_empty() {
        list.push(Check::ok(NAME, format!("to {} of backends", count(needs.backends.len(), "address", "addresses"))));
    }
    list
}

/// VIPs of which the stack gets what no service has (`vip: {unserved: pass}`), and that it would send to a gateway, by whichever interface: who is not
/// on the way to somebody who has the address sends it back here, until its TTL ends.
pub fn loops(needs: &Needs, ways: &BTreeMap<IpAddr, Way>) -> Option<Check> {
    let looped = needs.passed.iter().filter_map(|vip| match ways.get(vip)? {
        Way::Out { interface, gateway: true } => Some((vip, format!("{vip} ({interface})"))),
        _ => None,
    });
    let looped: Vec<(&IpAddr, String)> = looped.collect();
    let (first, _) = looped.first()?;
    let shown: Vec<&str> = looped.iter().map(|(_, text)| text.as_str()).collect();
    let found = format!(
        "{} routed to a gateway, and `unserved: pass`: unless that gateway leads to who has the address, a packet to a port that no service has is bounced until its \
         TTL ends",
        shorten(&shown)
    );
    Some(Check::warn("VIPs", found, format!("leave out `unserved: pass` in the policy, or give {first} a route to who has it")))
}

fn named(shown: &[&str], one: &str, many: &str) -> String {
    format!("{}: {}", count(shown.len(), one, many), shorten(shown))
}

pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn link(name: &str) -> Link {
        Link { name: name.into(), up: true, carrier: true, ethernet: true, addr4: Some([10, 0, 0, 1]), ..Link::default() }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn needs() -> Needs {
        let service = |ip: &str| [(ip.parse().unwrap(), "web".to_owned())].into();
        Needs { vips: service("10.9.9.9"), backends: service("10.2.1.2"), ..Needs::default() }
    }

    fn ways(vip: Way, backend: Way) -> BTreeMap<IpAddr, Way> {
        [("10.9.9.9", vip), ("10.2.1.2", backend)].map(|(ip, way)| (ip.parse().unwrap(), way)).into()
    }

    fn out(interface: &str, gateway: bool) -> Way {
        Way::Out { interface: interface.into(), gateway }
    }

    fn words(checks: &[Check]) -> Vec<(Verdict, &str)> {
        checks.iter().map(|check| (check.verdict, check.found.as_str())).collect()
    }

    #[test]
    fn what_is_down_is_named() {
        let lo = Link { ethernet: false, ..link("lo") };
        let unplugged = Link { carrier: false, ..link("c0") };
        let bridge = Link { carrier: false, kind: Some("bridge".into()), ..link("docker0") };
        let off = Link { up: false, carrier: false, ..link("b1") };
        let spare = Link { addr4: None, ..off.clone() };
        let check = |links: &[Link], served: Option<&[&str]>| {
            interfaces(links, served.map(names).as_ref(), &BTreeMap::new())
                .into_iter()
                .map(|check| (check.verdict, check.found))
                .collect::<Vec<_>>()
        };
        let found = |name: &str| vec![(Verdict::Warn, format!("down, or without carrier: {name}"))];
        assert_eq!(check(&[lo.clone(), unplugged.clone()], None), found("c0"));
        assert_eq!(check(std::slice::from_ref(&off), None), found("b1"));
        assert_eq!(check(std::slice::from_ref(&spare), Some(&["b1"])), found("b1"));
        assert_eq!(check(&[lo, bridge, spare, link("c0")], None), [(Verdict::Ok, "2 up, which an agent serves by default".to_owned())]);
        // Not served, so no matter.
        assert_eq!(check(&[unplugged, link("c1")], Some(&["c1"])), [(Verdict::Ok, "1 up, all that are served".to_owned())]);
    }

    #[test]
    fn devices_without_ethernet_are_named() {
        let tun = Link { ethernet: false, kind: Some("tun".into()), ..link("tun0") };
        let ways = ways(Way::None, out("tun0", false));
        let found = interfaces(&[link("c0"), tun.clone()], None, &ways);
        assert_eq!(
            words(&found),
            [(Verdict::Warn, "without Ethernet header, so never served: tun0 (tun, and routes of the policy go there)")]
        );
        let fallback = Link { up: false, addr4: None, ..tun };
        assert_eq!(interfaces(&[link("c0"), fallback], None, &BTreeMap::new())[0].verdict, Verdict::Ok);
    }

    #[test]
    fn ports_of_bridges_that_are_not_served_are_named() {
        let port = Link { bridge: Some("br0".into()), ..link("c0") };
        let links = [port, Link { kind: Some("bridge".into()), ..link("br0") }, link("b1")];
        let check = |served: Option<&[&str]>| interfaces(&links, served.map(names).as_ref(), &BTreeMap::new());
        assert_eq!(words(&check(None)), [(Verdict::Ok, "2 up, which an agent serves by default")]);
        let told = (Verdict::Warn, "ports of bridges that are not served, and ports never are: c0 (br0)");
        assert_eq!(words(&check(Some(&["b1"]))), [told]);
        assert_eq!(words(&check(Some(&["b1", "br0"]))), [(Verdict::Ok, "2 up, all that are served")]);
    }

    #[test]
    fn backends_need_a_route_out_of_a_served_interface() {
        let served = names(&["b1"]);
        let check = |way| backends(&needs(), &ways(Way::None, way), Some(&served));
        assert_eq!(words(&check(Way::None)), [(Verdict::Fail, "none to 1 backend: 10.2.1.2 (web): their share of the traffic fails")]);
        let aside = "backends are behind eth0, which the agent does not serve: their answers pass it by";
        assert_eq!(words(&check(out("eth0", true))), [(Verdict::Fail, aside)]);
        assert_eq!(words(&check(out("b1", true))), [(Verdict::Ok, "to 1 address of backends")]);
        assert_eq!(check(Way::Local)[0].verdict, Verdict::Ok);
        assert!(backends(&Needs::default(), &BTreeMap::new(), None).is_empty());
    }

    #[test]
    fn a_vip_whose_rest_goes_to_a_gateway_may_loop() {
        let passed = Needs { passed: ["10.9.9.9".parse().unwrap()].into(), ..needs() };
        let check = |needs: &Needs, way| loops(needs, &ways(way, Way::None)).map(|check| (check.verdict, check.remedy));
        let remedy = "leave out `unserved: pass` in the policy, or give 10.9.9.9 a route to who has it".to_owned();
        assert_eq!(check(&passed, out("c0", true)), Some((Verdict::Warn, remedy)));
        // Refused by the programs, whatever the route.
        assert_eq!(check(&needs(), out("c0", true)), None);
        assert_eq!(check(&passed, out("c0", false)), None);
        assert_eq!(check(&passed, Way::None), None);
        assert_eq!(check(&passed, Way::Local), None);
    }

    #[test]
    fn needs_are_those_of_the_agents_policy() {
        let version = splitter_api::Version {
            backends: vec![splitter_api::Backend { address: "[fd02::2]:8080".into(), ..splitter_api::Backend::default() }],
            ..splitter_api::Version::default()
        };
        let service = splitter_api::Service {
            name: "web".into(),
            frontends: vec!["[fd09::9]:80/TCP".into()],
            unserved: "pass".into(),
            versions: vec![version],
            ..splitter_api::Service::default()
        };
        let found = Needs::of_status(&Status { services: vec![service], ..Status::default() });
        assert_eq!(found.vips.keys().map(ToString::to_string).collect::<Vec<_>>(), ["fd09::9"]);
        assert_eq!(found.backends.keys().map(ToString::to_string).collect::<Vec<_>>(), ["fd02::2"]);
        assert!(found.passed.iter().eq(found.vips.keys()));
    }
}
