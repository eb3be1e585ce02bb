//! `driftless serve`: reads the configuration, runs a node, and turns signals into what they mean to it.

use crate::error::{CliError, ExitCode};
use crate::node_args::{ConfigArgs, ConfigCommand, ServeArgs};
use driftless_daemon::config::{Config, ConfigError, DEFAULT_PATH, DEFAULT_STATE, Settings};
use driftless_daemon::{Node, NodeError, recorded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};

pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode, CliError> {
    let config = read(args)?;
    // Before anything runs: a signal that comes early is not lost.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| CliError::failed(format!("cannot handle signals: {e}"), "raise the process limits"))?;
    let node = Node::start(&config)?;
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        match read(args) {
            Ok(config) => node.reload(&config),
            // It goes on as it was.
            Err(e) => e.print(false),
        }
    }
    node.stop();
    Ok(ExitCode::InSync)
}

/// What flags, environment, file and records say together.
fn read(args: &ServeArgs) -> Result<Config, CliError> {
    let flags = Settings {
        name: args.name.clone(),
        listen: args.listen.clone(),
        advertise: args.advertise.clone(),
        state: args.state.clone(),
        admin: args.admin.clone(),
        log: args.log.clone(),
        congestion: args.congestion.clone(),
        max_sites: args.max_sites,
        ..Settings::default()
    };
    let (settings, place) = of_file(args.config.as_deref())?;
    let settings = flags.or(settings);
    let state = settings.state.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_STATE));
    Ok(settings.or(recorded(&state)?).resolve(&place)?)
}

fn of_file(named: Option<&Path>) -> Result<(Settings, String), CliError> {
    let path = named.unwrap_or(Path::new(DEFAULT_PATH));
    let file = Settings::of_file(path, named.is_some())?;
    let env = Settings::of_env(|key| std::env::var(key).ok());
    Ok((env.or(file), path.display().to_string()))
}

pub(crate) fn config(args: &ConfigArgs) -> Result<ExitCode, CliError> {
    let ConfigCommand::Check { config } = &args.command;
    let (settings, place) = of_file(config.as_deref())?;
    let config = settings.resolve(&place)?;
    println!("{place} makes sense");
    println!("name       {}", config.name.as_deref().unwrap_or("(as given to site init)"));
    println!("listen     {}", config.listen);
    let advertise: Vec<String> = config.advertise.iter().map(ToString::to_string).collect();
    println!(
        "advertise  {}",
        if advertise.is_empty() { "(unknown: set it to invite others)".into() } else { advertise.join(", ") }
    );
    println!("state      {}", config.state.display());
    println!("max_sites  {}", config.max_sites);
    println!("congestion {}", config.congestion.as_deref().unwrap_or("system"));
    println!("admin      {}", config.admin.map_or_else(|| "off".into(), |a| a.to_string()));
    let volumes: Vec<&str> = config.volumes.keys().map(String::as_str).collect();
    if !volumes.is_empty() {
        println!("volumes    {}", volumes.join(", "));
    }
    Ok(ExitCode::InSync)
}

impl From<ConfigError> for CliError {
    fn from(e: ConfigError) -> Self {
        CliError::usage(e.to_string(), "correct it there; driftless config check tries it out")
    }
}

impl From<NodeError> for CliError {
    fn from(e: NodeError) -> Self {
        CliError::failed(e.what, e.advice)
    }
}
