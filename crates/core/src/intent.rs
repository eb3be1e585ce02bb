//! tmp
use crate::disk::NodeKey;
use crate::id::{Dot, EntryId};
use crate::meta::Time;
use crate::plan::Step;
pub struct StagedFile {
    pub name: Vec<u8>,
    pub node: NodeKey,
    pub size: u64,
    pub mtime: Time,
}
pub struct IntentRow {
    pub entry: EntryId,
    pub dot: Dot,
    pub staged: Option<StagedFile>,
    pub limbo: Vec<u8>,
}
impl IntentRow {
    pub fn of(_n: u64, _s: &Step, _f: Option<StagedFile>) -> Option<IntentRow> {
        None
    }
}
pub fn encode_intents(_: &[IntentRow]) -> Vec<u8> {
    vec![]
}
pub fn decode_intents(_: &[u8]) -> Result<Vec<IntentRow>, crate::codec::Malformed> {
    Ok(vec![])
}
