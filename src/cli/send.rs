//! `steadfast send`: a message to clients.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use clap::error::ErrorKind;
use clap::{ArgGroup, Args, CommandFactory as _};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::ask::{self, AdminOptions, AskError, encoded};
use super::print;

/// To whom, and what.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("audience").required(true)))]
#[command(group(ArgGroup::new("message").required(true)))]
pub(super) struct Options {
    #[command(flatten)]
    admin: AdminOptions,
    /// The message, sent as text.
    #[arg(value_name = "TEXT", group = "message")]
    text: Option<String>,
    /// A file whose bytes are the message, sent as binary; - is standard input.
    #[arg(long, value_name = "FILE", group = "message")]
    binary_file: Option<PathBuf>,
    /// To one connection, by its id.
    #[arg(long, value_name = "ID", group = "audience")]
    connection: Option<String>,
    /// To every connection of a key, as POOL/KEY, or as KEY beside --pool.
    #[arg(long, value_name = "KEY", group = "audience")]
    key: Option<String>,
    /// The pool of the key; then all of --key is the key.
    #[arg(long, value_name = "POOL", requires = "key")]
    #[arg(conflicts_with_all = ["connection", "room", "all"])]
    pool: Option<String>,
    /// To every member of a room.
    #[arg(long, value_name = "ROOM", group = "audience")]
    room: Option<String>,
    /// To every connection.
    #[arg(long, group = "audience")]
    all: bool,
    /// Not to this connection; may be given several times.
    #[arg(long, value_name = "ID", conflicts_with = "connection")]
    except: Vec<String>,
    /// Print one JSON object: `proxies`, how many have somebody whom it is for, and `partial`
    /// where only this proxy's own could be reached.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Reached {
    proxies: usize,
    #[serde(default)]
    partial: bool,
}

/// Sends it.
pub(super) fn send(options: &Options) -> anyhow::Result<ExitCode> {
    let path = path(options)?;
    let (content_type, body) = message(options)?;
    let admin = options.admin.find()?;
    let sent = ask::wait_for(async {
        match admin.post_as::<Reached>(&path, content_type, body).await {
            Err(AskError::Refused { status, detail, .. })
                if options.connection.is_some()
                    && matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) =>
            {
                anyhow::bail!(
                    "{admin}: {detail}; `steadfast connections` lists those that are open"
                )
            }
            sent => Ok(sent?),
        }
    })?;
    if options.json {
        let mut told = json!({ "proxies": sent.proxies });
        if sent.partial {
            told["partial"] = true.into();
        }
        print::json(&told)?;
    } else if sent.proxies == 0 {
        print::out("nobody is there\n")?;
    } else {
        print::out("sent\n")?;
    }
    if sent.partial && !options.json {
        print::complain(["the registry is away: only this proxy's own could be reached"]);
    }
    Ok(ExitCode::SUCCESS)
}

fn path(options: &Options) -> anyhow::Result<String> {
    let path = match (&options.connection, &options.key, &options.room) {
        (Some(id), _, _) => format!("/v1/connections/{}/messages", encoded(id)),
        (_, Some(key), _) => {
            let (pool, key) = match &options.pool {
                Some(pool) => (pool.as_str(), key.as_str()),
                None => key.split_once('/').ok_or_else(|| no_pool(key))?,
            };
            format!("/v1/keys/{}/{}/messages", encoded(pool), encoded(key))
        }
        (_, _, Some(room)) => format!("/v1/rooms/{}/messages", encoded(room)),
        _ => "/v1/broadcast".to_owned(),
    };
    let except = options.except.iter().map(|id| format!("except={}", encoded(id)));
    let except: Vec<String> = except.collect();
    if except.is_empty() { Ok(path) } else { Ok(format!("{path}?{}", except.join("&"))) }
}

/// Bad usage, which only `--key` and `--pool` together tell.
fn no_pool(key: &str) -> clap::Error {
    let detail = "write POOL/KEY, or name the pool with --pool";
    let message = format!("invalid value '{key}' for '--key <KEY>': {detail}");
    super::Cli::command().error(ErrorKind::ValueValidation, message)
}

fn message(options: &Options) -> anyhow::Result<(&'static str, Bytes)> {
    let Some(file) = &options.binary_file else {
        let text = options.text.clone().unwrap_or_default();
        return Ok(("text/plain; charset=utf-8", text.into()));
    };
    let read = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(file)
    };
    let bytes = read.with_context(|| format!("can't read {}", file.display()))?;
    Ok(("application/octet-stream", bytes.into()))
}
