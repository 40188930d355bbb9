//! The table: where a key is and who is counted there, in whatever order handshakes, losses and
//! drains come.

use std::time::Duration;

use proptest::prelude::*;

use super::super::DrainCause;
use super::super::tests::{backend, bring_back, lose, put_out};
use super::*;

/// A table, and backends that are chosen in the order of this list.
struct World {
    table: Table,
    backends: Vec<Arc<Backend>>,
}

impl World {
    fn new(ids: &str) -> Self {
        let backends = ids.chars().map(|id| backend(&id.to_string())).collect();
        Self { table: Table::default(), backends }
    }

    fn place(&mut self) -> Option<Ticket> {
        let backends = &self.backends;
        self.table.place("k", &|tried| choose(backends, tried))
    }

    fn go_on(&mut self, ticket: &mut Ticket) -> Result<(), Stay> {
        let backends = &self.backends;
        self.table.go_on(ticket, &|tried| choose(backends, tried))
    }

    fn establish(&mut self, ticket: &mut Ticket) -> Result<(), Moved> {
        let backends = &self.backends;
        self.table.establish(ticket, &|tried| choose(backends, tried))
    }

    fn named(&self, id: &str) -> Arc<Backend> {
        Arc::clone(self.backends.iter().find(|backend| backend.id() == id).unwrap())
    }

    fn drain(&self, id: &str) {
        self.named(id).drains().add(DrainCause::Api, Duration::ZERO);
    }

    fn undrain(&self, id: &str) {
        self.named(id).drains().remove(DrainCause::Api);
    }

    fn lose(&self, id: &str) {
        lose(&self.named(id));
    }

    fn let_go(&mut self, id: &str) {
        let backend = self.named(id);
        self.table.let_go(&["k".into()], &backend);
    }

    fn live(&mut self) -> Ticket {
        let mut ticket = self.place().unwrap();
        self.establish(&mut ticket).unwrap();
        ticket
    }

    /// Where the key is, with how many live and under way.
    fn at(&self) -> Option<(String, u32, u32)> {
        let line = self.table.list().pop()?;
        Some((line.backend.id().to_owned(), line.live, line.under_way))
    }

    fn keys(&self) -> Vec<usize> {
        self.backends.iter().map(|backend| backend.keys()).collect()
    }
}

fn choose(backends: &[Arc<Backend>], tried: &[Arc<Backend>]) -> Option<Arc<Backend>> {
    let untried = |one: &&Arc<Backend>| !tried.iter().any(|other| Arc::ptr_eq(one, other));
    let serves = |one: &&Arc<Backend>| one.in_service() && !one.is_draining();
    backends.iter().filter(serves).find(untried).cloned()
}

fn at(id: &str, live: u32, under_way: u32) -> Option<(String, u32, u32)> {
    Some((id.to_owned(), live, under_way))
}

#[test]
fn a_key_is_there_as_long_as_somebody_is() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    assert_eq!(world.at(), at("a", 0, 1));
    assert_eq!(world.keys(), [1, 0]);
    world.establish(&mut one).unwrap();
    assert_eq!(world.at(), at("a", 1, 0));
    let two = world.place().unwrap();
    assert_eq!(world.at(), at("a", 1, 1));
    world.table.leave(&one, Phase::Live);
    world.table.leave(&two, Phase::UnderWay);
    assert_eq!(world.at(), None);
    assert_eq!(world.keys(), [0, 0]);
}

#[test]
fn a_live_key_is_followed_to_a_backend_out_of_service() {
    let mut world = World::new("ab");
    let _live = world.live();
    put_out(&world.backends[0]);
    assert_eq!(world.place().unwrap().backend.id(), "a");
    assert_eq!(world.at(), at("a", 1, 1));
}

#[test]
fn so_is_a_handshake_under_way() {
    let mut world = World::new("ab");
    let _first = world.place().unwrap();
    put_out(&world.backends[0]);
    assert_eq!(world.place().unwrap().backend.id(), "a");
}

