//! What is said between a proxy and its registry, and the trait.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

/// A future that can go to any thread.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Connections that are reached together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// The members of a room.
    Room(Arc<str>),
    /// The connections of a key.
    Key {
        /// The name of its pool.
        pool: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
}

/// Whom a published message is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// A group, on all proxies.
    Group(Group),
    /// One connection of this proxy, which the message names.
    Proxy(Arc<str>),
    /// Every connection of the fleet.
    All,
}

/// A live connection as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The id of its backend.
    pub backend: Arc<str>,
    /// The name of its pool.
    pub pool: Arc<str>,
    /// The name of its route.
    pub route: Arc<str>,
    /// Its key; `None` where the request had none.
    pub key: Option<Arc<str>>,
    /// The address of its client.
    pub client: IpAddr,
    /// When its handshake came, in Unix milliseconds.
    pub opened_at: u64,
    /// The rooms that it is in, by name.
    pub rooms: Vec<Arc<str>>,
}

/// How a connection differs from what was told of it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing was told of it: it is open now.
    Opened,
    /// It is at another backend.
    Moved,
    /// It is in this room too.
    Joined(Arc<str>),
    /// It is no longer in this room.
    Left(Arc<str>),
}

/// A connection of any proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Its id; what stands before the dot is its proxy's.
    pub id: String,
    /// What is known of it.
    pub record: Record,
}

/// Another proxy of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its proxy id.
    pub proxy: String,
    /// The address of its admin API, if it has one.
    pub admin: Option<String>,
    /// The fingerprint of the ring of each of its pools.
    pub rings: Vec<(String, String)>,
}

impl Peer {
    /// Whether its ring of the pool of this name is another than the one with this fingerprint.
    pub fn has_other_ring(&self, pool: &str, ring: &str) -> bool {
        self.rings.iter().any(|(name, other)| name == pool && other != ring)
    }
}

/// Whether the registry can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is nothing to reach: it is this process.
    Own,
    /// It answers, and what is published arrives.
    Up,
    /// It is away.
    Away,
}

impl State {
    /// Its word in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Up => "up",
            Self::Away => "away",
        }
    }
}

/// The registry could not be asked, or did not answer in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// It is known to be away: nothing was sent to it.
    #[error("the registry is away")]
    Away,
    /// It was asked, and there was no answer: it may have done what it was asked or not.
    #[error("the registry did not answer: {0}")]
    NoAnswer(String),
    /// It was asked, and said why it does not do that.
    #[error("the registry refused: {0}")]
    Refused(String),
}

/// What comes out of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message for clients of this proxy.
    Message {
        /// Whom it is for.
        channel: Channel,
        /// As it was published.
        message: Bytes,
    },
    /// Another proxy has a key at this backend; `None`: at none any more.
    Placed {
        /// The name of its pool.
        pool: String,
        /// The key.
        key: String,
        /// Which proxy says so.
        proxy: String,
        /// The backend's id.
        backend: Option<String>,
    },
    /// All that other proxies have placed in a pool, read anew: keys, proxies and backends.
    PlacedAnew {
        /// The name of the pool.
        pool: String,
        /// Each key with the proxy that says so, and the backend.
        placed: Vec<(String, String, String)>,
    },
    /// The backends of a pool that operators want drained, all of them.
    Drains {
        /// The name of the pool.
        pool: String,
        /// The backends.
        backends: Vec<Wanted>,
    },
}

/// A backend that operators want drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub backend: String,
    /// Since when; `None`: that is not written down yet.
    pub since: Option<SystemTime>,
    /// Whether this was said just now.
    pub is_news: bool,
}

/// What a registry asks its proxy for.
pub trait Truth: Send + Sync {
    /// Some live connections, with the part of their ids behind the dot, and from where to go on;
    /// `None`: nothing follows. Begins at the first where `cursor` is `None`.
    ///
    /// Those that come later than the first page may be missing; none that live from the first page
    /// to the last are. `None`: it can't be told now.
    fn page(&self, cursor: Option<u64>) -> Boxed<'_, Option<Page>>;
    /// How many live connections there are.
    fn connections(&self) -> usize;
    /// The names of the pools in force, each with the fingerprint of its ring.
    fn rings(&self) -> Vec<(String, String)>;
    /// The keys of a pool that others are to be told of, with their backends' ids.
    fn placed(&self, pool: &str) -> Vec<(Arc<str>, Arc<str>)>;
    /// Where the admin API is bound.
    fn admin(&self) -> Option<SocketAddr>;
}

