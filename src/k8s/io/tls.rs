//! TLS towards the API server: which certificates are trusted, and which one is ours.

use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use kube::Config;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tower::BoxError;

use super::user::User;

/// Trusts the authorities that the credentials name, without any those of the system.
///
/// # Errors
/// Certificates and keys that cannot be used.
pub fn client_config(config: &Config, user: &User) -> Result<ClientConfig, BoxError> {
    let builder = match &config.root_cert {
        Some(certificates) => ClientConfig::builder().with_root_certificates(roots(certificates)?),
        None => ClientConfig::builder().try_with_platform_verifier()?,
    };
    let mut tls = match user.identity()? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    if config.accept_invalid_certs {
        tls.dangerous().set_certificate_verifier(Arc::new(AcceptAnything));
    }
    Ok(tls)
}

fn roots(certificates: &[Vec<u8>]) -> Result<RootCertStore, BoxError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store
            .add(CertificateDer::from(certificate.clone()))
            .map_err(|error| format!("certificate-authority: {error}"))?;
    }
    Ok(store)
}

/// For `insecure-skip-tls-verify` of a kubeconfig.
#[derive(Debug)]
struct AcceptAnything;

impl ServerCertVerifier for AcceptAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
