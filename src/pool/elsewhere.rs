//! Where other proxies have keys, what this one has told them of its own, and who gives way.
//!
//! Proxies that share a registry tell each other where their keys are, but only of those that are not
//! at home, or that another has elsewhere: a key whose connections are all at home needs no word. A
//! key that comes here anew goes where others have it. If two chose differently at the same moment,
//! both hear of it, and both name the same winner: of the backends named, the first on the ring from
//! the key's position that is not drained, else the first. Whoever has the key elsewhere gives way
//! ([`Settled::GivesWay`]), unless the winner is out of reach from here: then it keeps the key and
//! says so.
//!
//! What was told once stays told until the key's last connection here is gone, also at home: if it
//! were taken back as soon as the other one has given way, that one's clients would find nobody, and
//! choose for themselves again. [`Elsewhere::tidy`] takes back what is of no use, seldom enough.
//!
//! In the drain of a backend all proxies close a key at about the same time. The first to close one
//! places it elsewhere, and since a drained backend does not win, the others follow; who has closed a
//! key does not go back there ([`Known::left`]), though another proxy's turn has not come.
//!
//! Pure. What is kept grows with the keys that some proxy has away from its home, of which each proxy
//! has at most as many as connections.

use std::collections::HashMap;
use std::sync::Arc;

/// A backend as this proxy sees it, on a walk of the ring from a key's position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) id: &'a str,
    pub(super) is_lost: bool,
    pub(super) in_service: bool,
    pub(super) is_draining: bool,
}

/// What proxies have said of the keys of one pool.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// Of no key that nobody says anything of.
    keys: HashMap<Arc<str>, Known>,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Known {
    /// Other proxies, and where they have it.
    others: Vec<(Arc<str>, Arc<str>)>,
    /// What others were told.
    told: Option<Arc<str>>,
    /// A drained backend that this proxy has closed the key at, while others have it there.
    left: Option<Arc<str>>,
    /// It is kept here although another backend should have it.
    is_disputed: bool,
}

impl Known {
    fn names(&self, backend: &str) -> bool {
        self.others.iter().any(|(_, at)| **at == *backend)
    }

    fn is_empty(&self) -> bool {
        self.others.is_empty() && self.told.is_none()
    }
}

/// What becomes of a key that is placed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It stays, and others know what they are to know.
    Stays,
    /// It stays, and others are to be told where.
    IsTold,
    /// Another proxy's place for it wins.
    GivesWay,
}

impl Elsewhere {
    /// Takes what another proxy says of a key; `None`: it has it nowhere.
    pub(super) fn hear(&mut self, key: &str, proxy: &str, backend: Option<&str>) {
        if backend.is_none() && !self.keys.contains_key(key) {
            return;
        }
        let known = self.keys.entry(key.into()).or_default();
        known.others.retain(|(other, _)| **other != *proxy);
        known.others.extend(backend.map(|backend| (proxy.into(), backend.into())));
        if known.left.as_ref().is_some_and(|left| !known.names(left)) {
            known.left = None;
        }
        self.forget_if_empty(key);
    }

    /// Takes all that other proxies say: keys, proxies and backends. Gives the keys that somebody
    /// says something of, or said.
    pub(super) fn hear_anew(&mut self, all: &[(String, String, String)]) -> Vec<Arc<str>> {
        let mut touched: Vec<Arc<str>> = self.keys.keys().cloned().collect();
        self.keys.values_mut().for_each(|known| known.others.clear());
        for (key, proxy, backend) in all {
            if !self.keys.contains_key(key.as_str()) {
                touched.push(key.as_str().into());
            }
            let known = self.keys.entry(key.as_str().into()).or_default();
            known.others.push((proxy.as_str().into(), backend.as_str().into()));
        }
        for known in self.keys.values_mut() {
            if known.left.as_ref().is_some_and(|left| !known.names(left)) {
                known.left = None;
            }
        }
        self.keys.retain(|_, known| !known.is_empty());
        touched
    }

