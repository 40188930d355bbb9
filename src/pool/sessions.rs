//! Sessions that backends have issued ids for, and which backend it was.
//!
//! A long-polling client is many requests that only their session id holds together, and only the
//! process that issued the id knows it. So the proxy remembers who did, as long as the session lives:
//! its `life` after the end of its last [`Visit`], be that a request or a WebSocket.
//!
//! The table is one per pool, for all workers, and outlives the reload of its pool. It is bounded: a
//! client address has at most [`MOST_OF_ONE_CLIENT`] sessions, of which the oldest is forgotten first.
//! Where proxies share a registry each session stands there too, for its life and no longer. Whoever
//! learns one writes it down; who uses one has it written again when a third of its life is over, for
//! what is left of it then, which [`Sessions::take_due`] tells for all of them. A session whose turn
//! comes in the drain of its backend goes there too, which [`Sessions::take_forgotten`] tells.
//!
//! No session has a timer. Each stands in `due` once, at the moment at which it could be over at the
//! earliest; every call takes a few of those that have come, and puts back who was seen since. So a
//! request costs a look-up, and a quiet table keeps what it has until somebody comes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Backend;

/// The most sessions that are kept of one client address.
pub const MOST_OF_ONE_CLIENT: usize = 10_000;
/// How many sessions a call looks at whose moment has come.
const LOOKED_AT: usize = 16;
/// How many at most where they are counted.
const MOST_LOOKED_AT: usize = 4096;

/// When a session was learnt, in the order of all of its table.
type Serial = u64;

/// The sessions of one pool, shared by all workers.
#[derive(Default)]
pub struct Sessions {
    table: Mutex<Table<Arc<Backend>>>,
}

impl Sessions {
    /// Remembers that `backend` has issued `id` to a client, and holds the session while it is
    /// being opened. An id that was known is of this backend now.
    ///
    /// `id` is kept: its length is the caller's to bound.
    pub fn learn(
        self: &Arc<Self>,
        id: &str,
        backend: &Arc<Backend>,
        client: IpAddr,
        life: Duration,
    ) -> Visit {
        let id: Arc<str> = id.into();
        let now = Instant::now();
        let serial = self.lock().learn(&id, Arc::clone(backend), client, life, now);
        Visit { sessions: Arc::clone(self), id, serial, backend: Arc::clone(backend) }
    }

    /// Has it be told from now on which sessions are to be kept in a registry.
    pub fn share(&self) {
        self.lock().is_shared = true;
    }

    /// Takes sessions that were used since they were written down, a third of their life ago or
    /// more: ids, backends and what is left of their lives. At most `limit`.
    pub fn take_due(&self, limit: usize) -> Vec<(Arc<str>, Arc<Backend>, Duration)> {
        self.lock().take_due(limit, Instant::now())
    }

    /// Takes sessions that were forgotten in a drain, and are to be removed from the registry: ids and
    /// backends.
    pub fn take_forgotten(&self) -> Vec<(Arc<str>, Arc<Backend>)> {
        std::mem::take(&mut self.lock().forgotten)
    }

    /// Finds the backend of a session, which lives at least as long as what is returned. `None`:
    /// nobody here has learnt it, or it is over.
    pub fn visit(self: &Arc<Self>, id: &str) -> Option<Visit> {
        let (id, serial, backend) = self.lock().enter(id, Instant::now())?;
        Some(Visit { sessions: Arc::clone(self), id, serial, backend })
    }

    /// The ids of all sessions of a backend. Looks at every one, under the lock.
    pub(super) fn of(&self, backend: &Arc<Backend>) -> Vec<Arc<str>> {
        let table = self.lock();
        let of_it = table.sessions.iter().filter(|(_, one)| Arc::ptr_eq(&one.backend, backend));
        of_it.map(|(id, _)| Arc::clone(id)).collect()
    }

    /// Forgets sessions, but none that is another backend's by now.
    pub(super) fn forget(&self, ids: &[Arc<str>], backend: &Arc<Backend>) {
        let mut table = self.lock();
        for id in ids {
            if table.sessions.get(id).is_some_and(|one| Arc::ptr_eq(&one.backend, backend)) {
                table.forget(id);
                if table.is_shared {
                    table.forgotten.push((Arc::clone(id), Arc::clone(backend)));
                }
            }
        }
    }

