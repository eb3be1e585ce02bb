//! Who a node is: an Ed25519 key pair, made once. Its public half is its name to others and is all they ever pin.

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr;

/// Length of a public key, in bytes.
pub const KEY_LEN: usize = 32;
/// Length of a signature, in bytes.
pub const SIGNATURE_LEN: usize = 64;
/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Longest key file: a PKCS#8 document of an Ed25519 pair has 83 to 85 bytes.
const FILE_LEN_MAX: u64 = 1024;

/// A node's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_LEN]);

impl PublicKey {
    /// The key as RFC 7250 sends it.
    pub fn to_spki(self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// The Ed25519 key in a SubjectPublicKeyInfo; `None` for any other.
    pub fn of_spki(der: &[u8]) -> Option<PublicKey> {
        der.strip_prefix(&SPKI_PREFIX[..])?.try_into().ok().map(PublicKey)
    }

    /// True if whoever has this key's other half signed `bytes` so.
    pub fn verify(&self, bytes: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, signature).is_ok()
    }

    /// The first 64 bits in hex: enough for people to tell keys apart.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

/// A text is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a key is {} hexadecimal digits", 2 * KEY_LEN)]
pub struct NoKey;

impl FromStr for PublicKey {
    type Err = NoKey;
    fn from_str(text: &str) -> Result<PublicKey, NoKey> {
        if text.len() != 2 * KEY_LEN || !text.is_ascii() {
            return Err(NoKey);
        }
        let mut key = [0; KEY_LEN];
        for (byte, i) in key.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| NoKey)?;
        }
        Ok(PublicKey(key))
    }
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or made.
    #[error("{path}: {source}")]
    Io {
        /// The key's file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no key.
    #[error("{path} is not an Ed25519 key in PKCS#8")]
    NotAKey {
        /// The key's file.
        path: String,
    },
    /// Others may read it.
    #[error(
        "{path} can be read by others (mode {mode:o}): they could speak as this node. Make a new one, or chmod 600 it"
    )]
    Open {
        /// The key's file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The system gives no random numbers.
    #[error("no key can be made: the system gives no random numbers")]
    NoRandom,
}

/// A key pair.
pub struct Identity {
    pkcs8: Vec<u8>,
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl Identity {
    /// A new pair, kept nowhere yet.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn generate() -> Result<Identity, IdentityError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::NoRandom)?;
        Identity::of_pkcs8(document.as_ref(), Path::new("a new key"))
    }

    fn of_pkcs8(pkcs8: &[u8], path: &Path) -> Result<Identity, IdentityError> {
        let not_a_key = || IdentityError::NotAKey { path: path.display().to_string() };
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| not_a_key())?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| not_a_key())?;
        Ok(Identity { pkcs8: pkcs8.to_vec(), pair, public: PublicKey(public) })
    }

    /// The pair in a file, or `None` if there is no such file. A file that others may read is refused.
    ///
    /// # Errors
    /// If it cannot be read or used.
    pub fn load(path: &Path) -> Result<Option<Identity>, IdentityError> {
        let io = |source| IdentityError::Io { path: path.display().to_string(), source };
        let file = match fs::File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io)?,
        };
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Open { path: path.display().to_string(), mode });
        }
        let mut pkcs8 = Vec::new();
        file.take(FILE_LEN_MAX).read_to_end(&mut pkcs8).map_err(io)?;
        Identity::of_pkcs8(&pkcs8, path).map(Some)
    }

    /// Writes the pair to a new file that only its owner can read. Durable when this returns.
    ///
    /// # Errors
    /// If there is a file already, or it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let io = |source| IdentityError::Io { path: path.display().to_string(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        file.write_all(&self.pkcs8).and_then(|()| file.sync_all()).map_err(io)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `bytes` as this node.
    pub fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut signature = [0; SIGNATURE_LEN];
        // An Ed25519 signature has this length.
        signature.copy_from_slice(self.pair.sign(bytes).as_ref());
        signature
    }

    /// Both halves as PKCS#8, for TLS.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_pair_survives_and_is_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(Identity::load(&path).unwrap().is_none());
        let pair = Identity::generate().unwrap();
        pair.save(&path).unwrap();
        assert!(pair.save(&path).is_err(), "a key is never written over");
        assert_eq!(Identity::load(&path).unwrap().unwrap().public(), pair.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Open { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::NotAKey { .. })));
    }

    #[test]
    fn a_signature_is_of_one_key_over_some_bytes() {
        let (pair, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let mut signature = pair.sign(b"bytes");
        assert!(pair.public().verify(b"bytes", &signature));
        assert!(!pair.public().verify(b"byte", &signature));
        assert!(!other.public().verify(b"bytes", &signature));
        signature[7] ^= 1;
        assert!(!pair.public().verify(b"bytes", &signature));
        assert!(!PublicKey([0xff; 32]).verify(b"bytes", &signature), "no key at all");
    }

    #[test]
    fn keys_have_a_text_and_a_der_form() {
        let key = Identity::generate().unwrap().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(PublicKey::of_spki(&key.to_spki()), Some(key));
        assert_ne!(key, Identity::generate().unwrap().public());
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert_eq!(bad.parse::<PublicKey>(), Err(NoKey), "{bad}");
        }
        assert_eq!(PublicKey::of_spki(&key.0), None);
    }
}
