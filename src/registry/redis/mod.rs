//! The registry that proxies share: a Redis, with Sentinels, or a Cluster.
//!
//! Nothing that a worker calls waits for Redis; what is asked of it is asked through `Link`, which
//! knows whether it is there. The parts: `place` says where it is, `connect` opens connections there;
//! `link` has the one for commands, `subscriptions` the one for messages, and `groups` which groups
//! need one; `shadow` writes down who owns what, out of what is `pending`, and rewrites (`rewrite`) it
//! after a doubt; `presence` says that the proxy lives, and where it is (`outside`); `sweep` removes what dead proxies have left;
//! `ask` answers for others' connections; `placed` and `sessions` share where keys and sessions
//! are, and what is drained, of which `drains` knows what holds.
//!
//! All of them run on the control runtime, in [`Redis::run`].

mod ask;
mod connect;
mod counts;
mod drains;
mod groups;
mod link;
mod outside;
mod pending;
mod place;
mod placed;
mod presence;
mod record;
mod rewrite;
mod sessions;
mod shadow;
mod slots;
mod steps;
mod subscriptions;
mod sweep;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

pub use self::counts::Counts;
use self::link::Link;
pub use self::place::{Access, Address, Place, WrongUrl};
use self::placed::Placed;
use self::shadow::Ledger;
use self::steps::Steps;
use self::subscriptions::Subscriptions;
use super::names::Names;
use super::{
    Boxed, Channel, Event, Group, Others, Owned, Peer, Registry, Shadow, State, Truth, Unavailable,
};

/// How long a proxy that requires it is ready without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// `[registry]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where it is.
    pub place: Place,
    /// What all keys and channels begin with.
    pub prefix: String,
    /// Whether a proxy without it is not ready.
    pub required: bool,
    /// How long a handshake may wait for a subscription.
    pub join_wait: Duration,
    /// The longest message to clients, in bytes.
    pub max_message: usize,
}

/// Who the proxy is, for others.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub proxy: Arc<str>,
    /// The name of its server.
    pub name: String,
}

/// How often something is done, and how long it holds.
#[derive(Clone, Debug)]
struct Times {
    /// Until a proxy that says nothing is taken for dead; in whole seconds.
    life: Duration,
    /// Between two renewals of its life.
    renew: Duration,
    /// Between two looks at the others.
    look: Duration,
    /// How long what a dead proxy has left is for one to remove.
    lock: Duration,
}

const TIMES: Times = Times {
    life: Duration::from_secs(15),
    renew: Duration::from_secs(5),
    look: Duration::from_secs(10),
    lock: Duration::from_secs(30),
};

/// What all parts have in common.
struct Common {
    settings: Settings,
    identity: Identity,
    names: Names,
    link: Link,
    times: Times,
}

impl Common {
    /// Steps about the connections of this proxy.
    fn own_steps(&self) -> Steps<'_> {
        Steps::of(&self.names, &self.identity.proxy)
    }
}

/// A shared registry.
pub struct Redis {
    common: Arc<Common>,
    subscriptions: Subscriptions,
    ledger: Ledger,
    placed: Placed,
    counts: Counts,
}

impl Redis {
    /// One that is away until it [runs](Self::run).
    pub fn new(settings: Settings, identity: Identity) -> Self {
        let names = Names::new(&settings.prefix);
        let counts = Counts::default();
        let link = Link::new(&settings, &names, counts.clone());
        Self {
            common: Arc::new(Common { settings, identity, names, link, times: TIMES }),
            subscriptions: Subscriptions::new(counts.clone()),
            ledger: Ledger::new(counts.clone()),
            placed: Placed::default(),
            counts,
        }
    }

    /// Connects, and does all that is to be done, until `stopped`. To be called once, on the control
    /// runtime.
    pub async fn run(
        &self,
        truth: Arc<dyn Truth>,
        events: mpsc::Sender<Event>,
        stopped: impl Future<Output = ()>,
    ) {
        let common = &*self.common;
        let all = async {
            tokio::join!(
                common.link.run(),
                self.subscriptions.run(common, &*truth, &events, &self.placed),
                self.ledger.run(common, &*truth, &self.placed),
                sweep::run(common, &self.ledger, &*truth),
                self.placed.run(common, &*truth, &events),
            );
        };
        tokio::select! {
            () = stopped => {}
            () = all => {}
        }
    }

