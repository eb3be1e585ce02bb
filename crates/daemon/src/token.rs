//! The invitation: one line that a person carries from one site to another, over a way they trust.
//!
//! ```text
//! dl1/NAME/ADDRESS[,ADDRESS...]/KEY/SECRET
//! ```
//!
//! Who has it can, once and before it expires, make its key known to the site that gave it. The key in it makes sure
//! that it is that site which is talked to. Of the secret the site keeps a digest only.

use crate::config::check_name;
use driftless_net::identity::PublicKey;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

const PREFIX: &str = "dl1";
/// Length of the secret, in bytes.
const SECRET_LEN: usize = 16;
/// Most addresses of a site.
pub const ADDRESSES_MAX: usize = 16;
/// Longest token, in bytes.
const TOKEN_LEN_MAX: usize = 2048;

/// What proves that somebody was invited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; SECRET_LEN]);

impl Secret {
    /// A new one, from the system.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn random() -> Result<Secret, String> {
        let mut secret = [0; SECRET_LEN];
        getrandom::fill(&mut secret).map_err(|e| format!("the system gives no random numbers: {e}"))?;
        Ok(Secret(secret))
    }

    /// What is kept of it: comparing digests tells nothing by its time.
    pub fn digest(&self) -> String {
        blake3::derive_key("driftless 2026 invitation", &self.0).iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl FromStr for Secret {
    type Err = NoToken;
    fn from_str(text: &str) -> Result<Secret, NoToken> {
        let mut secret = [0; SECRET_LEN];
        if text.len() != 2 * SECRET_LEN || !text.is_ascii() {
            return Err(NoToken("its secret is cut off"));
        }
        for (byte, i) in secret.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| NoToken("its secret is damaged"))?;
        }
        Ok(Secret(secret))
    }
}

/// A text is no invitation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this is not an invitation as `driftless site invite` prints it: {0}")]
pub struct NoToken(&'static str);

/// An invitation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// The site that gave it.
    pub name: String,
    /// Where it is.
    pub addresses: Vec<SocketAddr>,
    /// Its key.
    pub key: PublicKey,
    /// See [`Secret`].
    pub secret: Secret,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        write!(f, "{PREFIX}/{}/{}/{}/{}", self.name, addresses.join(","), self.key, self.secret)
    }
}

impl FromStr for Token {
    type Err = NoToken;
    fn from_str(text: &str) -> Result<Token, NoToken> {
        let text = text.trim();
        if text.len() > TOKEN_LEN_MAX {
            return Err(NoToken("it is too long"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let [PREFIX, name, addresses, key, secret] = parts[..] else {
            return Err(NoToken("a part is missing"));
        };
        check_name(name).map_err(|_| NoToken("the name in it is damaged"))?;
        let addresses: Vec<SocketAddr> = addresses
            .split(',')
            .map(|a| a.parse().map_err(|_| NoToken("an address in it is damaged")))
            .collect::<Result<_, _>>()?;
        if addresses.len() > ADDRESSES_MAX {
            return Err(NoToken("it has too many addresses"));
        }
        let key = key.parse().map_err(|_| NoToken("the key in it is damaged"))?;
        Ok(Token { name: name.into(), addresses, key, secret: secret.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = Token {
            name: "oslo".into(),
            addresses: vec!["192.0.2.1:7440".parse().unwrap(), "[2001:db8::1]:7440".parse().unwrap()],
            key: PublicKey([7; 32]),
            secret: Secret::random().unwrap(),
        };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<Token>().is_err(), "{}", &text[..cut]);
        }
        for bad in
            ["", "dl1", "dl2/oslo/1.2.3.4:5/00/00", &text.replace("oslo", "os lo"), &format!("{text}0")]
        {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        assert_ne!(token.secret.digest(), Secret::random().unwrap().digest());
        assert!(!format!("{token:?}").contains(&token.secret.to_string()), "secrets are not logged");
    }
}
