//! `steadfast route`: where a request would go, as a config or a running proxy has it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::ask::{self, Address, Admin, AdminOptions, encoded};
use super::{config_path, print};
use crate::config::{self, Config};
use crate::explain::{Door, Explanation, HeaderLine, Question, Target, explain, snapshot_of};

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
    admin: Option<Address>,
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
    let told = match admin(options)? {
        Some(admin) => ask::wait_for(by_proxy(options, &admin))?,
        None => match by_config(options, &question)? {
            Some(told) => told,
            None => return Ok(ExitCode::FAILURE),
        },
    };
    let text = if options.json { serde_json::to_string(&told)? + "\n" } else { written(&told) };
    print::out(&text)?;
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
fn admin(options: &Options) -> anyhow::Result<Option<Admin>> {
    if options.config.is_some() {
        return Ok(None);
    }
    let Options { admin, token_file, .. } = options;
    AdminOptions { admin: admin.clone(), token_file: token_file.clone() }.named()
}

async fn by_proxy(options: &Options, admin: &Admin) -> anyhow::Result<Explanation> {
    let client = encoded(&options.client.to_string());
    let mut path = format!("/v1/route?url={}&client={client}", encoded(&options.url));
    for line in &options.headers {
        write!(path, "&header={}", encoded(line))?;
    }
    Ok(admin.get(&path).await?)
}

/// `None`: the config has problems, which have been told.
fn by_config(options: &Options, question: &Question) -> anyhow::Result<Option<Explanation>> {
    match config::load(&config_path(options.config.as_deref())) {
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
