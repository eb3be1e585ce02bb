//! What people and strangers write: configuration, requests of the command line, first lines of connections, invitations. Any
//! bytes are read or refused, without a panic and in bounded memory.

use crate::config::Settings;
use crate::control::{Answer, Ask, LinkVerb};
use crate::preface::{self, MemberInfo, Request, Response, VolumeInfo};
use crate::records::{Admission, Mode, Records};
use crate::token::{Secret, Token};
use driftless_net::identity::PublicKey;
use driftless_testkit::fuzz::{Counting, HELD_MAX, fuzz};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A parser of JSON or TOML keeps more than ours do: a tree of what was nested, and messages that show the place.
const TEXT_HELD_MAX: usize = 4 * HELD_MAX;

#[test]
fn configurations() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("driftless.toml");
    let corpus = [
        "name = \"oslo\"\nlisten = \"0.0.0.0:7440\"\nadvertise = [\"192.0.2.1:7440\", \"[2001:db8::1]:7440\"]\n\
         state = \"/var/lib/driftless\"\nadmin = \"off\"\nlog = \"json\"\n",
        "name = 'a'\nadmin = \"127.0.0.1:7441\"\n",
        "",
    ];
    fuzz("configuration", &corpus.map(|c| c.as_bytes().to_vec()), TEXT_HELD_MAX, |bytes| {
        std::fs::write(&file, bytes).unwrap();
        if let Ok(settings) = Settings::of_file(&file, true) {
            let _ = settings.resolve("driftless.toml");
        }
    });
}

#[test]
fn requests_of_commands() {
    let asks = [
        Ask::Status,
        Ask::Invite {
            volumes: vec!["data".into()],
            admission: Admission::full(Mode::default()),
            expires_s: 3600,
        },
        Ask::Join { token: token().to_string(), volumes: Vec::new(), seed_from: Some("oslo".into()) },
        Ask::Preview { token: token().to_string(), volume: None, after: None },
        Ask::RemoveSite { name: "oslo".into() },
        Ask::RemoveVolume { name: "data".into() },
        Ask::Approve { name: "data".into(), heal: true },
        Ask::Link { volume: "data".into(), to: "oslo".into(), verb: LinkVerb::Pause },
    ];
    let mut corpus: Vec<Vec<u8>> = asks.iter().map(|a| serde_json::to_vec(a).unwrap()).collect();
    corpus.push(serde_json::to_vec(&Answer::failed("what", "advice")).unwrap());
    fuzz("requests", &corpus, TEXT_HELD_MAX, |bytes| {
        let _ = serde_json::from_slice::<Ask>(bytes);
        let _ = serde_json::from_slice::<Answer>(bytes);
    });
}

#[test]
fn first_lines_of_connections() {
    let requests = [
        Request::Join {
            secret: "00".repeat(16),
            name: "bergen".into(),
            addresses: vec!["192.0.2.1:7440".into()],
        },
        Request::Preview {
            secret: "00".repeat(16),
            name: "bergen".into(),
            volume: Some("data".into()),
            after: None,
        },
        Request::Volume { name: "data".into() },
        Request::Succeed { volume: "f".repeat(32), document: "00".repeat(64) },
        Request::Link { volume: "f".repeat(32), addresses: Vec::new() },
    ];
    let member = MemberInfo { site: "oslo".into(), key: "f".repeat(64), addresses: Vec::new() };
    let (name, id, members) = ("data".to_owned(), "f".repeat(32), vec![member]);
    let info = VolumeInfo { name, id, follower: true, filter: None, members };
    let responses = [
        Response::Joined { name: "oslo".into(), volumes: vec![info] },
        Response::Linked,
        Response::Refused { why: "no".into(), for_now: true, unknown_key: false },
    ];
    let mut corpus = Vec::new();
    for request in requests {
        corpus.push(Vec::new());
        preface::write(corpus.last_mut().unwrap(), request).unwrap();
    }
    for response in responses {
        corpus.push(Vec::new());
        preface::write(corpus.last_mut().unwrap(), response).unwrap();
    }
    fuzz("first lines", &corpus, TEXT_HELD_MAX, |bytes| {
        let _ = preface::read::<Request>(&mut &bytes[..]);
        let _ = preface::read::<Response>(&mut &bytes[..]);
    });
}

#[test]
fn invitations() {
    fuzz("invitations", &[token().to_string().into_bytes()], HELD_MAX, |bytes| {
        if let Ok(token) = String::from_utf8_lossy(bytes).parse::<Token>() {
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    });
}

#[test]
fn records() {
    let dir = tempfile::tempdir().unwrap();
    let mut empty = Records::load(dir.path()).unwrap();
    empty.name = Some("oslo".into());
    fuzz("records", &[serde_json::to_vec_pretty(&empty).unwrap()], TEXT_HELD_MAX, |bytes| {
        let _ = serde_json::from_slice::<Records>(bytes);
    });
}

fn token() -> Token {
    Token {
        name: "oslo".into(),
        addresses: vec!["192.0.2.1:7440".parse().unwrap(), "[2001:db8::1]:7440".parse().unwrap()],
        key: PublicKey([7; 32]),
        secret: "0102030405060708090a0b0c0d0e0f10".parse::<Secret>().unwrap(),
    }
}
