//! What the command says when it cannot do what was asked: what happened, where and why, and what to do.
//! All errors are printed in this one place.

use driftless_node::api::SessionError;
use serde::Serialize;

/// How the process exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Done; both ends agree.
    InSync = 0,
    /// It could not be done.
    Failed = 1,
    /// It was asked for in a way that makes no sense. (clap uses the same code.)
    Usage = 2,
    /// Finished, but some entries wait; they are listed.
    Waiting = 3,
}

/// Why a command ended early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CliError {
    what: String,
    advice: String,
    code: ExitCode,
}

impl CliError {
    /// It could not be done.
    pub(crate) fn failed(what: impl Into<String>, advice: impl Into<String>) -> CliError {
        CliError { what: what.into(), advice: advice.into(), code: ExitCode::Failed }
    }

    /// It was asked for in a way that makes no sense.
    pub(crate) fn usage(what: impl Into<String>, advice: impl Into<String>) -> CliError {
        CliError { what: what.into(), advice: advice.into(), code: ExitCode::Usage }
    }

    /// What the process exits with.
    pub(crate) fn code(&self) -> ExitCode {
        self.code
    }

    /// Prints it: two lines on the standard error output, or one JSON line on the standard output.
    pub(crate) fn print(&self, json: bool) {
        if json {
            crate::print::json_line(&JsonError { event: "error", what: &self.what, advice: &self.advice });
        } else {
            eprintln!("driftless: {}", self.what);
            if !self.advice.is_empty() {
                eprintln!("  what to do: {}", self.advice);
            }
        }
    }
}

impl From<SessionError> for CliError {
    fn from(e: SessionError) -> Self {
        CliError::failed(e.what, e.advice)
    }
}

#[derive(Serialize)]
struct JsonError<'a> {
    event: &'static str,
    what: &'a str,
    advice: &'a str,
}