    /// Finds the backend of a session without being a request of it.
    pub fn find(&self, id: &str) -> Option<Arc<Backend>> {
        self.lock().find(id, Instant::now())
    }

    /// How many there are. Those that are over go first, but for a crowd of them.
    pub fn len(&self) -> usize {
        let (mut table, now) = (self.lock(), Instant::now());
        (0..MOST_LOOKED_AT / LOOKED_AT).any(|_| !table.forget_those_over(now));
        table.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Table<Arc<Backend>>> {
        // Nothing in the table can panic between two halves of a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sessions").field("len", &self.len()).finish()
    }
}

/// A request or a WebSocket of a session, which lives as long as this does and its life after.
pub struct Visit {
    sessions: Arc<Sessions>,
    id: Arc<str>,
    serial: Serial,
    backend: Arc<Backend>,
}

impl Visit {
    /// The backend that issued the session's id.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.sessions.lock().leave(&self.id, self.serial, Instant::now());
    }
}

impl fmt::Debug for Visit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Visit").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// One session.
#[derive(Debug)]
struct Session<B> {
    serial: Serial,
    backend: B,
    client: IpAddr,
    life: Duration,
    /// Requests and WebSockets that are under way.
    visits: usize,
    /// When the last of them began or ended.
    seen: Instant,
    /// Where it stands in `due`; never later than `seen + life`.
    due: Instant,
    /// Where it stands in `renewals`, if it does.
    renewal: Option<Instant>,
    /// When it was written down last, if it was.
    written: Instant,
    /// For how long.
    written_for: Duration,
}

impl<B> Session<B> {
    /// When it is to be written down again, if it is used: a third of its life after it was, and
    /// long before what is written is over.
    fn next_renewal(&self) -> Instant {
        let after = (self.life / 3).min(self.written_for / 2);
        self.written + after.max(Duration::from_millis(1))
    }

    /// What is left of its life.
    fn left(&self, now: Instant) -> Duration {
        // Somebody uses it all the time.
        let seen = if self.visits > 0 { now } else { self.seen };
        self.life.saturating_sub(now.saturating_duration_since(seen))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.visits == 0 && self.left(now).is_zero()
    }
}

/// What is decided about sessions: pure.
#[derive(Debug)]
struct Table<B> {
    sessions: HashMap<Arc<str>, Session<B>>,
    /// The same sessions by the moment at which they could be over.
    due: BTreeMap<(Instant, Serial), Arc<str>>,
    /// The same sessions by client, the oldest first.
    clients: HashMap<IpAddr, BTreeMap<Serial, Arc<str>>>,
    /// Those of them that were used since they were written down, by when they are to be again. Only
    /// where they are shared.
    renewals: BTreeMap<(Instant, Serial), Arc<str>>,
    /// Those that were forgotten in a drain, until somebody takes them, a moment later. Only where they
    /// are shared; no more than there were sessions.
    forgotten: Vec<(Arc<str>, B)>,
    is_shared: bool,
    next: Serial,
}

impl<B> Default for Table<B> {
    fn default() -> Self {
        Self {
            sessions: HashMap::new(),
            due: BTreeMap::new(),
            clients: HashMap::new(),
            renewals: BTreeMap::new(),
            forgotten: Vec::new(),
            is_shared: false,
            next: 0,
        }
    }
}

impl<B: Clone> Table<B> {
    /// Enters a session, with its first visit.
    fn learn(
        &mut self,
        id: &Arc<str>,
        backend: B,
        client: IpAddr,
        life: Duration,
        now: Instant,
    ) -> Serial {
        self.forget_those_over(now);
        self.forget(id);
        let oldest = self.clients.get(&client).filter(|all| all.len() >= MOST_OF_ONE_CLIENT);
        if let Some(oldest) = oldest.and_then(|all| all.values().next().cloned()) {
            self.forget(&oldest);
        }
        let serial = self.next;
        self.next += 1;
        let due = now + life;
        let session = Session {
            serial,
            backend,
            client,
            life,
            visits: 1,
            seen: now,
            due,
            renewal: None,
            written: now,
            written_for: life,
        };
        self.due.insert((due, serial), Arc::clone(id));
        self.clients.entry(client).or_default().insert(serial, Arc::clone(id));
        self.sessions.insert(Arc::clone(id), session);
        self.note_use(id);
        serial
    }