#[test]
fn a_new_key_goes_to_one_in_service() {
    let mut world = World::new("ab");
    put_out(&world.backends[0]);
    assert_eq!(world.place().unwrap().backend.id(), "b");
    put_out(&world.backends[1]);
    world.table = Table::default();
    assert!(world.place().is_none());
    assert_eq!(world.at(), None);
}

#[test]
fn who_cannot_connect_takes_the_others_along() {
    let mut world = World::new("abc");
    let mut first = world.place().unwrap();
    let mut second = world.place().unwrap();
    world.go_on(&mut first).unwrap();
    assert_eq!(first.backend.id(), "b");
    assert_eq!(world.keys(), [0, 1, 0]);
    let third = world.place().unwrap();
    assert_eq!(third.backend.id(), "b", "who comes now does not try the first again");
    world.go_on(&mut second).unwrap();
    assert_eq!(second.backend.id(), "b", "the second follows, and goes no further");
    world.go_on(&mut second).unwrap();
    assert_eq!(world.at(), at("c", 0, 3));
}

#[test]
fn live_connections_hold_the_key() {
    let mut world = World::new("ab");
    let _live = world.live();
    let mut other = world.place().unwrap();
    assert_eq!(world.go_on(&mut other), Err(Stay::Live));
    assert_eq!(world.at(), at("a", 1, 1));
}

#[test]
fn a_101_from_where_the_key_was_does_not_count() {
    let mut world = World::new("ab");
    let mut slow = world.place().unwrap();
    let mut quick = world.place().unwrap();
    world.go_on(&mut quick).unwrap();
    assert_eq!(world.establish(&mut slow), Err(Moved::Elsewhere));
    assert_eq!(slow.backend.id(), "b");
    world.establish(&mut slow).unwrap();
    world.establish(&mut quick).unwrap();
    assert_eq!(world.at(), at("b", 2, 0));
}

#[test]
fn when_all_were_tried_the_next_starts_afresh() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    let mut two = world.place().unwrap();
    world.go_on(&mut one).unwrap();
    assert_eq!(world.go_on(&mut one), Err(Stay::NoneLeft));
    assert_eq!(world.at(), None);
    assert_eq!(world.place().unwrap().backend.id(), "a");
    assert_eq!(world.at(), at("a", 0, 1));
    // The one that is left behind is counted nowhere; if its handshake is answered where
    // the key is now, it joins.
    world.table.leave(&one, Phase::UnderWay);
    assert_eq!(world.at(), at("a", 0, 1));
    world.establish(&mut two).unwrap();
    assert_eq!(world.at(), at("a", 1, 1));
}

#[test]
fn a_101_decides_where_nobody_else_has() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    let mut two = world.place().unwrap();
    world.go_on(&mut one).unwrap();
    world.go_on(&mut two).unwrap();
    assert_eq!(world.go_on(&mut one), Err(Stay::NoneLeft));
    world.establish(&mut two).unwrap();
    assert_eq!(world.at(), at("b", 1, 0));
    world.table.leave(&two, Phase::Live);
    assert_eq!(world.keys(), [0, 0]);
}

#[test]
fn a_lost_backend_loses_its_keys() {
    let mut world = World::new("ab");
    let old = world.live();
    lose(&world.backends[0]);
    assert!(world.table.find("k").is_none());
    let new = world.place().unwrap();
    assert_eq!(new.backend.id(), "b");
    assert_eq!(world.keys(), [0, 1]);
    world.table.leave(&old, Phase::Live);
    assert_eq!(world.at(), at("b", 0, 1), "the old one had no part in the new entry");
    world.table.leave(&new, Phase::UnderWay);
    assert_eq!(world.at(), None);
}

#[test]
fn nobody_becomes_live_on_a_lost_backend() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    let mut two = world.place().unwrap();
    lose(&world.backends[0]);
    assert_eq!(world.establish(&mut one), Err(Moved::Elsewhere));
    assert_eq!(one.backend.id(), "b");
    world.go_on(&mut two).unwrap();
    assert_eq!(world.at(), at("b", 0, 2));
    lose(&world.backends[1]);
    assert_eq!(world.establish(&mut one), Err(Moved::Nowhere));
    assert_eq!(world.go_on(&mut two), Err(Stay::NoneLeft));
    world.table.leave(&one, Phase::UnderWay);
    world.table.leave(&two, Phase::UnderWay);
    assert_eq!(world.at(), None);
}

