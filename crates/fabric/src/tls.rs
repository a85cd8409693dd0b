//! TLS 1.3 over TCP, where both sides show a certificate of the cluster's authority.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustls::client::Resumption;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use crate::pipe::Pipe;
use crate::tcp::{failed, wait};
use crate::{FabricError, Result};

/// Read from the socket at once: several of TLS's records.
const AHEAD_BYTES: usize = 1 << 16;
/// A file longer than this was not meant.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the certificates of a process lie, all PEM.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// Certificates of the authorities by which peers are trusted.
    pub ca: PathBuf,
    /// Of this process, and what leads from it to the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The name that every callee's certificate bears; unless said, each its own: the host it is called at.
    pub name: Option<String>,
}

/// Who we are and whom we trust.
#[derive(Clone, Debug)]
pub struct Certificates {
    calls: Arc<ClientConfig>,
    answers: Arc<ServerConfig>,
    name: Option<ServerName<'static>>,
}

impl Certificates {
    /// Reads and checks the files.
    pub fn read(files: &CertificateFiles) -> Result<Self> {
        let CertificateFiles { ca, certificate, key, name } = files;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|e| problem(ca, e))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(certificate)?;
        let key_of_file = || PrivateKeyDer::from_pem_reader(bounded(key)?).map_err(|e| problem(key, in_words(e)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = &[&rustls::version::TLS13];

        let mut calls = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(tls)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key_of_file()?)
            .map_err(|e| problem(certificate, e))?;
        // Each connection proves everything anew.
        calls.resumption = Resumption::disabled();

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let mut answers = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(tls)?
            .with_client_cert_verifier(verifier.build().map_err(|e| problem(ca, e))?)
            .with_single_cert(chain, key_of_file()?)
            .map_err(|e| problem(certificate, e))?;
        answers.send_tls13_tickets = 0;
        let name = name.as_deref().map(server_name).transpose()?;
        Ok(Self { calls: Arc::new(calls), answers: Arc::new(answers), name })
    }
}

/// Of a host, or of a host and port.
fn server_name(address: &str) -> Result<ServerName<'static>> {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let host = match address.rsplit_once(':') {
        Some((host, port)) if is_port(port) && (host.ends_with(']') || !host.contains(':')) => host,
        _ => address,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let bad = |e: rustls::pki_types::InvalidDnsNameError| FabricError::Tls(format!("'{host}': {e}"));
    ServerName::try_from(host.to_owned()).map_err(bad)
}

fn problem(path: &Path, problem: impl std::fmt::Display) -> FabricError {
    FabricError::Tls(format!("{}: {problem}", path.display()))
}

fn in_words(error: pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "holds none, in PEM".into(),
        error => error.to_string(),
    }
}

fn bounded(path: &Path) -> Result<impl Read + use<>> {
    let file = File::open(path).map_err(|e| problem(path, format!("cannot be read: {e}")))?;
    Ok(file.take(FILE_BYTES_MAX))
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(bounded(path)?).collect();
    match found.map_err(|e| problem(path, in_words(e)))? {
        none if none.is_empty() => Err(problem(path, in_words(pem::Error::NoItemsFound))),
        certificates => Ok(certificates),
    }
}

/// Distrust apart from all else that can go wrong.
fn tls(error: rustls::Error) -> FabricError {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(problem) => {
            FabricError::Untrusted(format!("the peer's certificate: {problem}"))
        }
        rustls::Error::NoCertificatesPresented => FabricError::Untrusted("the peer shows no certificate".into()),
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied),
        ) => FabricError::Untrusted(format!("the peer does not take our certificate: {alert:?}")),
        error => FabricError::Tls(error.to_string()),
    }
}

pub(crate) struct TlsPipe {
    stream: TcpStream,
    session: Connection,
    /// What the socket gave and TLS did not take yet.
    ahead: Box<[u8]>,
    /// Of `ahead`.
    waiting: std::ops::Range<usize>,
}

impl TlsPipe {
    /// The caller's side, through TLS's handshake.
    pub fn call(stream: TcpStream, certificates: &Certificates, address: &str, deadline: Instant) -> Result<Self> {
        let name = match &certificates.name {
            Some(name) => name.clone(),
            None => server_name(address)?,
        };
        let session = ClientConnection::new(Arc::clone(&certificates.calls), name).map_err(tls)?;
        Self::shake_hands(stream, session.into(), deadline)
    }

