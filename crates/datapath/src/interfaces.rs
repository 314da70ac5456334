//! Which interfaces the programs belong on, and what the kernel programs are told about each. Pure.

use super::netlink::Link;
use splitter_common::abi::{Iface, iface_flag};
use thiserror::Error;

/// How XDP is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    #[default]
    Off,
    Native,
    Generic,
}

/// One `--interface`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    glob: String,
    exclude: bool,
    uplink: bool,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "--interface {0:?}: {1}; write a name or a glob such as `eth*`, `!docker0` to leave one out, or `eth0:uplink` for the one that XDP is for"
)]
pub struct PatternError(String, &'static str);

impl Patterns {
    pub fn parse(texts: &[String]) -> Result<Self, PatternError> {
        let one = |text: &String| {
            let error = |why| PatternError(text.clone(), why);
            let (rest, uplink) = text.strip_suffix(":uplink").map_or((text.as_str(), false), |rest| (rest, true));
            let (glob, exclude) = rest.strip_prefix('!').map_or((rest, false), |rest| (rest, true));
            match glob {
                "" => Err(error("no name")),
                _ if glob.contains([':', '/']) => Err(error("not a name")),
                _ if exclude && uplink => Err(error("an excluded interface cannot be an uplink")),
                _ => Ok(Pattern { glob: glob.into(), exclude, uplink }),
            }
        };
        Ok(Self(texts.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// Whether the interface is served, and as an uplink.
    pub fn choose(&self, link: &Link) -> Choice {
        let matching = |exclude| self.0.iter().filter(move |p| p.exclude == exclude && matches(&p.glob, &link.name));
        if link.name == "lo" || !link.ethernet || link.bridge.is_some() || matching(true).next().is_some() {
            return Choice::default();
        }
        let named = matching(false).next().is_some();
        let all = self.0.iter().all(|pattern| pattern.exclude);
        let served = named || all && link.up;
        let marked = matching(false).any(|pattern| pattern.uplink);
        let nobody_marked = !self.0.iter().any(|pattern| pattern.uplink);
        Choice { served, uplink: served && (marked || nobody_marked), marked }
    }
}

impl Patterns {
    /// Those that ask for what cannot be served, with the reason and what to do. `links`: all that there are.
    pub fn warnings(&self, links: &[Link]) -> Vec<String> {
        let named = self.0.iter().filter(|pattern| !pattern.exclude);
        let useless = named.filter_map(|pattern| Some((pattern, self.useless(pattern, links)?)));
        useless.map(|(pattern, why)| format!("--interface {}: {why}", pattern.glob)).collect()
    }

    /// Why a pattern leads to no interface.
    fn useless(&self, pattern: &Pattern, links: &[Link]) -> Option<String> {
        let found: Vec<_> = links.iter().filter(|link| matches(&pattern.glob, &link.name)).collect();
        if found.iter().any(|link| self.choose(link).served) {
            return None;
        }
        let Some(link) = found.first() else {
            return Some("no interface has this name; one that appears is served (`ip link` lists those that there are)".into());
        };
        let (name, kind) = (&link.name, link.kind.as_deref().map(|kind| format!(" ({kind})")).unwrap_or_default());
        Some(match () {
            () if name == "lo" => "lo is never served: the node's own processes are served where their packets leave".into(),
            () if !link.ethernet => {
                format!("{name}{kind} has no Ethernet header and is not served; packets that only come through it are not split")
            }
            () if link.bridge.is_some() => {
                let bridge = link.bridge.as_deref().unwrap_or_default();
                format!("{name} is a port of the bridge {bridge}: frames for this host come in by {bridge}, write --interface {bridge}")
            }
            () => format!("{name} is left out by another --interface with `!`"),
        })
    }
}

/// See [`Patterns::choose`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub served: bool,
    /// XDP goes on it, if anywhere.
    pub uplink: bool,
    /// The command line says so.
    pub marked: bool,
}

/// The entry of `IFACES`. `xdp`: the mode that is attached on it.
pub fn row(link: &Link, choice: Choice, xdp: XdpMode, mode: XdpMode) -> Iface {
    let veth = link.kind.as_deref() == Some("veth");
    // Where the kernel does not say: many drivers can while they run XDP, but a veth only while its other end does, which nothing here can know.
    let transmits = link.xdp_transmits.unwrap_or(xdp == XdpMode::Native && !veth);
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(veth && link.peer_elsewhere, iface_flag::PEER)
        | flag(mode == XdpMode::Generic || mode == XdpMode::Native && transmits, iface_flag::XDP_TRANSMIT)
        | flag(xdp != XdpMode::Off && (choice.marked || link.kind.is_none()), iface_flag::XDP_FORWARD);
    Iface { flags, mtu: link.mtu, addr4: link.addr4.unwrap_or_default(), upper: link.upper, addr6: link.addr6.unwrap_or_default() }
}

/// `*` any number of characters, `?` one.
pub fn matches(glob: &str, name: &str) -> bool {
    let (glob, name): (Vec<char>, Vec<char>) = (glob.chars().collect(), name.chars().collect());
    // Where the last star stood, and how much it has swallowed: greedy with one step back is enough.
    let (mut g, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if glob.get(g) == Some(&'*') {
            star = Some((g, n));
            g += 1;
        } else if glob.get(g).is_some_and(|c| *c == '?' || *c == name[n]) {
            (g, n) = (g + 1, n + 1);
        } else if let Some((at, swallowed)) = star {
            star = Some((at, swallowed + 1));
            (g, n) = (at + 1, swallowed + 1);
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link { name: name.into(), up: true, ethernet: true, mtu: 1500, kind: kind.map(Into::into), ..Link::default() }
    }

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns::parse(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("*", "anything", true),
            ("c?", "c1", true),
            ("c?", "c", false),
            ("*a*b", "xaybzb", true),
            ("*a*b", "xaybzc", false),
            ("a**", "a", true),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
    }

    #[test]
    fn choices() {
        let uplink = |texts: &[&str], name: &str| {
            let choice = patterns(texts).choose(&link(name, None));
            (choice.served, choice.uplink)
        };
        assert_eq!(uplink(&[], "eth0"), (true, true));
        assert_eq!(uplink(&[], "lo"), (false, false));
        assert_eq!(uplink(&["!docker*"], "docker0"), (false, false));
        assert_eq!(uplink(&["!docker*"], "eth0"), (true, true));
        assert_eq!(uplink(&["veth*", "eth0:uplink"], "veth1"), (true, false));
        assert_eq!(uplink(&["veth*", "eth0:uplink"], "eth0"), (true, true));
        assert_eq!(uplink(&["veth*"], "eth0"), (false, false));
        let down = Link { up: false, ..link("eth0", None) };
        assert!(!patterns(&[]).choose(&down).served);
        assert!(patterns(&["eth0"]).choose(&down).served);
        assert!(!patterns(&["wg0"]).choose(&Link { ethernet: false, ..link("wg0", Some("wireguard")) }).served);
    }

    #[test]
    fn patterns_that_serve_nothing_are_told() {
        let wireguard = Link { ethernet: false, ..link("wg0", Some("wireguard")) };
        let links = [link("lo", None), link("eth0", None), link("veth1", Some("veth")), wireguard];
        let told = |texts: &[&str]| patterns(texts).warnings(&links).join("; ");
        for texts in [&[][..], &["eth0", "!wg*"], &["*"], &["veth*", "eth0:uplink"], &["!nothing"]] {
            assert_eq!(told(texts), "", "{texts:?}");
        }
        assert!(told(&["eth0", "eht1"]).starts_with("--interface eht1: no interface has this name"));
        assert!(told(&["wg*"]).contains("wg0 (wireguard) has no Ethernet header"));
        assert!(told(&["lo"]).contains("lo is never served"));
        let port = Link { bridge: Some("br0".into()), ..link("eth1", None) };
        let links = [port, link("br0", Some("bridge"))];
        assert!(patterns(&["eth1"]).warnings(&links).join(";").contains("eth1 is a port of the bridge br0"));
        assert_eq!(links.iter().map(|link| patterns(&[]).choose(link).served).collect::<Vec<_>>(), [false, true]);
        assert!(told(&["eth*", "!eth0"]).contains("eth0 is left out"));
    }

    #[test]
    fn bad_patterns_are_named() {
        for text in ["", "!", ":uplink", "a:b", "!eth0:uplink", "a/b"] {
            let error = Patterns::parse(&[text.to_string()]).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn flags() {
        use iface_flag::*;
        let veth = Link { peer_elsewhere: true, ..link("c0", Some("veth")) };
        let plain = Choice { served: true, uplink: true, marked: false };
        let marked = Choice { marked: true, ..plain };
        assert_eq!(row(&veth, plain, XdpMode::Off, XdpMode::Off).flags, PEER);
        assert_eq!(row(&veth, plain, XdpMode::Generic, XdpMode::Generic).flags, PEER | XDP_TRANSMIT);
        assert_eq!(row(&veth, marked, XdpMode::Native, XdpMode::Native).flags, PEER | XDP_FORWARD);
        assert_eq!(row(&link("eth0", None), plain, XdpMode::Native, XdpMode::Native).flags, XDP_TRANSMIT | XDP_FORWARD);
        assert_eq!(row(&link("eth0", None), plain, XdpMode::Off, XdpMode::Native).flags, 0);
        // The kernel's word goes before the guess.
        let told = |link: Link, transmits| Link { xdp_transmits: Some(transmits), ..link };
        assert_eq!(row(&told(veth.clone(), true), plain, XdpMode::Off, XdpMode::Native).flags, PEER | XDP_TRANSMIT);
        assert_eq!(row(&told(veth.clone(), true), plain, XdpMode::Off, XdpMode::Off).flags, PEER);
        assert_eq!(row(&told(veth, false), plain, XdpMode::Generic, XdpMode::Generic).flags, PEER | XDP_TRANSMIT);
        assert_eq!(row(&told(link("eth0", None), false), plain, XdpMode::Native, XdpMode::Native).flags, XDP_FORWARD);
    }
}
