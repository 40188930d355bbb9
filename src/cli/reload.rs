//! `steadfast reload`: has a running proxy read its config file anew.

use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::answers::Changes;
use super::ask::{self, AdminOptions, AskError};
use super::print;

/// Which proxy.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    admin: AdminOptions,
    /// Print one JSON object: `changes` and `needs_restart`, or `errors` where it is refused.
    #[arg(long)]
    json: bool,
}

/// Prints what has changed; a failure, with each error on a line, where the config was refused.
pub(super) fn reload(options: &Options) -> anyhow::Result<ExitCode> {
    let admin = options.admin.find()?;
    let answer = ask::wait_for(async { Ok(admin.post::<Value>("/v1/reload", Bytes::new()).await) });
    let changed = match answer? {
        Ok(changed) => changed,
        Err(refused) => return told(refused, options.json),
    };
    if options.json {
        print::json(&changed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = serde_json::from_value::<Changes>(changed)?.lines();
    if lines.is_empty() {
        print::out("reloaded: nothing has changed\n")?;
    } else {
        print::out(&format!("reloaded:\n{}\n", lines.join("\n")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells that a config was refused, with each thing that is wrong with it.
pub(super) fn told(refused: AskError, as_json: bool) -> anyhow::Result<ExitCode> {
    match refused {
        AskError::Refused { detail, errors, .. } if as_json => {
            print::json(&json!({ "detail": detail, "errors": errors }))?;
        }
        AskError::Refused { admin, detail, errors, .. } if !errors.is_empty() => {
            print::complain(errors);
            print::complain([format!("{admin}: {detail}")]);
        }
        other => return Err(other.into()),
    }
    Ok(ExitCode::FAILURE)
}
