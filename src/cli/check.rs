//! `steadfast check`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::config;

/// Says whether a config is valid, on standard output; what is wrong with it, on standard error.
pub(super) fn check(path: &Path) -> anyhow::Result<ExitCode> {
    match config::load(path) {
        Ok(config) => {
            let (routes, pools) = (config.routes.len(), config.pools.len());
            let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
            writeln!(
                std::io::stdout(),
                "{}: valid: {}, {}, {}, {}",
                path.display(),
                counted(config.listeners.len(), "listener"),
                counted(routes, "route"),
                counted(pools, "pool"),
                counted(backends, "backend"),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            let count = counted(problems.len(), "problem");
            writeln!(std::io::stderr(), "{problems}\n{}: {count}", path.display())?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
