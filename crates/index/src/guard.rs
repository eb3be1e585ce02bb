//! redb trusts the pages of its file: on many kinds of damage it panics. Here that becomes an error.

use redb::StorageError;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `f`, which may call redb; its panic is the error of a corrupted file.
///
/// What a panic can leave half done is redb's: a write transaction that unwinds is never committed,
/// and its [`crate::Index`] writes no more.
pub(crate) fn guarded<T, E: From<StorageError>>(f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|panic| Err(StorageError::Corrupted(text(&*panic)).into()))
}

fn text(panic: &dyn Any) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unexpected page").to_owned()
}
