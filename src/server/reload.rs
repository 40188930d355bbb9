//! Puts another config in force while the proxy runs, all of it or nothing.
//!
//! Three steps, of which only the last changes anything. [`Server::plan`] compares the new config
//! with that in force. `Prepared` gets all that can fail: addresses are bound, TLS is set up, the
//! access log is opened. Then everything takes effect: pools that changed are built anew of what
//! they know, routes and pools are swapped in one pointer, workers are told of listeners, and what
//! is gone is let go. What did not change is the same object as before, with its counts, verdicts and places.
//!
//! Live connections hold none of it but what they were opened with.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tracing::{info, warn};

use super::Server;
use super::drain::{Closing, Target};
use super::plan::{self, Fate, Planned, PlannedChange};
use super::start::bind_admin;
use crate::admin::{Admin, AdminError};
use crate::config::diff::{self, Act, Change, Diff, Part, diff};
use crate::config::{Config, Problems};
use crate::fleet::LastReload;
use crate::http::Snapshot;
use crate::listen::{ListenError, Listener, ListenerSettings};
use crate::observe::access_log::{OpenError, Opened};
use crate::observe::labels::LiveNames;
use crate::pool::{self, Pool, PoolSettings};
use crate::route::OnRemoved;
use crate::ws::close::CloseReason;

/// So many problems of a config go into one log line.
const PROBLEMS_TOLD: usize = 10;

/// Why a config was not put in force. The one before it still is, to the last detail.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It is not valid.
    #[error("{0}")]
    Invalid(Problems),
    /// A listener can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin address can't be bound.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The access log can't be opened.
    #[error(transparent)]
    AccessLog(#[from] OpenError),
}

impl ReloadError {
    /// What is wrong, with places or causes, on one line.
    pub fn told(&self) -> String {
        if let Self::Invalid(problems) = self {
            let mut told: Vec<String> = problems.lines().take(PROBLEMS_TOLD).collect();
            if problems.len() > told.len() {
                told.push(format!("and {} more", problems.len() - told.len()));
            }
            return told.join("; ");
        }
        let mut told = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            told.push_str(&format!(": {error}"));
            cause = error.source();
        }
        told
    }
}

/// All that a reload needs and that could have failed.
struct Prepared {
    listeners: Listeners,
    /// `None`: the admin API stays where it is.
    admin: Option<Option<Admin>>,
    /// `None`: the access log stays as it is.
    access_log: Option<Opened>,
}

/// What becomes of the listeners.
#[derive(Default)]
struct Listeners {
    /// All of the new config, in its order.
    all: Vec<Arc<Listener>>,
    /// Those of them that workers don't know yet, with a handle for each worker.
    opened: Vec<(Arc<Listener>, Vec<std::net::TcpListener>)>,
    /// Those that others have taken the place of, on the same socket.
    replaced: Vec<Arc<Listener>>,
    /// Those whose address is gone from the config.
    closed: Vec<Arc<Listener>>,
}

impl Server {
    /// Tells what a reload of `new` would change, and whom it would touch. Changes nothing.
    pub fn plan(&self, new: &Config) -> Planned {
        let Diff { changes, fixed } = diff(&self.config, new);
        let mut changes: Vec<_> = changes.into_iter().map(|change| self.planned(change)).collect();
        plan::count(&mut changes, &self.fleet.shared.metrics.live_connections());
        Planned { changes, needs_restart: fixed }
    }

    /// What becomes of those who are touched by a change. Only clients of a listener are counted.
    fn planned(&self, change: Change) -> PlannedChange {
        let (connections, fate) = match (change.part, &change.act) {
            (Part::Route, Act::Removed) => {
                let route = self.config.routes.iter().find(|route| route.name == change.name);
                (0, route.map(|route| route.on_removed.into()))
            }
            (Part::Backend, Act::Removed | Act::Changed(_)) if plan::leaves(&change) => {
                (0, Some(Fate::Drained))
            }
            (Part::Listener, Act::Removed) => {
                let names = diff::listener_names(&self.config.listeners);
                let listeners = self.fleet.listeners.load();
                let mut known = names.iter().zip(listeners.iter());
                let listener = known.find(|((name, _), _)| *name == change.name);
                listener.map_or((0, None), |(_, one)| (one.limits.open(), Some(Fate::Kept)))
            }
            _ => (0, None),
        };
        PlannedChange { change, connections, fate }
    }

    /// Puts `new` in force, and tells what has changed.
    ///
    /// What can't change while the process runs stays as it is, and is told too.
    ///
    /// # Errors
    ///
    /// Something that `new` asks for can't be had. Nothing has changed then.
    pub async fn reload(&mut self, mut new: Config) -> Result<Planned, ReloadError> {
        let planned = self.plan(&new);
        // Kept as it is, so that the next reload tells of it again.
        new.server.name.clone_from(&self.config.server.name);
        new.server.workers = self.config.server.workers;
        new.server.log_format = self.config.server.log_format;
        new.registry.clone_from(&self.config.registry);
        if !planned.changes.is_empty() {
            let prepared = self.prepare(&new).await?;
            self.put_in_force(new, prepared).await;
        }
        Ok(planned)
    }

