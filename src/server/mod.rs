//! Builds a proxy out of its config, owns every part of it, and stops it in order.
//!
//! The one place that knows all modules. A [`Server`] is one proxy: listeners that are bound,
//! workers that serve them, watchers of its backends, an admin API. Nothing of it is a process
//! global, so that several can run in one process. It is built on a runtime of its owner's, the
//! control runtime, on which everything runs that must not wait for a worker.

mod busy;
mod drain;
mod expiry;
pub mod plan;
mod registry;
pub mod reload;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use self::busy::Busy;
use self::drain::{Closing, Conductor};
use self::registry::Link;
use self::worker::WorkerHandle;
use crate::admin::{Admin, AdminError};
use crate::config::Config;
use crate::fleet::{self, Door, Fleet, Message, Order};
use crate::http::{Shared, Snapshot};
use crate::listen::{ListenError, Listener, ListenerSettings, Loads};
use crate::observe::access_log::{AccessLog, OpenError, Opened};
use crate::observe::labels::{BackendLabels, DrainLabels, ListenerLabel, PoolLabel, StateLabels};
use crate::observe::metrics::{BackendSample, Collect, Metrics, WorkerSample};
use crate::observe::rate::{Allowed, allowed};
use crate::pool::{self, Backend, BackendEvent, Clearing, DrainChange, PanicEvent, Pool, State};
use crate::publish::{Audience, MAX_MESSAGE_BYTES};
use crate::registry::Registry;
use crate::registry::memory::Memory;
use crate::registry::redis::{Identity, Redis};
use crate::shutdown::StopPlan;

pub use crate::fleet::{DeliverError, PublishError};

/// How long after the grace a worker may take to notice that it is over.
const LATEST: Duration = Duration::from_secs(1);
/// How long answers of the admin API may take that are under way when all else is over.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long it may take to sign off from the registry when all else is over, with the grace.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// And at least: those who were cut at its end are still to be taken out.
const FEWEST_WORDS: Duration = Duration::from_millis(500);

/// So many changes of backends' states are told in a second.
const CHANGES_TOLD: u32 = 100;

/// How long the last lines of the access log may take.
const FLUSH: Duration = Duration::from_secs(2);

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

