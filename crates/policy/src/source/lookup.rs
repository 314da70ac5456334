//! `{dns: NAME, port: PORT}` in a list of backends -> model.
//!
//! Owns its fields, and which names can be looked up.

use super::{
    fields::Context,
    network,
    yaml::{Kind, Node},
};
use crate::model::Lookup;
use std::{net::IpAddr, time::Duration};

/// How long an address that left keeps its connections, unless the policy says otherwise.
pub const DRAIN: Duration = Duration::from_secs(60);

/// Whether the node is meant as one.
pub fn is(node: &Node<'_>) -> bool {
    matches!(&node.kind, Kind::Map(entries) if entries.iter().any(|entry| entry.key == "dns"))
}

/// Reads one; `others` are those of the same version that were read before.
pub fn lookup(node: &Node<'_>, what: &str, others: &[Lookup], context: &mut Context<'_>) -> Option<Lookup> {
    let fields = context.fields(node, what, &["dns", "port", "drain"])?;
    let at = context.required(&fields, "dns", &format!("{what}.dns"), "dns: checkout.internal")?;
    let name = context.string(at, &format!("{what}.dns"))?;
    if let Err(message) = host_name(name) {
        context.error(at.at, message);
        return None;
    }
    let port = match fields.optional("port") {
        Some(node) => Some((context.number(node, &format!("{what}.port"), 1, 65535)? as u16, node.at)),
        None => None,
    };
    let port = match (port, name.starts_with('_')) {
        (Some((_, at)), true) => {
            context.error(at, format!("`{name}` is looked up as SRV records, which say the ports; remove `port`"));
            return None;
        }
        (None, false) => {
            let message = format!("{what}.port is missing; add for example `port: 8080`, or name SRV records: `dns: _http._tcp.{name}`");
            context.error(node.at, message);
            return None;
        }
        (port, _) => port.map(|(port, _)| port),
    };
    let drain = match fields.optional("drain") {
        Some(node) => {
            let text = context.string(node, &format!("{what}.drain"))?;
            network::duration(text).map_err(|message| context.error(node.at, message)).ok()?
        }
        None => DRAIN,
    };
    if others.iter().any(|other| (&other.name[..], other.port) == (name, port)) {
        context.error(at.at, format!("`{name}` stands twice in this version; remove one"));
        return None;
    }
    Some(Lookup { name: name.to_owned(), port, drain })
}

/// RFC 1035, section 2.3.1, as hosts are named in practice: `_` too, and a dot at the end.
fn host_name(text: &str) -> Result<(), String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let port = if address.is_ipv4() { format!("{address}:8080") } else { format!("[{address}]:8080") };
        return Err(format!("`{text}` is an address, no name; write it in the list of backends: \"{port}\""));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        inner && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.is_empty() || name.len() > 253 || !name.split('.').all(is_label) {
        let port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let hint = if port { "; write the port in its own field: `port: 8080`" } else { "" };
        return Err(format!(
            "`{text}` is not a host name{hint}; use letters, digits, `-` and `_`, in parts of at most 63 characters joined by `.`, 253 in all"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Policy;
    use std::fs;

    /// Of a version's `backends`, which begin at line 7, column 46.
    fn read(backends: &str) -> Result<Policy, String> {
        let text = format!(
            "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: a}}\nspec:\n  mode: tcp\n  frontends: [{{address: \
             10.9.9.9, port: 80}}]\n  versions: [{{name: v1, weight: 1, backends: {backends}}}]\n"
        );
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("p.yaml"), text).unwrap();
        crate::source::load(folder.path()).result.map_err(|errors| errors[0].to_string().rsplit_once("p.yaml:").unwrap().1.to_owned())
    }

    #[test]
    fn names_stand_alone_or_in_the_list() {
        let lookup = |name: &str, port, drain| Lookup { name: name.into(), port, drain: Duration::from_secs(drain) };
        let read = |backends| read(backends).unwrap().services[0].versions[0].clone();
        assert_eq!(read("{dns: web.internal, port: 80}").lookups, [lookup("web.internal", Some(80), 60)]);
        let version = read("[{dns: _http._tcp.web.internal., drain: 5m}, \"10.2.1.2:80\", {dns: web, port: 81}, {dns: web, port: 82}]");
        assert_eq!(
            version.lookups,
            [lookup("_http._tcp.web.internal.", None, 300), lookup("web", Some(81), 60), lookup("web", Some(82), 60)]
        );
        assert_eq!(version.backends.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_said_where_it_stands() {
        let long = format!("{{dns: {}, port: 80}}", "a".repeat(64));
        for (backends, at, hint) in [
            (
                "{dns: web.internal}",
                "7:46",
                "port is missing; add for example `port: 8080`, or name SRV records: `dns: _http._tcp.web.internal`",
            ),
            ("{dns: _http._tcp.web, port: 80}", "7:74", "which say the ports; remove `port`"),
            ("{dns: 10.2.1.2, port: 80}", "7:52", "write it in the list of backends: \"10.2.1.2:8080\""),
            ("{dns: \"fd00::2\", port: 80}", "7:52", "\"[fd00::2]:8080\""),
            ("{dns: \"web:80\"}", "7:52", "write the port in its own field"),
            ("{dns: web..internal, port: 80}", "7:52", "is not a host name"),
            (&long, "7:52", "at most 63 characters"),
            ("{dns: web, port: 0}", "7:63", "from 1 to 65535"),
            ("{dns: web, port: 80, drain: 0s}", "7:74", "more than 0"),
            ("{dns: web, port: 80, ttl: 5s}", "7:67", "unknown field `ttl`"),
            ("{dns: , port: 80}", "7:47", "has no value"),
            ("[{dns: web, port: 80}, {dns: web, port: 80}]", "7:75", "stands twice"),
            ("{address: \"10.2.1.2:80\"}", "7:46", "must be a list"),
        ] {
            let error = read(backends).unwrap_err();
            assert!(error.starts_with(&format!("{at}: TrafficSplit a: ")) && error.contains(hint), "{backends}: {error}");
        }
    }
}