#[test]
fn a_placement_of_a_backend_that_came_back_in_between_is_followed() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    lose(&world.backends[0]);
    let two = world.place().unwrap();
    bring_back(&world.backends[0]);
    assert_eq!(world.establish(&mut one), Err(Moved::Elsewhere));
    assert_eq!(one.backend.id(), two.backend.id());
    assert_eq!(world.at(), at("b", 0, 2));
}

#[test]
fn a_key_that_was_let_go_is_chosen_anew_and_its_old_ones_end_in_their_own_time() {
    let mut world = World::new("ab");
    let old = world.live();
    let mut under_way = world.place().unwrap();
    world.drain("a");
    assert_eq!(world.place().map(|ticket| ticket.backend.id().to_owned()), Some("a".into()));
    world.let_go("b");
    assert_eq!(world.at(), at("a", 1, 2), "that is not where it is");
    world.let_go("a");
    assert!(world.table.is_leaving("k") && !world.table.is_leaving("another"));
    assert_eq!((world.at(), world.keys()), (None, vec![1, 0]));
    let _new = world.live();
    assert_eq!(world.establish(&mut under_way), Err(Moved::Elsewhere));
    assert_eq!(world.at(), at("b", 1, 1));
    world.table.leave(&old, Phase::Live);
    assert!(world.table.is_leaving("k"), "one is still under way there");
    world.lose("a");
    assert!(!world.table.is_leaving("k"), "nobody can be there");
}

#[test]
fn a_handshake_ends_where_its_backend_is_drained_and_nobody_holds_the_key_there() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    let mut two = world.place().unwrap();
    world.go_on(&mut two).unwrap();
    assert_eq!(world.go_on(&mut two), Err(Stay::NoneLeft));
    world.drain("a");
    assert_eq!(world.establish(&mut one), Err(Moved::Elsewhere));
    assert_eq!(world.at(), at("b", 0, 1));
    let mut world = World::new("a");
    let mut alone = world.place().unwrap();
    world.drain("a");
    world.let_go("a");
    assert_eq!(world.establish(&mut alone), Err(Moved::Nowhere));
    world.table.leave(&alone, Phase::UnderWay);
    assert_eq!((world.table.leaving(), world.keys()), (0, vec![0]));
}

#[test]
fn a_key_may_be_let_go_again_before_it_has_ended_where_it_was() {
    let mut world = World::new("abc");
    let first = world.live();
    world.drain("a");
    world.let_go("a");
    let second = world.live();
    world.drain("b");
    world.let_go("b");
    assert_eq!(world.live().backend.id(), "c");
    world.table.leave(&second, Phase::Live);
    assert!(world.table.is_leaving("k"));
    world.table.leave(&first, Phase::Live);
    assert!(!world.table.is_leaving("k"));
    assert_eq!(world.keys(), [0, 0, 1]);
}

#[test]
fn who_was_let_go_and_finds_the_drain_undone_stays() {
    let mut world = World::new("ab");
    let mut one = world.place().unwrap();
    let mut two = world.place().unwrap();
    world.drain("a");
    world.let_go("a");
    world.undrain("a");
    world.establish(&mut one).unwrap();
    world.establish(&mut two).unwrap();
    assert_eq!((world.at(), world.table.leaving()), (at("a", 2, 0), 0));
}

#[test]
fn memory_is_given_back_after_a_rush() {
    let mut table = Table::default();
    let backend = backend("a");
    let place = |number: u32| table.place(&number.to_string(), &|_| Some(backend.clone()));
    let tickets: Vec<_> = (0..10_000).filter_map(place).collect();
    tickets.iter().for_each(|ticket| table.leave(ticket, Phase::UnderWay));
    assert!(table.entries.capacity() < 2048, "{}", table.entries.capacity());
}

