//! `steadfast completions`: a script for a shell.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Cli, print};

/// For which shell.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub(super) fn completions(options: &Options) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    generate(options.shell, &mut Cli::command(), "steadfast", &mut script);
    print::out(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
