//! docs/json.md and the code say the same.

use driftless_node::api::{Counts, Event, Phase, Reason, Side};

fn documented(word: &str) -> bool {
    const DOC: &str = include_str!("../../../docs/json.md");
    DOC.contains(&format!("`{word}`"))
}

#[test]
fn every_reason_is_documented() {
    for reason in Reason::ALL {
        let word = serde_json::to_value(reason).unwrap();
        assert!(documented(word.as_str().unwrap()), "{word}");
    }
}

#[test]
fn every_count_and_phase_is_documented() {
    let event = Event::Progress { side: Side::A, counts: Counts::default() };
    let value = serde_json::to_value(event).unwrap();
    assert_eq!((value["event"].as_str(), value["side"].as_str()), (Some("progress"), Some("a")));
    for field in value["counts"].as_object().unwrap().keys() {
        assert!(documented(field), "{field}");
    }
    let phases = [
        Phase::Starting,
        Phase::Scanning,
        Phase::Receiving,
        Phase::Applying,
        Phase::Watching,
        Phase::Stopping,
    ];
    for phase in phases {
        let word = serde_json::to_value(phase).unwrap();
        assert!(documented(word.as_str().unwrap()), "{word}");
    }
}
