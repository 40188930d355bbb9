//! How a proxy begins: its parts, from those that know nothing of others to the workers.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::busy::Busy;
use super::drain::Conductor;
use super::observer::observer;
use super::owners::Owners;
use super::registry::{self, Link};
use super::{Server, expiry, told, worker};
use crate::admin::{Admin, AdminError};
use crate::config::Config;
use crate::fleet::{self, Door, Fleet, Message};
use crate::http::{Shared, Snapshot};
use crate::listen::{ListenError, Listener, ListenerSettings, Loads};
use crate::observe::access_log::{AccessLog, OpenError, Opened};
use crate::observe::metrics::Metrics;
use crate::pool::{Observer, Pool};
use crate::publish::MAX_MESSAGE_BYTES;
use crate::registry::Registry;
use crate::registry::memory::Memory;
use crate::registry::redis::{Identity, Redis};
use crate::shutdown::StopPlan;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin address can't be bound.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The access log can't be opened.
    #[error(transparent)]
    AccessLog(#[from] OpenError),
    /// A worker can't start.
    #[error("can't start a worker")]
    Worker(#[source] io::Error),
}

impl Server {
    /// Starts a proxy: when this returns it accepts connections.
    ///
    /// To be called on the control runtime, where the watchers and the admin API run from then on.
    ///
    /// # Errors
    ///
    /// An address is taken, or the system has no thread or descriptor left. Nothing runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let (inboxes, receivers) = fleet::inboxes(config.server.workers);
        let loads = Arc::new(Loads::new(config.server.workers));
        let busy = Arc::<Busy>::default();
        let owners = Arc::new(Owners::new(Arc::clone(&loads), Arc::clone(&busy)));
        let proxy_id = proxy_id(&config.server.name);
        let redis = shared_registry(&config, &proxy_id);
        let metrics = metrics_of(&owners, redis.as_deref());
        let conductor = Conductor::new(inboxes.clone());
        let observer = observer(&metrics, &inboxes, &conductor);
        let shared = shared_by_workers(&config, proxy_id, redis.as_ref(), metrics, &observer)?;
        let fleet = Arc::new(seen_by_others(&config, shared, inboxes.clone())?);
        owners.are_of(&fleet);
        let admin = bind_admin(config.server.admin, &fleet).await?;
        let mut server = Self {
            config,
            fleet,
            admin: None,
            workers: Vec::new(),
            watchers: JoinSet::new(),
            watched: Vec::new(),
            watching_itself: watch::Sender::new(false),
            observer,
            conductor,
            routes_gone: HashMap::new(),
            registry: None,
            listeners_gone: Vec::new(),
        };
        server.serve_admin(admin);
        if let Some(redis) = redis {
            server.registry.insert(Link::begin(redis, &server.fleet)).known_to_others().await;
        }
        if let Err(error) = server.start_workers(receivers, &loads, &inboxes) {
            server.stop(StopPlan::prompt()).await;
            return Err(error);
        }
        server.watch_itself(busy);
        server.watch_backends(server.pools().iter());
        server.begin();
        Ok(server)
    }

    /// Everything runs: from here on the proxy is ready.
    fn begin(&self) {
        self.fleet.shared.metrics.took_effect(SystemTime::now());
        self.fleet.set_ready(true);
        self.announce();
    }

    /// Serves the admin API there from now on, and nowhere else.
    pub(super) fn serve_admin(&mut self, admin: Option<Admin>) {
        self.fleet.set_admin_address(admin.as_ref().map(Admin::address));
        self.admin = admin.map(|admin| {
            let stop = watch::Sender::new(false);
            let address = admin.address();
            self.watchers.spawn(admin.serve(told(stop.subscribe())));
            (address, stop)
        });
    }

    fn start_workers(
        &mut self,
        receivers: Vec<mpsc::Receiver<Message>>,
        loads: &Arc<Loads>,
        inboxes: &[mpsc::Sender<Message>],
    ) -> Result<(), StartError> {
        for (index, inbox) in (0u16..).zip(receivers) {
            let listeners = self.fleet.listeners.load();
            let doors = listeners.iter().map(|listener| {
                Ok(Door { listener: Arc::clone(listener), socket: listener.handle()? })
            });
            let parts = worker::Parts {
                index,
                shared: Arc::clone(&self.fleet.shared),
                doors: doors.collect::<io::Result<_>>().map_err(StartError::Worker)?,
                loads: Arc::clone(loads),
                inboxes: inboxes.to_vec(),
                inbox,
            };
            self.workers.push(worker::start(parts).map_err(StartError::Worker)?);
        }
        Ok(())
    }

    /// Has the proxy look at itself: how busy it is, and whether its certificates are valid for long.
    fn watch_itself(&mut self, busy: Arc<Busy>) {
        busy.read(self.workers.iter().map(|worker| worker.runtime.clone()).collect());
        let stopped = told(self.watching_itself.subscribe());
        self.watchers.spawn(async move {
            tokio::select! {
                () = stopped => {}
                () = busy.sample() => {}
            }
        });
        let stopped = told(self.watching_itself.subscribe());
        self.watchers.spawn(expiry::tell_every_day(Arc::clone(&self.fleet), stopped));
    }

    fn announce(&self) {
        for listener in self.fleet.listeners.load().iter() {
            info!(listener = %listener.label, address = %listener.address, "listening");
        }
        if let Some(admin) = self.admin() {
            info!(address = %admin, "admin API");
        }
        let workers = self.workers.len();
        info!(proxy = %self.fleet.shared.proxy_id, workers, "ready");
    }
}

