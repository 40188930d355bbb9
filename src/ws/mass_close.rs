//! Closing what connections of one worker have in common, a few at a time.
//!
//! A drain or a route that left the config closes many connections, key by key, over a minute or
//! so, and who decides when a key's turn has come runs on another thread. What it tells the worker
//! are [`Order`]s; here is how a worker follows them: all connections are looked at once, some
//! thousands at a time, and those that may be meant are noted by key. From then on an order costs
//! as much as it closes, and as many connections as have come since.
//!
//! A connection whose handshake is under way has no backend yet, so it is noted by its key alone
//! and asked again when the key's turn comes. Who is missed nevertheless, because he came late or
//! has no key, is found at the end, when the rest is closed.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::close::CloseReason;
use super::connection::{Connection, Serial};
use super::table::Table;

/// How many connections are looked at in one turn of a worker.
const LOOKED_AT: usize = 4096;

/// Which connections are to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of a backend.
    Backend {
        /// The name of its pool.
        pool: Arc<str>,
        /// Its id, the very one that its connections have: the process that had the same id at another
        /// address is another backend.
        backend: Arc<str>,
        /// Whether those of a key go together.
        by_key: bool,
    },
    /// Those of a route, by its name.
    Route(Arc<str>),
}

impl Whose {
    fn has(&self, connection: &Connection) -> bool {
        match self {
            Self::Backend { pool, backend, .. } => {
                connection.facts.names.pool == *pool && connection.is_at(backend)
            }
            Self::Route(route) => connection.facts.names.route == *route,
        }
    }

    /// Whether it has a connection, or will have once its handshake is over.
    fn may_have(&self, connection: &Connection) -> bool {
        let is_under_way = || connection.backend().is_none();
        match self {
            Self::Backend { pool, .. } if is_under_way() => connection.facts.names.pool == *pool,
            _ => self.has(connection),
        }
    }

    /// The key together with whose other connections a connection is closed.
    fn key<'c>(&self, connection: &'c Connection) -> Option<&'c Arc<str>> {
        match self {
            Self::Backend { by_key: false, .. } => None,
            _ => connection.facts.key.as_ref(),
        }
    }
}

/// What is closed in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// All connections of these keys.
    pub keys: Vec<Arc<str>>,
    /// These connections.
    pub connections: Vec<Serial>,
}

/// Tells orders of one mass close from those of another.
pub type Number = u64;

/// One step of a mass close.
#[derive(Debug)]
pub enum Order {
    /// Look at more connections, and tell what is there. The first for a number begins it.
    Look(Whose, tokio::sync::oneshot::Sender<Seen>),
    /// Close these.
    Close(Arc<Units>, CloseReason),
    /// Close all that are there, and tell how many those are, which is none once all have ended.
    CloseRest(CloseReason, tokio::sync::oneshot::Sender<usize>),
    /// Forget about it.
    End,
}

/// What a look has found.
#[derive(Debug)]
pub struct Seen {
    /// What is to be closed, in the order in which it was found; keys may come more than once.
    pub units: Units,
    /// There is more to look at.
    pub more: bool,
}

/// The mass closes that a worker is in the middle of.
#[derive(Debug, Default)]
pub struct MassCloses(RefCell<HashMap<Number, Noted>>);

impl MassCloses {
    /// Does as it is told. One that was never begun is taken for one that has ended.
    pub fn follow(&self, number: Number, order: Order, table: &Table) {
        let mut all = self.0.borrow_mut();
        match order {
            // Whoever asked may have stopped waiting.
            Order::Look(whose, reply) => {
                let noted = all.entry(number).or_insert_with(|| Noted::new(whose));
                let _ = reply.send(noted.look(table));
            }
            Order::Close(units, reason) => {
                if let Some(noted) = all.get_mut(&number) {
                    noted.close(&units, reason, table);
                }
            }
            Order::CloseRest(reason, reply) => {
                let left = all.get(&number).map_or(0, |noted| noted.close_rest(reason, table));
                let _ = reply.send(left);
            }
            Order::End => drop(all.remove(&number)),
        }
    }
}