#[test]
fn an_entry_is_small() {
    assert!(size_of::<(Arc<str>, Entry)>() <= 48);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Place,
    GoOn(prop::sample::Index),
    Establish(prop::sample::Index),
    Leave(prop::sample::Index),
    Lose(usize),
    PutOut(usize),
    BringBack(usize),
    Drain(usize),
    Undrain(usize),
    LetGo(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Place),
        3 => any::<prop::sample::Index>().prop_map(Step::GoOn),
        4 => any::<prop::sample::Index>().prop_map(Step::Establish),
        2 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => (0..3_usize).prop_map(Step::Lose),
        1 => (0..3_usize).prop_map(Step::PutOut),
        2 => (0..3_usize).prop_map(Step::BringBack),
        1 => (0..3_usize).prop_map(Step::Drain),
        2 => (0..3_usize).prop_map(Step::Undrain),
        1 => (0..3_usize).prop_map(Step::LetGo),
    ];
    prop::collection::vec(step, 0..120)
}

fn id_of(index: usize) -> String {
    ["a", "b", "c"][index].to_owned()
}

/// Takes one step; a connection whose backend is lost is over, as its relay would be told.
fn take(world: &mut World, tickets: &mut Vec<(Ticket, Phase)>, step: Step) {
    match step {
        Step::Place => tickets.extend(world.place().map(|ticket| (ticket, Phase::UnderWay))),
        Step::GoOn(at) if !tickets.is_empty() => {
            let (ticket, phase) = at.get_mut(tickets);
            if *phase == Phase::UnderWay {
                let _ = world.go_on(ticket);
            }
        }
        Step::Establish(at) if !tickets.is_empty() => {
            let (ticket, phase) = at.get_mut(tickets);
            if *phase == Phase::UnderWay && world.establish(ticket).is_ok() {
                *phase = Phase::Live;
            }
        }
        Step::Leave(at) if !tickets.is_empty() => {
            let (ticket, phase) = tickets.swap_remove(at.index(tickets.len()));
            world.table.leave(&ticket, phase);
        }
        Step::Lose(index) => {
            lose(&world.backends[index]);
            let (gone, rest): (Vec<_>, Vec<_>) = std::mem::take(tickets)
                .into_iter()
                .partition(|(one, phase)| *phase == Phase::Live && one.backend.is_lost());
            *tickets = rest;
            gone.iter().for_each(|(ticket, phase)| world.table.leave(ticket, *phase));
        }
        Step::PutOut(index) => put_out(&world.backends[index]),
        Step::BringBack(index) => bring_back(&world.backends[index]),
        Step::Drain(index) => world.drain(&id_of(index)),
        Step::Undrain(index) => world.undrain(&id_of(index)),
        Step::LetGo(index) => {
            world.drain(&id_of(index));
            world.let_go(&id_of(index));
            // Its connections are closed, and others come only when they have ended.
            let (gone, rest): (Vec<_>, Vec<_>) =
                std::mem::take(tickets).into_iter().partition(|(one, phase)| {
                    *phase == Phase::Live && one.backend.id() == id_of(index)
                });
            *tickets = rest;
            gone.iter().for_each(|(ticket, phase)| world.table.leave(ticket, *phase));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn live_connections_of_a_key_are_on_one_backend(steps in steps()) {
        let mut world = World::new("abc");
        let mut tickets = Vec::new();
        for step in steps {
            take(&mut world, &mut tickets, step);
            let live: Vec<_> =
                tickets.iter().filter(|(_, phase)| *phase == Phase::Live).collect();
            for (ticket, _) in &live {
                prop_assert!(Arc::ptr_eq(&ticket.backend, &live[0].0.backend));
            }
            let counted = world.at().map_or(0, |(_, live, _)| live as usize);
            prop_assert_eq!(counted, live.len());
            let placed = usize::from(world.at().is_some());
            let leaving: usize = world.table.leaving.values().map(Vec::len).sum();
            prop_assert_eq!(world.keys().iter().sum::<usize>(), placed + leaving);
        }
        tickets.iter().for_each(|(ticket, phase)| world.table.leave(ticket, *phase));
        prop_assert_eq!(world.at(), None);
        prop_assert_eq!(world.table.leaving(), 0);
        prop_assert_eq!(world.keys(), [0, 0, 0]);
    }
}
