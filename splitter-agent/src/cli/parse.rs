//! Values of arguments, checked while the command line is read.

use crate::control::wanted;
use splitter_policy::source::duration;
use std::{net::IpAddr, net::SocketAddr, time::Duration};

/// `VERSION=WEIGHT`.
pub fn weight(text: &str) -> Result<(String, u32), String> {
    let (version, weight) = pair(text, '=').ok_or_else(|| "write VERSION=WEIGHT, for example v2=5".to_owned())?;
    if weight.ends_with('%') {
        let bare = weight.trim_end_matches('%');
        return Err(format!("weights are relative whole numbers without %: write {version}={bare} and give the others the rest"));
    }
    if !weight.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{weight}` is not a whole number; for 0.5% write v1=995 v2=5: only the proportions count"));
    }
    let weight = weight.parse().map_err(|_| format!("the weight must be from 0 to {}", u32::MAX))?;
    Ok((version, weight))
}

/// `IP` or `IP:PORT`.
pub fn client(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("write an address, with a port if it matters: 10.1.7.3, 10.1.7.3:40000, fd00::3 or [fd00::3]:40000".to_owned())
}

/// A network or an address.
pub fn network(text: &str) -> Result<String, String> {
    wanted::network(text).map(|_| text.to_owned())
}

/// `IP` or `IP:PORT` of a backend.
pub fn backend(text: &str) -> Result<String, String> {
    wanted::backend(text).map(|_| text.to_owned())
}

/// From 1.
pub fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "write a whole number from 1".to_owned())
}

/// `IP` or `IP:PORT` of a DNS server; port 53 by default.
pub fn resolver(text: &str) -> Result<SocketAddr, String> {
    let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    let wrong = "write an address, with a port if it is not 53: 10.0.0.2, 127.0.0.1:8600 or [fd00::2]:53";
    bare.or_else(|_| text.parse()).ok().filter(|server: &SocketAddr| server.port() != 0).ok_or_else(|| wrong.to_owned())
}

/// `Name: value`.
pub fn header(text: &str) -> Result<(String, String), String> {
    pair(text, ':').ok_or_else(|| "write 'Name: value', for example 'X-Canary: always'".to_owned())
}

/// `K=V`.
pub fn cookie(text: &str) -> Result<(String, String), String> {
    pair(text, '=').ok_or_else(|| "write NAME=VALUE, for example canary=1".to_owned())
}

/// `GLOB`, `GLOB:uplink` or `!GLOB`.
pub fn interface(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((glob, "uplink")) if !glob.is_empty() => Ok(text.to_owned()),
        Some((_, suffix)) if suffix != "uplink" => Err(format!("unknown suffix `:{suffix}`; the only one is `:uplink`")),
        None if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("write an interface or a pattern: eth0, 'veth*', eth0:uplink, '!docker0'".to_owned()),
    }
}

/// Time between two looks.
#[derive(Clone, Copy, Debug)]
pub struct Interval(Duration);

impl From<Interval> for Duration {
    fn from(interval: Interval) -> Self {
        interval.0
    }
}

/// At least 100 ms.
pub fn interval(text: &str) -> Result<Interval, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(100) { Err("the shortest interval is 100ms".to_owned()) } else { Ok(Interval(interval)) }
}

fn pair(text: &str, separator: char) -> Option<(String, String)> {
    let (key, value) = text.split_once(separator)?;
    let key = key.trim();
    (!key.is_empty()).then(|| (key.to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights() {
        assert_eq!(weight("v1=50"), Ok(("v1".into(), 50)));
        assert_eq!(weight("v1=0"), Ok(("v1".into(), 0)));
        assert!(weight("v1=50%").unwrap_err().contains("without %: write v1=50"));
        assert!(weight("v1=0.5").unwrap_err().contains("whole number"));
        assert!(weight("v1=-1").unwrap_err().contains("whole number"));
        assert!(weight("v1=").unwrap_err().contains("from 0"));
        assert!(weight("v1=4294967296").unwrap_err().contains("from 0 to 4294967295"));
        assert!(weight("v1").unwrap_err().contains("VERSION=WEIGHT"));
        assert!(weight("=1").unwrap_err().contains("VERSION=WEIGHT"));
    }

    #[test]
    fn clients_and_pairs() {
        for text in ["10.1.7.3", "10.1.7.3:1", "fd00::3", "[fd00::3]:1"] {
            assert!(client(text).is_ok(), "{text}");
        }
        assert!(client("web").is_err());
        assert_eq!(header("X-Canary: always"), Ok(("X-Canary".into(), "always".into())));
        assert_eq!(cookie("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(header("x").is_err() && cookie("x").is_err());
        assert!(interface("eth0:uplink").is_ok() && interface("veth*").is_ok());
        assert!(interface("eth0:x").is_err() && interface(":uplink").is_err() && interface("").is_err());
        assert!(interval("50ms").is_err() && interval("1s").is_ok());
    }
}
