//! `steadfast close`: ends one connection.

use std::process::ExitCode;

use clap::Args;
use http::StatusCode;
use serde_json::json;

use super::answers::Status;
use super::ask::{self, Admin, AdminOptions, AskError, encoded};
use super::print;
use crate::ws::close::{CLOSE_CODES, CLOSE_TEXT_BYTES, CloseCode};

/// Which connection, and what to say.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    admin: AdminOptions,
    /// Its id, as `steadfast connections` lists it.
    #[arg(long, value_name = "ID")]
    connection: String,
    /// The close code that both peers get: 1000 to 1003, 1007 to 1014, 3000 to 4999. Many clients
    /// take 1000 for the end, and come back after 1001 or 1012.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = code)]
    code: CloseCode,
    /// The reason that goes with it, at most 123 bytes.
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = reason)]
    reason: String,
    /// Print one JSON object: `connection`, `code` and `reason`.
    #[arg(long)]
    json: bool,
}

fn code(text: &str) -> Result<CloseCode, &'static str> {
    text.parse().ok().and_then(CloseCode::new).ok_or(CLOSE_CODES)
}

fn reason(text: &str) -> Result<String, String> {
    if text.len() > CLOSE_TEXT_BYTES {
        return Err(format!("it has {} bytes; at most {CLOSE_TEXT_BYTES} fit", text.len()));
    }
    Ok(text.to_owned())
}

/// Closes it.
pub(super) fn close(options: &Options) -> anyhow::Result<ExitCode> {
    let Options { connection, code, reason, .. } = options;
    let admin = options.admin.find()?;
    ask::wait_for(told_to_close(options, &admin))?;
    let code = code.get();
    if options.json {
        print::json(&json!({ "connection": connection, "code": code, "reason": reason }))?;
    } else {
        print::out(&format!("{}: told to close with {code}\n", print::plain(connection)))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn told_to_close(options: &Options, admin: &Admin) -> anyhow::Result<()> {
    let Options { connection, code, reason, .. } = options;
    let path = format!(
        "/v1/connections/{}?code={}&reason={}",
        encoded(connection),
        code.get(),
        encoded(reason)
    );
    match admin.delete(&path).await {
        Ok(()) => Ok(()),
        Err(AskError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
            let Status { proxy, .. } = admin.get("/v1/status").await?;
            anyhow::bail!(
                "{admin} has no connection {connection}: its ids begin with {proxy}.; `steadfast \
                 connections` lists those that are open"
            );
        }
        Err(error) => Err(error.into()),
    }
}