/// The registry that it shares with others, if it has one.
fn shared_registry(config: &Config, proxy_id: &Arc<str>) -> Option<Arc<Redis>> {
    let settings = config.registry.clone()?;
    let identity = Identity { proxy: Arc::clone(proxy_id), name: config.server.name.clone() };
    Some(Arc::new(Redis::new(settings, identity)))
}

fn metrics_of(owners: &Arc<Owners>, redis: Option<&Redis>) -> Arc<Metrics> {
    let mut metrics = Metrics::new(Box::new(Arc::clone(owners)));
    if let Some(redis) = redis {
        metrics.register_registry(redis.counts());
    }
    Arc::new(metrics)
}

/// What the workers will share; opens the access log.
fn shared_by_workers(
    config: &Config,
    proxy_id: Arc<str>,
    redis: Option<&Arc<Redis>>,
    metrics: Arc<Metrics>,
    observer: &Observer,
) -> Result<Arc<Shared>, OpenError> {
    let registry: Arc<dyn Registry> = match redis {
        Some(redis) => Arc::<Redis>::clone(redis),
        None => Arc::<Memory>::default(),
    };
    let pools = config.pools.iter().map(|settings| {
        let pool = Pool::new(settings.clone(), Arc::clone(observer));
        registry::share(&pool, &registry);
        pool
    });
    let snapshot = Snapshot::new(&config.routes, pools.collect(), &metrics, None);
    let dropped = metrics.access_log_dropped.clone();
    let access_log = AccessLog::new(Opened::open(&config.server.access_log, dropped)?);
    Ok(Arc::new(Shared::new(proxy_id, snapshot, metrics, access_log, registry)))
}

/// The proxy as others see it; binds the listeners.
fn seen_by_others(
    config: &Config,
    shared: Arc<Shared>,
    inboxes: Vec<mpsc::Sender<Message>>,
) -> Result<Fleet, ListenError> {
    let listeners = bind_all(&config.listeners)?;
    let max_message = config.registry.as_ref().map(|registry| registry.max_message);
    let max_message = max_message.unwrap_or(MAX_MESSAGE_BYTES);
    let fleet = Fleet::new(shared, config.server.name.clone(), listeners, inboxes, max_message);
    fleet.set_admin_token(config.server.admin_token.clone());
    Ok(fleet)
}

/// `NAME-TIME-RANDOM`: new at each start, and sorted by it.
fn proxy_id(name: &str) -> Arc<str> {
    let name = name.replace('.', "-");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random = u32::from_ne_bytes(crate::random::bytes());
    format!("{name}-{:x}{random:08x}", now.as_secs()).into()
}

fn bind_all(settings: &[ListenerSettings]) -> Result<Vec<Arc<Listener>>, ListenError> {
    let bound = settings.iter().map(|one| {
        let bound = Listener::bind(one.clone()).map(Arc::new);
        bound.map_err(|source| ListenError::new(one, source))
    });
    bound.collect()
}

/// Binds the admin API, where there is to be one.
pub(super) async fn bind_admin(
    address: Option<SocketAddr>,
    fleet: &Arc<Fleet>,
) -> Result<Option<Admin>, AdminError> {
    match address {
        Some(address) => Ok(Some(Admin::bind(address, Arc::clone(fleet)).await?)),
        None => Ok(None),
    }
}
