//! `steadfast demo`: proxies, backends and a chat page in one process, without anything else.
//!
//! The proxies are the real ones, with a config like any other; the backends are those of the
//! `backend-demo` package. What it prints shows at a glance what the product is for: which rooms
//! live on which backend, and what to open to see it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use backend_demo::{Demo, Publish};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::run::{on_control_runtime, stop};
use super::signals::Signals;
use crate::config::{self, Config, Environment, LogFormat, LogLevel};
use crate::server::Server;

/// How many ports behind one that is taken are tried.
const PORTS: u16 = 100;
const GRACE: Duration = Duration::from_secs(1);
/// Rooms whose backends are told at the start.
const ROOMS: [&str; 5] = ["lobby", "red", "green", "blue", "yellow"];

/// What the demo runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// How many backends.
    #[arg(long, value_name = "N", default_value = "3")]
    backends: NonZeroUsize,
    /// How many proxies; further ones listen on the next free ports.
    #[arg(long, value_name = "N", default_value = "1")]
    proxies: NonZeroUsize,
    /// Where the first proxy listens; if taken, the next free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where its admin API listens; if taken, the next free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9900")]
    admin: SocketAddr,
    /// The Redis that the proxies share: redis://HOST:PORT, or rediss://HOST:PORT for TLS. The
    /// backends publish there, so that a room has members on all of them.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
}

/// Runs the demo until a signal.
pub(super) fn demo(options: &Options) -> anyhow::Result<ExitCode> {
    if let Some(url) = &options.redis {
        // The backends' word, which know less of Redis than a proxy does.
        published_to(url).check().map_err(|error| {
            super::Cli::command().error(ErrorKind::ValueValidation, format!("--redis: {error}"))
        })?;
    }
    let _log = super::log::start(LogLevel::Warn, LogFormat::Text).context("can't start the log")?;
    on_control_runtime(serve(options))
}

async fn serve(options: &Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen().context("can't listen for signals")?;
    let redis = options.redis.as_deref();
    let backends = Backends::start(options.backends.get(), redis).await?;
    let mut servers = Vec::new();
    let (mut listen, mut admin) = (options.listen, options.admin);
    for _ in 0..options.proxies.get() {
        listen = free_port(listen, None)?;
        admin = free_port(admin, Some(listen.port()))?;
        let config = proxy_config(listen, admin, &backends.addresses, redis)?;
        servers.push(Server::start(config).await?);
    }
    std::io::stdout().write_all(welcome(&servers, &backends).as_bytes())?;
    let plan = signals.next_stop(Duration::ZERO, GRACE).await;
    let exit = stop(servers, plan, &mut signals).await;
    backends.stop().await;
    exit
}

/// The backends of the demo, on threads of the control runtime.
struct Backends {
    addresses: Vec<(String, SocketAddr)>,
    serving: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Backends {
    async fn start(count: usize, redis: Option<&str>) -> anyhow::Result<Self> {
        let stop = watch::Sender::new(false);
        let mut backends = Self { addresses: Vec::new(), serving: JoinSet::new(), stop };
        for index in 0..count {
            let id = format!("b{index}");
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let publish = redis.map_or(Publish::Own, published_to);
            let options = backend_demo::Options { listen, id: Some(id.clone()), publish };
            let demo = Demo::bind(options).await.context("can't start a backend")?;
            backends.addresses.push((id, demo.address()));
            let mut stopping = backends.stop.subscribe();
            let stopped = async move {
                // A sender that is gone means the same.
                let _ = stopping.wait_for(|stop| *stop).await;
            };
            backends.serving.spawn(async move {
                if let Err(error) = demo.serve(stopped).await {
                    tracing::error!(%error, "a backend has ended");
                }
            });
        }
        Ok(backends)
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.serving.join_all().await;
    }
}

/// A Redis that the proxies of the demo take messages from.
fn published_to(url: &str) -> Publish {
    Publish::Redis { url: url.to_owned(), prefix: backend_demo::REDIS_PREFIX.to_owned() }
}

/// This address, or one with the next port that is free and not `promised` to another listener.
fn free_port(address: SocketAddr, promised: Option<u16>) -> anyhow::Result<SocketAddr> {
    if address.port() == 0 {
        return Ok(address);
    }
    let last = address.port().saturating_add(PORTS);
    let ports = (address.port()..=last).filter(|port| Some(*port) != promised);
    let mut candidates = ports.map(|port| SocketAddr::new(address.ip(), port));
    let free = candidates.find(|candidate| TcpListener::bind(candidate).is_ok());
    free.with_context(|| format!("{address} and the ports behind it are taken"))
}

fn proxy_config(
    listen: SocketAddr,
    admin: SocketAddr,
    backends: &[(String, SocketAddr)],
    redis: Option<&str>,
) -> anyhow::Result<Config> {
    let mut source = format!(
        "[server]\nname = \"demo\"\nadmin = \"{admin}\"\nshutdown_grace = \"1s\"\n\n\
         [[listener]]\nbind = \"{listen}\"\n\n\
         [[route]]\npath = \"/*\"\npool = \"rooms\"\nkey = \"query:room\"\n\n\
         [pool.rooms]\nbackends = [\n"
    );
    for (id, address) in backends {
        writeln!(source, "  {{ id = \"{id}\", address = \"{address}\" }},")?;
    }
    source.push_str("]\n\n[pool.rooms.health]\nkind = \"http\"\ninterval = \"1s\"\n");
    if let Some(url) = redis {
        // What JSON puts in quotes, TOML reads.
        writeln!(source, "\n[registry]\nurl = {}", serde_json::to_string(url)?)?;
    }
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let environment = Environment {
        variable: &|_| None,
        file: &|_| Err(std::io::ErrorKind::NotFound.into()),
        host_name: "demo",
        cores,
        now: std::time::SystemTime::now(),
        authorities: &Vec::new,
    };
    let config = config::parse(&source, "demo", Path::new("."), &environment);
    config.map_err(|problems| anyhow::anyhow!("the demo's own config:\n{problems}"))
}

/// What is printed when all runs.
fn welcome(servers: &[Server], backends: &Backends) -> String {
    let mut text = String::from("Steadfast demo is running.\n");
    for (number, server) in (1..).zip(servers) {
        let page = server.listeners().first().copied().map(|address| format!("http://{address}/"));
        let admin = server.admin().map(|address| format!("http://{address}"));
        let (page, admin) = (page.unwrap_or_default(), admin.unwrap_or_default());
        let title = if servers.len() == 1 { String::new() } else { format!(" of proxy {number}") };
        text.push_str(&format!(
            "\n  open    {page}   the chat page{title}\n  admin   {admin}/v1/pools   backends and \
             their connections; also /v1/connections, /metrics\n"
        ));
    }
    text.push_str("\nEach room lives on one backend, whoever joins it:\n\n");
    for (id, _) in &backends.addresses {
        let rooms = ROOMS.iter().filter(|room| home(servers, room).as_deref() == Some(id));
        let rooms: Vec<&str> = rooms.copied().collect();
        let rooms = if rooms.is_empty() { "(none of these)".to_owned() } else { rooms.join(", ") };
        text.push_str(&format!("  {id}   {rooms}\n"));
    }
    text.push_str(
        "\nOpen the page in two tabs with one room, and in a third with another:\n\
         the colour is the backend's. Ctrl-C stops everything.\n",
    );
    text
}

fn home(servers: &[Server], room: &str) -> Option<String> {
    let pool = servers.first()?.pools().into_iter().next()?;
    Some(pool.home(room)?.id().to_owned())
}
