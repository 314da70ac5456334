//! Addresses, networks and durations as a policy writes them.
//!
//! Owns their grammar and the wording of what is wrong; pure.

use crate::model::Cidr;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// An address that a frontend or a backend can have.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).filter(|t| t.parse::<IpAddr>().is_ok());
        return Err(match bare {
            Some(bare) => format!("`{text}` is not an IP address; write it without brackets: \"{bare}\""),
            None if text.parse::<SocketAddr>().is_ok() => format!("`{text}` is an address with a port; write the port in its own field"),
            None => format!("`{text}` is not an IP address (names are not looked up); write for example 10.9.9.9 or \"fd00::9\""),
        });
    };
    usable(address).map(|()| address)
}

/// `ADDR:PORT` or `[v6]:PORT`.
pub fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let Ok(socket) = text.parse::<SocketAddr>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("`{text}` has no port; write for example \"{text}:8080\""),
            Ok(IpAddr::V6(_)) => format!("`{text}` has no port; write for example \"[{text}]:8080\""),
            Err(_) => {
                let named = text.rsplit_once(':').filter(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok());
                let (name, port) = named.unwrap_or(("checkout.internal", "8080"));
                format!(
                    "`{text}` is not ADDRESS:PORT; write \"10.2.1.2:8080\" or \"[fd00::2]:8080\", or for a name `{{dns: {name}, port: {port}}}`"
                )
            }
        });
    };
    if socket.port() == 0 {
        return Err(format!("`{text}`: the port must be from 1 to 65535"));
    }
    if matches!(socket, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return Err(format!("`{text}`: an address with a zone cannot be used; give a global or unique local address"));
    }
    usable(socket.ip()).map(|()| socket)
}

/// Whether a host can have it.
///
/// # Errors
/// What it is instead.
pub fn usable(address: IpAddr) -> Result<(), String> {
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!("{address} is an IPv4 address in IPv6 form; write {v4}"));
    }
    let what = match address {
        _ if address.is_unspecified() => "means any address",
        _ if address.is_multicast() => "is a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "is the broadcast address",
        _ => return Ok(()),
    };
    Err(format!("{address} {what}; give the address of one host"))
}

/// `ADDR/PREFIX` with zero host bits; a bare address is a network of one host.
pub fn cidr(text: &str) -> Result<Cidr, String> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!("`{text}` is not a network; write for example 10.1.7.0/24 or \"fd00:1::/64\""));
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!("`{text}` is an IPv4 network in IPv6 form; write it with {v4}"));
    }
    let bits = width(address);
    let prefix = match prefix {
        None => bits,
        Some(digits) => digits
            .parse::<u8>()
            .ok()
            .filter(|p| *p <= bits && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| format!("`{text}`: the prefix length must be from 0 to {bits}"))?,
    };
    let network = truncate(address, prefix);
    if network != address {
        return Err(format!("`{text}` has host bits set; the network is {network}/{prefix}, the single host is {address}/{bits}"));
    }
    Ok(Cidr { address, prefix })
}

pub fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// Bits of an address.
pub fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all but the first `prefix` bits cleared.
pub fn truncate(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into(),
    }
}

/// `30s`, `500ms`, `1m30s`, `2h`; more than zero, at most a day.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write for example 30s, 500ms or 1m30s");
    let (mut total, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let value: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let millis = match &rest[digits..digits + unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        total = value.checked_mul(millis).and_then(|v| v.checked_add(total)).ok_or_else(wrong)?;
        rest = &rest[digits + unit..];
    }
    match total {
        _ if text.is_empty() => Err(wrong()),
        1..=86_400_000 => Ok(Duration::from_millis(total)),
        _ => Err(format!("`{text}`: the time must be more than 0 and at most 24h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(endpoint("10.2.1.2:8080").unwrap(), "10.2.1.2:8080".parse().unwrap());
        assert_eq!(endpoint("[fd00::2]:80").unwrap(), "[fd00::2]:80".parse().unwrap());
        for (text, hint) in [
            ("10.2.1.2", "\"10.2.1.2:8080\""),
            ("fd00::2", "\"[fd00::2]:8080\""),
            ("web:80", "`{dns: web, port: 80}`"),
            ("web", "ADDRESS:PORT"),
            ("10.2.1.2:0", "from 1 to 65535"),
            ("10.2.1.2:70000", "ADDRESS:PORT"),
            ("0.0.0.0:80", "any address"),
            ("[::ffff:10.1.1.1]:80", "write 10.1.1.1"),
            ("224.0.0.1:80", "multicast"),
            ("[fe80::1%2]:80", "zone"),
        ] {
            assert!(endpoint(text).unwrap_err().contains(hint), "{text}: {:?}", endpoint(text));
        }
    }

    #[test]
    fn networks() {
        assert_eq!(cidr("10.1.7.0/24"), Ok(Cidr { address: "10.1.7.0".parse().unwrap(), prefix: 24 }));
        assert_eq!(cidr("0.0.0.0/0").unwrap().prefix, 0);
        assert_eq!(cidr("::/0").unwrap().prefix, 0);
        assert_eq!(cidr("10.1.7.3").unwrap().prefix, 32);
        assert_eq!(cidr("fd00::1").unwrap().prefix, 128);
        assert_eq!(
            cidr("10.1.7.3/24").unwrap_err(),
            "`10.1.7.3/24` has host bits set; the network is 10.1.7.0/24, the single host is 10.1.7.3/32"
        );
        assert!(cidr("fd00::1/64").unwrap_err().contains("the network is fd00::/64"));
        for text in ["10.1.7.0/33", "10.1.7.0/", "10.1.7.0/+8", "::/129"] {
            assert!(cidr(text).unwrap_err().contains("prefix length"), "{text}");
        }
        assert!(cidr("office").unwrap_err().contains("not a network"));
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "30", "s", "30 s", "30x", "-1s", "0s", "25h", "99999999999999999999s", "1é"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
