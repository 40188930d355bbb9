//! The demo backend as a process of its own: arguments, signals, exit code.

use std::env::VarError;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use backend_demo::{BACKEND_IDS, Demo, Options, Publish, REDIS_PREFIX, is_backend_id};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

/// Holds the token of the proxy's admin API.
const TOKEN_VARIABLE: &str = "STEADFAST_TOKEN";

/// Echo server, room server and chat page, to try a WebSocket proxy with.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// What it calls itself: 1 to 64 of A-Z a-z 0-9 . : _ - [default: the port]
    #[arg(long, value_parser = backend_id)]
    id: Option<String>,
    /// Publish what is said in rooms to this Redis, from which proxies take it for all members on
    /// all instances: redis://HOST:PORT, or rediss://HOST:PORT, which is encrypted.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// What names in Redis begin with.
    #[arg(long, value_name = "PREFIX", default_value = REDIS_PREFIX)]
    redis_prefix: String,
    /// Send it to the admin API of this proxy instead, which tells all members that came through
    /// it; not used with --redis. $STEADFAST_TOKEN holds its token, if it has one.
    #[arg(long, value_name = "URL")]
    proxy_admin: Option<String>,
}

fn backend_id(text: &str) -> Result<String, String> {
    if is_backend_id(text) { Ok(text.to_owned()) } else { Err(format!("an id is {BACKEND_IDS}")) }
}

impl Arguments {
    /// Where to publish. An error says which option or variable is wrong, and in what; it does not
    /// repeat a URL, in which a password may be.
    fn publish(&mut self) -> Result<Publish, clap::Error> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            Self::command().error(ErrorKind::ValueValidation, format!("{what}: {error}"))
        };
        let (option, publish) = match (self.redis.take(), self.proxy_admin.take()) {
            (Some(url), _) => {
                let prefix = std::mem::take(&mut self.redis_prefix);
                ("--redis", Publish::Redis { url, prefix })
            }
            (None, Some(url)) => {
                let token = match std::env::var(TOKEN_VARIABLE) {
                    Ok(token) => token,
                    Err(VarError::NotPresent) => String::new(),
                    Err(error) => return Err(wrong(TOKEN_VARIABLE, &error)),
                };
                // Set to nothing is as good as not set.
                let token = Some(token).filter(|token| !token.is_empty());
                ("--proxy-admin", Publish::ProxyAdmin { url, token })
            }
            (None, None) => return Ok(Publish::Own),
        };
        publish.check().map_err(|error| wrong(option, &error))?;
        Ok(publish)
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let publish = arguments.publish().unwrap_or_else(|error| error.exit());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(LevelFilter::WARN)
        .init();
    match run(arguments, publish) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

// One thread: several of these together are what a proxy is for.
#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Arguments, publish: Publish) -> anyhow::Result<()> {
    // Before anybody can know of us: a signal that came earlier would end us without a word.
    let terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let Arguments { listen, id, .. } = arguments;
    let demo = Demo::bind(Options { listen, id, publish })
        .await
        .with_context(|| format!("can't listen on {listen}"))?;
    announce(&demo);
    demo.serve(either(terminate, interrupt)).await.context("serving")
}

#[expect(clippy::print_stderr, reason = "what a person reads who has started it")]
fn complain(error: &anyhow::Error) {
    eprintln!("backend-demo: {error:#}");
}

#[expect(clippy::print_stderr, reason = "whoever starts it with port 0 reads this line")]
fn announce(demo: &Demo) {
    eprintln!("listening on {} as {:?}", demo.address(), demo.id());
}

async fn either(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
