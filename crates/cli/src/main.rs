//! The `driftless` command: parses what was asked, runs it, prints what happened, exits with a code
//! that says how it went.
//!
//! [`args`] defines every flag once (parser, help, completions, man page). [`sync`] runs a session and
//! feeds its events to a printer of [`print`]; [`inspect`] asks questions about a state directory; [`trash`] works on the trash of a root. Whatever
//! fails ends in [`error::CliError`], which is printed here and nowhere else.

mod args;
mod doctor;
mod endpoint;
mod engine;
mod error;
mod inspect;
mod print;
mod resolve;
mod sync;
mod trash;
mod units;

use args::{Cli, Command};
use clap::{CommandFactory as _, Parser as _};
use error::{CliError, ExitCode};
use std::io::{self, Write as _};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let json = cli.wants_json();
    let code = run(cli.command).unwrap_or_else(|e| {
        e.print(json);
        e.code()
    });
    std::process::ExitCode::from(code as u8)
}

fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Sync(args) => sync::run(args),
        Command::Conflicts(args) => resolve::run(args),
        Command::Failures(args) => inspect::failures(&args),
        Command::Changes(args) => inspect::changes(&args),
        Command::Why(args) => inspect::why(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Trash(args) => trash::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "driftless", &mut io::stdout());
            Ok(ExitCode::InSync)
        }
        Command::Man { dir } => man(dir.as_deref()),
        Command::Agent(args) => sync::agent(&args),
    }
}

fn man(dir: Option<&std::path::Path>) -> Result<ExitCode, CliError> {
    let done = match dir {
        Some(dir) => clap_mangen::generate_to(Cli::command(), dir),
        None => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout()),
    };
    done.and_then(|()| io::stdout().flush()).map_err(|e| {
        CliError::failed(
            format!("cannot write the manual page: {e}"),
            "check the directory and its free space",
        )
    })?;
    Ok(ExitCode::InSync)
}
