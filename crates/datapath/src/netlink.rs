//! The interfaces of this network namespace by netlink: a dump, a wake-up when something changes, and their clsact (RFC 3549).
//!
//! After a wake-up everything is dumped again: events may be lost when the kernel's buffer overflows, dumps are not. Never reads
//! /sys/class/net, which shows another namespace after a mere setns.

mod netdev;
mod socket;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    tc::{TcAttribute, TcHandle, TcMessage},
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_ROUTE},
};
pub(super) use socket::connect;
use socket::request;
use std::{collections::BTreeMap, io, net::IpAddr};
use tokio::io::unix::AsyncFd;

const RTMGRP_LINK: u32 = 1;
const RTMGRP_TC: u32 = 8;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

/// An interface as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// Asked to be up; see also `carrier`.
    pub up: bool,
    /// Somebody is at the other end.
    pub carrier: bool,
    /// Frames begin with an Ethernet header.
    pub ethernet: bool,
    /// Its link-layer address, where that has six bytes.
    pub mac: Option<[u8; 6]>,
    /// The bridge that it is a port of, at whatever level.
    pub bridge: Option<String>,
    /// Bytes.
    pub mtu: u32,
    /// `veth`, `bridge`, ...; `None` for hardware and its emulations.
    pub kind: Option<String>,
    /// The other end is in another network namespace.
    pub peer_elsewhere: bool,
    /// Index of the bridge, bond or other interface that it is a port of; 0: none. Of a port of a port, the one above all.
    pub upper: u32,
    /// Native XDP programs of other interfaces can transmit on it; `None`: the kernel does not say (before Linux 6.3).
    pub xdp_transmits: Option<bool>,
    /// First global addresses.
    pub addr4: Option<[u8; 4]>,
    pub addr6: Option<[u8; 16]>,
    /// All addresses, of whatever scope.
    pub addresses: Vec<IpAddr>,
}

/// Tells when interfaces, their filters, addresses, or what XDP can do on an interface have changed.
pub struct Events {
    links: AsyncFd<Socket>,
    features: Option<AsyncFd<Socket>>,
}

impl Events {
    /// Subscribes. Needs a tokio runtime.
    pub fn subscribe() -> io::Result<Self> {
        let groups = RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        let links = listen(NETLINK_ROUTE, |socket| socket.bind(&SocketAddr::new(0, groups)))?;
        let features = netdev::changes().and_then(|group| {
            let join = |group| {
                listen(NETLINK_GENERIC, |socket| {
                    socket.bind_auto()?;
                    socket.add_membership(group)
                })
            };
            group.map(join).transpose()
        });
        let features = features.unwrap_or_else(|error| {
            tracing::debug!(%error, "changes of XDP features are not told");
            None
        });
        Ok(Self { links, features })
    }

    /// Returns after at least one event. Cancel-safe.
    pub async fn changed(&mut self) -> io::Result<()> {
        let Self { links, features } = self;
        let features = async {
            match features {
                Some(features) => drain(features).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = drain(links) => told,
            told = features => told,
        }
    }
}

fn listen(protocol: isize, join: impl FnOnce(&mut Socket) -> io::Result<()>) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    join(&mut socket)?;
    socket.set_non_blocking(true)?;
    // SAFETY: the socket keeps its descriptor, and keeps it open, until it is dropped together with the registration.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Takes all events that are there, at least one.
async fn drain(socket: &AsyncFd<Socket>) -> io::Result<()> {
    loop {
        let mut ready = socket.readable().await?;
        let mut any = false;
        let mut buffer = Vec::with_capacity(16 << 10);
        loop {
            buffer.clear();
            match ready.get_inner().recv(&mut buffer, 0) {
                Ok(_) => any = true,
                // Lost events count as one.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        ready.clear_ready();
        if any {
            return Ok(());
        }
    }
}

/// All interfaces, by index.
pub fn dump() -> io::Result<Vec<Link>> {
    let socket = connect(NETLINK_ROUTE)?;
    let mut links: BTreeMap<u32, Link> = BTreeMap::new();
    request(&socket, RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, |message| {
        if let RouteNetlinkMessage::NewLink(message) = message {
            let link = link_of(message);
            links.insert(link.ifindex, link);
        }
    })?;
    request(&socket, RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP, |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(link) = links.get_mut(&message.header.index)
        {
            add_address(link, &message);
        }
    })?;
    lift(&mut links);
    let transmitters = netdev::transmitters().unwrap_or_else(|error| {
        tracing::debug!(%error, "XDP features of interfaces");
        None
    });
    for (ifindex, link) in &mut links {
        link.xdp_transmits = transmitters.as_ref().and_then(|known| known.get(ifindex).copied());
    }
    Ok(links.into_values().collect())
}

/// Where packets to an address go from this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this host itself.
    Local,
    /// Out of an interface, to a gateway or to the address directly.
    Out { ifindex: u32, gateway: bool },
    /// Nowhere: no route, or one that refuses.
    None,
}

/// The route to an address as the stack would choose it.
pub fn route_to(address: IpAddr) -> io::Result<Route> {
    let mut message = RouteMessage::default();
    let (family, bits, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(address));
    let mut found = Route::None;
    let asked = request(&connect(NETLINK_ROUTE)?, RouteNetlinkMessage::GetRoute(message), NLM_F_ACK, |message| {
        if let RouteNetlinkMessage::NewRoute(message) = message {
            found = route_of(&message);
        }
    });
    match asked.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(found),
        // As a route of the kinds unreachable, prohibit and blackhole answers.
        Err((Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL), _)) => Ok(Route::None),
        Err((_, error)) => Err(error),
    }
}

