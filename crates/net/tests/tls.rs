//! Who is let in: both ends prove to have their keys, and the end that connects names the one it expects.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use driftless_net::identity::{Identity, PublicKey};
use driftless_net::tls::{Tls, TlsError, TlsOptions};
use rustls::crypto::ring;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    key: PublicKey,
    options: TlsOptions,
}

fn node() -> Node {
    let identity = Identity::generate().unwrap();
    Node { key: identity.public(), options: TlsOptions::new(&identity).unwrap() }
}

/// Answers one connection; who it was.
fn listen(node: &Node) -> (SocketAddr, JoinHandle<Result<PublicKey, TlsError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, options) = (listener.local_addr().unwrap(), node.options.clone());
    let answered = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let tls = options.accept(socket, PATIENCE)?;
        let peer = tls.peer;
        let (mut reader, mut writer, _stop) = tls.split(PATIENCE)?;
        let mut byte = [0];
        // The other end may have hung up: it found a key that it did not expect.
        if reader.read(&mut byte).is_ok_and(|n| n == 1) {
            writer.write_all(&byte)?;
            writer.flush()?;
        }
        Ok(peer)
    });
    (address, answered)
}

#[test]
fn both_ends_know_each_others_keys() {
    let (oslo, bergen) = (node(), node());
    let (address, answered) = listen(&oslo);
    let tls: Tls = bergen.options.connect(address, oslo.key, PATIENCE).unwrap();
    assert_eq!(tls.peer, oslo.key);
    let (mut reader, mut writer, _stop) = tls.split(PATIENCE).unwrap();
    writer.write_all(b"x").unwrap();
    writer.flush().unwrap();
    let mut byte = [0];
    reader.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
    assert_eq!(answered.join().unwrap().unwrap(), bergen.key);
}

#[test]
fn another_key_than_the_expected_one_is_another_node() {
    let (oslo, bergen, other) = (node(), node(), node());
    let (address, answered) = listen(&other);
    match bergen.options.connect(address, oslo.key, PATIENCE) {
        Err(TlsError::WrongKey { found, expected }) => assert_eq!((found, expected), (other.key, oslo.key)),
        _ => panic!("it was taken for the expected one"),
    }
    // It was told who called, and nothing else.
    assert_eq!(answered.join().unwrap().unwrap(), bergen.key);
}

#[test]
fn a_client_without_a_key_gets_nothing() {
    let oslo = node();
    let (address, answered) = listen(&oslo);
    let provider = Arc::new(ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"driftless/1".to_vec()];
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let mut conn = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let mut stream = rustls::Stream::new(&mut conn, &mut socket);
    let mut bytes = Vec::new();
    let told = stream.write_all(b"x").and_then(|()| stream.read_to_end(&mut bytes));
    assert!(told.is_err() && bytes.is_empty(), "{told:?} {bytes:?}");
    assert!(matches!(answered.join().unwrap(), Err(TlsError::Tls(_) | TlsError::Io(_))));
}

#[test]
fn a_client_of_another_protocol_or_of_none_gets_nothing() {
    for bytes in [&b"driftless 1 1\n"[..], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let oslo = node();
        let (address, answered) = listen(&oslo);
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut told = Vec::new();
        // At most the alert of TLS; or it was reset.
        let _ = socket.read_to_end(&mut told);
        assert!(told.len() < 16, "{told:?}");
        assert!(answered.join().unwrap().is_err());
    }
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let oslo = node();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let patience = Duration::from_millis(200);
    assert!(oslo.options.accept(socket, patience).is_err());
}

/// Takes any server: this is about clients.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