/// The connections that one mass close may be about.
#[derive(Debug)]
struct Noted {
    whose: Whose,
    /// All up to here have been looked at.
    seen: Option<Serial>,
    by_key: BTreeSet<(Arc<str>, Serial)>,
}

impl Noted {
    fn new(whose: Whose) -> Self {
        Self { whose, seen: None, by_key: BTreeSet::new() }
    }

    fn look(&mut self, table: &Table) -> Seen {
        let Self { whose, seen, by_key } = self;
        let (mut units, mut looked_at) = (Units::default(), 0);
        let last = table.look(*seen, LOOKED_AT, |connection| {
            looked_at += 1;
            if !whose.may_have(connection) {
                return;
            }
            let is_there = whose.has(connection);
            match whose.key(connection) {
                Some(key) => {
                    by_key.insert((Arc::clone(key), connection.serial));
                    units.keys.extend(is_there.then(|| Arc::clone(key)));
                }
                None => units.connections.extend(is_there.then_some(connection.serial)),
            }
        });
        *seen = last.or(*seen);
        Seen { units, more: looked_at == LOOKED_AT }
    }

    fn close(&mut self, units: &Units, reason: CloseReason, table: &Table) {
        while self.look(table).more {}
        for key in &units.keys {
            let from = (Arc::clone(key), Serial::from_u64(0));
            let to = (Arc::clone(key), Serial::from_u64(u64::MAX));
            let of_key: Vec<_> = self.by_key.range(from..=to).cloned().collect();
            for noted in of_key {
                self.close_one(noted.1, reason, table);
                self.by_key.remove(&noted);
            }
        }
        for serial in &units.connections {
            self.close_one(*serial, reason, table);
        }
    }

    fn close_one(&self, serial: Serial, reason: CloseReason, table: &Table) {
        // Another worker's is not here.
        if let Some(connection) = table.get(serial).filter(|one| self.whose.has(one)) {
            connection.close(reason);
        }
    }