    /// Has a session that is used be written down again when its time comes.
    fn note_use(&mut self, id: &Arc<str>) {
        let Some(session) = self.sessions.get_mut(id).filter(|_| self.is_shared) else { return };
        if session.renewal.is_none() {
            let at = session.next_renewal();
            session.renewal = Some(at);
            self.renewals.insert((at, session.serial), Arc::clone(id));
        }
    }

    fn take_due(&mut self, limit: usize, now: Instant) -> Vec<(Arc<str>, B, Duration)> {
        let mut due = Vec::new();
        while due.len() < limit {
            let Some(first) = self.renewals.first_entry().filter(|first| first.key().0 <= now)
            else {
                break;
            };
            let id = first.remove();
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.renewal = None;
            if session.is_over(now) {
                continue;
            }
            let left = session.left(now);
            (session.written, session.written_for) = (now, left);
            due.push((Arc::clone(&id), session.backend.clone(), left));
            // A WebSocket of it uses it all the time.
            if session.visits > 0 {
                self.note_use(&id);
            }
        }
        due
    }

    fn find(&self, id: &str, now: Instant) -> Option<B> {
        let session = self.sessions.get(id).filter(|session| !session.is_over(now))?;
        Some(session.backend.clone())
    }

    fn enter(&mut self, id: &str, now: Instant) -> Option<(Arc<str>, Serial, B)> {
        self.forget_those_over(now);
        if self.sessions.get(id)?.is_over(now) {
            self.forget(id);
            return None;
        }
        let (key, _) = self.sessions.get_key_value(id)?;
        let key = Arc::clone(key);
        let session = self.sessions.get_mut(id)?;
        session.visits += 1;
        session.seen = now;
        let found = (Arc::clone(&key), session.serial, session.backend.clone());
        self.note_use(&key);
        Some(found)
    }

    fn leave(&mut self, id: &str, serial: Serial, now: Instant) {
        // It may have been forgotten meanwhile, and its id learnt anew.
        let same = self.sessions.get_mut(id).filter(|session| session.serial == serial);
        if let Some(session) = same {
            session.visits -= 1;
            session.seen = now;
        }
        self.forget_those_over(now);
    }