/// A part of the proxy's table.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The part of each id behind the dot, and what is known of it.
    pub connections: Vec<(Box<str>, Record)>,
    /// From where to go on.
    pub next: Option<u64>,
}

/// Where the connections of a proxy are made known.
///
/// What workers call does not wait and takes no lock for longer than a look-up.
pub trait Registry: fmt::Debug + Send + Sync {
    /// A group has a member more on this proxy.
    fn enter(&self, group: Group);

    /// A group has a member less.
    fn leave(&self, group: &Group);

    /// How many rooms have a member here, and how many members all of them have.
    fn rooms(&self) -> (usize, usize);

    /// What is to be told of every connection that opens, changes rooms or ends; `None` where nobody
    /// wants to know.
    fn shadow(&self) -> Option<&dyn Shadow> {
        None
    }

    /// Waits until what is sent to these groups arrives here, for as long as a handshake may wait.
    /// `None`: there is nothing to wait for. All groups have been [entered](Self::enter).
    fn stand(&self, groups: &mut dyn Iterator<Item = Group>) -> Option<Boxed<'static, ()>> {
        let _ = groups;
        None
    }

    /// Whether what is sent to a group arrives here; where there is nobody else, it does.
    fn stands(&self, group: &Group) -> bool {
        let _ = group;
        true
    }

    /// Whether it can be reached.
    fn state(&self) -> State {
        State::Own
    }

    /// Whether the proxy is not to get new connections, because it must not be without its registry and
    /// has been for some time.
    fn is_missed(&self) -> bool {
        false
    }

    /// The asking half, where other proxies can be asked.
    fn others(&self) -> Option<&dyn Others> {
        None
    }
}

/// What is written down of connections.
pub trait Shadow: Send + Sync {
    /// A connection has changed, and is as its record says. `id` is the part behind the dot. Of one
    /// connection changes are told in their order, each once.
    fn put(&self, id: Box<str>, record: Record, change: Change);
    /// A connection that was put has ended; `record` is what was put last.
    fn remove(&self, id: Box<str>, record: Record);
}

/// What only other proxies know or can do.
pub trait Others: Send + Sync {
    /// Publishes a message; tells how many proxies it has reached.
    fn publish(&self, channel: &Channel, message: Bytes) -> Boxed<'_, Result<usize, Unavailable>>;
    /// Finds a connection of any proxy.
    fn owner(&self, id: &str) -> Boxed<'_, Result<Option<Owned>, Unavailable>>;
    /// The connections of a key of a pool behind an id, in the order of their ids, at most `limit`.
    fn of_key(
        &self,
        pool: &str,
        key: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Boxed<'_, Result<Vec<Owned>, Unavailable>>;
    /// The backend where other proxies have live connections of a key. Waits no longer for it than a
    /// handshake may.
    fn lives_at(&self, pool: &str, key: &str) -> Boxed<'_, Result<Option<String>, Unavailable>>;
    /// The other proxies, as of some seconds ago.
    fn peers(&self) -> Vec<Peer>;
    /// Wants a backend drained by all proxies, or no longer.
    fn drain(&self, pool: &str, backend: &str, wanted: bool) -> Boxed<'_, Result<(), Unavailable>>;
    /// Tells others where a key is; `None`: nowhere, or where they look for it anyway. Does not wait.
    fn placed(&self, pool: &str, key: &str, backend: Option<&str>);
    /// The backend that issued a session's id to a client of any proxy, and how long that is remembered
    /// from now on. Waits for half a second at most.
    fn session(
        &self,
        pool: &str,
        id: &str,
    ) -> Boxed<'_, Result<Option<(String, Duration)>, Unavailable>>;
    /// Remembers the backend of a session for so long. Waits no longer for it than a handshake may.
    fn keep_session(
        &self,
        pool: &str,
        id: &str,
        backend: &str,
        life: Duration,
    ) -> Boxed<'_, Result<(), Unavailable>>;
    /// Forgets sessions, as far as they are remembered to be that backend's.
    fn forget_sessions(
        &self,
        pool: &str,
        ids: &[Arc<str>],
        backend: &str,
    ) -> Boxed<'_, Result<(), Unavailable>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_another_only_of_a_pool_that_both_have() {
        let ring = |pool: &str, ring: &str| (pool.to_owned(), ring.to_owned());
        let rings = vec![ring("rooms", "1"), ring("chat", "2")];
        let peer = Peer { proxy: "p".to_owned(), admin: None, rings };
        assert!(!peer.has_other_ring("rooms", "1") && peer.has_other_ring("chat", "1"));
        assert!(!peer.has_other_ring("unknown", "1"));
    }
}
