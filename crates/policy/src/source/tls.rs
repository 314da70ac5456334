//! `tls` of `mode: https`: which files hold the certificates. Does not open them.

use super::fields::{Context, Fields};
use crate::model::{Certificate, Mode, Tls};
use std::path::{Path, PathBuf};

const EXAMPLE: &str = "tls: {certificates: [{certFile: /etc/splitter/tls/tls.crt, keyFile: /etc/splitter/tls/tls.key}]}";

/// Required with `mode: https`, refused elsewhere. Relative names are below the folder of the policy's file.
pub fn tls(fields: &Fields<'_>, mode: Option<Mode>, context: &mut Context<'_>) -> Option<Tls> {
    match mode {
        Some(Mode::Https) => {}
        Some(mode) => {
            if let Some(node) = fields.optional("tls") {
                let other = mode.name();
                context.error(node.at, format!("tls is of `mode: https`; write that in the place of `mode: {other}`, or remove tls"));
            }
            return None;
        }
        None => return None,
    }
    let node = context.required(fields, "tls", "spec.tls", EXAMPLE)?;
    let fields = context.fields(node, "spec.tls", &["certificates"])?;
    let node = context.required(&fields, "certificates", "spec.tls.certificates", EXAMPLE)?;
    let items = context.list(node, "spec.tls.certificates")?;
    if items.is_empty() {
        context.error(node.at, format!("spec.tls.certificates is empty; write for example `{EXAMPLE}`"));
    }
    let mut certificates = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let what = format!("spec.tls.certificates[{index}]");
        let Some(fields) = context.fields(item, &what, &["certFile", "keyFile"]) else { continue };
        let mut file = |name: &str| {
            let what = format!("{what}.{name}");
            let node = context.required(&fields, name, &what, &format!("{name}: /etc/splitter/tls/tls.{}", &name[..3]))?;
            let text = context.string(node, &what)?;
            if text.is_empty() {
                context.error(node.at, format!("{what} is empty; name a file in PEM"));
                return None;
            }
            Some(beside(context.path, text))
        };
        let (cert_file, key_file) = (file("certFile"), file("keyFile"));
        if let (Some(cert_file), Some(key_file)) = (cert_file, key_file) {
            certificates.push(Certificate { cert_file, key_file });
        }
    }
    Some(Tls { certificates })
}

/// Absolute, so that what the writer says of it holds in any folder.
fn beside(policy: &str, file: &str) -> PathBuf {
    let path = Path::new(policy).parent().unwrap_or(Path::new("")).join(file);
    std::path::absolute(&path).unwrap_or(path)
}