    /// Where others have a key that comes here: one that is known here and not lost.
    pub(super) fn follow<'a>(
        &self,
        key: &str,
        walk: impl Iterator<Item = Seen<'a>>,
    ) -> Option<&'a str> {
        let known = self.keys.get(key).filter(|known| !known.others.is_empty())?;
        let mut named = Named::of(known, None);
        let found = named.first(walk.filter(|seen| !seen.is_lost))?;
        let is_left = found.is_draining && known.left.as_deref() == Some(found.id);
        (!is_left).then_some(found.id)
    }

    /// Decides about a key that is placed here at `own`. The second is true where it stays although
    /// the winner is another, and that is news.
    pub(super) fn settle<'a>(
        &mut self,
        key: &Arc<str>,
        own: &Arc<str>,
        at_home: bool,
        walk: impl Iterator<Item = Seen<'a>>,
    ) -> (Settled, bool) {
        let Some(known) = self.keys.get_mut(key) else {
            if at_home {
                return (Settled::Stays, false);
            }
            let known = Known { told: Some(Arc::clone(own)), ..Known::default() };
            self.keys.insert(Arc::clone(key), known);
            return (Settled::IsTold, false);
        };
        let is_contested = known.others.iter().any(|(_, at)| at != own);
        let mut is_disputed = false;
        if is_contested {
            let mut named = Named::of(known, Some(own));
            match named.first(walk) {
                Some(winner) if winner.id == &**own => is_disputed = named.has_unknown(),
                Some(winner) if winner.in_service => return (Settled::GivesWay, false),
                _ => is_disputed = true,
            }
        }
        let is_news = is_disputed && !std::mem::replace(&mut known.is_disputed, is_disputed);
        let is_to_be_known = !at_home || is_contested || known.told.is_some();
        if !is_to_be_known || known.told.as_ref() == Some(own) {
            return (Settled::Stays, is_news);
        }
        known.told = Some(Arc::clone(own));
        (Settled::IsTold, is_news)
    }

    /// Notes that a key is not placed here any more. Tells whether others are to be told.
    pub(super) fn gone(&mut self, key: &str) -> bool {
        let Some(known) = self.keys.get_mut(key) else { return false };
        known.is_disputed = false;
        let was_told = known.told.take().is_some();
        self.forget_if_empty(key);
        was_told
    }

    /// Notes that a key was closed in the drain of a backend, as [`gone`](Self::gone) does.
    pub(super) fn closed_at(&mut self, key: &str, backend: &Arc<str>) -> bool {
        if let Some(known) = self.keys.get_mut(key).filter(|known| known.names(backend)) {
            known.left = Some(Arc::clone(backend));
        }
        self.gone(key)
    }

    /// Takes back what was told of a key that is at home, where all others have it too. Tells
    /// whether they are to be told.
    pub(super) fn tidy(&mut self, key: &str, own: &str) -> bool {
        let Some(known) = self.keys.get_mut(key) else { return false };
        if known.others.iter().any(|(_, at)| **at != *own) || known.told.take().is_none() {
            return false;
        }
        self.forget_if_empty(key);
        true
    }

    /// The keys that this proxy has told to be at another backend than others have them.
    pub(super) fn contested(&self) -> Vec<Arc<str>> {
        let contested = self.keys.iter().filter(|(_, known)| {
            let told = known.told.as_ref();
            told.is_some_and(|own| known.others.iter().any(|(_, at)| at != own))
        });
        contested.map(|(key, _)| Arc::clone(key)).collect()
    }

    /// All that others were told: keys and backends.
    pub(super) fn told(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let told = self.keys.iter().filter_map(|(key, known)| {
            known.told.as_ref().map(|told| (Arc::clone(key), Arc::clone(told)))
        });
        told.collect()
    }

    fn forget_if_empty(&mut self, key: &str) {
        if self.keys.get(key).is_some_and(Known::is_empty) {
            self.keys.remove(key);
            let (used, room) = (self.keys.len(), self.keys.capacity());
            if room > 1024 && used < room / 8 {
                self.keys.shrink_to(used * 2);
            }
        }
    }
}

/// The backends that a key is said to be at, and which of them a walk has not come to yet.
struct Named<'k> {
    ids: Vec<&'k str>,
}

