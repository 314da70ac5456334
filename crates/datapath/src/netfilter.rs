//! What netfilter of this network namespace does with packets that are routed: base chains of nftables by netlink (so those of iptables-nft
//! too), and the tables of the older iptables.

use super::netlink::connect;
use netlink_sys::Socket;
use std::{fs, io};

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES`, and its messages that ask for chains and for the generation of all rules (Linux 3.13, 3.18).
const NFTABLES: u16 = 10 << 8;
const GET_CHAIN: u16 = NFTABLES | 4;
const GET_GENERATION: u16 = NFTABLES | 16;
/// `NFTA_GEN_ID`, `NFTA_CHAIN_*`, `NFTA_HOOK_HOOKNUM`.
const GENERATION_ID: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_RULES: u16 = 6;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
/// Bits of an attribute's kind that say how it is encoded.
const KIND: u16 = 0x3fff;

/// A base chain or table that packets come by which are routed from one interface to another, with something to say to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooked {
    /// `nft inet filter forward`, `iptables-legacy filter`.
    pub name: String,
    /// Rules of the chain itself; 0 for tables of iptables, whose rules are not read.
    pub rules: u32,
    /// What matches no rule is dropped.
    pub drops: bool,
}

/// Looks at netfilter; rules are read again when they have changed.
#[derive(Debug, Default)]
pub struct Firewall {
    generation: Option<u32>,
    chains: Vec<Hooked>,
}

impl Firewall {
    /// What there is now. Empty where the kernel has no netfilter.
    ///
    /// # Errors
    /// When the kernel does not answer as it should, or does not let this process ask (CAP_NET_ADMIN).
    pub fn look(&mut self) -> io::Result<Vec<Hooked>> {
        let generation = none_without(generation())?;
        if generation.is_none() || generation != self.generation {
            self.chains = none_without(chains().map(Some))?.unwrap_or_default();
            self.generation = generation;
        }
        let mut found = self.chains.clone();
        for (file, tool) in [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")] {
            // A table is listed once somebody has asked for it.
            let names = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
            found.extend(names.lines().map(|table| Hooked { name: format!("{tool} {table}"), rules: 0, drops: false }));
        }
        Ok(found)
    }
}

/// A kernel without nftables has no rules of its.
fn none_without<T>(found: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match found {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)) => Ok(None),
        found => found,
    }
}

/// A number that changes with every change of rules.
fn generation() -> io::Result<Option<u32>> {
    let mut found = None;
    ask(&connect(NETFILTER)?, GET_GENERATION, 0, |_, attributes| {
        found = attribute(attributes, GENERATION_ID).and_then(number);
    })?;
    Ok(found)
}

fn chains() -> io::Result<Vec<Hooked>> {
    let mut found = Vec::new();
    ask(&connect(NETFILTER)?, GET_CHAIN, libc::NLM_F_DUMP as u16, |family, attributes| found.extend(hooked(family, attributes)))?;
    Ok(found)
}

/// A chain, when packets that are routed come by it and it has something to say.
fn hooked(family: u8, attributes: &[u8]) -> Option<Hooked> {
    let family = match i32::from(family) {
        libc::AF_INET => "ip",
        libc::AF_INET6 => "ip6",
        // NFPROTO_INET.
        1 => "inet",
        // Bridges and devices: what they see is not routed, or not yet.
        _ => return None,
    };
    let hook = attribute(attribute(attributes, CHAIN_HOOK)?, HOOK_NUMBER).and_then(number)?;
    let text = |kind| attribute(attributes, kind).map(|bytes| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned());
    let nat = text(CHAIN_TYPE).as_deref() == Some("nat");
    // NF_INET_PRE_ROUTING, FORWARD, POST_ROUTING. Destinations that are translated are other packets' than those to VIPs.
    if !(hook == 0 && !nat || hook == 2 || hook == 4) {
        return None;
    }
    let rules = attribute(attributes, CHAIN_RULES).and_then(number).unwrap_or(0);
    // NF_DROP.
    let drops = attribute(attributes, CHAIN_POLICY).and_then(number) == Some(0);
    let name = format!("nft {family} {} {}", text(CHAIN_TABLE)?, text(CHAIN_NAME)?);
    (rules > 0 || drops).then_some(Hooked { name, rules, drops })
}

/// The value of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *bytes {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & KIND);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Numbers are in network order here.
fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Asks, and hands on what is answered: family and attributes of each message.
fn ask(socket: &Socket, what: u16, flags: u16, mut each: impl FnMut(u8, &[u8])) -> io::Result<()> {
    const HEADER: usize = 16;
    let mut message = Vec::with_capacity(20);
    message.extend(20u32.to_ne_bytes());
    message.extend(what.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16 | flags).to_ne_bytes());
    message.extend([0; 12]);
    socket.send(&message, 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let [l0, l1, l2, l3, k0, k1, ..] = *rest {
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let (Some(body), kind) = (rest.get(HEADER..length), i32::from(u16::from_ne_bytes([k0, k1]))) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink: a message is longer than its datagram"));
            };
            match (kind, body) {
                (libc::NLMSG_DONE, _) => return Ok(()),
                (libc::NLMSG_ERROR, [a, b, c, d, ..]) => {
                    return match i32::from_ne_bytes([*a, *b, *c, *d]) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                (_, [family, _, _, _, attributes @ ..]) => each(*family, attributes),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [((value.len() + 4) as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn chain(hook: Option<u32>, kind: &str, rules: u32, policy: u32) -> Vec<u8> {
        let nested =
            |hook: u32| field(CHAIN_HOOK | 0x8000, &[field(2, &0u32.to_be_bytes()), field(HOOK_NUMBER, &hook.to_be_bytes())].concat());
        let parts = [
            field(CHAIN_TABLE, b"filter\0"),
            field(CHAIN_NAME, b"FORWARD\0"),
            hook.map(nested).unwrap_or_default(),
            field(CHAIN_POLICY, &policy.to_be_bytes()),
            field(CHAIN_RULES, &rules.to_be_bytes()),
            field(CHAIN_TYPE, kind.as_bytes()),
        ];
        parts.concat()
    }

    #[test]
    fn chains_count_that_have_something_to_say_to_routed_packets() {
        let found = |family: i32, hook, kind, rules, policy| hooked(family as u8, &chain(hook, kind, rules, policy));
        let rules = |rules, drops| Some(Hooked { name: "nft ip filter FORWARD".into(), rules, drops });
        assert_eq!(found(libc::AF_INET, Some(2), "filter\0", 3, 1), rules(3, false));
        assert_eq!(found(libc::AF_INET, Some(2), "filter\0", 0, 0), rules(0, true));
        assert_eq!(found(libc::AF_INET, Some(4), "nat\0", 1, 1), rules(1, false));
        assert_eq!(found(libc::AF_INET, Some(0), "filter\0", 1, 1), rules(1, false));
        for (hook, kind, count, policy) in
            [(Some(0), "nat\0", 9, 1), (Some(1), "filter\0", 9, 0), (Some(2), "filter\0", 0, 1), (None, "", 9, 1)]
        {
            assert_eq!(found(libc::AF_INET, hook, kind, count, policy), None);
        }
        // Bridges' frames are not routed.
        assert_eq!(found(7, Some(2), "filter\0", 3, 1), None);
        assert_eq!(hooked(1, &chain(Some(2), "filter\0", 1, 1)).unwrap().name, "nft inet filter FORWARD");
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let whole = chain(Some(2), "filter\0", 3, 1);
        (0..whole.len()).for_each(|length| drop(hooked(2, &whole[..length])));
        assert_eq!(attribute(&[3, 0, 1, 0], 1), None);
    }
}
