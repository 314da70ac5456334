//! Certificates for tests, by the `openssl` program. Each is its own issuer.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Makes `NAME.crt` and `NAME.key` in a folder, for these DNS names: a P-256 key, no CA, good for ten years.
pub fn issue(dir: &Path, name: &str, names: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let [certificate, key, settings] = ["crt", "key", "cnf"].map(|kind| dir.join(format!("{name}.{kind}")));
    let alternatives: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
    let text = format!(
        "[req]\ndistinguished_name = dn\nx509_extensions = ext\nprompt = no\n[dn]\nCN = {name}\n[ext]\nsubjectAltName = {}\nbasicConstraints = critical,CA:FALSE\n",
        alternatives.join(",")
    );
    fs::write(&settings, text).with_context(|| format!("cannot write {}", settings.display()))?;
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650", "-config"]);
    let output = command.arg(&settings).arg("-keyout").arg(&key).arg("-out").arg(&certificate).output().context("cannot run openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok((certificate, key))
}
