//! A node with services of `mode: https`, and curl as their client.

use crate::support::{Bed, Split, document, vip};
use std::{net::SocketAddr, ops::Deref, path::Path, process::Command};

pub const NAME: &str = "shop.test";

/// Fields go in this order.
pub struct Stage {
    pub bed: Bed,
}

impl Deref for Stage {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

/// The service over one family.
pub fn split(v6: bool, v1: u32, v2: u32) -> Split {
    let split = Split::http(v1, v2).with("tls: {certificates: [{certFile: shop.crt, keyFile: shop.key}]}");
    if v6 { split.v6().named("web6") } else { split }
}

/// The policy; what has `tls` is of `mode: https`.
pub fn text(bed: &Bed, splits: &[Split]) -> String {
    let one = |split: &Split| {
        let text = document(&bed.lab, std::slice::from_ref(split));
        if text.contains("\n  tls:") { text.replace("mode: http\n", "mode: https\n") } else { text }
    };
    splits.iter().map(one).collect()
}

/// A new certificate and its key, `NAME.crt` and `NAME.key`.
pub fn issue(dir: &Path, file: &str, names: &[&str]) {
    splitter_lab::certificate::issue(dir, file, names).expect("a certificate");
}

impl Stage {
    /// One client, three backends; the certificate is for [`NAME`].
    pub fn new(name: &str, splits: &[Split]) -> Stage {
        let mut bed = Bed::prepare(name, Default::default(), splits);
        issue(&bed.site.dir, "shop", &[NAME]);
        bed.write_policy(&text(&bed, splits));
        bed.start();
        Stage { bed }
    }

    pub fn apply(&self, splits: &[Split]) {
        let before = self.status().applied.generation;
        self.write_policy(&text(&self.bed, splits));
        self.wait("the new policy is applied", |status| status.applied.generation > before && status.desired.state == "ok");
    }

    /// curl in the client's namespace, which trusts `shop.crt` and finds [`NAME`] at the VIP.
    pub fn curl(&self, v6: bool, words: &[&str]) -> Command {
        let mut command = self.lab.client().command("curl");
        let trusted = self.site.dir.join("shop.crt");
        command.args(["-sS", "--max-time", "30", "--resolve", &resolve(vip(v6))]).arg("--cacert").arg(trusted).args(words);
        command
    }

    /// What it prints; panics when it fails.
    pub fn asks(&self, v6: bool, words: &[&str]) -> String {
        crate::support::tool(self.curl(v6, words))
    }
}

fn resolve(vip: SocketAddr) -> String {
    format!("{NAME}:{}:{}", vip.port(), vip.ip())
}

pub fn url(path: &str) -> String {
    format!("https://{NAME}:80{path}")
}

/// How many lines are so.
pub fn count(text: &str, line: &str) -> u64 {
    text.lines().filter(|known| *known == line).count() as u64
}
