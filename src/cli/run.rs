//! `steadfast run`, and what it shares with `demo`: a proxy on a control runtime, stopped by
//! signals.

use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use tracing::{info, warn};

use super::signals::Signals;
use crate::config::{self, Config};
use crate::descriptors;
use crate::server::Server;
use crate::shutdown::StopPlan;

/// Serves as the config says, until a signal.
pub(super) fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            writeln!(std::io::stderr(), "{problems}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    super::log::start(config.server.log_level, config.server.log_format);
    on_control_runtime(serve(config))
}

/// Runs the control plane, on this thread alone: it has little to do, and must not wait for
/// workers.
pub(super) fn on_control_runtime(
    main: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(main);
    // A look-up of a name may still be running; nobody waits for it.
    runtime.shutdown_background();
    exit
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen().context("can't listen for signals")?;
    say_capacity(&config);
    let (delay, grace) = (config.server.shutdown_delay, config.server.shutdown_grace);
    let server = Server::start(config).await?;
    let plan = signals.next(delay, grace).await;
    stop(vec![server], plan, &mut signals).await
}

/// Stops all proxies of this process at once. A second signal ends the process at once.
pub(super) async fn stop(
    servers: Vec<Server>,
    plan: StopPlan,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let mut stopping = tokio::task::JoinSet::new();
    for server in servers {
        stopping.spawn(server.stop(plan));
    }
    tokio::select! {
        _ = stopping.join_all() => Ok(ExitCode::SUCCESS),
        _ = signals.next(plan.delay, plan.grace) => {
            warn!("a second signal: what is left is cut");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn say_capacity(config: &Config) {
    let (files, connections) = descriptors::limit();
    info!(files, connections, "the limit of open files allows so many relayed connections");
    let wanted: usize = config.listeners.iter().map(|listener| listener.connections).sum();
    if wanted as u64 > connections {
        warn!(
            wanted,
            connections, "listeners may take more connections than the limit of open files allows"
        );
    }
}
