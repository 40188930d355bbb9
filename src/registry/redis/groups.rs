//! Which groups have members here, and how far each one's subscription has come.
//!
//! A group is *wanted* from its first member on, *asked* for while Redis has not confirmed it, and then it
//! *stands*. It is given up some time after its last member has left, so that one who comes back at once
//! finds it standing. When the connection is lost all that have members are wanted anew.
//!
//! Pure: what is to be subscribed or given up is taken from here in batches, and the outcome told. Its size
//! is that of the groups that have members, or had some until a moment ago; so is that of its queues.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::super::Group;
use super::super::memory::Rooms;

/// How long a subscription outlives the last member of its group.
pub(super) const OUTLIVES: Duration = Duration::from_secs(10);

/// The groups of one proxy.
#[derive(Debug, Default)]
pub(super) struct Groups {
    rooms: Rooms,
    known: HashMap<Group, Known>,
    /// Those that became wanted, in that order; may name some that no longer are.
    wanted: VecDeque<Group>,
    /// Those whose last member left, with when; in that order. May name some that have members again.
    left: VecDeque<(Instant, Group)>,
    standing: usize,
}

#[derive(Debug)]
struct Known {
    members: usize,
    stage: Stage,
    /// When the last member left.
    left: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Wanted,
    Asked,
    Stands,
}

impl Groups {
    /// Counts a member more; tells whether there is something new to be taken.
    pub(super) fn enter(&mut self, group: Group) -> bool {
        if let Group::Room(room) = &group {
            self.rooms.enter(room.clone());
        }
        if let Some(known) = self.known.get_mut(&group) {
            known.members += 1;
            known.left = None;
            return false;
        }
        self.known.insert(group.clone(), Known { members: 1, stage: Stage::Wanted, left: None });
        self.wanted.push_back(group);
        true
    }

    /// Counts a member less.
    pub(super) fn leave(&mut self, group: &Group, now: Instant) {
        if let Group::Room(room) = group {
            self.rooms.leave(room);
        }
        let Some(known) = self.known.get_mut(group) else { return };
        known.members = known.members.saturating_sub(1);
        if known.members == 0 && known.left.is_none() {
            known.left = Some(now);
            self.left.push_back((now, group.clone()));
        }
    }

    /// Rooms with a member, and members of all of them.
    pub(super) fn rooms(&self) -> (usize, usize) {
        self.rooms.counts()
    }

    /// How many subscriptions stand.
    pub(super) fn standing(&self) -> usize {
        self.standing
    }

    /// Whether what is sent to the group arrives.
    pub(super) fn stands(&self, group: &Group) -> bool {
        self.known.get(group).is_some_and(|known| known.stage == Stage::Stands)
    }

