//! TLS as a client that believes a check's authorities: rustls, with its certificates kept.
//!
//! Sessions are not resumed: a resumed one shows no certificate, and so would hide that it has
//! expired.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use hyper::http::uri::Authority;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{net::TcpStream, task::spawn_blocking};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Failure, http::of_io};
use crate::model::TlsCheck;

/// Whom a server's certificate may be signed by.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Trust {
    /// Anybody: it is not looked at.
    All,
    /// Those of the system.
    System,
    /// Those of a file, as it was when last written.
    File(PathBuf, Option<SystemTime>),
}

/// What a configuration depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    trust: Trust,
    /// As ALPN has it.
    protocol: &'static [u8],
}

/// Configurations by what they depend on. A CA file that is written anew is read anew; the
/// system's certificates are read once.
#[derive(Default)]
pub(super) struct Tls {
    known: Mutex<HashMap<Key, Arc<ClientConfig>>>,
}

impl Tls {
    /// Speaks TLS with the server at `address`; `host` is the check's, `protocol` what follows
    /// (ALPN).
    pub(super) async fn handshake(
        &self,
        check: &TlsCheck,
        host: Option<&str>,
        protocol: &'static [u8],
        address: SocketAddr,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let name = server_name(check, host, address)?;
        let config = self.config(check, protocol).await?;
        let shaken = TlsConnector::from(config).connect(name.clone(), stream).await;
        let stream = shaken.map_err(|error| failure(&error, &name.to_str()))?;
        let chosen = stream.get_ref().1.alpn_protocol();
        if protocol == b"h2" && chosen != Some(protocol) {
            let text = "the server does not agree to speak HTTP/2 (ALPN h2), which gRPC needs";
            return Err(Failure::Tls(text.to_owned()));
        }
        Ok(stream)
    }

    async fn config(
        &self,
        check: &TlsCheck,
        protocol: &'static [u8],
    ) -> Result<Arc<ClientConfig>, Failure> {
        let trust = match (&check.ca_file, check.verify) {
            (_, false) => Trust::All,
            (None, true) => Trust::System,
            (Some(path), true) => {
                let written = fs::metadata(path).and_then(|metadata| metadata.modified());
                Trust::File(path.clone(), written.ok())
            }
        };
        let key = Key { trust, protocol };
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known().get(&key) {
            return Ok(config.clone());
        }
        let wanted = key.clone();
        let made = spawn_blocking(move || config(&wanted)).await;
        let config = Arc::new(made.map_err(|error| Failure::NotMade(error.to_string()))??);
        let mut known = known();
        if let Trust::File(path, _) = &key.trust {
            // What the file was before is of no use any more.
            known.retain(|old, _| {
                let same = matches!(&old.trust, Trust::File(other, _) if other == path);
                !(same && old.protocol == protocol)
            });
        }
        known.insert(key, config.clone());
        Ok(config)
    }
}

fn server_name(
    check: &TlsCheck,
    host: Option<&str>,
    address: SocketAddr,
) -> Result<ServerName<'static>, Failure> {
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    let host = host.as_ref().map(|host| host.host().trim_matches(['[', ']']));
    match check.server_name.as_deref().or(host) {
        None => Ok(ServerName::from(address.ip())),
        Some(name) => ServerName::try_from(name.to_owned())
            .map_err(|_| Failure::NotMade(format!("{name:?} is no name for TLS"))),
    }
}

fn config(key: &Key) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::NotMade(format!("set up TLS: {error}")))?;
    let builder = match &key.trust {
        Trust::All => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        }
        Trust::System => builder.with_root_certificates(system()?),
        Trust::File(path, _) => builder.with_root_certificates(of_file(path)?),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![key.protocol.to_owned()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn system() -> Result<RootCertStore, Failure> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(Failure::NotMade(format!(
            "the system has no certificates{why}: install ca-certificates, or set `ca_file`"
        )));
    }
    Ok(store)
}

fn of_file(path: &Path) -> Result<RootCertStore, Failure> {
    let refuse =
        |why: &dyn std::fmt::Display| Failure::NotMade(format!("read {}: {why}", path.display()));
    let text = fs::read(path).map_err(|error| refuse(&error))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| refuse(&error))?;
        store.add(certificate).map_err(|error| refuse(&error))?;
    }
    if store.is_empty() {
        return Err(refuse(&"no certificate in PEM"));
    }
    Ok(store)
}

/// Takes every certificate, whose key must still be the server's.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn failure(error: &io::Error, name: &str) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(inner) = inner else { return of_io("TLS handshake".to_owned(), error) };
    use CertificateError as Certificate;
    Failure::Tls(match inner {
        Error::InvalidCertificate(Certificate::NotValidForName)
        | Error::InvalidCertificate(Certificate::NotValidForNameContext { .. }) => {
            format!("certificate not valid for name {name}")
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "certificate has expired".to_owned()
        }
        Error::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => "certificate is not valid yet".to_owned(),
        Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            "certificate is signed by nobody known here: set `ca_file`".to_owned()
        }
        Error::InvalidMessage(_) => "the answer is no TLS".to_owned(),
        Error::AlertReceived(alert) => format!("the server refuses: {alert:?}"),
        other => other.to_string(),
    })
}
