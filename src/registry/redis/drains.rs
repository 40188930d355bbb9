//! Which backends operators want drained: what this proxy knows of it, beside what Redis has.
//!
//! A Redis that loses its data must not undo a drain by that, so a field that is missing says nothing.
//! Two hashes say something, and whoever reads goes by both:
//!
//! - a backend in the hash of drains undone is not to be drained, whatever the other says;
//! - else one in the hash of drains is to be drained;
//! - of one in neither of them each proxy keeps what it knew. Whoever knew it drained writes it into the
//!   hash of drains again, and no other proxy takes it for undone meanwhile.
//!
//! Who drains takes the backend out of the hash of drains undone first; who undoes it puts it in there
//! first. So nothing that is written back, by a proxy that has just looked, brings back what was undone
//! since then; a proxy that was paused finds what was undone meanwhile; and one that is new knows nothing,
//! and writes nothing.

use std::collections::{BTreeMap, BTreeSet};

/// What a proxy knows of drains, by pool.
#[derive(Debug, Default)]
pub(super) struct Drains {
    pools: BTreeMap<String, OfPool>,
}

#[derive(Debug, Default)]
struct OfPool {
    /// Backends that are to be drained.
    drained: BTreeSet<String>,
    /// Drains asked for (`true`) or undone here that could not be written yet.
    wishes: BTreeMap<String, bool>,
    /// Drains that Redis has lost, as of the last look.
    lost: BTreeSet<String>,
    /// Drains that Redis still has although they were undone, as of the last look.
    undone: BTreeSet<String>,
}

/// What is to be written into the hash of drains of a pool.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Amends {
    /// The name of the pool.
    pub(super) pool: String,
    /// Backends to write back, unless they are there.
    pub(super) lost: BTreeSet<String>,
    /// Backends to remove.
    pub(super) undone: BTreeSet<String>,
}

impl Drains {
    /// Notes what was asked for here.
    pub(super) fn wish(&mut self, pool: &str, backend: &str, wanted: bool) {
        let of_pool = self.of(pool);
        of_pool.wishes.insert(backend.to_owned(), wanted);
        of_pool.know(backend, wanted);
    }

    /// Whether this is what was asked for here last, and is not written yet.
    pub(super) fn is_wished(&self, pool: &str, backend: &str, wanted: bool) -> bool {
        let of_pool = self.pools.get(pool);
        of_pool.and_then(|of_pool| of_pool.wishes.get(backend)) == Some(&wanted)
    }

    /// Notes that this wish is written down.
    pub(super) fn written(&mut self, pool: &str, backend: &str, wanted: bool) {
        let wishes = &mut self.of(pool).wishes;
        // Another may have come meanwhile.
        if wishes.get(backend) == Some(&wanted) {
            wishes.remove(backend);
        }
    }

