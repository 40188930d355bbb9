//! The `steadfast` command: arguments in, exit code out. Everything else is the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match steadfast::cli::main(steadfast::cli::Cli::parse()) {
        Ok(exit) => exit,
        Err(error) => {
            // Where standard error is closed, nobody would read it anyway.
            let _ = writeln!(std::io::stderr(), "steadfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}
