//! `steadfast man`: the manual pages, made when a package is.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use super::Cli;

/// What stands at the end of the first page.
const MORE: &str = "\
Configuration: config.example.toml shows every option with its default; steadfast check tells what is \
wrong with a file.

Signals: SIGTERM closes all connections, spread over time, and stops; SIGINT stops at once; SIGHUP reads \
the config again and opens the logs anew.

Exit codes: 0 done, 1 failed, 2 the command line was wrong.";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The folder that gets them; made if there is none.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Writes `steadfast.1` and a page for each subcommand.
pub(super) fn man(options: &Options) -> anyhow::Result<ExitCode> {
    let folder = options.folder.as_path();
    let command = Cli::command().after_long_help(MORE);
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .with_context(|| format!("can't write manual pages to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
