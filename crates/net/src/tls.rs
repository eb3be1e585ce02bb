//! TCP with TLS 1.3, both ends known by their public keys.
//!
//! Keys are sent as such (RFC 7250), not in certificates: nothing but the key is ever looked at, so there is nothing else to parse. The
//! end that connects names the key it expects; the end that listens takes any client that proves to have the key that
//! it shows, and says which: what that key may do is the caller's to decide before anything else is read.
//!
//! [`Tls::split`] gives two halves for two threads. Socket calls are made outside the lock they share, so reading and
//! writing do not wait for each other.

use crate::identity::{Identity, PublicKey};
use crate::line::Gauge;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, Connection, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
};
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What both ends must agree to speak inside: strangers of other protocols end here.
const ALPN: &[u8] = b"driftless/1";
/// Bytes read from the socket at once.
const READ_LEN: usize = 64 << 10;
/// Plaintext encrypted at once.
const WRITE_LEN: usize = 64 << 10;

/// Bytes that the system takes without sending them yet. What is written later stands behind these, whatever it is: at
/// 100 Mbit/s for 10 ms. Without a bound they would be megabytes.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The other end cannot be reached, or hung up.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not speak TLS, or does not have the key that it should have.
    #[error("{0}")]
    Tls(#[from] Error),
    /// It shows another key.
    #[error("it has the key {found}, expected {expected}")]
    WrongKey {
        /// Its key.
        found: PublicKey,
        /// The key it should have.
        expected: PublicKey,
    },
    /// It took too long to say who it is.
    #[error("it did not say who it is within {} s", .0.as_secs())]
    TooSlow(Duration),
}

/// What a node's connections are made with.
#[derive(Clone)]
pub struct TlsOptions {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    congestion: Option<Arc<str>>,
}

impl TlsOptions {
    /// With the key pair of this node.
    ///
    /// # Errors
    /// If the library refuses the key.
    pub fn new(identity: &Identity) -> Result<TlsOptions, Error> {
        let provider = Arc::new(ring::default_provider());
        let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(identity.pkcs8()))?;
        let spki = CertificateDer::from(identity.public().to_spki());
        let own = Arc::new(CertifiedKey::new(vec![spki], key));
        let keys = Arc::new(Keys { provider: provider.clone() });
        let tls13 = [&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&tls13)?
            .dangerous()
            .with_custom_certificate_verifier(keys.clone())
            .with_client_cert_resolver(Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(
                own.clone(),
            )));
        client.alpn_protocols = vec![ALPN.to_vec()];
        // A session that is resumed would not show its key again.
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&tls13)?
            .with_client_cert_verifier(keys)
            .with_cert_resolver(Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(own)));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(TlsOptions { client: Arc::new(client), server: Arc::new(server), congestion: None })
    }

    /// With another congestion control than the system's, by its name there. Connections go on with the system's where it
    /// has none of that name or gives it to administrators only.
    #[must_use]
    pub fn with_congestion(self, name: Option<&str>) -> TlsOptions {
        TlsOptions { congestion: name.map(Into::into), ..self }
    }

    /// Connects to a node that must have the key `expected`. `patience` bounds connecting and the handshake each.
    ///
    /// # Errors
    /// If it cannot be reached, or is another.
    pub fn connect(
        &self,
        addr: SocketAddr,
        expected: PublicKey,
        patience: Duration,
    ) -> Result<Tls, TlsError> {
        let socket = TcpStream::connect_timeout(&addr, patience)?;
        let name = ServerName::IpAddress(addr.ip().into());
        let conn = rustls::ClientConnection::new(self.client.clone(), name)?;
        let tls = self.handshake(socket, Connection::Client(conn), patience)?;
        match tls.peer {
            found if found == expected => Ok(tls),
            found => Err(TlsError::WrongKey { found, expected }),
        }
    }

    /// Answers a connection. Who it is stands in [`Tls::peer`].
    ///
    /// # Errors
    /// If the client does not prove that it has a key.
    pub fn accept(&self, socket: TcpStream, patience: Duration) -> Result<Tls, TlsError> {
        let conn = rustls::ServerConnection::new(self.server.clone())?;
        self.handshake(socket, Connection::Server(conn), patience)
    }

    fn handshake(&self, socket: TcpStream, conn: Connection, patience: Duration) -> Result<Tls, TlsError> {
        if let Some(name) = &self.congestion {
            let _ = SockRef::from(&socket).set_tcp_congestion(name.as_bytes());
        }
        Tls::handshake(socket, conn, patience)
    }
}

/// Takes every key of which possession is proved; which one is compared afterwards.
#[derive(Debug)]
struct Keys {
    provider: Arc<CryptoProvider>,
}

impl Keys {
    fn verify(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &spki,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// TLS 1.2 is never offered, and has no raw keys here.
fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

fn check_kind(cert: &CertificateDer<'_>) -> Result<(), Error> {
    match PublicKey::of_spki(cert.as_ref()) {
        Some(_) => Ok(()),
        None => Err(CertificateError::BadEncoding.into()),
    }
}

/// What both ends have in common: signatures are made with the key that is shown, in TLS 1.3.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(no_tls12())
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.verify(message, cert, dss)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Keys {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_kind(cert).map(|()| ServerCertVerified::assertion())
    }
    signatures!();
}

impl ClientCertVerifier for Keys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_kind(cert).map(|()| ClientCertVerified::assertion())
    }
    signatures!();
}

/// A connection to a node that has proved to have the key [`Tls::peer`].
pub struct Tls {
    socket: TcpStream,
    conn: Connection,
    /// The other end's key.
    pub peer: PublicKey,
}

