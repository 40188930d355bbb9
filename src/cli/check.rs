//! `steadfast check`: whether a config is valid, and what a running proxy would make of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::answers::Changes;
use super::ask::{self, Address};
use super::print::{self, counted};
use super::{ConfigFile, reload};
use crate::config::{self, Config};

/// Which config, and which proxy.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Ask the running proxy with this admin API what a reload of the file would change, and how
    /// many live connections it would touch. Nothing is changed.
    #[arg(long, value_name = "URL")]
    against: Option<Address>,
    /// A file with the token of the admin API [default: what $STEADFAST_TOKEN holds].
    #[arg(long, value_name = "FILE", requires = "against")]
    token_file: Option<PathBuf>,
    /// Print one JSON object: `valid`, `errors`, and with --against the `plan`.
    #[arg(long)]
    json: bool,
}

/// Says whether a config is valid, and what it would change, on standard output; what is wrong
/// with it, on standard error.
pub(super) fn check(options: &Options) -> anyhow::Result<ExitCode> {
    let path = options.config.path();
    let config = match config::load(&path) {
        Ok(config) => config,
        Err(problems) => {
            if options.json {
                let errors: Vec<String> = problems.lines().collect();
                print::json(&json!({ "valid": false, "errors": errors, "plan": null }))?;
            } else {
                let count = counted(problems.len(), "problem");
                let told = format!("{problems}\n{}: {count}", path.display());
                print::complain(told.lines());
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    if !options.json {
        print::out(&valid(&path, &config))?;
    }
    let plan = match &options.against {
        None => Value::Null,
        Some(address) => {
            let admin = ask::at(address, options.token_file.as_deref())?;
            let text = std::fs::read(&path);
            let text = text.with_context(|| format!("can't read {}", path.display()))?;
            let planned = ask::wait_for(async { Ok(admin.post("/v1/plan", text.into()).await) });
            match planned? {
                Ok(plan) => plan,
                Err(refused) => return reload::told(refused, options.json),
            }
        }
    };
    if options.json {
        print::json(&json!({ "valid": true, "errors": [], "plan": plan }))?;
    } else if let Some(address) = &options.against {
        let changes: Changes = serde_json::from_value(plan).context("this is no plan")?;
        print::out(&planned(address, &changes)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn valid(path: &Path, config: &Config) -> String {
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    format!(
        "{}: valid: {}, {}, {}, {}\n",
        path.display(),
        counted(config.listeners.len(), "listener"),
        counted(config.routes.len(), "route"),
        counted(config.pools.len(), "pool"),
        counted(backends, "backend"),
    )
}

fn planned(address: &Address, changes: &Changes) -> Result<String, std::fmt::Error> {
    let lines = changes.lines();
    if lines.is_empty() {
        return Ok(format!("a reload at {address} would change nothing\n"));
    }
    let mut text = format!("a reload at {address} would change:\n");
    for line in lines {
        writeln!(text, "  {line}")?;
    }
    let mut fates = BTreeMap::new();
    for change in &changes.changes {
        if let (1.., Some(fate)) = (change.connections, &change.fate) {
            *fates.entry(fate.as_str()).or_insert(0) += change.connections;
        }
    }
    let fates: Vec<String> = fates.iter().map(|(fate, count)| format!("{count} {fate}")).collect();
    let touched = if fates.is_empty() { "none".to_owned() } else { fates.join(", ") };
    writeln!(text, "live connections touched: {touched}")?;
    Ok(text)
}
