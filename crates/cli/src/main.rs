//! The `driftless` command: parses what was asked, runs it, prints what happened, exits with a code
//! that says how it went.
//!
//! [`args`] defines every flag once (parser, help, completions, man page). [`sync`] runs a session and
//! feeds its events to a printer of [`print`]; [`serve`] runs a node, [`node`] and [`everywhere`] ask one; [`inspect`] asks
//! questions about a state directory; [`trash`] and [`quarantine`] work on what a root keeps; [`bench`] measures. Whatever
//! fails ends in [`error::CliError`], which is printed here and nowhere else.

mod args;
mod bench;
mod conflict_show;
mod cursor;
mod doctor;
mod endpoint;
mod engine;
mod error;
mod everywhere;
mod inspect;
mod join_preview;
mod lost;
mod node;
mod node_args;
mod print;
mod quarantine;
mod resolve;
mod serve;
mod settings_args;
mod sync;
mod trash;
mod units;

use args::{Cli, Command};
use clap::{CommandFactory as _, Parser as _};
use error::{CliError, ExitCode};
use std::io::{self, Write as _};

/// Open files that a process is sure to get by with. Above it nothing is gained.
const OPEN_FILES: u64 = 8192;

/// The usual limit of 1024 open files is for programs that use `select`; the one above it is ours to take.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    if current.is_some_and(|now| now < wanted) {
        // Refused: it goes on with what there is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

/// Index rows, states and plans are many short-lived allocations in some threads, freed in others; this allocator
/// saves about a tenth of the time of a first copy. Huge pages would make it keep more memory than it uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    raise_open_files();
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
        Command::Serve(args) => serve::run(&args),
        Command::Config(args) => serve::config(&args),
        Command::Status(args) => node::status(&args),
        Command::Site(args) => node::site(args),
        Command::Volume(args) => node::volume(args),
        Command::Link(args) => node::link(args),
        Command::Switchover(args) => node::switchover(args),
        Command::Failover(args) => node::failover(args),
        Command::Rejoin(args) => node::rejoin(args),
        Command::Quarantine(args) => quarantine::run(&args),
        Command::Conflicts(args) => resolve::run(args),
        Command::Lost(args) => lost::run(args),
        Command::Failures(args) => inspect::failures(&args),
        Command::Flush(args) => everywhere::flush(&args),
        Command::Changes(args) => inspect::changes(&args),
        Command::Why(args) => inspect::why(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
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
