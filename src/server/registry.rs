//! A proxy among others: what the registry asks of it, and what comes out of the registry.
//!
//! One task runs the registry, another does what its [`Event`]s say, one after the other: so what one
//! publisher sends to one channel stays in its order. Both are on the control runtime.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::fleet::{Fleet, PublishError, Query, Row};
use crate::observe::access_log::unix_millis;
use crate::observe::rate::{Allowed, allowed};
use crate::pool::Pool;
use crate::pool::drain::Asked;
use crate::publish::Audience;
use crate::registry::redis::Redis;
use crate::registry::{Boxed, Channel, Event, Group, Page, Record, Registry, Truth, Wanted};
use crate::ws::connection::Serial;
use crate::ws::rooms::Room;

/// Events that may wait. More of them wait at the registry, as far as that lets them.
const EVENTS: usize = 1024;
/// Connections in a page of the table.
const PAGE: usize = 500;
/// How often is looked for sessions that are to be remembered on, and how many are of a pool then.
const RENEWALS: Duration = Duration::from_millis(250);
const SESSIONS_RENEWED: usize = 500;
/// How long a new proxy waits for what others have placed. Longer takes a registry that is away.
const FIRST_READ: Duration = Duration::from_secs(2);

/// The tasks that keep a proxy in the registry.
pub(super) struct Link {
    redis: Arc<Redis>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
    following: JoinHandle<()>,
    renewing: JoinHandle<()>,
    /// What others have placed was read, of every pool.
    read: watch::Receiver<bool>,
}

/// Shares where the keys and the sessions of a new pool are, if there is somebody to share it with.
pub(super) fn share(pool: &Pool, registry: &Arc<dyn Registry>) {
    if registry.others().is_none() {
        return;
    }
    pool.sessions().share();
    let registry = Arc::clone(registry);
    pool.share(Arc::new(move |pool, key, backend| {
        if let Some(others) = registry.others() {
            others.placed(pool, key, backend);
        }
    }));
}

impl Link {
    /// Has the proxy be known from now on.
    pub(super) fn begin(redis: Arc<Redis>, fleet: &Arc<Fleet>) -> Self {
        let (events, received) = mpsc::channel(EVENTS);
        let stop = watch::Sender::new(false);
        let stopped = super::told(stop.subscribe());
        let truth: Arc<dyn Truth> = Arc::<Fleet>::clone(fleet);
        let runs = Arc::clone(&redis);
        let control = tokio::runtime::Handle::current();
        let running = control.spawn(async move { runs.run(truth, events, stopped).await });
        let (has_read, read) = watch::channel(false);
        let follows = follow(Arc::clone(fleet), Arc::clone(&redis), received, has_read);
        let following = control.spawn(follows);
        let renewing = control.spawn(renew_sessions(Arc::clone(fleet)));
        Self { redis, stop, running, following, renewing, read }
    }

    /// Waits until this proxy knows where others have their keys: for so long that a registry that is
    /// there has answered.
    pub(super) async fn known_to_others(&self) {
        let mut read = self.read.clone();
        let read = read.wait_for(|read| *read);
        if tokio::time::timeout(FIRST_READ, read).await.is_err() {
            warn!("the registry does not answer: where other proxies have keys is not known yet");
        }
    }

    /// Signs off within `limit`.
    pub(super) async fn end(self, limit: Duration) {
        self.stop.send_replace(true);
        let Self { redis, running, following, renewing, .. } = self;
        renewing.abort();
        let over = async {
            // A panic of it has been reported.
            let _ = running.await;
            redis.sign_off().await;
        };
        let _ = tokio::time::timeout(limit, over).await;
        following.abort();
    }
}

async fn follow(
    fleet: Arc<Fleet>,
    redis: Arc<Redis>,
    mut events: mpsc::Receiver<Event>,
    has_read: watch::Sender<bool>,
) {
    let mut read = HashSet::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Message { channel, message } => {
                deliver(&fleet, &redis, &channel, &message).await;
            }
            Event::Placed { pool, key, proxy, backend } => {
                of_name(&fleet, &pool, |pool| pool.hear(&key, &proxy, backend.as_deref()));
            }
            Event::PlacedAnew { pool, placed } => {
                of_name(&fleet, &pool, |pool| pool.hear_anew(&placed));
                if !*has_read.borrow() {
                    read.insert(pool);
                    has_read
                        .send_replace(fleet.rings().iter().all(|(pool, _)| read.contains(pool)));
                }
            }
            Event::Drains { pool, backends } => {
                let all: Vec<Asked> = backends.into_iter().map(asked).collect();
                of_name(&fleet, &pool, |pool| pool.drain_only(&all));
            }
        }
    }
}

