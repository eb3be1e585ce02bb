//! A peer program that is let in and sends what nobody honest sends: it is refused and named, costs no memory, and harms nobody.

use crate::common::*;
use crate::sites::{Site, wait_same};
use driftless_net::identity::{Identity, PublicKey};
use driftless_net::tls::{TlsOptions, TlsStop, TlsWriter};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use tempfile::TempDir;

/// A key that was invited, and where it was.
struct Liar {
    tls: TlsOptions,
    at: SocketAddr,
    key: PublicKey,
}

impl Liar {
    /// By its invitation; the volume's id.
    fn join(token: &str) -> (Liar, String) {
        let parts: Vec<&str> = token.split('/').collect();
        let tls = TlsOptions::new(&Identity::generate().unwrap()).unwrap();
        let liar = Liar { tls, at: parts[2].parse().unwrap(), key: parts[3].parse().unwrap() };
        let join = json!({ "join": { "secret": parts[4], "name": "liar", "addresses": [] } });
        let (said, ..) = liar.say(&join);
        let id = said["joined"]["volumes"][0]["id"].as_str().unwrap().to_owned();
        (liar, id)
    }

    /// Says one line on a new connection; what is answered.
    fn say(&self, says: &Value) -> (Value, TlsWriter, TlsStop) {
        let tls = self.tls.connect(self.at, self.key, PATIENCE).unwrap();
        let (mut reader, mut writer, stop) = tls.split(PATIENCE).unwrap();
        writer.write_all(format!("{}\n", json!({ "v": 1, "says": says })).as_bytes()).unwrap();
        let (mut line, mut byte) = (Vec::new(), [0]);
        while reader.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        let answer: Value = serde_json::from_slice(&line).unwrap();
        (answer["says"].clone(), writer, stop)
    }

    /// A link on which the greeting has been said.
    fn link(&self, volume: &str) -> (TlsWriter, TlsStop) {
        let mut open = None;
        wait_until("the link to be taken", || {
            let (said, writer, stop) = self.say(&json!({ "link": { "volume": volume, "addresses": [] } }));
            if said != "linked" {
                return Err(said.to_string());
            }
            open = Some((writer, stop));
            Ok(())
        });
        let (mut writer, stop) = open.unwrap();
        writer.write_all(b"driftless 1 2\n").unwrap();
        (writer, stop)
    }
}

/// The most memory that a node has had, in bytes.
fn memory(site: &Site) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", site.node.as_ref().unwrap().id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
}

#[test]
fn frames_beyond_their_bounds_are_refused_before_anything_is_allocated() {
    const GREATEST: u32 = u32::MAX;
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    put(&oslo.dir, "f", "1");
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let invite = || oslo.ok(&["site", "invite", "--for", "data"]);
    let (liar, volume) = Liar::join(&invite());
    drop(liar.link(&volume));
    let before = memory(&oslo);
    let header = |len: u32, of: u8, flags: u8| [&len.to_be_bytes()[..], &[of, flags]].concat();
    // A length that is too great in front; or, of something compressed, for what comes out of it.
    let bomb = |of| [header(8, of, 1), GREATEST.to_be_bytes().to_vec(), vec![0; 4]].concat();
    for (what, bytes) in [
        ("a batch frame of 4294967295 bytes is more than the 67108864 allowed", header(GREATEST, 2, 0)),
        ("a piece frame of 5000000 bytes is more than the 4194304 allowed", header(5_000_000, 6, 0)),
        ("a hello frame of 4294967295 bytes is more than", header(GREATEST, 1, 0)),
        ("a control frame of 4294967295 bytes is more than", header(GREATEST, 16, 0)),
        ("a receipt frame of 4294967295 bytes is more than", bomb(3)),
        ("a frame of unknown type 99", header(1, 99, 0)),
    ] {
        let (mut writer, stop) = liar.link(&volume);
        writer.write_all(&bytes).unwrap();
        writer.flush().unwrap();
        wait_until(&format!("{what:?} to be said of the liar"), || match oslo.log() {
            log if log.lines().any(|l| l.contains(what) && l.contains("liar")) => Ok(()),
            log => Err(log),
        });
        stop.stop();
    }
    let grown = memory(&oslo).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
    bergen.ok(&["site", "join", &invite(), "--dir", &format!("data={}", bergen.dir.display())]);
    wait_same(&[&oslo, &bergen]);
}
