//! The first words on a connection, after TLS and before anything else: one line of JSON from the end that connected, one in
//! answer. What an unknown key may say is only [`Request::Join`],
//! [`Request::Preview`] and [`Request::Succeed`]; whatever it says is at most [`LINE_LEN_MAX`] bytes.

use crate::status::{PathVersion, SiteHeld, SiteKnows, SiteWhy};
use driftless_node::query::{Cursor, ListedRow, Page};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Longest line: a membership of some hundred changes, in hex. Strangers, of whom only so many are heard at once, can take no
/// more of the memory.
const LINE_LEN_MAX: usize = 128 << 10;
/// Longest answer of a site that is asked something: explanations of many sites.
const ANSWER_LEN_MAX: usize = 4 << 20;
/// The version of these words.
const VERSION: u16 = 1;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// I was invited: take note of my key.
    Join {
        /// The secret of the invitation.
        secret: String,
        /// My name.
        name: String,
        /// Where I am.
        addresses: Vec<String>,
    },
    /// I was invited: what would be if I joined? Nothing is noted by this.
    Preview {
        /// The secret of the invitation.
        secret: String,
        /// My name.
        name: String,
        /// What does this volume show?
        volume: Option<String>,
        /// Where the page before ended.
        after: Option<Cursor>,
    },
    /// My key has taken the place of one that you know: this says so.
    Succeed {
        /// The id of a volume of which both are members.
        volume: String,
        /// Its membership, in hex.
        document: String,
    },
    /// You have another key than I know: what says so?
    Succession {
        /// The id of a volume of which both are members.
        volume: String,
    },
    /// Which volume of yours has this name?
    Volume {
        /// The name.
        name: String,
    },
    /// Why is a path of this volume as it is at your site, and at those that only you are linked to?
    Why {
        /// Its id.
        volume: String,
        /// Bytes of the path below the root, in hex.
        path_hex: String,
        /// Sites that are asked already.
        asked: Vec<String>,
    },
    /// Which sites, of those not asked already, hold what you hold of this volume? Wait for it.
    Flush {
        /// Its id.
        volume: String,
        /// Sites that are asked already.
        asked: Vec<String>,
        /// Seconds to wait at most.
        timeout_s: u64,
    },
    /// What do you know of this volume, and those that only you are linked to? Whose contents do you have?
    Known {
        /// Its id.
        volume: String,
        /// Sites that are asked already.
        asked: Vec<String>,
        /// Versions, and the paths that should show them.
        versions: Vec<PathVersion>,
    },
    /// Bring this volume up to date with me. After a good answer the greeting and frames follow.
    Link {
        /// Its id.
        volume: String,
        /// Where I am now.
        addresses: Vec<String>,
    },
}

/// What is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    /// Your key is known now.
    Joined {
        /// My name.
        name: String,
        /// Volumes that you may have.
        volumes: Vec<VolumeInfo>,
    },
    /// To [`Request::Preview`].
    Preview {
        /// My name.
        name: String,
        /// Volumes that you might have.
        volumes: Vec<VolumeInfo>,
        /// A part of what the volume that was asked for shows.
        page: Option<Page<ListedRow>>,
    },
    /// To [`Request::Succeed`].
    Succeeded,
    /// To [`Request::Succession`].
    Succession {
        /// The volume's membership, in hex.
        document: String,
    },
    /// That one.
    Volume(VolumeInfo),
    /// To [`Request::Why`].
    Why(Vec<SiteWhy>),
    /// To [`Request::Flush`].
    Flushed(Vec<SiteHeld>),
    /// To [`Request::Known`].
    Known(Vec<SiteKnows>),
    /// Go on.
    Linked,
    /// No. Volumes that are unknown and volumes that are forbidden get the same answer.
    Refused {
        /// For people.
        why: String,
        /// It may be different later: the site knows of the link, and has it stopped.
        #[serde(default)]
        for_now: bool,
        /// Your key is not known.
        #[serde(default)]
        unknown_key: bool,
    },
}

/// A volume, for one who may have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct VolumeInfo {
    pub(crate) name: String,
    pub(crate) id: String,
    /// You make no changes in it.
    pub(crate) follower: bool,
    /// What need not be brought to you, unless you say otherwise: patterns, one a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<String>,
    /// Who has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) members: Vec<MemberInfo>,
}

/// A member of a volume, for one who is about to be one. Its membership says the same, signed, once it has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MemberInfo {
    pub(crate) site: String,
    /// In hex.
    pub(crate) key: String,
    pub(crate) addresses: Vec<String>,
}

/// A document for a line; `None` if it is too long for one.
pub(crate) fn document_hex(bytes: &[u8]) -> Option<String> {
    let room = LINE_LEN_MAX - 1024;
    (bytes.len() * 2 <= room).then(|| bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The bytes of a document in a line.
pub(crate) fn document_bytes(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    v: u16,
    #[serde(flatten)]
    body: Body<T>,
}

#[derive(Serialize, Deserialize)]
struct Body<T> {
    says: T,
}

/// Writes one line.
pub(crate) fn write<T: Serialize>(to: &mut impl Write, says: T) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Line { v: VERSION, body: Body { says } })?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line and nothing beyond it.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    read_line(from, LINE_LEN_MAX)
}

/// As [`read`], for an answer that may be longer: from a site that was asked.
pub(crate) fn read_answer(from: &mut impl Read) -> io::Result<Response> {
    read_line(&mut io::BufReader::new(from), ANSWER_LEN_MAX)
}

fn read_line<T: DeserializeOwned>(from: &mut impl Read, len_max: usize) -> io::Result<T> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if from.read(&mut byte)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it hung up before it had said what it wants",
            ));
        }
        if byte[0] == b'\n' {
            break;
        }
        if line.len() == len_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its first line is too long"));
        }
        line.push(byte[0]);
    }
    let read: Line<T> = serde_json::from_slice(&line).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidData, format!("its first line is not understood: {e}"))
    })?;
    if read.v != VERSION {
        let text = format!(
            "it speaks version {} of the first line, this one {VERSION}: install the same version",
            read.v
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(read.body.says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_to_its_end_and_no_further() {
        let request = Request::Volume { name: "data".into() };
        let mut bytes = Vec::new();
        write(&mut bytes, &request).unwrap();
        assert_eq!(bytes, b"{\"v\":1,\"says\":{\"volume\":{\"name\":\"data\"}}}\n");
        bytes.extend_from_slice(b"driftless 1 1\n");
        let mut rest = &bytes[..];
        assert_eq!(read::<Request>(&mut rest).unwrap(), request);
        assert_eq!(rest, b"driftless 1 1\n");
    }

    #[test]
    fn what_is_no_first_line_is_refused() {
        let long = vec![b' '; LINE_LEN_MAX + 2];
        for bad in [
            &b""[..],
            b"{}\n",
            b"GET / HTTP/1.1\r\n",
            b"{\"v\":2,\"says\":{\"volume\":{\"name\":\"data\"}}}\n",
            b"{\"v\":1,\"says\":\"dance\"}\n",
            &long,
        ] {
            assert!(read::<Request>(&mut &bad[..]).is_err());
        }
    }
}
