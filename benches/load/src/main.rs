//! The two ends of a benchmark: an echo server and clients that load a proxy in front of it.
//!
//! Both write and read frames by hand, each in one thread, so that they cost little and the same
//! for every proxy between them. Results are one JSON object on standard output.

mod client;
mod echo;
mod frame;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "load", about = "Echo server and load for benchmarks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Echo messages until killed.
    Echo {
        /// Where to listen; port 0 takes a free one, which is printed.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Each connection sends its next message when it has the last one back.
    Saturate {
        /// Where to connect.
        #[arg(long)]
        to: SocketAddr,
        /// How many connections.
        #[arg(long)]
        connections: usize,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// Messages at a fixed rate over all connections together; tells how long their echoes take.
    Rate {
        /// Where to connect.
        #[arg(long)]
        to: SocketAddr,
        /// How many connections.
        #[arg(long)]
        connections: usize,
        /// Messages a second.
        #[arg(long)]
        rate: f64,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// Open connections and hold them, without a word, until standard input ends.
    Idle {
        /// Where to connect.
        #[arg(long)]
        to: SocketAddr,
        /// How many connections.
        #[arg(long)]
        connections: usize,
    },
    /// Open and close connections one after the other, some at a time.
    Upgrades {
        /// Where to connect.
        #[arg(long)]
        to: SocketAddr,
        /// How many in all.
        #[arg(long)]
        count: usize,
        /// How many at a time.
        #[arg(long, default_value = "16")]
        at_a_time: usize,
    },
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match Cli::parse().command {
            Command::Echo { listen } => echo::serve(listen).await,
            Command::Saturate { to, connections, seconds } => {
                client::saturate(to, connections, Duration::from_secs_f64(seconds)).await
            }
            Command::Rate { to, connections, rate, seconds } => {
                client::at_rate(to, connections, rate, Duration::from_secs_f64(seconds)).await
            }
            Command::Idle { to, connections } => client::idle(to, connections).await,
            Command::Upgrades { to, count, at_a_time } => {
                client::upgrades(to, count, at_a_time).await
            }
        }
    })
}
