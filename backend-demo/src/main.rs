//! The demo backend as a process of its own: arguments, signals, exit code.

use std::net::SocketAddr;

use anyhow::Context;
use backend_demo::{Demo, Options};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

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
}

// One thread: several of these together are what a proxy is for.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(LevelFilter::WARN).init();
    // Before anybody can know of us: a signal that came earlier would end us without a word.
    let terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;

    let listen = arguments.listen;
    let demo = Demo::bind(Options { listen, id: arguments.id })
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
