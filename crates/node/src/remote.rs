//! An end on another machine: the same engine behind an SSH pipe.

use crate::api::{SessionError, Side, SyncOptions};
use crate::session::End;

pub(crate) fn open(
    _side: Side,
    target: &str,
    _path: &[u8],
    _options: &SyncOptions,
) -> Result<End, SessionError> {
    Err(SessionError { what: format!("{target}: no remote ends yet"), advice: String::new() })
}
