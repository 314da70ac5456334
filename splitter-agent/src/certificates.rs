//! Certificates of `mode: https`: read before a policy is taken, so that one that could not be served is refused.

use splitter_policy::{
    model::{Policy, Service},
    source::{At, Diagnostic},
};
use splitter_proxy::{
    certificates::{CertificateError, Certificates},
    snapshot::Tls,
};

/// What is wrong with the files of a policy's services, at the place of each service.
pub fn findings(policy: &Policy) -> Vec<Diagnostic> {
    let tried = policy.services.iter().filter(|service| service.tls.is_some());
    tried.filter_map(|service| Some(diagnostic(service, &read(service).err()?))).collect()
}

/// Reads the files of a service.
///
/// # Errors
/// What is wrong with one of them, and what to do.
pub fn read(service: &Service) -> Result<Certificates, CertificateError> {
    let pairs = service.tls.iter().flat_map(|tls| &tls.certificates);
    Certificates::read(pairs.map(|pair| (pair.cert_file.as_path(), pair.key_file.as_path())))
}

/// Reads them for use.
///
/// # Errors
/// As [`read`].
pub fn load(service: &Service) -> Result<Tls, String> {
    let certificates = read(service).map_err(|error| error.to_string())?;
    certificates.config().map_err(|error| error.to_string())
}

fn diagnostic(service: &Service, error: &CertificateError) -> Diagnostic {
    let mut place = service.origin.rsplitn(3, ':');
    let [column, line] = [place.next(), place.next()].map(|number| number.and_then(|number| number.parse().ok()).unwrap_or(1));
    Diagnostic {
        path: place.next().unwrap_or_default().into(),
        at: At { line, column },
        object: Some(format!("TrafficSplit {}", service.name)),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_policy::source;

    #[test]
    fn a_policy_whose_certificate_is_missing_is_told_with_its_place() {
        let policy = "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {name: shop}\nspec:\n  mode: https\n  \
                      tls: {certificates: [{certFile: none.crt, keyFile: none.key}]}\n  frontends: [{address: 10.9.9.9, port: 443}]\n  \
                      versions: [{name: v1, weight: 1, backends: [\"10.2.1.2:8080\"]}]\n";
        let policy = source::read("/nowhere/shop.yaml", policy.as_bytes()).result.expect("a policy");
        let found = findings(&policy);
        assert_eq!(found.len(), 1);
        let text = found[0].to_string();
        assert!(text.starts_with("/nowhere/shop.yaml:3:18: TrafficSplit shop: cannot read the certificate /nowhere/none.crt: "), "{text}");
    }
}