    /// Takes some that are to be subscribed, at most `most`; those after whom nobody asks any more are
    /// forgotten instead.
    pub(super) fn take_wanted(&mut self, most: usize) -> Vec<Group> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(group) = self.wanted.pop_front()
        {
            let Some(known) = self.known.get_mut(&group) else { continue };
            if known.stage != Stage::Wanted {
                continue;
            }
            if known.members == 0 {
                self.known.remove(&group);
                continue;
            }
            known.stage = Stage::Asked;
            taken.push(group);
        }
        taken
    }

    /// Redis has confirmed these.
    pub(super) fn confirm(&mut self, groups: &[Group]) {
        for group in groups {
            if let Some(known) = self.known.get_mut(group)
                && known.stage == Stage::Asked
            {
                known.stage = Stage::Stands;
                self.standing += 1;
            }
        }
    }

    /// Takes some whose time is over, at most `most`: they don't stand any more, and are to be
    /// unsubscribed before anything that is wanted later is asked for.
    pub(super) fn take_given_up(&mut self, now: Instant, most: usize) -> Vec<Group> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((left, _)) = self.left.front()
            && now.saturating_duration_since(*left) >= OUTLIVES
            && let Some((left, group)) = self.left.pop_front()
        {
            let Some(known) = self.known.get(&group) else { continue };
            if known.left != Some(left) {
                continue;
            }
            match known.stage {
                Stage::Stands => {
                    self.known.remove(&group);
                    self.standing -= 1;
                    taken.push(group);
                }
                // Its queue forgets it.
                Stage::Wanted => {}
                Stage::Asked => {
                    // Not before it is confirmed; that takes a moment.
                    if let Some(known) = self.known.get_mut(&group) {
                        known.left = Some(now);
                    }
                    self.left.push_back((now, group));
                }
            }
        }
        taken
    }

    /// When the next one is to be given up, if nobody comes back.
    pub(super) fn next_given_up(&self) -> Option<Instant> {
        self.left.front().map(|(left, _)| *left + OUTLIVES)
    }

    /// Nothing stands any more: all that have members are wanted again.
    pub(super) fn forget(&mut self) {
        self.standing = 0;
        self.left.clear();
        self.known.retain(|_, known| known.members > 0);
        for known in self.known.values_mut() {
            known.stage = Stage::Wanted;
        }
        self.wanted = self.known.keys().cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn room(name: &str) -> Group {
        Group::Room(name.into())
    }

    #[test]
    fn a_group_stands_from_its_confirmation_until_some_time_after_its_last_member() {
        let mut groups = Groups::default();
        let start = Instant::now();
        assert!(groups.enter(room("a")));
        assert!(!groups.enter(room("a")));
        assert!(!groups.stands(&room("a")));
        assert_eq!(groups.take_wanted(10), [room("a")]);
        assert_eq!(groups.take_wanted(10), []);
        groups.confirm(&[room("a")]);
        assert!(groups.stands(&room("a")));
        groups.leave(&room("a"), start);
        groups.leave(&room("a"), start);
        assert_eq!(groups.rooms(), (0, 0));
        assert_eq!(groups.next_given_up(), Some(start + OUTLIVES));
        assert_eq!(groups.take_given_up(start + OUTLIVES / 2, 10), []);
        assert!(groups.stands(&room("a")));
        assert_eq!(groups.take_given_up(start + OUTLIVES, 10), [room("a")]);
        assert!(!groups.stands(&room("a")));
        assert_eq!(groups.standing(), 0);
    }

    #[test]
    fn who_comes_back_in_time_finds_it_standing() {
        let mut groups = Groups::default();
        let start = Instant::now();
        groups.enter(room("a"));
        let taken = groups.take_wanted(1);
        groups.confirm(&taken);
        groups.leave(&room("a"), start);
        assert!(!groups.enter(room("a")));
        groups.leave(&room("a"), start + OUTLIVES / 2);
        assert_eq!(groups.take_given_up(start + OUTLIVES, 10), []);
        assert!(groups.stands(&room("a")));
        assert_eq!(groups.take_given_up(start + OUTLIVES * 2, 10), [room("a")]);
    }

    #[test]
    fn after_a_loss_all_that_have_members_are_wanted_and_no_others() {
        let mut groups = Groups::default();
        for name in ["a", "b", "c"] {
            groups.enter(room(name));
        }
        let taken = groups.take_wanted(2);
        groups.confirm(&taken);
        groups.leave(&room("b"), Instant::now());
        groups.forget();
        // A confirmation that was on its way is none.
        groups.confirm(&taken);
        assert_eq!(groups.standing(), 0);
        let wanted: HashSet<Group> = groups.take_wanted(10).into_iter().collect();
        assert_eq!(wanted, HashSet::from([room("a"), room("c")]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8),
        Leave(u8),
        Subscribe(usize),
        GiveUp(usize),
        Wait(u8),
        Lose,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..6_u8).prop_map(Step::Enter),
            4 => (0..6_u8).prop_map(Step::Leave),
            2 => (1..4_usize).prop_map(Step::Subscribe),
            2 => (1..4_usize).prop_map(Step::GiveUp),
            2 => (0..15_u8).prop_map(Step::Wait),
            1 => Just(Step::Lose),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        /// What the server has subscribed is what stands, whatever happens; in the end it is just what
        /// has members.
        #[test]
        fn what_stands_is_what_is_subscribed(steps in steps()) {
            let mut groups = Groups::default();
            let mut now = Instant::now();
            let mut members = [0_usize; 6];
            let mut subscribed: HashSet<Group> = HashSet::new();
            let of = |index: u8| room(&index.to_string());
            let ends = [Step::Wait(30), Step::GiveUp(100), Step::Subscribe(100)];
            for step in steps.into_iter().chain(ends) {
                match step {
                    Step::Enter(index) => {
                        groups.enter(of(index));
                        members[usize::from(index)] += 1;
                    }
                    Step::Leave(index) if members[usize::from(index)] > 0 => {
                        groups.leave(&of(index), now);
                        members[usize::from(index)] -= 1;
                    }
                    Step::Leave(_) => {}
                    Step::Subscribe(most) => {
                        let taken = groups.take_wanted(most);
                        for group in &taken {
                            prop_assert!(subscribed.insert(group.clone()), "twice");
                        }
                        groups.confirm(&taken);
                    }
                    Step::GiveUp(most) => {
                        for group in groups.take_given_up(now, most) {
                            prop_assert!(subscribed.remove(&group), "never subscribed");
                        }
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                    Step::Lose => {
                        groups.forget();
                        subscribed.clear();
                    }
                }
                prop_assert_eq!(groups.standing(), subscribed.len());
                for index in 0..6 {
                    prop_assert_eq!(groups.stands(&of(index)), subscribed.contains(&of(index)));
                }
                let live = members.iter().filter(|members| **members > 0).count();
                prop_assert_eq!(groups.rooms(), (live, members.iter().sum()));
            }
            for index in 0..6 {
                let is_member = members[usize::from(index)] > 0;
                prop_assert_eq!(subscribed.contains(&of(index)), is_member);
            }
        }
    }
}
