//! `steadfast run`, and what it shares with `demo`: a proxy on a control runtime, stopped by
//! signals.
//!
//! Whoever runs a proxy from a file is its operator: the one place where a changed file, SIGHUP and
//! the admin API ask for the same reload, one after the other.

use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::log::Log;
use super::signals::{Asked, Signals};
use super::systemd::Manager;
use crate::config::watch::Watcher;
use crate::config::{Config, Loaded, Source};
use crate::descriptors;
use crate::fleet::Order;
use crate::server::Server;
use crate::server::plan::Planned;
use crate::server::reload::ReloadError;
use crate::shutdown::StopPlan;

/// Orders of the admin API that may wait.
const ORDERS: usize = 16;

/// Serves as the config says, until a signal.
pub(super) fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let source = Source::new(path);
    let Loaded { config, files, digest } = source.load();
    let config = match config {
        Ok(config) => config,
        Err(problems) => {
            writeln!(std::io::stderr(), "{problems}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let log = super::log::start(config.server.log_level, config.server.log_format)
        .context("can't start the log")?;
    let loaded = Loaded { config: Ok(config.clone()), files, digest };
    on_control_runtime(async move {
        let mut signals = Signals::listen().context("can't listen for signals")?;
        say_capacity(&config);
        let manager = Manager::of_environment();
        let server = Server::start(config).await?;
        manager.ready().await;
        let _alive = manager.watch(server.fleet());
        let watcher = Watcher::new(source.clone(), &loaded);
        let mut operator = Operator { server, source, watcher, log, manager };
        let plan = operator.operate(&mut signals).await;
        let Operator { server, manager, .. } = operator;
        // Beside the stop: a manager that is slow to hear of it holds nothing up.
        let told = tokio::spawn(async move { manager.stopping(&plan).await });
        let exit = stop(vec![server], plan, &mut signals).await?;
        if exit == ExitCode::SUCCESS {
            // Where that took no time at all. An error here is a panic, which has been reported.
            let _ = told.await;
        }
        Ok(exit)
    })
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

/// Keeps a proxy in accordance with its config file.
struct Operator {
    server: Server,
    source: Source,
    watcher: Watcher,
    log: Log,
    /// Who started the process, and wants to know how it is.
    manager: Manager,
}

impl Operator {
    /// Reloads whenever it is asked to, until a signal says how to stop.
    async fn operate(&mut self, signals: &mut Signals) -> StopPlan {
        let (orders, mut ordered) = mpsc::channel(ORDERS);
        self.server.obey(orders);
        loop {
            let done = tokio::select! {
                asked = signals.next() => {
                    let server = &self.server.config().server;
                    if let Some(plan) = asked.plan(server.shutdown_delay, server.shutdown_grace) {
                        return plan;
                    }
                    debug_assert_eq!(asked, Asked::Reload);
                    self.server.reopen_logs();
                    // How it went has been logged.
                    self.reload(signals).await.map(drop)
                }
                loaded = self.watcher.changed() => {
                    drop(self.take(loaded).await);
                    Ok(())
                }
                Some(order) = ordered.recv() => self.carry_out(order, signals).await,
            };
            if let Err(plan) = done {
                return plan;
            }
        }
    }

    async fn carry_out(&mut self, order: Order, signals: &mut Signals) -> Result<(), StopPlan> {
        match order {
            Order::Reload { reply } => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(self.reload(signals).await?);
            }
            Order::Plan { text, reply } => {
                let parsed = self.read(signals, move |source| source.parse(&text, "the plan"));
                let planned = parsed.await?.map_err(ReloadError::Invalid);
                let _ = reply.send(planned.map(|config| self.server.plan(&config)));
            }
        }
        Ok(())
    }

    /// Reads from disk, off this thread. A file system may be away for as long as it likes: that
    /// must not keep the process from being stopped.
    async fn read<T: Send + 'static>(
        &self,
        signals: &mut Signals,
        read: impl FnOnce(&Source) -> T + Send + 'static,
    ) -> Result<T, StopPlan> {
        let source = self.source.clone();
        let server = &self.server.config().server;
        tokio::select! {
            read = tokio::task::spawn_blocking(move || read(&source)) => {
                Ok(read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
            }
            plan = signals.stop(server.shutdown_delay, server.shutdown_grace) => Err(plan),
        }
    }

    /// Reads the file now, whether it has changed or not: the last time may have failed for a
    /// reason outside it.
    async fn reload(
        &mut self,
        signals: &mut Signals,
    ) -> Result<Result<Planned, ReloadError>, StopPlan> {
        let loaded = self.read(signals, Source::load).await?;
        self.watcher.note(&loaded);
        Ok(self.take(loaded).await)
    }

    /// Puts what was read in force, and says how that went.
    async fn take(&mut self, loaded: Loaded) -> Result<Planned, ReloadError> {
        self.manager.reloading().await;
        let outcome = match loaded.config {
            Ok(config) => self.server.reload(config).await,
            Err(problems) => Err(ReloadError::Invalid(problems)),
        };
        self.server.note_reload(&outcome);
        self.log.set_level(self.server.config().server.log_level);
        self.manager.reloaded(&outcome).await;
        outcome
    }
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
        _ = signals.next_stop(plan.delay, plan.grace) => {
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