impl Tls {
    fn handshake(socket: TcpStream, mut conn: Connection, patience: Duration) -> Result<Tls, TlsError> {
        socket.set_nodelay(true)?;
        // Where it cannot be had small messages wait longer; that is no reason not to talk.
        let _ = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
        let deadline = Instant::now() + patience;
        while conn.is_handshaking() || conn.wants_write() {
            // Each call of the system ends in time; and so does the whole, however slowly bytes drip in.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TlsError::TooSlow(patience));
            }
            socket.set_read_timeout(Some(left))?;
            socket.set_write_timeout(Some(left))?;
            if conn.wants_write() {
                conn.write_tls(&mut &socket).map_err(|e| slow(e, patience))?;
                continue;
            }
            if conn.read_tls(&mut &socket).map_err(|e| slow(e, patience))? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up").into());
            }
            if let Err(e) = conn.process_new_packets() {
                // The alert tells the other end why. If it cannot be sent, it sees the end.
                let _ = conn.write_tls(&mut &socket);
                return Err(e.into());
            }
        }
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        let shown = conn.peer_certificates().and_then(|c| c.first());
        let peer =
            shown.and_then(|c| PublicKey::of_spki(c.as_ref())).ok_or(Error::NoCertificatesPresented)?;
        Ok(Tls { socket, conn, peer })
    }

    /// The address at the other end.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Two halves for two threads. Reading fails if nothing comes for `silence_max`; dropping the writer, or
    /// [`TlsStop::stop`], ends both.
    ///
    /// # Errors
    /// If the system gives no second descriptor.
    pub fn split(self, silence_max: Duration) -> io::Result<(TlsReader, TlsWriter, TlsStop)> {
        self.socket.set_read_timeout(Some(silence_max))?;
        let (read, write, stop) = (self.socket.try_clone()?, self.socket.try_clone()?, self.socket);
        let conn = Arc::new(Mutex::new(self.conn));
        let reader =
            TlsReader { socket: read, conn: conn.clone(), bytes: vec![0; READ_LEN], new: 0..0, silence_max };
        Ok((reader, TlsWriter { socket: write, conn, out: Vec::new() }, TlsStop(stop)))
    }
}

fn slow(e: io::Error, patience: Duration) -> TlsError {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TlsError::TooSlow(patience),
        _ => TlsError::Io(e),
    }
}

fn lock(conn: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // After a panic inside the library the connection's next record fails to decrypt at the other end.
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reading half.
pub struct TlsReader {
    socket: TcpStream,
    conn: Arc<Mutex<Connection>>,
    bytes: Vec<u8>,
    /// What of `bytes` has been read and not decrypted yet.
    new: Range<usize>,
    silence_max: Duration,
}

impl Read for TlsReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            {
                let mut conn = lock(&self.conn);
                match conn.reader().read(into) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
                // Only so much is decrypted that there is room for it.
                if !self.new.is_empty() {
                    self.new.start += conn.read_tls(&mut &self.bytes[self.new.clone()])?;
                    conn.process_new_packets().map_err(io::Error::other)?;
                    continue;
                }
            }
            let len = match self.socket.read(&mut self.bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let text = format!("nothing was heard of it for {} s", self.silence_max.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                other => other?,
            };
            if len == 0 {
                return Ok(0); // without the alert that ends TLS in good order; frames say themselves where they end
            }
            self.new = 0..len;
        }
    }
}

/// The writing half.
pub struct TlsWriter {
    socket: TcpStream,
    conn: Arc<Mutex<Connection>>,
    out: Vec<u8>,
}

impl TlsWriter {
    /// Tells how fast the line is that this writes to.
    ///
    /// # Errors
    /// If the system gives no second descriptor.
    pub fn gauge(&self) -> io::Result<Gauge> {
        Ok(Gauge::new(self.socket.try_clone()?))
    }

    fn send(&mut self) -> io::Result<()> {
        {
            let mut conn = lock(&self.conn);
            while conn.wants_write() {
                conn.write_tls(&mut self.out)?;
            }
        }
        self.socket.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }
}

impl Write for TlsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = lock(&self.conn).writer().write(&bytes[..bytes.len().min(WRITE_LEN)])?;
        self.send()?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Drop for TlsWriter {
    fn drop(&mut self) {
        lock(&self.conn).send_close_notify();
        // The other end may have gone already.
        let _ = self.send();
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

/// Ends a connection from another thread.
pub struct TlsStop(TcpStream);

impl TlsStop {
    /// Wakes whoever reads or writes.
    pub fn stop(&self) {
        // It may have ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// What a connection is made with if `name` is asked for.
    fn congestion(name: Option<&str>) -> String {
        let (oslo, bergen) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let options = TlsOptions::new(&oslo).unwrap();
        let answered =
            std::thread::spawn(move || options.accept(listener.accept().unwrap().0, PATIENCE).map(drop));
        let options = TlsOptions::new(&bergen).unwrap().with_congestion(name);
        let tls = options.connect(address, oslo.public(), PATIENCE).unwrap();
        answered.join().unwrap().unwrap();
        let found = SockRef::from(&tls.socket).tcp_congestion().unwrap();
        String::from_utf8_lossy(&found).trim_end_matches('\0').to_owned()
    }

    #[test]
    fn connections_have_the_congestion_control_that_is_asked_for_where_the_system_has_it() {
        assert_eq!(congestion(Some("reno")), "reno");
        assert_eq!(congestion(Some("nonsense")), congestion(None));
    }
}
