//! The first line each side writes: what it is and which protocol versions it speaks.
//!
//! `driftless 1 4\n`: name, least and greatest version. Anything else on the stream means that the other end is not
//! Driftless: most often a login script that prints something.

use driftless_core::link::{PROTOCOL_MAX, PROTOCOL_MIN};
use std::io::{self, BufRead, Write};

const NAME: &[u8] = b"driftless ";
/// Longest line: name, two numbers of five digits, blank and newline.
const LINE_LEN_MAX: usize = 22;
/// How much of an unexpected answer is shown.
const SHOWN_LEN_MAX: usize = 200;

/// Why the other end cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// It ended without a word.
    #[error("the other end closed the connection without a word")]
    Silent,
    /// Something else than Driftless answers.
    #[error(
        "the other end does not answer as driftless does, it says: \"{said}\"; \
         if a login script there prints this, let it print nothing in sessions without a terminal"
    )]
    Stranger {
        /// The beginning of what it says, escaped.
        said: String,
    },
    /// It speaks only other versions of the protocol.
    #[error(
        "the other end speaks protocol versions {} to {}, this one {} to {}: install the same version of driftless at both ends",
        theirs.0, theirs.1, ours.0, ours.1
    )]
    Version {
        /// Least and greatest it speaks.
        theirs: (u16, u16),
        /// Least and greatest we speak.
        ours: (u16, u16),
    },
    /// Reading or writing failed.
    #[error("the connection broke during the greeting: {0}")]
    Io(#[from] io::Error),
}

/// Writes our line.
pub(crate) fn greet(w: &mut impl Write) -> io::Result<()> {
    let mut line = NAME.to_vec();
    line.extend_from_slice(format!("{PROTOCOL_MIN} {PROTOCOL_MAX}\n").as_bytes());
    w.write_all(&line)?;
    w.flush()
}

/// Reads the other end's line and nothing beyond it. The version to speak.
pub(crate) fn read_greeting(r: &mut impl BufRead) -> Result<u16, GreetingError> {
    let mut line = Vec::new();
    loop {
        let more = r.fill_buf()?;
        if more.is_empty() && line.is_empty() {
            return Err(GreetingError::Silent);
        }
        let len = more.iter().position(|b| *b == b'\n').map_or(more.len(), |i| i + 1);
        line.extend_from_slice(&more[..len.min(SHOWN_LEN_MAX)]);
        let expected = NAME.iter().zip(&line).all(|(a, b)| a == b);
        if !expected || more.is_empty() || (line.len() > LINE_LEN_MAX && !line.ends_with(b"\n")) {
            // All that has come so far, other lines too: the first is often empty.
            line.extend_from_slice(&more[len.min(more.len())..]);
            return Err(stranger(&line));
        }
        r.consume(len);
        if line.ends_with(b"\n") {
            break;
        }
    }
    let theirs = versions(&line).ok_or_else(|| stranger(&line))?;
    let version = PROTOCOL_MAX.min(theirs.1);
    if version < PROTOCOL_MIN.max(theirs.0) {
        return Err(GreetingError::Version { theirs, ours: (PROTOCOL_MIN, PROTOCOL_MAX) });
    }
    Ok(version)
}

fn versions(line: &[u8]) -> Option<(u16, u16)> {
    let text = std::str::from_utf8(line.strip_prefix(NAME)?.strip_suffix(b"\n")?).ok()?;
    let (least, greatest) = text.split_once(' ')?;
    Some((least.parse().ok()?, greatest.parse().ok()?))
}

fn stranger(said: &[u8]) -> GreetingError {
    let said = &said[..said.len().min(SHOWN_LEN_MAX)];
    GreetingError::Stranger { said: said.escape_ascii().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn read(bytes: &[u8], chunk: usize) -> Result<u16, GreetingError> {
        read_greeting(&mut BufReader::with_capacity(chunk, bytes))
    }

    #[test]
    fn a_greeting_is_read_to_its_end_and_no_further() {
        let mut line = Vec::new();
        greet(&mut line).unwrap();
        assert_eq!(line, b"driftless 1 5\n");
        line.extend_from_slice(b"rest");
        let mut r = &line[..];
        assert_eq!(read_greeting(&mut r).unwrap(), 5);
        assert_eq!(r, b"rest");
        for chunk in 1..20 {
            assert_eq!(read(&line, chunk).unwrap(), 5);
        }
        assert_eq!(read(b"driftless 1 9\n", 99).unwrap(), 5);
        assert_eq!(read(b"driftless 1 1\n", 99).unwrap(), 1, "an older one");
    }

    #[test]
    fn strangers_are_quoted() {
        for said in [
            &b"Welcome to example.org!\n"[..],
            b"bash: driftless: command not found\n",
            b"driftless one two\n",
            b"driftless 1\n",
            b"driftless 1 70000\n",
            b"driftless 1 111111111111111111111111111111",
            b"drift",
            b"\n\xff\0",
        ] {
            for chunk in [1, 7, 99] {
                match read(said, chunk) {
                    Err(GreetingError::Stranger { said: shown }) => {
                        let all = said.escape_ascii().to_string();
                        assert!(chunk < 99 || all.starts_with(&shown) && !shown.is_empty(), "{shown}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(matches!(read(b"", 9), Err(GreetingError::Silent)));
    }

    #[test]
    fn other_versions_are_named() {
        match read(b"driftless 7 9\n", 99) {
            Err(GreetingError::Version { theirs: (7, 9), .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
