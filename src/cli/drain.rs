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
use super::peers::{self, Peers};
use super::print::{self, between, counted, span};
use crate::observe::access_log::unix_millis;

/// How often is looked whether a drain is done.
const LOOK: Duration = Duration::from_millis(500);

/// What is said when nothing is left.
const DRAINED: &str = "drained: nothing is there";

/// Which backend, and whether to wait.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    which: UndrainOptions,
    /// Wait until nothing of it is left, at any proxy of the registry, and show how far it is.
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
pub(super) struct Target {
    pool: String,
    backend: String,
}

impl Target {
    /// The backend as a proxy has it; `None`: it has none such.
    pub(super) async fn look(&self, admin: &Admin) -> anyhow::Result<Option<Value>> {
        let pools: Value = admin.get("/v1/pools").await?;
        let is = |value: &Value, field: &str, wanted: &str| value[field] == *wanted;
        let pools = pools["pools"].as_array().into_iter().flatten();
        let of_pool = pools.filter(|pool| is(pool, "name", &self.pool));
        let mut backends =
            of_pool.flat_map(|pool| pool["backends"].as_array().into_iter().flatten());
        Ok(backends.find(|backend| is(backend, "id", &self.backend)).cloned())
    }
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
            let text = |backend: &Backend| {
                format!("{target}: nothing new goes there; {} there now\n", there(backend))
            };
            return told(&answer, *json, text);
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
    pub(super) fn of(answer: &Value) -> serde_json::Result<Self> {
        serde::Deserialize::deserialize(answer)
    }

    /// Nothing goes through it.
    fn is_empty(&self) -> bool {
        self.connections == 0 && self.in_flight == 0
    }

    /// Nothing of it is left, and nothing comes: its drain is over, or it is lost.
    pub(super) fn is_cleared(&self) -> bool {
        let is_over = match &self.drain {
            Some(drain) => drain.left == 0,
            None => self.state == "lost",
        };
        is_over && self.is_empty()
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
    /// Waits until nothing of the backend is left at any proxy; gives what it was like here then.
    async fn until_done(&self, answer: Value) -> anyhow::Result<Value> {
        let mut shown = Shown::default();
        let done = self.until_cleared(answer, &mut shown).await;
        shown.end()?;
        done
    }

    async fn until_cleared(&self, mut answer: Value, shown: &mut Shown) -> anyhow::Result<Value> {
        let Self { admin, target, .. } = self;
        let mut peers = Peers::default();
        loop {
            // What is there at the moment of the order is not counted yet.
            tokio::time::sleep(LOOK).await;
            let now = target.look(admin).await?;
            // One that is not there had left the config, and what was left of it has gone.
            let backend = now.as_ref().map(Backend::of).transpose()?;
            answer = now.unwrap_or(answer);
            let is_cleared = match &backend {
                Some(Backend { drain: None, state, .. }) if state != "lost" => {
                    bail!("{target} is no longer drained: somebody took it back");
                }
                backend => backend.as_ref().is_none_or(Backend::is_cleared),
            };
            let elsewhere = if is_cleared { peers.look(admin, target).await? } else { None };
            let line = match (&elsewhere, &backend) {
                (Some(peers::Left(left)), _) => {
                    format!("draining: nothing is there by this proxy; {left}")
                }
                (None, Some(backend)) => progress(backend),
                (None, None) => DRAINED.to_owned(),
            };
            if self.shows && !(backend.is_none() && elsewhere.is_none()) {
                shown.show(&format!("{target}: {line}"))?;
            }
            if is_cleared && elsewhere.is_none() {
                return Ok(answer);
            }
        }
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
    let there = there(backend);
    match &backend.drain {
        Some(drain) if drain.left > 0 => {
            let left = left(drain, unix_millis(SystemTime::now()));
            format!("draining: {left}; {there} there")
        }
        Some(_) if backend.is_empty() => DRAINED.to_owned(),
        Some(_) => format!("draining: {there} there"),
        None => format!("{}: {there} there", backend.state),
    }
}

/// What goes through a backend.
fn there(backend: &Backend) -> String {
    flow(backend.connections, backend.in_flight)
}

/// Connections, and requests under way.
pub(super) fn flow(connections: usize, requests: usize) -> String {
    match (connections, requests) {
        (0, 0) => "nothing".to_owned(),
        (connections, 0) => counted(connections, "connection"),
        (connections, requests) => {
            format!("{} and {}", counted(connections, "connection"), counted(requests, "request"))
        }
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
