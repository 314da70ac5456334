//! Certificates: pairs of files, and which of them a client is shown.

use crate::snapshot::Tls;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// Why a pair cannot be used; the text is for the user.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("cannot read the {what} {}: {cause}; name a file that the agent's user can read, in PEM", path.display())]
    Read { what: &'static str, path: PathBuf, cause: String },
    #[error("{} holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)", .0.display())]
    Empty(PathBuf),
    #[error("the certificate {} does not belong to the key {}: {cause}; name the pair that was issued together", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, cause: String },
    #[error("the certificate {} cannot be understood: {cause}", path.display())]
    Names { path: PathBuf, cause: String },
    #[error("no certificate: add one under `tls.certificates`")]
    None,
}

/// The certificates of one service.
#[derive(Debug)]
pub struct Certificates {
    first: Arc<CertifiedKey>,
    /// By name in lower case; `*.` and the rest for those of all names one label below.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// Reads pairs of certificate chain and key, in the order of preference.
    ///
    /// # Errors
    /// When one of them cannot be read, or does not fit together.
    pub fn read<'a>(pairs: impl IntoIterator<Item = (&'a Path, &'a Path)>) -> Result<Self, CertificateError> {
        let (mut first, mut named) = (None, HashMap::new());
        for (certificate, key) in pairs {
            let pair = Arc::new(pair(certificate, key)?);
            for name in names(&pair, certificate)? {
                named.entry(name).or_insert_with(|| pair.clone());
            }
            first.get_or_insert(pair);
        }
        Ok(Self { first: first.ok_or(CertificateError::None)?, named })
    }

    /// The one for a name: exactly, then as one label below a wildcard, then the first.
    fn of(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let Some(name) = name.map(str::to_ascii_lowercase) else { return self.first.clone() };
        let wild = || self.named.get(&format!("*.{}", name.split_once('.')?.1));
        self.named.get(&name).or_else(wild).unwrap_or(&self.first).clone()
    }

    /// How a service's clients are met: TLS 1.2 and 1.3, HTTP/1.1, no early data.
    ///
    /// # Errors
    /// Never with the cipher suites that are built in.
    pub fn config(self) -> Result<Tls, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(&[&TLS13, &TLS12])?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::new(self));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.of(hello.server_name()))
    }
}

fn pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let read = |what, path: &Path, cause: &dyn fmt::Display| CertificateError::Read { what, path: path.into(), cause: cause.to_string() };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| read("certificate", certificate, &error))?;
    if chain.is_empty() {
        return Err(CertificateError::Empty(certificate.into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| read("key", key, &error))?;
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(|error| CertificateError::Pair {
        certificate: certificate.into(),
        key: key.into(),
        cause: error.to_string(),
    })
}

/// DNS names that a certificate is for, in lower case.
fn names(pair: &CertifiedKey, path: &Path) -> Result<Vec<String>, CertificateError> {
    let parsed = webpki::EndEntityCert::try_from(&pair.cert[0])
        .map_err(|error| CertificateError::Names { path: path.into(), cause: error.to_string() })?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(dir: &Path, name: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        splitter_lab::certificate::issue(dir, name, names).expect("a certificate")
    }

    #[test]
    fn names_choose_the_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = [write(dir.path(), "a", &["a.test"]), write(dir.path(), "w", &["*.b.test"]), write(dir.path(), "x", &["x.b.test"])];
        let read = Certificates::read(pairs.iter().map(|(certificate, key)| (certificate.as_path(), key.as_path()))).unwrap();
        let which = |name: Option<&str>| {
            let shown = read.of(name);
            pairs.iter().position(|(certificate, _)| CertificateDer::from_pem_file(certificate).unwrap() == shown.cert[0]).unwrap()
        };
        for (name, expected) in
            [("a.test", 0), ("A.TEST", 0), ("y.b.test", 1), ("x.b.test", 2), ("z.y.b.test", 0), ("b.test", 0), ("other", 0)]
        {
            assert_eq!(which(Some(name)), expected, "{name}");
        }
        assert_eq!(which(None), 0);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (write(dir.path(), "a", &["a.test"]), write(dir.path(), "b", &["b.test"]));
        let nothing = dir.path().join("nothing");
        fs::write(&nothing, "").unwrap();
        let gone = dir.path().join("gone");
        let told = |certificate: &Path, key: &Path| Certificates::read([(certificate, key)]).unwrap_err().to_string();
        assert!(told(&a.0, &b.1).contains("does not belong to the key"), "{}", told(&a.0, &b.1));
        assert!(told(&gone, &a.1).contains("cannot read the certificate"), "{}", told(&gone, &a.1));
        assert!(told(&a.0, &gone).contains("cannot read the key"));
        assert!(told(&nothing, &a.1).contains("no certificate in PEM"));
        assert!(matches!(Certificates::read([]), Err(CertificateError::None)));
    }
}