/// A drain as others say. What is told at this moment begins now: their clocks may be others.
fn asked(wanted: Wanted) -> Asked {
    let Wanted { backend, since, is_news } = wanted;
    let old = since.filter(|_| !is_news);
    let age = old.and_then(|since| SystemTime::now().duration_since(since).ok());
    Asked { backend, since, age: age.unwrap_or_default() }
}

/// Has the sessions that are used be remembered on, one after the other: a registry that is slow or
/// away holds up nothing but this. And has those be forgotten that a drain has ended, behind whatever was
/// written of them before.
async fn renew_sessions(fleet: Arc<Fleet>) {
    loop {
        tokio::time::sleep(RENEWALS).await;
        let Some(others) = fleet.shared.registry.others() else { return };
        let pools = fleet.shared.snapshot.load().pools().to_vec();
        for pool in pools {
            // What is due while the registry is away is written after it is used next.
            for (id, backend, life) in pool.sessions().take_due(SESSIONS_RENEWED) {
                let _ = others.keep_session(pool.name(), &id, backend.id(), life).await;
            }
            let mut forgotten: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
            for (id, backend) in pool.sessions().take_forgotten() {
                forgotten.entry(backend.shared_id()).or_default().push(id);
            }
            for (backend, ids) in forgotten {
                // What can't be removed expires there, and others know by its turn that it is over.
                let _ = others.forget_sessions(pool.name(), &ids, &backend).await;
            }
        }
    }
}

/// Has the pool of a name, also one that left the config, told of something.
fn of_name(fleet: &Fleet, name: &str, tell: impl FnOnce(&Pool)) {
    let snapshot = fleet.shared.snapshot.load();
    if let Some(pool) = snapshot.pools_with_gone().find(|pool| pool.name() == name) {
        tell(pool);
    }
}

/// Sends a published message to those of its audience that are here. Nobody waits for an answer: what
/// is wrong with it is counted, and said.
async fn deliver(fleet: &Fleet, redis: &Redis, channel: &Channel, message: &[u8]) {
    let outcome = match audience(channel) {
        Ok(audience) => fleet.pass_on(audience, message).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else { return };
    fleet.shared.metrics.undeliverable(error.label());
    if let Some(Allowed { suppressed }) = allowed!() {
        let channel = redis.name_of(channel);
        warn!(channel, %error, suppressed, "a published message is dropped");
    }
}

/// Whom a message on this channel is for; `None`: it says so itself.
fn audience(channel: &Channel) -> Result<Option<Audience>, PublishError> {
    Ok(match channel {
        Channel::All => Some(Audience::All),
        Channel::Proxy(_) => None,
        Channel::Group(Group::Room(room)) => Some(Audience::Room(Room::new(room)?)),
        Channel::Group(Group::Key { pool, key }) => {
            Some(Audience::Key { pool: pool.to_string(), key: key.to_string() })
        }
    })
}

impl Truth for Fleet {
    fn page(&self, cursor: Option<u64>) -> Boxed<'_, Option<Page>> {
        Box::pin(async move {
            let first = cursor.unwrap_or(0);
            let worker = Serial::from_u64(first).worker();
            let after = first.checked_sub(1).map(Serial::from_u64);
            let query = Query { after, limit: PAGE, ..Query::default() };
            let rows = self.list(worker, query).await?;
            let next = match rows.last() {
                Some(last) if rows.len() == PAGE => Some(last.serial.as_u64() + 1),
                _ => Serial::first_of(worker + 1).map(Serial::as_u64),
            };
            let next = next.filter(|next| Serial::from_u64(*next).worker() < self.workers());
            let connections =
                rows.into_iter().map(|row| (row.serial.to_string().into(), record(row)));
            Some(Page { connections: connections.collect(), next })
        })
    }

    fn connections(&self) -> usize {
        self.shared.snapshot.load().live()
    }

    fn rings(&self) -> Vec<(String, String)> {
        let snapshot = self.shared.snapshot.load();
        let pools = snapshot.pools().iter();
        pools.map(|pool| (pool.name().to_owned(), pool.fingerprint())).collect()
    }

    fn placed(&self, pool: &str) -> Vec<(Arc<str>, Arc<str>)> {
        let snapshot = self.shared.snapshot.load();
        let found = snapshot.pools_with_gone().find(|one| one.name() == pool);
        found.map(|pool| pool.told()).unwrap_or_default()
    }

    fn admin(&self) -> Option<SocketAddr> {
        self.admin_address()
    }
}

fn record(row: Row) -> Record {
    Record {
        backend: row.backend,
        pool: row.pool,
        route: row.route,
        key: row.key,
        client: row.client,
        opened_at: unix_millis(row.since),
        rooms: row.rooms.iter().map(Room::shared).collect(),
    }
}