    /// The other side of it.
    pub fn answer(stream: TcpStream, certificates: &Certificates, deadline: Instant) -> Result<Self> {
        let session = ServerConnection::new(Arc::clone(&certificates.answers)).map_err(tls)?;
        Self::shake_hands(stream, session.into(), deadline)
    }

    fn shake_hands(stream: TcpStream, session: Connection, deadline: Instant) -> Result<Self> {
        let mut pipe = Self { stream, session, ahead: vec![0; AHEAD_BYTES].into(), waiting: 0..0 };
        let mut has_waited = false;
        while pipe.session.is_handshaking() {
            pipe.flush(deadline)?;
            pipe.take(&mut has_waited, deadline)?;
        }
        pipe.flush(deadline)?;
        Ok(pipe)
    }

    /// Writes what TLS has for the peer.
    fn flush(&mut self, deadline: Instant) -> Result<()> {
        let mut is_late = false;
        while self.session.wants_write() {
            if is_late {
                return Err(FabricError::TimedOut);
            }
            is_late = Instant::now() >= deadline;
            self.stream.set_write_timeout(wait(deadline)).map_err(|e| failed("send", e))?;
            match self.session.write_tls(&mut self.stream) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("send", error)),
            }
        }
        Ok(())
    }

    /// Has TLS take more of what the peer sent; waits for it if need be, but once only where the deadline has passed.
    fn take(&mut self, has_waited: &mut bool, deadline: Instant) -> Result<()> {
        if self.waiting.is_empty() {
            if *has_waited && Instant::now() >= deadline {
                return Err(FabricError::TimedOut);
            }
            *has_waited = true;
            self.stream.set_read_timeout(wait(deadline)).map_err(|e| failed("receive", e))?;
            match self.stream.read(&mut self.ahead) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(count) => self.waiting = 0..count,
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
                Err(error) => return Err(failed("receive", error)),
            }
        }
        let mut bytes = &self.ahead[self.waiting.clone()];
        self.waiting.start += self.session.read_tls(&mut bytes).map_err(|e| failed("receive", e))?;
        let outcome = self.session.process_new_packets().map_err(tls);
        // The peer may be told why, or be sent a new key; if that fails so will the next message.
        if self.session.wants_write() {
            let _ = self.flush(deadline);
        }
        outcome.map(|_| ())
    }

    fn write_all(&mut self, mut parts: &mut [IoSlice<'_>], deadline: Instant) -> Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let count = self.session.writer().write_vectored(parts).map_err(|e| failed("send", e))?;
            if count == 0 {
                return Err(FabricError::Closed);
            }
            IoSlice::advance_slices(&mut parts, count);
            self.flush(deadline)?;
        }
        Ok(())
    }
}

impl Pipe for TlsPipe {
    fn write(&mut self, parts: &mut [IoSlice<'_>], deadline: Instant) -> Result<()> {
        match self.write_all(parts, deadline) {
            // Who does not take our certificate says so and hangs up while we think that the handshake is over.
            Err(FabricError::Closed) => match self.take(&mut false, Instant::now()) {
                Err(error @ FabricError::Untrusted(_)) => Err(error),
                _ => Err(FabricError::Closed),
            },
            outcome => outcome,
        }
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<()> {
        let (mut done, mut has_waited) = (0, false);
        while done < bytes.len() {
            match self.session.reader().read(&mut bytes[done..]) {
                Ok(0) => return Err(FabricError::Closed),
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.take(&mut has_waited, deadline)?,
                Err(error) => return Err(failed("receive", error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_host_of_an_address() {
        let check = |address: &str, expected: &str| {
            assert_eq!(server_name(address).expect(expected).to_str(), expected, "{address}");
        };
        check("worker-0.lingqu:7001", "worker-0.lingqu");
        check("worker-0.lingqu", "worker-0.lingqu");
        check("10.0.0.10:7001", "10.0.0.10");
        check("[fd00::1]:7001", "fd00::1");
        check("fd00::1", "fd00::1");
        assert!(server_name("no host:1").is_err());
    }
}