impl<'k> Named<'k> {
    fn of(known: &'k Known, own: Option<&'k str>) -> Self {
        let mut ids: Vec<&str> = known.others.iter().map(|(_, at)| &**at).chain(own).collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids }
    }

    /// The first of them on the walk that is not drained, else the first.
    fn first<'a>(&mut self, walk: impl Iterator<Item = Seen<'a>>) -> Option<Seen<'a>> {
        let mut drained = None;
        let mut winner = None;
        for seen in walk {
            let Some(index) = self.ids.iter().position(|id| *id == seen.id) else { continue };
            self.ids.swap_remove(index);
            if seen.is_draining {
                drained.get_or_insert(seen);
            } else {
                winner.get_or_insert(seen);
            }
            if self.ids.is_empty() {
                break;
            }
        }
        winner.or(drained)
    }

    /// Whether the walk that is over has not come to all of them.
    fn has_unknown(&self) -> bool {
        !self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const IN_SERVICE: Seen<'static> =
        Seen { id: "", is_lost: false, in_service: true, is_draining: false };

    /// Backends a, b, c in the order of the ring, in service.
    fn all() -> [Seen<'static>; 3] {
        ["a", "b", "c"].map(|id| Seen { id, ..IN_SERVICE })
    }

    fn settle(elsewhere: &mut Elsewhere, own: &str, walk: [Seen<'_>; 3]) -> (Settled, bool) {
        elsewhere.settle(&"k".into(), &own.into(), own == "a", walk.into_iter())
    }

    fn told(elsewhere: &Elsewhere) -> Option<String> {
        elsewhere.told().pop().map(|(_, at)| at.to_string())
    }

    #[test]
    fn a_key_at_home_needs_no_word_and_one_away_is_told_once() {
        let mut elsewhere = Elsewhere::default();
        assert_eq!(settle(&mut elsewhere, "a", all()), (Settled::Stays, false));
        assert_eq!(settle(&mut elsewhere, "b", all()), (Settled::IsTold, false));
        assert_eq!(settle(&mut elsewhere, "b", all()), (Settled::Stays, false));
        assert_eq!(settle(&mut elsewhere, "c", all()), (Settled::IsTold, false));
        assert_eq!(told(&elsewhere), Some("c".into()));
        assert!(elsewhere.gone("k") && !elsewhere.gone("k"));
        assert!(elsewhere.keys.is_empty());
    }

    #[test]
    fn a_key_follows_others_and_the_first_on_the_ring_of_them() {
        let mut elsewhere = Elsewhere::default();
        let follow = |elsewhere: &Elsewhere, walk: [Seen<'static>; 3]| {
            elsewhere.follow("k", walk.into_iter())
        };
        assert_eq!(follow(&elsewhere, all()), None);
        elsewhere.hear("k", "p1", Some("c"));
        assert_eq!(follow(&elsewhere, all()), Some("c"));
        elsewhere.hear("k", "p2", Some("b"));
        assert_eq!(follow(&elsewhere, all()), Some("b"));
        let mut seen = all();
        seen[1].in_service = false;
        assert_eq!(follow(&elsewhere, seen), Some("b"), "also out of service");
        seen[1].is_draining = true;
        assert_eq!(follow(&elsewhere, seen), Some("c"), "another proxy has closed it there");
        seen[2].is_lost = true;
        assert_eq!(follow(&elsewhere, seen), Some("b"));
        seen[1].is_lost = true;
        assert_eq!(follow(&elsewhere, seen), None);
        elsewhere.hear("k", "p1", None);
        elsewhere.hear("k", "p2", Some("unknown"));
        assert_eq!(follow(&elsewhere, all()), None);
        elsewhere.hear("k", "p2", None);
        elsewhere.hear("another", "p2", None);
        assert!(elsewhere.keys.is_empty());
    }

    #[test]
    fn the_first_on_the_ring_wins_and_its_proxy_says_so() {
        let (mut winner, mut loser) = (Elsewhere::default(), Elsewhere::default());
        winner.hear("k", "loser", Some("b"));
        assert_eq!(settle(&mut winner, "a", all()), (Settled::IsTold, false));
        loser.hear("k", "winner", Some("a"));
        assert_eq!(settle(&mut loser, "b", all()), (Settled::GivesWay, false));
        assert_eq!(loser.follow("k", all().into_iter()), Some("a"));
        // The loser's word is taken back; the winner's stays, so that its clients find it.
        winner.hear("k", "loser", None);
        assert_eq!(settle(&mut winner, "a", all()), (Settled::Stays, false));
        assert_eq!(told(&winner), Some("a".into()));
        assert!(winner.tidy("k", "a") && !winner.tidy("k", "a"));
        assert!(winner.keys.is_empty());
    }

    #[test]
    fn who_cannot_reach_the_winner_keeps_the_key_and_says_so_once() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("k", "p", Some("a"));
        let mut seen = all();
        seen[0].in_service = false;
        assert!(elsewhere.contested().is_empty(), "nothing is known to be here");
        assert_eq!(settle(&mut elsewhere, "b", seen), (Settled::IsTold, true));
        assert_eq!(settle(&mut elsewhere, "b", seen), (Settled::Stays, false));
        assert_eq!(elsewhere.contested(), [Arc::from("k")]);
        assert_eq!(settle(&mut elsewhere, "b", all()), (Settled::GivesWay, false));
        elsewhere.gone("k");
        elsewhere.hear("k", "p", Some("unknown"));
        assert_eq!(settle(&mut elsewhere, "a", all()), (Settled::IsTold, true));
        assert!(!elsewhere.tidy("k", "a"), "others have it elsewhere");
    }

    #[test]
    fn a_drained_backend_does_not_win_and_who_has_left_it_does_not_go_back() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("k", "p", Some("a"));
        let mut seen = all();
        seen[0].is_draining = true;
        assert_eq!(elsewhere.follow("k", seen.into_iter()), Some("a"), "its turn has not come");
        assert!(!elsewhere.closed_at("k", &"a".into()));
        assert_eq!(elsewhere.follow("k", seen.into_iter()), None);
        assert_eq!(settle(&mut elsewhere, "b", seen), (Settled::IsTold, false));
        // The other proxy gives way.
        let mut other = Elsewhere::default();
        other.hear("k", "this", Some("b"));
        assert_eq!(settle(&mut other, "a", seen), (Settled::GivesWay, false));
        // Undone, it is as good as any.
        assert_eq!(elsewhere.follow("k", all().into_iter()), Some("a"));
        elsewhere.hear_anew(&[]);
        elsewhere.hear("k", "p", Some("a"));
        assert_eq!(elsewhere.follow("k", seen.into_iter()), Some("a"), "it came there anew");
    }

    #[test]
    fn what_is_read_anew_takes_the_place_of_all_that_was_heard() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.hear("old", "p", Some("a"));
        elsewhere.hear("k", "p", Some("a"));
        settle(&mut elsewhere, "a", all());
        let line = |key: &str| (key.to_owned(), "q".to_owned(), "b".to_owned());
        let mut touched = elsewhere.hear_anew(&[line("k"), line("new")]);
        touched.sort_unstable();
        assert_eq!(touched, ["k", "new", "old"].map(Arc::<str>::from));
        assert_eq!(elsewhere.keys.len(), 2);
        assert_eq!(elsewhere.follow("k", all().into_iter()), Some("b"));
    }

    /// Some proxies, one key, and what is under way between them.
    struct World {
        proxies: Vec<Proxy>,
        /// By sender and receiver, in order: backends as others hear of them.
        under_way: Vec<Vec<VecDeque<Option<Arc<str>>>>>,
    }

    #[derive(Default)]
    struct Proxy {
        elsewhere: Elsewhere,
        at: Option<Arc<str>>,
        /// Clients that were closed and come back.
        closed: bool,
        seen: Vec<Seen<'static>>,
    }

    impl World {
        fn new(count: usize) -> Self {
            let proxy = || Proxy { seen: all().to_vec(), ..Proxy::default() };
            let proxies = (0..count).map(|_| proxy()).collect();
            let under_way = (0..count).map(|_| vec![VecDeque::new(); count]).collect();
            Self { proxies, under_way }
        }

        fn tell(&mut self, from: usize, at: Option<&Arc<str>>) {
            for queue in &mut self.under_way[from] {
                queue.push_back(at.cloned());
            }
        }

        fn settle(&mut self, index: usize) {
            let proxy = &mut self.proxies[index];
            let Some(own) = proxy.at.clone() else { return };
            let (key, at_home) = ("k".into(), &*own == "a");
            let walk = proxy.seen.clone().into_iter();
            match proxy.elsewhere.settle(&key, &own, at_home, walk).0 {
                Settled::Stays => {}
                Settled::IsTold => self.tell(index, Some(&own)),
                Settled::GivesWay => {
                    self.leave(index);
                    self.proxies[index].closed = true;
                }
            }
        }

        fn join(&mut self, index: usize) {
            let proxy = &mut self.proxies[index];
            proxy.closed = false;
            if proxy.at.is_none() {
                let walk = || proxy.seen.iter().copied();
                let followed = proxy.elsewhere.follow("k", walk());
                let serves = |seen: &Seen<'_>| seen.in_service && !seen.is_draining;
                let chosen = followed.or_else(|| walk().find(serves).map(|seen| seen.id));
                proxy.at = chosen.map(Arc::from);
                self.settle(index);
            }
        }

        fn leave(&mut self, index: usize) {
            let proxy = &mut self.proxies[index];
            if proxy.at.take().is_some() && proxy.elsewhere.gone("k") {
                self.tell(index, None);
            }
        }

        /// Closes the key in a drain of the backend where it is.
        fn close(&mut self, index: usize) {
            let proxy = &mut self.proxies[index];
            let at = proxy.at.clone();
            let drained = |seen: &&Seen<'_>| at.as_deref() == Some(seen.id) && seen.is_draining;
            if proxy.seen.iter().any(|seen| drained(&seen)) {
                let at = proxy.at.take().unwrap();
                proxy.closed = true;
                if proxy.elsewhere.closed_at("k", &at) {
                    self.tell(index, None);
                }
            }
        }

        fn deliver(&mut self, from: usize, to: usize) {
            if from == to {
                self.under_way[from][to].clear();
            } else if let Some(at) = self.under_way[from][to].pop_front() {
                self.proxies[to].elsewhere.hear("k", &from.to_string(), at.as_deref());
                self.settle(to);
            }
        }

        /// Reads all anew: what was under way has arrived with it.
        fn read_anew(&mut self, index: usize) {
            let mut all = Vec::new();
            for other in (0..self.proxies.len()).filter(|other| *other != index) {
                let told = self.proxies[other].elsewhere.told().pop();
                all.extend(told.map(|(_, at)| ("k".to_owned(), other.to_string(), at.to_string())));
                self.under_way[other][index].clear();
            }
            self.proxies[index].elsewhere.hear_anew(&all);
            self.settle(index);
        }

        /// Delivers everything, and has those come back that were closed, until nothing happens.
        fn come_to_rest(&mut self) -> usize {
            let count = self.proxies.len();
            for round in 0..20 {
                let mut is_quiet = true;
                for from in 0..count {
                    for to in 0..count {
                        while !self.under_way[from][to].is_empty() {
                            is_quiet &= from == to;
                            self.deliver(from, to);
                        }
                    }
                }
                for index in 0..count {
                    if self.proxies[index].closed {
                        is_quiet = false;
                        self.join(index);
                    }
                }
                if is_quiet {
                    return round;
                }
            }
            20
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(usize),
        Leave(usize),
        Close(usize),
        Deliver(usize, usize),
        ReadAnew(usize),
        InService(usize, usize, bool),
        Draining(usize, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (proxy, backend) = (|| 0..3_usize, || 0..3_usize);
        let step = prop_oneof![
            4 => proxy().prop_map(Step::Join),
            2 => proxy().prop_map(Step::Leave),
            2 => proxy().prop_map(Step::Close),
            6 => (proxy(), proxy()).prop_map(|(from, to)| Step::Deliver(from, to)),
            1 => proxy().prop_map(Step::ReadAnew),
            3 => (proxy(), backend(), any::<bool>()).prop_map(|(one, at, on)| Step::InService(one, at, on)),
            1 => (backend(), any::<bool>()).prop_map(|(at, on)| Step::Draining(at, on)),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever has happened: once proxies see backends alike, and have heard of each other, a
        /// key is on one backend within a few rounds, and stays there.
        #[test]
        fn proxies_come_to_agree(count in 2..4_usize, steps in steps()) {
            let mut world = World::new(count);
            for step in steps {
                match step {
                    Step::Join(index) => world.join(index % count),
                    Step::Leave(index) => world.leave(index % count),
                    Step::Close(index) => world.close(index % count),
                    Step::Deliver(from, to) => world.deliver(from % count, to % count),
                    Step::ReadAnew(index) => world.read_anew(index % count),
                    Step::InService(index, at, on) => {
                        world.proxies[index % count].seen[at].in_service = on;
                    }
                    Step::Draining(at, on) => {
                        world.proxies.iter_mut().for_each(|one| one.seen[at].is_draining = on);
                    }
                }
            }
            // All see the same; one of them hears of it sooner than another.
            for proxy in &mut world.proxies {
                proxy.seen.iter_mut().for_each(|seen| seen.in_service = true);
            }
            prop_assert!(world.come_to_rest() < 10);
            for index in 0..count {
                world.read_anew(index);
                prop_assert!(world.come_to_rest() < 10);
            }
            let mut at: Vec<_> = world.proxies.iter().filter_map(|proxy| proxy.at.clone()).collect();
            at.sort_unstable();
            at.dedup();
            prop_assert!(at.len() <= 1, "{at:?}");
            // And who joins now, joins there.
            for index in 0..count {
                world.join(index);
                prop_assert!(world.come_to_rest() < 10);
            }
            let all: Vec<_> = world.proxies.iter().filter_map(|proxy| proxy.at.clone()).collect();
            prop_assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
            // Nothing is left when all have gone.
            (0..count).for_each(|index| world.leave(index));
            world.come_to_rest();
            for proxy in &world.proxies {
                prop_assert!(proxy.elsewhere.keys.is_empty());
            }
        }
    }
}
