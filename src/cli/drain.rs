//! `steadfast drain` and `undrain`: takes a backend out of service, and back.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use serde_json::Value;

use super::answers::{Backend, Drain, Pools};
use super::ask::{self, Admin, AdminOptions, AskError, encoded};
use super::print::{self, between, counted, span};
use crate::observe::access_log::unix_millis;

/// How often is looked whether a drain is done.
const LOOK: Duration = Duration::from_millis(500);

/// Which backend, and whether to wait.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    which: UndrainOptions,
    /// Wait until nothing of it is left, and show how far it is.
    #[arg(long)]
    wait: bool,
}

/// Which backend.
#[derive(Debug, Args)]
pub(super) struct UndrainOptions {
    /// The pool's name and the backend's id.
    #[arg(value_name = "POOL/BACKEND")]
    target: Target,
    #[command(flatten)]
    admin: AdminOptions,
    /// Print one JSON object: the backend, as in /v1/pools.
    #[arg(long)]
    json: bool,
}

/// A backend of a pool.
#[derive(Clone, Debug)]
struct Target {
    pool: String,
    backend: String,
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.split_once('/') {
            Some((pool, backend)) if !pool.is_empty() && !backend.is_empty() => {
                Ok(Self { pool: pool.to_owned(), backend: backend.to_owned() })
            }
            _ => Err("write the pool's name, a slash and the backend's id, as in rooms/a"),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.pool, self.backend)
    }
}

/// Drains it; with `--wait` until nothing is left there.
pub(super) fn drain(options: &Options) -> anyhow::Result<ExitCode> {
    let UndrainOptions { target, admin, json } = &options.which;
    let admin = admin.find()?;
    ask::wait_for(async {
        let answer = asked(&admin, target, "drain").await?;
        if !options.wait {
            return told(&answer, *json, |backend| format!("{target}: {}\n", progress(backend)));
        }
        let last = Wait { admin: &admin, target, shows: !json }.until_done(answer).await?;
        if *json {
            print::json(&last)?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the drain back; a failure where the backend is drained all the same, for another cause.
pub(super) fn undrain(options: &UndrainOptions) -> anyhow::Result<ExitCode> {
    let UndrainOptions { target, admin, json } = options;
    let admin = admin.find()?;
    let answer = ask::wait_for(asked(&admin, target, "undrain"))?;
    let Backend { drain, .. } = Backend::of(&answer)?;
    told(&answer, *json, |backend| match &backend.drain {
        None => format!("{target}: no longer drained; it is {}\n", backend.state),
        Some(Drain { by, .. }) => {
            format!("{target}: still drained, for another cause: {}\n", by.join(", "))
        }
    })?;
    Ok(if drain.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Backend {
    fn of(answer: &Value) -> serde_json::Result<Self> {
        serde::Deserialize::deserialize(answer)
    }
}

async fn asked(admin: &Admin, target: &Target, what: &str) -> anyhow::Result<Value> {
    let Target { pool, backend } = target;
    let path = format!("/v1/pools/{}/backends/{}/{what}", encoded(pool), encoded(backend));
    match admin.post(&path, Bytes::new()).await {
        Ok(answer) => Ok(answer),
        Err(AskError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
            let there: Vec<String> = all(&admin.get("/v1/pools").await?).collect();
            bail!("{admin} has no backend {target}; there are {}", there.join(", "));
        }
        Err(error) => Err(error.into()),
    }
}

fn all(pools: &Pools) -> impl Iterator<Item = String> {
    pools.pools.iter().flat_map(|pool| {
        pool.backends.iter().map(move |backend| format!("{}/{}", pool.name, backend.id))
    })
}

fn told(
    answer: &Value,
    as_json: bool,
    text: impl FnOnce(&Backend) -> String,
) -> anyhow::Result<()> {
    if as_json { print::json(answer) } else { print::out(&text(&Backend::of(answer)?)) }
}

/// A drain that somebody waits for.
struct Wait<'a> {
    admin: &'a Admin,
    target: &'a Target,
    shows: bool,
}

impl Wait<'_> {
    /// Waits until nothing of the backend is left; gives what it was like then.
    async fn until_done(&self, mut answer: Value) -> anyhow::Result<Value> {
        let mut shown = Shown::default();
        loop {
            let backend = Backend::of(&answer)?;
            if self.shows {
                shown.show(&format!("{}: {}", self.target, progress(&backend)))?;
            }
            match &backend.drain {
                Some(drain) if drain.left == 0 && backend.connections == 0 => break,
                None if backend.state == "lost" && backend.connections == 0 => break,
                None if backend.state != "lost" => {
                    shown.end()?;
                    bail!("{} is no longer drained: somebody took it back", self.target);
                }
                _ => {}
            }
            tokio::time::sleep(LOOK).await;
            match self.look().await? {
                Some(now) => answer = now,
                // It had left the config, and what was left of it has gone.
                None => break,
            }
        }
        shown.end()?;
        Ok(answer)
    }

    async fn look(&self) -> anyhow::Result<Option<Value>> {
        let pools: Value = self.admin.get("/v1/pools").await?;
        let is = |value: &Value, field: &str, wanted: &str| value[field] == *wanted;
        let pools = pools["pools"].as_array().into_iter().flatten();
        let of_pool = pools.filter(|pool| is(pool, "name", &self.target.pool));
        let mut backends =
            of_pool.flat_map(|pool| pool["backends"].as_array().into_iter().flatten());
        Ok(backends.find(|backend| is(backend, "id", &self.target.backend)).cloned())
    }
}

/// A line that is written anew on a terminal; elsewhere, one line for each change.
#[derive(Default)]
struct Shown {
    last: String,
}

impl Shown {
    fn show(&mut self, line: &str) -> anyhow::Result<()> {
        if line == self.last {
            return Ok(());
        }
        self.last = line.to_owned();
        let is_terminal = std::io::stdout().is_terminal();
        print::out(&if is_terminal { format!("\r{line}\x1b[K") } else { format!("{line}\n") })
    }

    fn end(&self) -> anyhow::Result<()> {
        let open = !self.last.is_empty() && std::io::stdout().is_terminal();
        if open { print::out("\n") } else { Ok(()) }
    }
}

/// How far a drain is.
fn progress(backend: &Backend) -> String {
    let connections = counted(backend.connections, "connection");
    match &backend.drain {
        None => format!("{}; {connections}", backend.state),
        Some(drain) if drain.left > 0 => {
            format!("draining: {}; {connections}", left(drain, unix_millis(SystemTime::now())))
        }
        Some(_) if backend.connections > 0 => format!("draining: {connections} still closing"),
        Some(_) => "drained: nothing is left there".to_owned(),
    }
}

/// What is left of a drain, and for how long.
pub(super) fn left(drain: &Drain, now: u64) -> String {
    let Drain { left, total, until, .. } = drain;
    format!("{left} of {total} left, {}", span(between(now, *until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_pool_and_a_backend() {
        assert_eq!("rooms/a.b:1".parse::<Target>().unwrap().to_string(), "rooms/a.b:1");
        for wrong in ["", "rooms", "/a", "rooms/"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