    /// Notes how a reload went, where others look for it, and tells the log.
    pub fn note_reload(&self, outcome: &Result<Planned, ReloadError>) {
        let error = outcome.as_ref().err().map(ReloadError::told);
        let at = SystemTime::now();
        self.fleet.shared.metrics.reloaded(error.is_none(), at);
        match outcome {
            Ok(planned) => {
                for PlannedChange { change, connections, .. } in &planned.changes {
                    info!(%change, connections, "config changed");
                }
                for key in &planned.needs_restart {
                    warn!(key, "this takes effect only when the process starts anew");
                }
                info!(changes = planned.changes.len(), "config reloaded");
            }
            Err(_) => {
                let error = error.as_deref().unwrap_or_default();
                tracing::error!(error, "config not reloaded: the one before stays in force");
            }
        }
        let last = LastReload { at, error };
        *self.fleet.last_reload.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(last);
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, ReloadError> {
        let listeners = self.prepare_listeners(&new.listeners)?;
        let mut prepared = Prepared { listeners, admin: None, access_log: None };
        let (old, server) = (&self.config.server, &new.server);
        if old.admin != server.admin {
            prepared.admin = Some(bind_admin(server.admin, &self.fleet).await?);
        }
        if old.access_log != server.access_log {
            let dropped = self.fleet.shared.metrics.access_log_dropped.clone();
            prepared.access_log = Some(Opened::open(&server.access_log, dropped)?);
        }
        Ok(prepared)
    }

    fn prepare_listeners(&self, settings: &[ListenerSettings]) -> Result<Listeners, ReloadError> {
        let mut prepared = Listeners::default();
        let known = self.fleet.listeners.load();
        let names = diff::listener_names(&self.config.listeners);
        let mut known: Vec<_> = names.iter().map(|(name, _)| name).zip(known.iter()).collect();
        for (name, settings) in diff::listener_names(settings) {
            let failed = |source| ListenError::new(settings, source);
            let position = known.iter().position(|(known, _)| **known == name);
            let before = position.map(|position| known.swap_remove(position).1);
            let listener = match before {
                Some(before) if before.settings == *settings => {
                    prepared.all.push(Arc::clone(before));
                    continue;
                }
                Some(before) => {
                    prepared.replaced.push(Arc::clone(before));
                    before.renewed(settings.clone()).map_err(failed)?
                }
                None => {
                    let listener = Listener::bind(settings.clone()).map_err(failed)?;
                    let mut gone = self.listeners_gone.iter().filter(|(gone, _)| *gone == name);
                    // One who is connected from before counts towards the limits still.
                    match gone.find_map(|(_, gone)| gone.upgrade()) {
                        Some(gone) => listener.instead_of(&gone),
                        None => listener,
                    }
                }
            };
            let listener = Arc::new(listener);
            let handles = (0..self.fleet.workers()).map(|_| listener.handle());
            let handles = handles.collect::<io::Result<_>>().map_err(failed)?;
            prepared.all.push(Arc::clone(&listener));
            prepared.opened.push((listener, handles));
        }
        prepared.closed = known.into_iter().map(|(_, listener)| Arc::clone(listener)).collect();
        Ok(prepared)
    }

    /// From here on nothing fails.
    async fn put_in_force(&mut self, new: Config, prepared: Prepared) {
        let shared = Arc::clone(&self.fleet.shared);
        let before = shared.snapshot.load_full();
        if let Some(opened) = prepared.access_log {
            shared.access_log.redirect(opened);
        }
        let pools = new.pools.iter().map(|settings| self.pool(settings, &before)).collect();
        let snapshot = Snapshot::new(&new.routes, pools, &shared.metrics, Some(&before));
        let snapshot = Arc::new(snapshot);
        shared.snapshot.store(Arc::clone(&snapshot));
        let is_here = |pool: &Pool| snapshot.pools().iter().any(|one| one.name() == pool.name());
        before.pools().iter().filter(|pool| !is_here(pool)).for_each(|pool| pool.retire());
        self.let_routes_go(&before, &snapshot);
        self.watch_backends(snapshot.pools_with_gone());
        self.exchange_listeners(prepared.listeners).await;
        shared.metrics.forget_all_but(&self.live_names(&snapshot));
        if let Some(admin) = prepared.admin {
            self.serve_admin(admin);
        }
        self.fleet.set_admin_token(new.server.admin_token.clone());
        if self.config.listeners != new.listeners {
            super::expiry::tell(&self.fleet);
        }
        self.config = new;
    }

    /// The pool of these settings: the same as before where they are the same.
    fn pool(&self, settings: &PoolSettings, before: &Snapshot) -> Arc<Pool> {
        let is_here = |pool: &Arc<Pool>| before.pools().iter().any(|one| Arc::ptr_eq(one, pool));
        let mut known = before.pools_with_gone();
        match known.find(|pool| pool.name() == settings.name) {
            Some(pool) if is_here(pool) && pool.settings() == settings => Arc::clone(pool),
            Some(pool) => pool.rebuild(settings.clone()),
            None => {
                let pool = Pool::new(settings.clone(), Arc::clone(&self.observer));
                super::registry::share(&pool, &self.fleet.shared.registry);
                pool
            }
        }
    }

    /// Closes connections of routes that are gone, as each of them said; a route that is back
    /// keeps what it still has.
    fn let_routes_go(&mut self, before: &Snapshot, now: &Snapshot) {
        self.routes_gone.retain(|_, closing| closing.is_under_way());
        for route in now.routes() {
            self.routes_gone.remove(&route.names.route).iter().for_each(Closing::stop);
        }
        for route in before.routes() {
            let name = &route.names.route;
            if now.routes().iter().any(|one| one.names.route == *name) {
                continue;
            }
            let span = match route.settings.on_removed {
                OnRemoved::Keep => continue,
                OnRemoved::Drain => route.pool.settings().drain_timeout,
                OnRemoved::Close => Duration::ZERO,
            };
            let target = Target::Route(Arc::clone(name));
            let closing = self.conductor.start(target, span, CloseReason::RouteRemoved);
            self.routes_gone.insert(Arc::clone(name), closing);
        }
    }

    /// Has these pools' backends watched, and no others.
    pub(super) fn watch_backends<'p>(&mut self, pools: impl Iterator<Item = &'p Arc<Pool>>) {
        // Who has ended is let go of, so that reloads leave nothing behind.
        while self.watchers.try_join_next().is_some() {}
        let mut before = std::mem::take(&mut self.watched);
        for pool in pools {
            let known = before.iter().position(|(one, _)| Arc::ptr_eq(one, pool));
            let stop = known.map_or_else(
                || {
                    let stop = watch::Sender::new(false);
                    // Who has left may still have connections, and be lost.
                    for backend in pool.backends().iter().cloned().chain(pool.departed()) {
                        let pool = Arc::clone(pool);
                        let stopped = super::told(stop.subscribe());
                        self.watchers.spawn(pool::health::watch(pool, backend, stopped));
                    }
                    stop
                },
                |known| before.swap_remove(known).1,
            );
            self.watched.push((Arc::clone(pool), stop));
        }
        // The watches of those that are left end with their senders.
    }