/// One running proxy.
pub struct Server {
    /// The config in force.
    config: Config,
    fleet: Arc<Fleet>,
    /// Where the admin API is, and what stops it.
    admin: Option<(SocketAddr, watch::Sender<bool>)>,
    workers: Vec<WorkerHandle>,
    /// What runs on the control runtime.
    watchers: JoinSet<()>,
    /// The pools whose backends are watched, and what stops that.
    watched: Vec<(Arc<Pool>, watch::Sender<bool>)>,
    /// What stops the rest of the watchers.
    watching_itself: watch::Sender<bool>,
    /// Told of every change of a backend.
    observer: pool::Observer,
    conductor: Arc<Conductor>,
    /// The closes of the connections of routes that left the config, by the route's name.
    routes_gone: HashMap<Arc<str>, Closing>,
    /// Keeps it in the registry that it shares with others.
    registry: Option<Link>,
    /// Listeners that left the config or have others in their place, by the name of `diff`; as
    /// long as something, such as a connection, is of them.
    listeners_gone: Vec<(String, Weak<Listener>)>,
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
        let (fleet, busy) = (OnceLock::new(), Arc::<Busy>::default());
        let collector =
            Arc::new(Owners { fleet, loads: Arc::clone(&loads), busy: Arc::clone(&busy) });
        let mut metrics = Metrics::new(Box::new(Arc::clone(&collector)));
        let proxy_id = proxy_id(&config.server.name);
        let redis = config.registry.as_ref().map(|settings| {
            let identity =
                Identity { proxy: Arc::clone(&proxy_id), name: config.server.name.clone() };
            Arc::new(Redis::new(settings.clone(), identity))
        });
        if let Some(redis) = &redis {
            metrics.register_registry(redis.counts());
        }
        let metrics = Arc::new(metrics);
        let conductor = Conductor::new(inboxes.clone());
        let observer = observer(&metrics, &inboxes, &conductor);
        let registry: Arc<dyn Registry> = match &redis {
            Some(redis) => Arc::<Redis>::clone(redis),
            None => Arc::<Memory>::default(),
        };
        let pools = config.pools.iter();
        let pools = pools.map(|settings| {
            let pool = Pool::new(settings.clone(), Arc::clone(&observer));
            registry::share(&pool, &registry);
            pool
        });
        let pools: Vec<Arc<Pool>> = pools.collect();
        let snapshot = Snapshot::new(&config.routes, pools.clone(), &metrics, None);
        let dropped = metrics.access_log_dropped.clone();
        let access_log = AccessLog::new(Opened::open(&config.server.access_log, dropped)?);
        let shared = Arc::new(Shared::new(proxy_id, snapshot, metrics, access_log, registry));
        let name = config.server.name.clone();
        let listeners = bind_all(&config.listeners)?;
        let max_message = config.registry.as_ref().map(|registry| registry.max_message);
        let max_message = max_message.unwrap_or(MAX_MESSAGE_BYTES);
        let shares = Arc::clone(&shared);
        let fleet = Fleet::new(shares, name, listeners, inboxes.clone(), max_message);
        let fleet = Arc::new(fleet);
        fleet.set_admin_token(config.server.admin_token.clone());
        // Set once, here.
        let _ = collector.fleet.set(Arc::clone(&fleet));
        let admin = match config.server.admin {
            Some(address) => Some(Admin::bind(address, Arc::clone(&fleet)).await?),
            None => None,
        };
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
        server.registry = redis.map(|redis| Link::begin(redis, &server.fleet));
        if let Some(registry) = &server.registry {
            registry.known_to_others().await;
        }
        if let Err(error) = server.start_workers(receivers, &loads, &inboxes) {
            server.stop(StopPlan::prompt()).await;
            return Err(error);
        }
        server.watch_itself(busy);
        server.watch_backends(pools.iter());
        server.fleet.shared.metrics.took_effect(SystemTime::now());
        server.fleet.set_ready(true);
        server.announce();
        Ok(server)
    }

    /// Serves the admin API there from now on, and nowhere else.
    fn serve_admin(&mut self, admin: Option<Admin>) {
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

    /// Has a log file opened anew under its name: log rotation has renamed it.
    pub fn reopen_logs(&self) {
        self.fleet.shared.access_log.reopen();
    }

    /// Has others' orders carried out by who gets them from the other end.
    pub(crate) fn obey(&self, operator: mpsc::Sender<Order>) {
        self.fleet.obey(operator);
    }

    /// What those see of it who are not on its workers' threads.
    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The config in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where clients connect, in the order of the config, with the ports that were taken.
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.fleet.listeners.load().iter().map(|listener| listener.address).collect()
    }

    /// Where the admin API is, if there is one.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(address, _)| *address)
    }

    /// The pools in force.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.fleet.shared.snapshot.load().pools().to_vec()
    }

    /// Names the proxy in the fleet.
    pub fn proxy_id(&self) -> &str {
        &self.fleet.shared.proxy_id
    }

    /// Sends a message to one client of this proxy: `frame` is one whole, unmasked data frame. It
    /// goes out between two messages of the backend.
    ///
    /// # Errors
    ///
    /// See [`DeliverError`].
    pub async fn deliver(&self, connection_id: &str, frame: Bytes) -> Result<(), DeliverError> {
        self.fleet.deliver(connection_id, frame).await
    }

    /// Publishes a message as others write it: see [`envelope`](crate::publish::envelope). Without an
    /// audience it is for the one connection that it names itself. Tells whether anybody is there.
    ///
    /// # Errors
    ///
    /// See [`PublishError`].
    pub async fn publish(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<bool, PublishError> {
        self.fleet.publish_message(audience, message).await
    }

    /// Stops as planned. Returns when all is over: how many connections were cut.
    pub async fn stop(mut self, plan: StopPlan) -> usize {
        self.fleet.set_ready(false);
        info!(delay = ?plan.delay, grace = ?plan.grace, "stopping");
        tokio::time::sleep(plan.delay).await;
        let over = Instant::now() + plan.grace;
        self.fleet.listeners.load().iter().for_each(|listener| listener.close());
        self.conductor.end();
        let stopped = stop_workers(std::mem::take(&mut self.workers), plan);
        let cut = tokio::time::timeout(plan.grace + LATEST, stopped).await.unwrap_or_else(|_| {
            error!("a worker does not stop; it is left behind");
            0
        });
        if let Some(registry) = self.registry.take() {
            let left = over.saturating_duration_since(Instant::now());
            registry.end(left.clamp(FEWEST_WORDS, LAST_WORDS)).await;
        }
        self.admin = None;
        self.watched.clear();
        self.watching_itself.send_replace(true);
        let left = over.saturating_duration_since(Instant::now()).min(LAST_ANSWERS);
        let watchers = async { while self.watchers.join_next().await.is_some() {} };
        // Who asks the admin API and then says or takes no more is not waited for.
        if tokio::time::timeout(left, watchers).await.is_err() {
            debug!("an answer of the admin API was cut");
        }
        let log = self.fleet.shared.access_log.clone();
        // An error here is a panic of the writer, which has been reported.
        let _ = tokio::task::spawn_blocking(move || log.flush(FLUSH)).await;
        if cut > 0 {
            warn!(connections = cut, "stopped; time was over, what was left was cut");
        } else {
            info!("stopped");
        }
        cut
    }
}

