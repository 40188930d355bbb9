//! The command line: one file per subcommand.
//!
//! `run`, `check` and `demo` work by themselves; the others ask the admin API of a running proxy,
//! all in the way of `ask`, and print in the way of `print`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod answers;
mod ask;
mod check;
mod close;
mod completions;
mod connections;
mod demo;
mod drain;
mod log;
mod man;
mod peers;
mod print;
mod rates;
mod reload;
mod route;
mod run;
mod send;
mod signals;
mod status;
mod systemd;

/// Edge reverse proxy and WebSocket load balancer: one key, one backend.
#[derive(Debug, Parser)]
#[command(name = "steadfast", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed or refused, 2 bad usage.\n\
                        `steadfast COMMAND --help` has examples.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve, as the config file says.
    #[command(after_help = "Examples:\n  \
        steadfast run\n  \
        steadfast run --config /etc/steadfast/config.toml")]
    Run(ConfigFile),
    /// Validate a config file: exit 0 if it is valid, else 1 with every problem and its place.
    #[command(after_help = "Examples:\n  \
        steadfast check --config new.toml\n  \
        steadfast check --config new.toml --against http://127.0.0.1:9900")]
    Check(check::Options),
    /// Try it out: a proxy, some backends and a chat page in one process; needs nothing else.
    #[command(after_help = "Examples:\n  \
        steadfast demo\n  \
        steadfast demo --backends 5 --proxies 2")]
    Demo(demo::Options),
    /// Explain where a request would go, and why.
    #[command(after_help = "Examples:\n  \
        steadfast route 'ws://127.0.0.1:8080/rooms?room=red'\n  \
        steadfast route /rooms -H 'Cookie: sid=7' --admin http://127.0.0.1:9900")]
    Route(route::Options),
    /// Show how a running proxy does: pools, backends, listeners, routes, rates, the last reload.
    #[command(after_help = "Examples:\n  \
        steadfast status\n  \
        steadfast status --watch --admin http://127.0.0.1:9900")]
    Status(status::Options),
    /// List live WebSocket connections.
    #[command(after_help = "Examples:\n  \
        steadfast connections --key red\n  \
        steadfast connections --pool rooms --backend a --limit 5000 --json")]
    Connections(connections::Options),
    /// Close one WebSocket connection: both its peers get a Close with the code and reason given.
    #[command(after_help = "Examples:\n  \
        steadfast close --connection edge1-6b070e4fafea6e9d.000001000000000000\n  \
        steadfast close --connection ID --code 4001 --reason 'signed out'")]
    Close(close::Options),
    /// Send a message to WebSocket clients: to one, to a key, to a room or to all.
    #[command(after_help = "Examples:\n  \
        steadfast send --room lobby 'back in five minutes'\n  \
        steadfast send --key rooms/red --binary-file frame.bin\n  \
        steadfast send --connection ID '{\"say\": \"hello\"}'")]
    Send(send::Options),
    /// Take a backend out of service: nothing new goes there, and what is there is closed in turn.
    #[command(after_help = "Examples:\n  \
        steadfast drain rooms/a\n  \
        steadfast drain rooms/a --wait && systemctl restart rooms-a")]
    Drain(drain::Options),
    /// Take a drain back: the backend is in service again, if it is healthy.
    #[command(after_help = "Example:\n  steadfast undrain rooms/a")]
    Undrain(drain::UndrainOptions),
    /// Have a running proxy reload its config file, as SIGHUP does, and tell what has changed.
    #[command(after_help = "Examples:\n  \
        steadfast reload\n  \
        steadfast check --against http://127.0.0.1:9900 && steadfast reload")]
    Reload(reload::Options),
    /// Print a script by which a shell completes this command line.
    #[command(after_help = "Examples:\n  \
        steadfast completions bash > /etc/bash_completion.d/steadfast\n  \
        steadfast completions zsh > ~/.zfunc/_steadfast")]
    Completions(completions::Options),
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
    /// The config file [default: $STEADFAST_CONFIG, then config.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn path(&self) -> PathBuf {
        config_path(self.config.as_deref())
    }
}

/// The config file that the command line names, or else the environment, or else the usual one.
fn config_path(named: Option<&Path>) -> PathBuf {
    let named = named.map(Path::to_owned);
    named.or_else(|| variable(CONFIG_VARIABLE).map(PathBuf::from)).unwrap_or_else(|| CONFIG.into())
}

/// A variable of the environment; one that is empty counts as one that is not set.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Does what the arguments say. An error is one that was not reported yet.
///
/// # Errors
///
/// What kept the command from being done, with its causes.
pub fn main(arguments: Cli) -> anyhow::Result<ExitCode> {
    let done = match arguments.command {
        Command::Run(file) => run::run(&file.path()),
        Command::Check(options) => check::check(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Route(options) => route::route(&options),
        Command::Status(options) => status::status(&options),
        Command::Connections(options) => connections::connections(&options),
        Command::Close(options) => close::close(&options),
        Command::Send(options) => send::send(&options),
        Command::Drain(options) => drain::drain(&options),
        Command::Undrain(options) => drain::undrain(&options),
        Command::Reload(options) => reload::reload(&options),
        Command::Completions(options) => completions::completions(&options),
        Command::Man(options) => man::man(&options),
    };
    let error = match done {
        // `steadfast connections | head` is no failure.
        Err(error) if error.is::<print::NobodyReads>() => return Ok(ExitCode::SUCCESS),
        Err(error) => error,
        done => return done,
    };
    // What is wrong with arguments only together is told as what is wrong with one.
    let usage = error.downcast::<clap::Error>()?;
    usage.print()?;
    Ok(ExitCode::from(2))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_help_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands_mut().filter(|one| !one.is_hide_set()) {
            let name = subcommand.get_name().to_owned();
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains(&format!("\n  steadfast {name}")), "{help}");
        }
    }
}
