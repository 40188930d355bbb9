//! The command line: one file per subcommand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod ask;
mod check;
mod demo;
mod log;
mod man;
mod route;
mod run;
mod signals;
mod systemd;

/// Edge reverse proxy and WebSocket load balancer: one key, one backend.
#[derive(Debug, Parser)]
#[command(name = "steadfast", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve, as the config file says.
    Run(ConfigFile),
    /// Validate a config file: exit 0 if it is valid, else 1 with every problem and its place.
    Check(ConfigFile),
    /// Try it out: a proxy, some backends and a chat page in one process; needs nothing else.
    Demo(demo::Options),
    /// Explain where a request would go, and why.
    Route(route::Options),
    /// Write the manual pages, one for each command.
    #[command(hide = true)]
    Man(man::Options),
}

/// Names the config file where the command line does not.
const CONFIG_VARIABLE: &str = "STEADFAST_CONFIG";
/// The config file where nothing names one.
const CONFIG: &str = "config.toml";

/// Where the config is.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The config file.
    #[arg(long, value_name = "FILE", env = CONFIG_VARIABLE, default_value = CONFIG)]
    config: PathBuf,
}

/// Does what the arguments say. An error is one that was not reported yet.
///
/// # Errors
///
/// What kept the command from being done, with its causes.
pub fn main(arguments: Cli) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(file) => run::run(&file.config),
        Command::Check(file) => check::check(&file.config),
        Command::Demo(options) => demo::demo(&options),
        Command::Route(options) => route::route(&options),
        Command::Man(options) => man::man(&options),
    }
}
