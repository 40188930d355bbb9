//! `steadfast route`: where a request would go, as a config or a running proxy has it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{CONFIG, CONFIG_VARIABLE, ask};
use crate::config::{self, Config};
use crate::explain::{Door, Explanation, HeaderLine, Question, Target, explain, snapshot_of};

/// Names the admin API where the command line does not.
const ADMIN_VARIABLE: &str = "STEADFAST_ADMIN";

/// Which request, and who is to tell.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where the request is sent: ws://, wss://, http://, https:// or a path with its query.
    #[arg(value_name = "URL")]
    url: String,
    /// A header of the request; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The address that the request comes from.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    client: IpAddr,
    /// Explain by this config file, with all its backends in service [default: as `run` takes it].
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
    /// Ask the running proxy with this admin API, which knows health and placements [default:
    /// $STEADFAST_ADMIN, if set].
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// A file with the token of the admin API [default: what $STEADFAST_TOKEN holds].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints the explanation; a failure where the request would be refused.
pub(super) fn route(options: &Options) -> anyhow::Result<ExitCode> {
    let question = match question(options) {
        Ok(question) => question,
        Err(error) => {
            writeln!(std::io::stderr(), "{error}")?;
            return Ok(ExitCode::from(2));
        }
    };
    let told = match admin(options) {
        Some(admin) => by_proxy(options, &admin)?,
        None => match by_config(options, &question)? {
            Some(told) => told,
            None => return Ok(ExitCode::FAILURE),
        },
    };
    let text = if options.json { serde_json::to_string(&told)? + "\n" } else { written(&told) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if told.backend.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn question(options: &Options) -> Result<Question, String> {
    let wrong = |text: &str, error: &dyn std::fmt::Display| format!("{text:?}: {error}");
    let target = options.url.parse::<Target>().map_err(|error| wrong(&options.url, &error))?;
    let mut lines = Vec::new();
    for line in &options.headers {
        lines.push(line.parse::<HeaderLine>().map_err(|error| wrong(line, &error))?);
    }
    Ok(Question::new(target, lines, options.client))
}

/// The proxy to ask; `None`: none.
fn admin(options: &Options) -> Option<String> {
    if options.config.is_some() {
        return None;
    }
    let variable = || std::env::var(ADMIN_VARIABLE).ok().filter(|admin| !admin.is_empty());
    options.admin.clone().or_else(variable)
}

fn by_proxy(options: &Options, admin: &str) -> anyhow::Result<Explanation> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let client = encoded(&options.client.to_string());
    let mut path = format!("/v1/route?url={}&client={client}", encoded(&options.url));
    for line in &options.headers {
        write!(path, "&header={}", encoded(line))?;
    }
    let token = ask::token(options.token_file.as_deref())?;
    let answer = ask::get(admin, &path, token.as_deref())?;
    serde_json::from_slice(&answer).with_context(|| format!("{admin} gives no explanation"))
}

/// `None`: the config has problems, which have been told.
fn by_config(options: &Options, question: &Question) -> anyhow::Result<Option<Explanation>> {
    let variable = || std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from);
    let path = options.config.clone().or_else(variable);
    match config::load(path.as_deref().unwrap_or(Path::new(CONFIG))) {
        Ok(config) => Ok(Some(told_by(&config, question))),
        Err(problems) => {
            writeln!(std::io::stderr(), "{problems}")?;
            Ok(None)
        }
    }
}

fn told_by(config: &Config, question: &Question) -> Explanation {
    let label = |name: &Option<String>, bind: &dyn ToString| {
        name.clone().unwrap_or_else(|| bind.to_string())
    };
    let labels: Vec<String> =
        config.listeners.iter().map(|one| label(&one.name, &one.bind)).collect();
    let doors = config.listeners.iter().zip(&labels);
    let doors = doors.map(|(settings, label)| Door { settings, address: settings.bind, label });
    let doors: Vec<Door<'_>> = doors.collect();
    explain(question, &doors, &snapshot_of(config))
}

fn written(told: &Explanation) -> String {
    let mut text = String::new();
    let key = told.key.as_ref().map(|key| {
        let source = told.key_source.as_deref().unwrap_or_default();
        format!("{} ({source})", key.escape_debug())
    });
    let fallback = told.fallback.join(", ");
    let fallback = Some(fallback).filter(|fallback| !fallback.is_empty());
    for (name, value) in [
        ("listener", &told.listener),
        ("route", &told.route),
        ("key", &key),
        ("pool", &told.pool),
        ("position", &told.position),
        ("backend", &told.backend),
        ("fallback", &fallback),
    ] {
        text.push_str(&format!("{name:<9} {}\n", value.as_deref().unwrap_or("none")));
    }
    for (index, why) in told.why.iter().enumerate() {
        text.push_str(&format!("{:<9} {why}\n", if index == 0 { "why" } else { "" }));
    }
    text
}