    /// What was asked for here and is not written yet: pools and backends.
    pub(super) fn wishes(&self) -> Vec<(String, String, bool)> {
        let of_pool = |(pool, of): (&String, &OfPool)| {
            let wish =
                |(backend, wanted): (&String, &bool)| (pool.clone(), backend.clone(), *wanted);
            of.wishes.iter().map(wish).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    /// Takes what both hashes of a pool have, of which the first was read first. Tells which backends are
    /// to be drained.
    pub(super) fn read(
        &mut self,
        pool: &str,
        asked: &BTreeSet<String>,
        undone: &BTreeSet<String>,
    ) -> Vec<String> {
        let of_pool = self.of(pool);
        let known = std::mem::take(&mut of_pool.drained);
        let is_lost = |backend: &&String| !asked.contains(*backend) && !undone.contains(*backend);
        of_pool.lost = known.iter().filter(is_lost).cloned().collect();
        of_pool.undone = asked.intersection(undone).cloned().collect();
        of_pool.drained = asked.difference(undone).chain(&of_pool.lost).cloned().collect();
        // What was asked for here holds here, written or not; and whoever writes it makes no amends.
        for (backend, wanted) in of_pool.wishes.clone() {
            of_pool.know(&backend, wanted);
            of_pool.lost.remove(&backend);
            of_pool.undone.remove(&backend);
        }
        of_pool.drained.iter().cloned().collect()
    }

    /// Takes what is to be put right in Redis after the last look.
    pub(super) fn amends(&mut self) -> Vec<Amends> {
        let amends = self.pools.iter_mut().map(|(pool, of)| Amends {
            pool: pool.clone(),
            lost: std::mem::take(&mut of.lost),
            undone: std::mem::take(&mut of.undone),
        });
        amends.filter(|amends| !amends.lost.is_empty() || !amends.undone.is_empty()).collect()
    }

    fn of(&mut self, pool: &str) -> &mut OfPool {
        self.pools.entry(pool.to_owned()).or_default()
    }
}

impl OfPool {
    fn know(&mut self, backend: &str, drained: bool) {
        if drained {
            self.drained.insert(backend.to_owned());
        } else {
            self.drained.remove(backend);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const BACKENDS: [&str; 2] = ["a", "b"];

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_missing_in_both_is_kept_and_written_back() {
        let mut drains = Drains::default();
        assert_eq!(drains.read("p", &set(&["a", "b"]), &set(&["b"])), ["a"]);
        let undone = Amends { pool: "p".to_owned(), undone: set(&["b"]), ..Amends::default() };
        assert_eq!(drains.amends(), [undone]);
        assert_eq!(drains.amends(), []);
        assert_eq!(drains.read("p", &set(&[]), &set(&[])), ["a"]);
        let lost = Amends { pool: "p".to_owned(), lost: set(&["a"]), ..Amends::default() };
        assert_eq!(drains.amends(), [lost]);
        assert_eq!(drains.read("p", &set(&[]), &set(&["a"])), [""; 0]);
        assert_eq!(drains.read("p", &set(&[]), &set(&[])), [""; 0]);
        assert_eq!(drains.amends(), []);
    }

    #[test]
    fn a_wish_holds_until_it_is_written() {
        let mut drains = Drains::default();
        drains.wish("p", "a", true);
        assert_eq!(drains.read("p", &set(&["b"]), &set(&["a"])), ["a", "b"]);
        drains.wish("p", "b", false);
        assert_eq!(drains.read("p", &set(&["b"]), &set(&[])), ["a"]);
        assert_eq!(drains.amends(), [], "they are written as wishes");
        drains.written("p", "b", true);
        let wish = |backend: &str, wanted| ("p".to_owned(), backend.to_owned(), wanted);
        assert_eq!(drains.wishes(), [wish("a", true), wish("b", false)]);
        assert!(drains.is_wished("p", "a", true) && !drains.is_wished("p", "b", true));
        drains.written("p", "a", true);
        drains.written("p", "b", false);
        assert_eq!(drains.wishes(), []);
        assert_eq!(drains.read("p", &set(&[]), &set(&["b"])), ["a"], "lost before it was read");
    }

    /// A command to Redis.
    #[derive(Clone, Copy, Debug)]
    enum Command {
        Ask(usize, bool),
        Undo(usize, bool),
    }

    #[derive(Default)]
    struct There {
        asked: BTreeSet<String>,
        undone: BTreeSet<String>,
    }

    impl There {
        fn run(&mut self, command: Command) {
            let (which, backend, add) = match command {
                Command::Ask(backend, add) => (&mut self.asked, backend, add),
                Command::Undo(backend, add) => (&mut self.undone, backend, add),
            };
            if add {
                which.insert(BACKENDS[backend].to_owned());
            } else {
                which.remove(BACKENDS[backend]);
            }
        }
    }

    /// A proxy: what it is about to do stands in a queue, as it may be paused at any time.
    #[derive(Default)]
    struct Proxy {
        drains: Drains,
        drained: Vec<String>,
        to_do: VecDeque<Step>,
        asked: BTreeSet<String>,
    }

    #[derive(Clone, Copy)]
    enum Step {
        Run(Command),
        Written(usize, bool),
        ReadAsked,
        ReadUndone,
    }

    impl Proxy {
        fn wish(&mut self, backend: usize, wanted: bool) {
            self.drains.wish("p", BACKENDS[backend], wanted);
            let commands = if wanted {
                [Command::Undo(backend, false), Command::Ask(backend, true)]
            } else {
                [Command::Undo(backend, true), Command::Ask(backend, false)]
            };
            self.to_do.extend(commands.map(Step::Run));
            self.to_do.extend([Step::Written(backend, wanted), Step::ReadAsked, Step::ReadUndone]);
        }

        fn step(&mut self, there: &mut There) {
            match self.to_do.pop_front() {
                None => {}
                Some(Step::Run(command)) => there.run(command),
                Some(Step::Written(backend, wanted)) => {
                    self.drains.written("p", BACKENDS[backend], wanted);
                }
                Some(Step::ReadAsked) => self.asked.clone_from(&there.asked),
                Some(Step::ReadUndone) => {
                    self.drained = self.drains.read("p", &self.asked, &there.undone);
                    for Amends { lost, undone, .. } in self.drains.amends() {
                        let number =
                            |one: &String| BACKENDS.iter().position(|two| one == two).unwrap();
                        let write = |one: &String| Step::Run(Command::Ask(number(one), true));
                        let remove = |one: &String| Step::Run(Command::Ask(number(one), false));
                        self.to_do.extend(lost.iter().map(write).chain(undone.iter().map(remove)));
                    }
                }
            }
        }

        fn finish(&mut self, there: &mut There) {
            while !self.to_do.is_empty() {
                self.step(there);
            }
        }

        fn look(&mut self, there: &mut There) {
            self.to_do.extend([Step::ReadAsked, Step::ReadUndone]);
            self.finish(there);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Wish(usize, usize, bool),
        Look(usize),
        Step(usize),
        Flush,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            2 => (0..3_usize, 0..2_usize, any::<bool>()).prop_map(|(proxy, at, wanted)| Act::Wish(proxy, at, wanted)),
            2 => (0..3_usize).prop_map(Act::Look),
            8 => (0..3_usize).prop_map(Act::Step),
            1 => Just(Act::Flush),
        ];
        prop::collection::vec(act, 0..80)
    }

    proptest! {
        /// However what they do is mixed, proxies that look come to agree.
        #[test]
        fn proxies_come_to_agree(acts in acts()) {
            let mut there = There::default();
            let mut proxies = [(); 3].map(|()| Proxy::default());
            for act in acts {
                match act {
                    Act::Wish(proxy, backend, wanted) => proxies[proxy].wish(backend, wanted),
                    Act::Look(proxy) => proxies[proxy].to_do.extend([Step::ReadAsked, Step::ReadUndone]),
                    Act::Step(proxy) => proxies[proxy].step(&mut there),
                    Act::Flush => there = There::default(),
                }
            }
            proxies.iter_mut().for_each(|proxy| proxy.finish(&mut there));
            for _ in 0..2 {
                proxies.iter_mut().for_each(|proxy| proxy.look(&mut there));
            }
            let agreed = proxies[0].drained.clone();
            prop_assert!(proxies.iter().all(|proxy| proxy.drained == agreed));
            let asked: Vec<String> = there.asked.into_iter().collect();
            prop_assert_eq!(asked, agreed);
        }

        /// What all have heard of holds until it is undone, whatever Redis loses and whoever is new.
        #[test]
        fn a_drain_holds_until_it_is_undone(acts in acts()) {
            let mut there = There::default();
            let mut proxies = [(); 3].map(|()| Proxy::default());
            let mut wanted = BTreeSet::new();
            for act in acts {
                match act {
                    Act::Wish(proxy, backend, wants) => {
                        proxies[proxy].wish(backend, wants);
                        let name = BACKENDS[backend].to_owned();
                        let _ = if wants { wanted.insert(name) } else { wanted.remove(&name) };
                    }
                    Act::Look(proxy) => proxies[proxy].look(&mut there),
                    // One of them is restarted; another knows what it knew.
                    Act::Step(proxy) => proxies[proxy] = Proxy::default(),
                    Act::Flush => there = There::default(),
                }
                for _ in 0..2 {
                    proxies.iter_mut().for_each(|proxy| proxy.finish(&mut there));
                    proxies.iter_mut().for_each(|proxy| proxy.look(&mut there));
                }
                for proxy in &proxies {
                    prop_assert_eq!(&proxy.drained.iter().cloned().collect::<BTreeSet<_>>(), &wanted);
                }
            }
        }
    }
}