/// Tells all workers to stop and waits for them; tells how many connections were cut.
async fn stop_workers(workers: Vec<WorkerHandle>, plan: StopPlan) -> usize {
    for worker in &workers {
        if worker.inbox.send(Message::Stop(plan)).await.is_err() {
            error!("a worker had ended before it was told to");
        }
    }
    let mut cut = 0;
    for worker in workers {
        cut += worker.ended().await;
    }
    cut
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

/// Resolves when told so. A sender that is gone tells the same.
async fn told(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Who is told of the changes of all backends: the log, the metrics, and the workers whose
/// connections end with a backend that is lost.
fn observer(
    metrics: &Arc<Metrics>,
    inboxes: &[mpsc::Sender<Message>],
    conductor: &Arc<Conductor>,
) -> pool::Observer {
    let metrics = Arc::clone(metrics);
    let inboxes = inboxes.to_vec();
    let control = Handle::current();
    let conductor = Arc::clone(conductor);
    Arc::new(move |event: &pool::Event| match event {
        pool::Event::Backend(event) => {
            note_change(event, &metrics);
            if event.transition.to == State::Lost {
                end_connections(event, &inboxes, &control);
                conductor.lost(&event.backend);
            }
        }
        pool::Event::Panic(event) => note_panic(event),
        pool::Event::Drain(change, clearing) => {
            note_drain(*change, clearing, &metrics);
            conductor.follow(clearing);
        }
        pool::Event::GaveWay { key, clearing } => {
            if let Some(Allowed { suppressed }) = allowed!() {
                let (pool, backend) = (&clearing.pool, clearing.backend.id());
                info!(%pool, backend, %key, suppressed, "a key gives way to where another proxy has it");
            }
            conductor.give_way(Arc::clone(key), clearing.clone());
        }
        pool::Event::Disputed { pool, key, backend } => {
            let label = PoolLabel { pool: pool.clone() };
            metrics.placement_conflicts.of(label).inc();
            if let Some(Allowed { suppressed }) = allowed!() {
                let backend = backend.id();
                warn!(pool, backend, %key, suppressed, "a key stays here although another proxy has it elsewhere");
            }
        }
    })
}

/// Says once that a backend's state has changed, and counts it.
fn note_change(event: &BackendEvent, metrics: &Metrics) {
    let BackendEvent { pool, backend, transition, detail } = event;
    let (from, to) = (transition.from.as_str(), transition.to.as_str());
    let cause = transition.cause.as_str();
    let id = backend.id();
    // A whole fleet may go at once and shall be told of by name; one that flaps must not fill a disk.
    if let Some(Allowed { suppressed }) = allowed!(CHANGES_TOLD) {
        if transition.to == State::InService {
            info!(pool, backend = id, from, to, cause, suppressed, "backend in service");
        } else {
            warn!(
                pool,
                backend = id,
                from,
                to,
                cause,
                detail,
                connections = backend.connections(),
                suppressed,
                "backend {to}"
            );
        }
    }
    let labels =
        StateLabels { pool: pool.clone(), backend: id.to_owned(), outcome: to, reason: cause };
    metrics.backend_changes.of(labels).inc();
}

/// Says once that a backend is drained, or no longer, and counts it.
fn note_drain(change: DrainChange, clearing: &Clearing, metrics: &Metrics) {
    let Clearing { pool, backend, span, .. } = clearing;
    let id = backend.id();
    let (keys, connections) = (backend.keys(), backend.connections());
    match change {
        DrainChange::Begun(by) => {
            info!(%pool, backend = id, %by, keys, connections, over = ?span, "drain begins");
        }
        DrainChange::Joined(by) => info!(%pool, backend = id, %by, "drain has another cause"),
        DrainChange::Left(by) => info!(%pool, backend = id, %by, "drain goes on for another cause"),
        DrainChange::Ended(by) => info!(%pool, backend = id, %by, keys, connections, "drain ends"),
    }
    if let DrainChange::Begun(by) | DrainChange::Joined(by) = change {
        let labels = DrainLabels { pool: pool.to_string(), reason: by.as_str() };
        metrics.drains.of(labels).inc();
    }
}

/// Says that a pool goes by health no more, or again.
fn note_panic(event: &PanicEvent) {
    let PanicEvent { pool, panicking, in_service, backends } = event;
    if *panicking {
        warn!(pool, in_service, backends, "too few backends in service: health is ignored");
    } else {
        info!(pool, in_service, backends, "enough backends in service: health counts again");
    }
}

/// Has every worker end its connections to a backend that is lost. Whoever found out must not
/// wait, and no worker may miss it: so the control runtime waits for a place in each inbox.
fn end_connections(event: &BackendEvent, inboxes: &[mpsc::Sender<Message>], control: &Handle) {
    let pool: Arc<str> = event.pool.as_str().into();
    let backend = event.backend.shared_id();
    for inbox in inboxes {
        let inbox = inbox.clone();
        let message =
            Message::BackendLost { pool: Arc::clone(&pool), backend: Arc::clone(&backend) };
        control.spawn(async move {
            // A worker that has ended has no connections.
            let _ = inbox.send(message).await;
        });
    }
}

/// Those who own what is read only when the metrics are.
#[derive(Debug)]
struct Owners {
    /// Set once the proxy is built, of which the metrics are a part.
    fleet: OnceLock<Arc<Fleet>>,
    loads: Arc<Loads>,
    busy: Arc<Busy>,
}

impl Owners {
    fn pools(&self) -> Vec<Arc<Pool>> {
        let Some(fleet) = self.fleet.get() else { return Vec::new() };
        fleet.shared.snapshot.load().pools_with_gone().cloned().collect()
    }
}

fn sample(pool: &Pool, backend: &Backend, ring_share: f64) -> BackendSample {
    BackendSample {
        labels: BackendLabels { pool: pool.name().to_owned(), backend: backend.id().to_owned() },
        in_service: backend.in_service(),
        draining: backend.is_draining(),
        connections: backend.connections() as u64,
        in_flight: backend.requests() as u64,
        ring_share,
    }
}

impl Collect for Arc<Owners> {
    fn backends(&self) -> Vec<BackendSample> {
        let mut samples: Vec<BackendSample> = Vec::new();
        for pool in self.pools() {
            let (pool, shares) = (&*pool, (0..).map(|index| pool.ring().share(index)));
            samples.extend(
                pool.backends().iter().zip(shares).map(|(one, share)| sample(pool, one, share)),
            );
            for gone in pool.departed().iter().map(|one| sample(pool, one, 0.0)) {
                match samples.iter_mut().find(|here| here.labels == gone.labels) {
                    // It has moved: one id is one series.
                    Some(here) => {
                        here.connections += gone.connections;
                        here.in_flight += gone.in_flight;
                    }
                    None => samples.push(gone),
                }
            }
        }
        samples
    }

    fn workers(&self) -> WorkerSample {
        WorkerSample {
            workers: self.loads.workers() as u64,
            least: self.loads.least().1 as u64,
            most: self.loads.most() as u64,
            busy: self.busy.total(),
            busiest: self.busy.busiest(),
        }
    }

    fn certificates(&self) -> Vec<(ListenerLabel, f64)> {
        let Some(fleet) = self.fleet.get() else { return Vec::new() };
        let now = SystemTime::now();
        let listeners = fleet.listeners.load();
        let left = listeners.iter().filter_map(|listener| {
            let (_, days) = listener.settings.first_to_expire(now)?;
            Some((ListenerLabel { listener: listener.label.to_string() }, days))
        });
        left.collect()
    }

    fn placed_keys(&self) -> Vec<(String, u64)> {
        let keys = |pool: &Arc<Pool>| {
            let departed = pool.departed();
            pool.backends().iter().chain(&departed).map(|backend| backend.keys() as u64).sum()
        };
        self.pools().iter().map(|pool| (pool.name().to_owned(), keys(pool))).collect()
    }

    fn sessions(&self) -> Vec<(String, u64)> {
        let sessions = |pool: &Arc<Pool>| pool.sessions().len() as u64;
        self.pools().iter().map(|pool| (pool.name().to_owned(), sessions(pool))).collect()
    }

    fn panicking(&self) -> Vec<(String, bool)> {
        let pools = self.pools();
        pools.iter().map(|pool| (pool.name().to_owned(), pool.is_panicking())).collect()
    }

    fn ring_disagreements(&self) -> Vec<(String, u64)> {
        let Some(fleet) = self.fleet.get() else { return Vec::new() };
        let snapshot = fleet.shared.snapshot.load();
        let differing = snapshot.pools().iter().filter_map(|pool| {
            Some((pool.name().to_owned(), fleet.rings_differ(pool)?.len() as u64))
        });
        differing.collect()
    }

    fn rooms(&self) -> (u64, u64) {
        let Some(fleet) = self.fleet.get() else { return (0, 0) };
        let (rooms, memberships) = fleet.shared.registry.rooms();
        (rooms as u64, memberships as u64)
    }

    fn descriptors(&self) -> (u64, u64) {
        crate::descriptors::limit()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "proxy {}", self.proxy_id())
    }
}