fn route_of(message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Local => Route::Local,
        RouteType::Unicast => {
            let out = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(ifindex) => Some(*ifindex),
                _ => None,
            });
            let gateway =
                message.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
            out.map_or(Route::None, |ifindex| Route::Out { ifindex, gateway })
        }
        _ => Route::None,
    }
}

/// Gives the loopback interface an address of this host alone; one that it has stays.
pub fn add_to_loopback(address: IpAddr) -> io::Result<()> {
    match on_loopback(address, RouteNetlinkMessage::NewAddress, NLM_F_CREATE | NLM_F_EXCL) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Takes it away; whether it was there.
pub fn remove_from_loopback(address: IpAddr) -> io::Result<bool> {
    match on_loopback(address, RouteNetlinkMessage::DelAddress, 0) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV | libc::EAFNOSUPPORT)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

fn on_loopback(address: IpAddr, request_of: fn(AddressMessage) -> RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        // Nobody else can have it: no need to ask.
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.index = LOOPBACK;
    message.header.scope = AddressScope::Host;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes.extend([AddressAttribute::Local(address), AddressAttribute::Address(address)]);
    request(&connect(NETLINK_ROUTE)?, request_of(message), flags | NLM_F_ACK, |_| {})
}

/// A direction of an interface's clsact, as the parent of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Gives an interface a clsact; `false` if it has one.
pub fn add_clsact(ifindex: u32) -> io::Result<bool> {
    match clsact(ifindex, RouteNetlinkMessage::NewQueueDiscipline, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes it away, with all filters.
pub fn remove_clsact(ifindex: u32) -> io::Result<()> {
    clsact(ifindex, RouteNetlinkMessage::DelQueueDiscipline, 0)
}

fn clsact(ifindex: u32, request_of: fn(TcMessage) -> RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    request(&connect(NETLINK_ROUTE)?, request_of(message), flags | NLM_F_ACK, |_| {})
}

/// Priority and handle of each filter on one direction of an interface's clsact; none without a clsact.
pub fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<(u16, u32)>> {
    let mut message = TcMessage::with_index(ifindex as i32);
    let minor = if direction == Direction::Ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
    message.header.parent = TcHandle { major: u16::MAX, minor };
    let mut found = Vec::new();
    request(&connect(NETLINK_ROUTE)?, RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP, |message| {
        if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
            // Each priority is told once more by itself, with handle 0.
            let handle = u32::from(message.header.handle);
            if handle != 0 {
                found.push(((message.header.info >> 16) as u16, handle));
            }
        }
    })?;
    Ok(found)
}

fn link_of(message: LinkMessage) -> Link {
    let header = message.header;
    let mut link = Link {
        ifindex: header.index,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::Controller(upper) => link.upper = upper,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = Some(kind_name(&kind));
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// Replaces what each is a port of by what is above all, and notes the bridge among what is above.
fn lift(links: &mut BTreeMap<u32, Link>) {
    // Frames for their own host reach both kinds' ports with the address of another device.
    let bridges = |link: &Link| matches!(link.kind.as_deref(), Some("bridge" | "openvswitch"));
    let names: BTreeMap<u32, String> = links.values().filter(|link| bridges(link)).map(|link| (link.ifindex, link.name.clone())).collect();
    let above: BTreeMap<u32, u32> = links.values().map(|link| (link.ifindex, link.upper)).collect();
    for link in links.values_mut() {
        let mut upper = link.upper;
        for _ in 0..8 {
            if let Some(name) = names.get(&upper) {
                link.bridge = Some(name.clone());
                break;
            }
            upper = above.get(&upper).copied().unwrap_or(0);
        }
        // The kernel allows eight levels (`MAX_NEST_DEV`).
        for _ in 0..8 {
            match above.get(&link.upper) {
                Some(upper) if *upper != 0 => link.upper = *upper,
                _ => break,
            }
        }
    }
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Veth => "veth".into(),
        other => other.to_string(),
    }
}

fn add_address(link: &mut Link, message: &AddressMessage) {
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let given = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    };
    link.addresses.extend(own.or_else(given));
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed | AddressHeaderFlags::Deprecated;
    if message.header.scope != AddressScope::Universe || message.header.flags.intersects(unusable) {
        return;
    }
    let address = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    // On point-to-point links IFA_ADDRESS is the other end.
    match address(true).or_else(|| address(false)) {
        Some(IpAddr::V4(ip)) if message.header.family == AddressFamily::Inet => {
            link.addr4.get_or_insert(ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            link.addr6.get_or_insert(ip.octets());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_know_what_is_above_all() {
        let link = |ifindex, upper| (ifindex, Link { ifindex, upper, ..Link::default() });
        let mut links = BTreeMap::from([link(2, 0), link(3, 4), link(4, 5), link(5, 0), link(6, 99)]);
        lift(&mut links);
        assert_eq!(links.values().map(|link| link.upper).collect::<Vec<_>>(), [0, 5, 5, 0, 99]);
    }

    #[test]
    fn ports_know_their_bridge() {
        let link = |ifindex, upper, kind: &str| {
            (ifindex, Link { ifindex, upper, name: format!("l{ifindex}"), kind: Some(kind.into()), ..Link::default() })
        };
        let mut links = BTreeMap::from([
            link(2, 3, "veth"),
            link(3, 4, "bond"),
            link(4, 0, "bridge"),
            link(5, 6, "veth"),
            link(6, 0, "bond"),
            link(7, 8, "veth"),
            link(8, 0, "vrf"),
        ]);
        lift(&mut links);
        let bridges: Vec<_> = links.values().map(|link| link.bridge.as_deref()).collect();
        assert_eq!(bridges, [Some("l4"), Some("l4"), None, None, None, None, None]);
    }
}