    /// Looks at some whose moment has come. False: at all of them.
    fn forget_those_over(&mut self, now: Instant) -> bool {
        for _ in 0..LOOKED_AT {
            let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now) else {
                return false;
            };
            let ((_, serial), id) = first.remove_entry();
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if session.is_over(now) {
                self.forget(&id);
                continue;
            }
            let seen = if session.visits > 0 { now } else { session.seen };
            session.due = seen + session.life.max(Duration::from_millis(1));
            self.due.insert((session.due, serial), id);
        }
        true
    }

    fn forget(&mut self, id: &str) {
        let Some(session) = self.sessions.remove(id) else { return };
        self.due.remove(&(session.due, session.serial));
        if let Some(renewal) = session.renewal {
            self.renewals.remove(&(renewal, session.serial));
        }
        if let Some(all) = self.clients.get_mut(&session.client) {
            all.remove(&session.serial);
            if all.is_empty() {
                self.clients.remove(&session.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::super::tests::pool;
    use super::*;

    const LIFE: Duration = Duration::from_secs(45);
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn learn(table: &mut Table<u8>, id: &str, backend: u8, now: Instant) -> Serial {
        let id: Arc<str> = id.into();
        let serial = table.learn(&id, backend, CLIENT, LIFE, now);
        table.leave(&id, serial, now);
        serial
    }

    fn find(table: &mut Table<u8>, id: &str, now: Instant) -> Option<u8> {
        let (id, serial, backend) = table.enter(id, now)?;
        table.leave(&id, serial, now);
        Some(backend)
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_session_lives_so_long_after_its_last_request() {
        let (mut table, start) = (Table::default(), Instant::now());
        learn(&mut table, "s", 7, start);
        assert_eq!(find(&mut table, "s", start + seconds(44)), Some(7));
        assert_eq!(find(&mut table, "s", start + seconds(88)), Some(7));
        assert_eq!(find(&mut table, "s", start + seconds(133)), None);
        assert!(table.sessions.is_empty() && table.due.is_empty() && table.clients.is_empty());
        assert_eq!(find(&mut table, "other", start), None);
    }

    #[test]
    fn a_look_at_a_session_is_no_request_of_it() {
        let (mut table, start) = (Table::default(), Instant::now());
        learn(&mut table, "s", 7, start);
        assert_eq!(table.find("s", start + seconds(44)), Some(7));
        assert_eq!(table.find("s", start + seconds(46)), None);
        assert_eq!(find(&mut table, "s", start + seconds(46)), None);
    }

    #[test]
    fn those_that_are_over_do_not_count() {
        let pool = pool(&["a"]);
        let life = Duration::from_millis(20);
        let learn = |number| {
            let id = format!("s{number}");
            pool.sessions().learn(&id, &pool.backends()[0], CLIENT, life)
        };
        let all: Vec<Visit> = (0..1000).map(learn).collect();
        assert_eq!(pool.sessions().len(), 1000);
        drop(all);
        let soon = Instant::now() + seconds(10);
        while !pool.sessions().is_empty() {
            assert!(Instant::now() < soon, "{} are left", pool.sessions().len());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_session_lives_while_its_websocket_lives() {
        let (mut table, start) = (Table::default(), Instant::now());
        learn(&mut table, "s", 7, start);
        let (id, serial, _) = table.enter("s", start).unwrap();
        learn(&mut table, "another", 1, start + seconds(1000));
        assert_eq!(find(&mut table, "s", start + seconds(1000)), Some(7));
        table.leave(&id, serial, start + seconds(2000));
        assert_eq!(find(&mut table, "s", start + seconds(2044)), Some(7));
        assert_eq!(find(&mut table, "s", start + seconds(2089)), None);
    }

    #[test]
    fn what_is_over_goes_without_being_asked_for() {
        let (mut table, start) = (Table::default(), Instant::now());
        for number in 0..100 {
            learn(&mut table, &format!("s{number}"), 1, start);
        }
        for _ in 0..10 {
            find(&mut table, "nobody", start + LIFE);
        }
        assert!(table.sessions.is_empty() && table.due.is_empty() && table.clients.is_empty());
    }

    #[test]
    fn of_one_client_the_oldest_is_forgotten() {
        let (mut table, start) = (Table::default(), Instant::now());
        let other = IpAddr::V4(Ipv4Addr::BROADCAST);
        table.learn(&"other".into(), 2, other, LIFE, start);
        for number in 0..=MOST_OF_ONE_CLIENT {
            learn(&mut table, &format!("s{number}"), 1, start);
        }
        assert_eq!(table.sessions.len(), MOST_OF_ONE_CLIENT + 1);
        assert_eq!(table.due.len(), MOST_OF_ONE_CLIENT + 1);
        assert_eq!(find(&mut table, "s0", start), None);
        assert_eq!(find(&mut table, "s1", start), Some(1));
        assert_eq!(find(&mut table, "other", start), Some(2));
    }

    #[test]
    fn a_session_is_written_down_again_a_third_of_its_life_after_if_it_is_used() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.is_shared = true;
        let due = |table: &mut Table<u8>, at: u64| {
            let due = table.take_due(10, start + seconds(at)).into_iter();
            due.map(|(id, ..)| id.to_string()).collect::<Vec<_>>()
        };
        learn(&mut table, "used", 1, start);
        learn(&mut table, "unused", 2, start);
        let (id, serial, _) = table.enter("unused", start).unwrap();
        table.leave(&id, serial, start);
        assert_eq!(due(&mut table, 14), Vec::<String>::new());
        assert_eq!(due(&mut table, 15), ["used", "unused"], "their beginning is a use");
        assert_eq!(find(&mut table, "used", start + seconds(16)), Some(1));
        assert_eq!(find(&mut table, "used", start + seconds(17)), Some(1));
        assert_eq!(due(&mut table, 29), Vec::<String>::new());
        assert_eq!(due(&mut table, 31), ["used"]);
        // Long after: at once.
        let (id, serial, _) = table.enter("used", start + seconds(60)).unwrap();
        assert_eq!(due(&mut table, 60), ["used"]);
        // A WebSocket lives.
        assert_eq!(due(&mut table, 75), ["used"]);
        assert_eq!(due(&mut table, 90), ["used"]);
        table.leave(&id, serial, start + seconds(91));
        assert_eq!(due(&mut table, 105), ["used"]);
        assert_eq!(due(&mut table, 1000), Vec::<String>::new());
        assert_eq!(find(&mut table, "used", start + seconds(1000)), None);
        assert!(table.renewals.is_empty() && table.sessions.is_empty());
    }

    #[test]
    fn a_session_is_written_down_for_what_is_left_of_it() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.is_shared = true;
        let due = |table: &mut Table<u8>, at: u64| {
            let due = table.take_due(10, start + seconds(at)).into_iter();
            due.map(|(_, _, left)| left.as_secs()).collect::<Vec<_>>()
        };
        learn(&mut table, "s", 1, start);
        assert_eq!(due(&mut table, 15), [30], "nobody came since");
        let (id, serial, _) = table.enter("s", start + seconds(20)).unwrap();
        assert_eq!(due(&mut table, 30), [45], "a visit is under way");
        table.leave(&id, serial, start + seconds(32));
        // However late one is written, it is again before that is over.
        assert_eq!(due(&mut table, 71), [6]);
        assert_eq!(find(&mut table, "s", start + seconds(72)), Some(1));
        assert_eq!(due(&mut table, 74), [43]);
        // One that is over is not written at all.
        assert_eq!(find(&mut table, "s", start + seconds(75)), Some(1));
        assert_eq!(due(&mut table, 200), [0; 0]);
    }

    #[test]
    fn a_visit_of_a_forgotten_session_ends_without_harm() {
        let (mut table, start) = (Table::default(), Instant::now());
        learn(&mut table, "s", 1, start);
        let (id, serial, _) = table.enter("s", start).unwrap();
        learn(&mut table, "s", 2, start);
        table.leave(&id, serial, start);
        assert_eq!(table.sessions["s"].visits, 0);
        assert_eq!(find(&mut table, "s", start), Some(2));
    }

    #[test]
    fn what_a_drain_forgets_is_told_where_it_is_shared() {
        for is_shared in [false, true] {
            let pool = pool(&["a", "b"]);
            let sessions = pool.sessions();
            if is_shared {
                sessions.share();
            }
            let (a, b) = (pool.backend("a").unwrap(), pool.backend("b").unwrap());
            drop([("s", a), ("t", b)].map(|(id, at)| sessions.learn(id, at, CLIENT, LIFE)));
            sessions.forget(&["s", "t", "unknown"].map(Arc::from), a);
            assert_eq!(sessions.len(), 1);
            let told = sessions.take_forgotten();
            let told: Vec<_> = told.iter().map(|(id, at)| (&**id, at.id())).collect();
            assert_eq!(told, [("s", "a")][..usize::from(is_shared)]);
            assert!(sessions.take_forgotten().is_empty());
        }
    }

    #[test]
    fn a_rebuilt_pool_knows_the_sessions() {
        let old = pool(&["a", "b"]);
        let b = old.backend("b").unwrap();
        drop(old.sessions().learn("s", b, CLIENT, LIFE));
        let new = old.rebuild(old.settings().clone());
        assert!(Arc::ptr_eq(new.sessions().visit("s").unwrap().backend(), b));
        assert_eq!(new.sessions().len(), 1);
    }

    proptest! {
        /// However requests, WebSockets and time come, the three views agree.
        #[test]
        fn the_views_of_the_table_agree(steps in prop::collection::vec((0_u8..4, 0_u8..5, 0_u64..30), 0..200)) {
            let (mut table, mut now) = (Table::default(), Instant::now());
            table.is_shared = true;
            let mut visits = Vec::new();
            for (what, which, wait) in steps {
                now += seconds(wait);
                let id: Arc<str> = format!("s{which}").into();
                table.take_due(usize::from(which), now);
                match what {
                    0 => visits.push((Arc::clone(&id), table.learn(&id, which, CLIENT, LIFE, now))),
                    1 => if let Some((id, serial, backend)) = table.enter(&id, now) {
                        prop_assert_eq!(backend, which);
                        visits.push((id, serial));
                    },
                    _ => if let Some((id, serial)) = visits.pop() {
                        table.leave(&id, serial, now);
                    },
                }
                prop_assert_eq!(table.due.len(), table.sessions.len());
                let renewed = table.sessions.values().filter(|one| one.renewal.is_some()).count();
                prop_assert_eq!(table.renewals.len(), renewed);
                prop_assert_eq!(table.clients.values().map(BTreeMap::len).sum::<usize>(), table.sessions.len());
                for (id, session) in &table.sessions {
                    prop_assert_eq!(&table.due[&(session.due, session.serial)], id);
                    prop_assert_eq!(&table.clients[&session.client][&session.serial], id);
                }
            }
        }
    }
}