    /// What is counted of it.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What a channel is called there.
    pub fn name_of(&self, channel: &Channel) -> String {
        self.common.names.channel(channel)
    }

    /// Takes the proxy and all that it owns out of the registry, as far as that is there.
    pub async fn sign_off(&self) {
        self.ledger.sign_off(&self.common).await;
    }
}

impl Registry for Redis {
    fn enter(&self, group: Group) {
        self.subscriptions.enter(group);
    }

    fn leave(&self, group: &Group) {
        self.subscriptions.leave(group);
    }

    fn rooms(&self) -> (usize, usize) {
        self.subscriptions.rooms()
    }

    fn shadow(&self) -> Option<&dyn Shadow> {
        Some(&self.ledger)
    }

    fn stand(&self, groups: &mut dyn Iterator<Item = Group>) -> Option<Boxed<'static, ()>> {
        self.subscriptions.stand(groups, self.common.settings.join_wait)
    }

    fn stands(&self, group: &Group) -> bool {
        self.subscriptions.stands(group)
    }

    fn state(&self) -> State {
        if self.common.link.is_up() && self.subscriptions.stand_all() {
            State::Up
        } else {
            State::Away
        }
    }

    fn is_missed(&self) -> bool {
        self.common.settings.required && self.counts.is_away_for(PATIENCE)
    }

    fn others(&self) -> Option<&dyn Others> {
        Some(self)
    }
}

impl Others for Redis {
    fn publish(&self, channel: &Channel, message: Bytes) -> Boxed<'_, Result<usize, Unavailable>> {
        let name = self.common.names.channel(channel);
        Box::pin(async move { self.common.link.publish(&name, &message).await })
    }

    fn owner(&self, id: &str) -> Boxed<'_, Result<Option<Owned>, Unavailable>> {
        let id = id.to_owned();
        Box::pin(async move { ask::owner(&self.common, &id).await })
    }

    fn of_key(
        &self,
        pool: &str,
        key: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Boxed<'_, Result<Vec<Owned>, Unavailable>> {
        let (pool, key, after) = (pool.to_owned(), key.to_owned(), after.map(str::to_owned));
        Box::pin(
            async move { ask::of_key(&self.common, &pool, &key, after.as_deref(), limit).await },
        )
    }

    fn lives_at(&self, pool: &str, key: &str) -> Boxed<'_, Result<Option<String>, Unavailable>> {
        let (pool, key) = (pool.to_owned(), key.to_owned());
        Box::pin(async move { ask::lives_at(&self.common, &pool, &key).await })
    }

    fn peers(&self) -> Vec<Peer> {
        self.ledger.peers()
    }

    fn drain(&self, pool: &str, backend: &str, wanted: bool) -> Boxed<'_, Result<(), Unavailable>> {
        let (pool, backend) = (pool.to_owned(), backend.to_owned());
        Box::pin(async move { self.placed.drain(&self.common, &pool, &backend, wanted).await })
    }

    fn placed(&self, pool: &str, key: &str, backend: Option<&str>) {
        self.placed.tell(pool, key, backend);
    }

    fn session(
        &self,
        pool: &str,
        id: &str,
    ) -> Boxed<'_, Result<Option<(String, Duration)>, Unavailable>> {
        let name = self.common.names.session(pool, id);
        Box::pin(async move { sessions::find(&self.common, &name).await })
    }

    fn keep_session(
        &self,
        pool: &str,
        id: &str,
        backend: &str,
        life: Duration,
    ) -> Boxed<'_, Result<(), Unavailable>> {
        let (name, backend) = (self.common.names.session(pool, id), backend.to_owned());
        Box::pin(async move { sessions::keep(&self.common, &name, &backend, life).await })
    }

    fn forget_sessions(
        &self,
        pool: &str,
        ids: &[Arc<str>],
        backend: &str,
    ) -> Boxed<'_, Result<(), Unavailable>> {
        let names = ids.iter().map(|id| self.common.names.session(pool, id)).collect();
        let backend = backend.to_owned();
        Box::pin(async move { sessions::forget(&self.common, names, &backend).await })
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redis").field("state", &self.state()).finish_non_exhaustive()
    }
}