    fn close_rest(&self, reason: CloseReason, table: &Table) -> usize {
        let rest = table.after(None, usize::MAX, |connection| self.whose.has(connection));
        rest.iter().for_each(|connection| connection.close(reason));
        rest.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::rc::Rc;
    use std::time::SystemTime;

    use tokio::sync::oneshot;

    use super::super::connection::{Facts, Names};
    use super::super::table::Entry;
    use super::*;

    struct World {
        table: Rc<Table>,
        closes: MassCloses,
        open: Vec<Entry>,
    }

    impl World {
        fn new() -> Self {
            let table = Rc::new(Table::new(0, Arc::default()));
            Self { table, closes: MassCloses::default(), open: Vec::new() }
        }

        fn open(&mut self, route: &str, backend: Option<&str>, key: Option<&str>) -> usize {
            let entry = self.table.enter(Facts {
                names: Arc::new(Names { route: route.into(), pool: "p".into() }),
                key: key.map(Arc::from),
                client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                since: SystemTime::now(),
            });
            if let Some(backend) = backend {
                entry.connection().set_backend(id(backend));
            }
            self.open.push(entry);
            self.open.len() - 1
        }

        fn look(&self, whose: &Whose) -> Units {
            let mut all = Units::default();
            loop {
                let (reply, mut answer) = oneshot::channel();
                self.closes.follow(7, Order::Look(whose.clone(), reply), &self.table);
                let seen = answer.try_recv().unwrap();
                all.keys.extend(seen.units.keys);
                all.connections.extend(seen.units.connections);
                if !seen.more {
                    return all;
                }
            }
        }

        fn close(&self, keys: &[&str], connections: &[Serial]) {
            let keys = keys.iter().map(|key| Arc::from(*key)).collect();
            let units = Arc::new(Units { keys, connections: connections.to_vec() });
            self.closes.follow(7, Order::Close(units, CloseReason::Drained), &self.table);
        }

        fn close_rest(&self) -> usize {
            let (reply, mut answer) = oneshot::channel();
            self.closes.follow(7, Order::CloseRest(CloseReason::Drained, reply), &self.table);
            answer.try_recv().unwrap()
        }

        /// Which were asked to close.
        fn closed(&self) -> Vec<usize> {
            let asked = self.open.iter().map(|entry| entry.connection().asked_to_close());
            asked.enumerate().filter_map(|(index, asked)| asked.map(|_| index)).collect()
        }
    }

    thread_local! {
        static IDS: RefCell<HashMap<String, Arc<str>>> = RefCell::default();
    }

    /// The one id of a backend.
    fn id(backend: &str) -> Arc<str> {
        let of = |ids: &RefCell<HashMap<String, Arc<str>>>| {
            let mut ids = ids.borrow_mut();
            Arc::clone(ids.entry(backend.to_owned()).or_insert_with(|| backend.into()))
        };
        IDS.with(of)
    }

    fn at(backend: &str, by_key: bool) -> Whose {
        Whose::Backend { pool: "p".into(), backend: id(backend), by_key }
    }

    #[test]
    fn a_key_is_closed_with_all_its_connections_also_those_that_came_since() {
        let mut world = World::new();
        let first = world.open("r", Some("a"), Some("k"));
        let under_way = world.open("r", None, Some("k"));
        world.open("r", Some("b"), Some("k"));
        world.open("r", Some("a"), Some("other"));
        let alone = world.open("r", Some("a"), None);
        let units = world.look(&at("a", true));
        assert_eq!(units.keys, ["k", "other"].map(Arc::<str>::from));
        let alone_serial = world.open[alone].connection().serial;
        assert_eq!(units.connections, [alone_serial]);
        world.open[under_way].connection().set_backend(id("a"));
        let since = world.open("r", Some("a"), Some("k"));
        world.close(&["k"], &[]);
        assert_eq!(world.closed(), [first, under_way, since]);
        world.close(&[], &[alone_serial]);
        assert_eq!(world.closed(), [first, under_way, alone, since]);
    }

    #[test]
    fn a_handshake_that_ended_elsewhere_is_left_alone() {
        let mut world = World::new();
        let under_way = world.open("r", None, Some("k"));
        world.look(&at("a", true));
        world.open[under_way].connection().set_backend(id("b"));
        world.close(&["k"], &[]);
        assert!(world.closed().is_empty());
    }

    #[test]
    fn where_keys_have_no_place_each_is_for_itself() {
        let mut world = World::new();
        world.open("r", Some("a"), Some("k"));
        world.open("r", Some("a"), Some("k"));
        let units = world.look(&at("a", false));
        assert!(units.keys.is_empty());
        world.close(&[], &units.connections[..1]);
        assert_eq!(world.closed(), [0]);
        let late = world.open("r", Some("a"), None);
        world.open("r", Some("b"), None);
        assert_eq!(world.close_rest(), 3);
        assert_eq!(world.closed(), [0, 1, late]);
    }

    #[test]
    fn a_route_goes_with_its_handshakes_under_way() {
        let mut world = World::new();
        world.open("gone", None, Some("k"));
        world.open("gone", Some("a"), Some("k"));
        world.open("stays", Some("a"), Some("k"));
        let units = world.look(&Whose::Route("gone".into()));
        assert_eq!(units.keys.len(), 2);
        world.close(&["k"], &[]);
        assert_eq!(world.closed(), [0, 1]);
    }

    #[test]
    fn a_crowd_is_looked_at_in_pieces_and_each_once() {
        let mut world = World::new();
        for number in 0..2 * LOOKED_AT + 1 {
            world.open("r", Some("a"), Some(&number.to_string()));
        }
        let whose = at("a", true);
        assert_eq!(world.look(&whose).keys.len(), 2 * LOOKED_AT + 1);
        assert_eq!(world.look(&whose), Units::default());
        world.closes.follow(7, Order::End, &world.table);
        assert_eq!(world.close_rest(), 0, "nobody knows of it any more");
    }
}
