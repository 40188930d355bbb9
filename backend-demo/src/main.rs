//! The demo backend as a process of its own: arguments, signals, exit code.

use std::env::VarError;
use std::net::SocketAddr;

use anyhow::Context;
use backend_demo::{Demo, Options, Publish, REDIS_PREFIX};
use clap::Parser;
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
    #[arg(long)]
    id: Option<String>,
    /// Publish what is said in rooms to this Redis, from which proxies take it for all members on
    /// all instances; rediss:// is encrypted.
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

impl Arguments {
    fn publish(&mut self) -> anyhow::Result<Publish> {
        if let Some(url) = self.redis.take() {
            return Ok(Publish::Redis { url, prefix: std::mem::take(&mut self.redis_prefix) });
        }
        let Some(url) = self.proxy_admin.take() else { return Ok(Publish::Own) };
        let token = match std::env::var(TOKEN_VARIABLE) {
            Ok(token) => token,
            Err(VarError::NotPresent) => String::new(),
            Err(error) => return Err(error).context(format!("${TOKEN_VARIABLE}")),
        };
        // Set to nothing is as good as not set.
        let token = Some(token).filter(|token| !token.is_empty());
        Ok(Publish::ProxyAdmin { url, token })
    }
}

// One thread: several of these together are what a proxy is for.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(LevelFilter::WARN).init();
    // Before anybody can know of us: a signal that came earlier would end us without a word.
    let terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;

    let (listen, publish) = (arguments.listen, arguments.publish()?);
    let demo = Demo::bind(Options { listen, id: arguments.id, publish })
        .await
        .with_context(|| format!("listening on {listen}"))?;
    announce(&demo);
    demo.serve(either(terminate, interrupt)).await.context("serving")
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