    /// The names that are in force, and those that connections bear.
    fn live_names(&self, snapshot: &Snapshot) -> LiveNames {
        let gone = self.listeners_gone.iter().filter_map(|(_, listener)| listener.upgrade());
        let listeners = self.fleet.listeners.load();
        let listeners = listeners.iter().map(|one| Arc::clone(&one.label));
        let backends = snapshot.pools_with_gone().map(|pool| {
            let departed = pool.departed().into_iter().filter(|backend| backend.slots() > 0);
            let all = pool.backends().iter().cloned().chain(departed);
            (pool.name().into(), all.map(|backend| backend.shared_id()).collect())
        });
        LiveNames {
            listeners: listeners.chain(gone.map(|gone| Arc::clone(&gone.label))).collect(),
            routes: snapshot.route_names().cloned().collect(),
            backends: backends.collect(),
        }
    }

    async fn exchange_listeners(&mut self, prepared: Listeners) {
        let Listeners { all, opened, replaced, closed } = prepared;
        self.listeners_gone.retain(|(_, gone)| gone.strong_count() > 0);
        // By the name that they bear in the config until now.
        let names = diff::listener_names(&self.config.listeners);
        let known = self.fleet.listeners.load();
        for ((name, _), listener) in names.into_iter().zip(known.iter()) {
            if !all.iter().any(|one| Arc::ptr_eq(one, listener)) {
                self.listeners_gone.push((name, Arc::downgrade(listener)));
            }
        }
        drop(known);
        self.fleet.listeners.store(Arc::new(all));
        for (listener, _) in &opened {
            if let Err(error) = listener.prepare() {
                warn!(listener = %listener.label, %error, "can't set the keep-alive of a listener");
            }
        }
        let gone: Vec<Arc<Listener>> = replaced.into_iter().chain(closed.iter().cloned()).collect();
        let opened = opened.into_iter().map(|(listener, handles)| (listener, handles.into_iter()));
        self.fleet.exchange_doors(opened.collect(), &gone).await;
        for gone in closed {
            info!(listener = %gone.label, address = %gone.address, "no longer listening");
            gone.close();
        }
    }
}
