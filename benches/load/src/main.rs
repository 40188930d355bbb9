//! The two ends of a benchmark: an echo server and clients that load a proxy in front of it.
//!
//! Both write and read frames by hand, each in one thread, so that they cost little and the same
//! for every proxy between them. Results are one JSON object on standard output.

mod bare;
mod certificate;
mod client;
mod echo;
mod frame;
mod members;
mod target;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::members::Members;
use crate::target::{Target, To};

#[derive(Debug, Parser)]
#[command(name = "load", about = "Echo server and load for benchmarks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a self-signed certificate and its key, as PEM.
    Certificate {
        /// The folder to write them into.
        #[arg(long)]
        into: PathBuf,
    },
    /// Echo messages until killed.
    Echo {
        /// Where to listen; port 0 takes a free one, which is printed.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Each connection sends its next message when it has the last one back. Begins with a line on
    /// standard input, closes the connections with another, or its end.
    Saturate {
        #[command(flatten)]
        to: To,
        /// How many connections.
        #[arg(long)]
        connections: usize,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// Messages at a fixed rate over all connections together, without TLS; tells how long their
    /// echoes take, from when they were to be sent.
    Rate {
        #[command(flatten)]
        to: To,
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
    /// Open connections and hold them, without a word, until a line or the end of standard input.
    Idle {
        #[command(flatten)]
        to: To,
        /// How many connections.
        #[arg(long)]
        connections: usize,
    },
    /// Open and close connections one after the other, some at a time.
    Upgrades {
        #[command(flatten)]
        to: To,
        /// How many in all.
        #[arg(long)]
        count: usize,
        /// How many at a time.
        #[arg(long, default_value = "16")]
        at_a_time: usize,
    },
    /// Send each line of a POST to all that have shaken hands, with nothing around it, until killed.
    Bare {
        /// Where to listen; port 0 takes a free one, which is printed.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Members of a room that get messages; tells how long these take from whoever publishes them.
    Members(Members),
}

fn main() -> anyhow::Result<()> {
    // Sleeps end on time rather than 50 us late. Where the kernel has no such switch they are
    // late, which is measured.
    let _ = fs::write("/proc/self/timerslack_ns", "1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(Cli::parse().command))
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Certificate { into } => certificate::write(&into),
        Command::Echo { listen } => echo::serve(listen).await,
        Command::Saturate { to, connections, seconds } => {
            let time = Duration::from_secs_f64(seconds);
            client::saturate(&Target::new(&to)?, connections, time).await
        }
        Command::Rate { to, connections, rate, seconds } => {
            let time = Duration::from_secs_f64(seconds);
            client::at_rate(&Target::new(&to)?, connections, rate, time).await
        }
        Command::Idle { to, connections } => client::idle(&Target::new(&to)?, connections).await,
        Command::Upgrades { to, count, at_a_time } => {
            client::upgrades(&Target::new(&to)?, count, at_a_time).await
        }
        Command::Bare { listen } => bare::serve(listen).await,
        Command::Members(members) => members::measure(&members).await,
    }
}
