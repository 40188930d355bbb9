//! Whether a backend is in service: what checks and traffic say about it, weighed.
//!
//! A state machine without a clock: it is told what happened and when, and answers with the
//! change of state, if there is one.
//!
//! ```text
//!              fall checks failed, or passive_fall connections did
//!   in service ------------------------------------------------> out of service
//!     ^   |                                                       |          |
//!     |   | fall checks could not connect in time                 | the same | lost_after passed,
//!     |   v                                                       v          v another serves
//!     |  lost <------------------------------------------------------------ +
//!     +--- rise checks passed (without checks: tried again after 10 s), from either
//! ```
//!
//! Out of service means no new keys; those that live there stay. Lost means that nobody can be
//! there any more, which ends connections, so it takes more: silence of the network, not a bad
//! answer, nor a refused connection, which is how a server goes that still serves its old ones:
//! whether it [refuses](Verdict::is_refusing) is told apart, for whoever drains it then.
//! For `lost_after` only that time counts in which another was in service: when a whole pool was
//! out, the first to return must not make the others lost.
//! A backend begins in service: a fresh proxy must not refuse everybody until it has checked.

use std::fmt;
use std::time::{Duration, Instant};

use super::{CheckKind, HealthSettings};

/// Without checks, a backend is tried again so long after traffic has put it out.
pub const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What a backend may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// New keys, and those that live there.
    InService,
    /// Only keys that live there.
    OutOfService,
    /// Nothing: the keys that lived there go elsewhere.
    Lost,
}

impl State {
    /// The word for it in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InService => "in_service",
            Self::OutOfService => "out_of_service",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What a check found. A check that the proxy itself could not make finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// All is well.
    Passed,
    /// Something is there, but it broke off, or answered badly or late.
    Failed,
    /// The connection was refused: what is there takes nothing new.
    Refused,
    /// Not even a connection came about in time.
    Unreachable,
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `fall` checks in a row failed.
    ChecksFailed,
    /// `fall` checks in a row could not connect in time.
    Unreachable,
    /// `passive_fall` connections or handshakes of clients in a row failed.
    TrafficFailed,
    /// Out of service for `lost_after` while another backend serves.
    OutTooLong,
    /// `rise` checks in a row passed.
    ChecksPassed,
    /// There are no checks, so only the next clients can tell.
    TriedAgain,
}

impl Cause {
    /// A word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ChecksFailed => "checks_failed",
            Self::Unreachable => "unreachable",
            Self::TrafficFailed => "traffic_failed",
            Self::OutTooLong => "out_too_long",
            Self::ChecksPassed => "checks_passed",
            Self::TriedAgain => "tried_again",
        }
    }
}

/// A change of a backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: State,
    /// What it is; never the same.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// How much of what makes a verdict; the numbers of [`HealthSettings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether there are checks at all.
    pub checked: bool,
    /// Checks passed in a row that bring back; 0 counts as 1.
    pub rise: u32,
    /// Checks failed in a row that put out; 0 counts as 1.
    pub fall: u32,
    /// Failures of traffic in a row that put out; 0: none do.
    pub passive_fall: u32,
    /// Time out of service, while another serves, after which a backend is lost; zero: never.
    pub lost_after: Duration,
}

impl From<&HealthSettings> for Policy {
    fn from(health: &HealthSettings) -> Self {
        Self {
            checked: health.kind != CheckKind::Off,
            rise: health.rise,
            fall: health.fall,
            passive_fall: health.passive_fall,
            lost_after: health.lost_after,
        }
    }
}

/// The verdict on one backend.
#[derive(Clone, Debug)]
pub struct Verdict {
    policy: Policy,
    state: State,
    /// When the state was reached.
    since: Instant,
    /// Time out of service while another served. A trial that fails does not make a backend fresh.
    out: Duration,
    /// Up to when `out` has counted.
    counted: Instant,
    /// Checks passed in a row; counted only while not in service.
    passed: u32,
    /// Checks failed in a row, for whatever reason.
    failed: u32,
    /// Of those, the latest in a row that could not connect in time. Never more than `failed`.
    unreachable: u32,
    /// Of `failed`, the latest in a row that were refused.
    refused: u32,
    /// Failures of traffic in a row; counted only while in service.
    traffic_failed: u32,
}

impl Verdict {
    /// Begins in service.
    pub fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy,
            state: State::InService,
            since: now,
            out: Duration::ZERO,
            counted: now,
            passed: 0,
            failed: 0,
            unreachable: 0,
            refused: 0,
            traffic_failed: 0,
        }
    }

    /// Judges by another policy from now on; state and counts stay.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes the outcome of a check.
    pub fn checked(&mut self, check: Check, now: Instant) -> Option<Transition> {
        self.refused = if check == Check::Refused { self.refused.saturating_add(1) } else { 0 };
        match check {
            Check::Passed => self.check_passed(now),
            Check::Failed | Check::Refused => {
                self.unreachable = 0;
                self.check_failed(now)
            }
            Check::Unreachable => {
                self.unreachable = self.unreachable.saturating_add(1);
                self.check_failed(now)
            }
        }
    }

    fn check_passed(&mut self, now: Instant) -> Option<Transition> {
        self.failed = 0;
        self.unreachable = 0;
        if self.state == State::InService {
            return None;
        }
        self.passed = self.passed.saturating_add(1);
        if self.passed < self.policy.rise.max(1) {
            return None;
        }
        self.traffic_failed = 0;
        self.out = Duration::ZERO;
        Some(self.enter(State::InService, Cause::ChecksPassed, now))
    }

    fn check_failed(&mut self, now: Instant) -> Option<Transition> {
        self.passed = 0;
        self.failed = self.failed.saturating_add(1);
        let fall = self.policy.fall.max(1);
        if self.unreachable >= fall && self.state != State::Lost {
            return Some(self.enter(State::Lost, Cause::Unreachable, now));
        }
        if self.failed >= fall && self.state == State::InService {
            return Some(self.enter(State::OutOfService, Cause::ChecksFailed, now));
        }
        None
    }

    /// Takes a connection or a handshake of a client that this backend failed.
    ///
    /// An answer of any status is none, nor is a failure of the proxy's own.
    pub fn traffic_failed(&mut self, now: Instant) -> Option<Transition> {
        if self.policy.passive_fall == 0 || self.state != State::InService {
            return None;
        }
        self.traffic_failed = self.traffic_failed.saturating_add(1);
        if self.traffic_failed < self.policy.passive_fall {
            return None;
        }
        Some(self.enter(State::OutOfService, Cause::TrafficFailed, now))
    }

    /// Takes a connection or a handshake of a client that went well.
    pub fn traffic_passed(&mut self) {
        if self.state == State::InService {
            self.traffic_failed = 0;
            self.out = Duration::ZERO;
        }
    }

    /// Takes the time, to be told every second or so; `another_serves` is whether another
    /// backend of the pool is in service.
    pub fn tick(&mut self, now: Instant, another_serves: bool) -> Option<Transition> {
        let passed = now.saturating_duration_since(self.counted);
        self.counted = now;
        if self.state == State::InService {
            return None;
        }
        if another_serves {
            self.out += passed;
        }
        let lost_after = self.policy.lost_after;
        let too_long = another_serves && !lost_after.is_zero() && self.out >= lost_after;
        if self.state == State::OutOfService && too_long {
            return Some(self.enter(State::Lost, Cause::OutTooLong, now));
        }
        if !self.policy.checked && now.saturating_duration_since(self.since) >= TRY_AGAIN {
            // On trial: the next failure puts it out again.
            self.traffic_failed = self.policy.passive_fall.saturating_sub(1);
            return Some(self.enter(State::InService, Cause::TriedAgain, now));
        }
        None
    }

    fn enter(&mut self, to: State, cause: Cause, now: Instant) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.counted = now;
        // What a backend did before it went says nothing of whether it is back.
        self.passed = 0;
        Transition { from, to, cause }
    }

    /// Whether `fall` checks in a row were refused, and it is not lost.
    pub fn is_refusing(&self) -> bool {
        self.refused >= self.policy.fall.max(1) && self.state != State::Lost
    }

    /// The state reached.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the state was reached.
    pub fn since(&self) -> Instant {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        checked: true,
        rise: 2,
        fall: 3,
        passive_fall: 5,
        lost_after: Duration::from_secs(30),
    };
    const UNCHECKED: Policy = Policy { checked: false, ..POLICY };

    /// What may happen to a verdict, so that a test reads as a list.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Is(Check),
        TrafficFailed,
        TrafficPassed,
        /// So many seconds pass; whether another serves then.
        Pass(u64, bool),
    }
    use Event::{Is, Pass, TrafficFailed, TrafficPassed};

    const OK: Event = Is(Check::Passed);
    const BAD: Event = Is(Check::Failed);
    const GONE: Event = Is(Check::Unreachable);

    struct Case {
        verdict: Verdict,
        now: Instant,
    }

    impl Case {
        fn new(policy: Policy) -> Self {
            let now = Instant::now();
            Self { verdict: Verdict::new(policy, now), now }
        }

        fn feed(&mut self, event: Event) -> Option<Transition> {
            match event {
                Is(check) => self.verdict.checked(check, self.now),
                TrafficFailed => self.verdict.traffic_failed(self.now),
                TrafficPassed => {
                    self.verdict.traffic_passed();
                    None
                }
                Pass(seconds, another) => {
                    self.now += Duration::from_secs(seconds);
                    self.verdict.tick(self.now, another)
                }
            }
        }
    }

    /// Feeds all events, and tells the states reached with their causes.
    fn run(policy: Policy, events: &[Event]) -> Vec<(State, Cause)> {
        let mut case = Case::new(policy);
        let changes = events.iter().filter_map(|&event| case.feed(event));
        changes.map(|change| (change.to, change.cause)).collect()
    }

    /// What happens, and the changes that it makes.
    type Row = (&'static [Event], &'static [(State, Cause)]);

    const OUT: (State, Cause) = (State::OutOfService, Cause::ChecksFailed);
    const OUT_PASSIVELY: (State, Cause) = (State::OutOfService, Cause::TrafficFailed);
    const LOST: (State, Cause) = (State::Lost, Cause::Unreachable);
    const LOST_IN_TIME: (State, Cause) = (State::Lost, Cause::OutTooLong);
    const BACK: (State, Cause) = (State::InService, Cause::ChecksPassed);
    const TRIED: (State, Cause) = (State::InService, Cause::TriedAgain);

    #[test]
    fn begins_in_service() {
        assert_eq!(Case::new(POLICY).verdict.state(), State::InService);
    }

    #[test]
    fn checks_in_a_row_put_out_and_bring_back() {
        let table: &[Row] = &[
            (&[BAD, BAD], &[]),
            (&[BAD, BAD, OK, BAD, BAD], &[]),
            (&[BAD, BAD, BAD], &[OUT]),
            (&[BAD, BAD, BAD, BAD, BAD, BAD], &[OUT]),
            (&[BAD, BAD, BAD, OK], &[OUT]),
            (&[BAD, BAD, BAD, OK, BAD, OK], &[OUT]),
            (&[BAD, BAD, BAD, OK, OK], &[OUT, BACK]),
            (&[BAD, BAD, BAD, OK, OK, BAD, BAD], &[OUT, BACK]),
            (&[BAD, BAD, BAD, OK, OK, BAD, BAD, BAD], &[OUT, BACK, OUT]),
            // What passed in service is not saved up.
            (&[OK, OK, OK, OK, BAD, BAD, BAD, OK], &[OUT]),
        ];
        for (events, expected) in table {
            assert_eq!(run(POLICY, events), *expected, "{events:?}");
        }
    }

    #[test]
    fn only_checks_that_could_not_connect_in_time_make_it_lost() {
        let table: &[Row] = &[
            (&[GONE, GONE, GONE], &[LOST]),
            (&[GONE, GONE, GONE, GONE, GONE, GONE], &[LOST]),
            (&[GONE, GONE, BAD, GONE, GONE], &[OUT]),
            (&[GONE, GONE, BAD, GONE, GONE, GONE], &[OUT, LOST]),
            (&[BAD, BAD, BAD, BAD, GONE, GONE], &[OUT]),
            (&[BAD, GONE, GONE, GONE], &[OUT, LOST]),
            (&[GONE, GONE, OK, GONE, GONE], &[]),
            (&[GONE, GONE, GONE, OK], &[LOST]),
            (&[GONE, GONE, GONE, OK, OK], &[LOST, BACK]),
            // A lost one that refuses stays lost: it is not less gone than before.
            (&[GONE, GONE, GONE, BAD, BAD, BAD], &[LOST]),
            (&[GONE, GONE, GONE, OK, OK, GONE, GONE], &[LOST, BACK]),
        ];
        for (events, expected) in table {
            assert_eq!(run(POLICY, events), *expected, "{events:?}");
        }
    }

    #[test]
    fn traffic_in_a_row_puts_out_and_checks_bring_back() {
        let table: &[Row] = &[
            (&[TrafficFailed; 4], &[]),
            (&[TrafficFailed; 9], &[OUT_PASSIVELY]),
            (
                &[
                    TrafficFailed,
                    TrafficFailed,
                    TrafficFailed,
                    TrafficFailed,
                    TrafficPassed,
                    TrafficFailed,
                ],
                &[],
            ),
        ];
        for (events, expected) in table {
            assert_eq!(run(POLICY, events), *expected, "{events:?}");
        }
        let put_out = [TrafficFailed; 5];
        let back = [&put_out[..], &[TrafficPassed, OK, OK]].concat();
        assert_eq!(run(POLICY, &back), [OUT_PASSIVELY, BACK]);
        let again = [&back[..], &put_out[..4]].concat();
        assert_eq!(run(POLICY, &again), [OUT_PASSIVELY, BACK], "counts from nought again");
        let waited = [&put_out[..], &[Pass(20, true)]].concat();
        assert_eq!(run(POLICY, &waited), [OUT_PASSIVELY], "with checks, time brings nobody back");
        let off = Policy { passive_fall: 0, ..POLICY };
        assert_eq!(run(off, &[TrafficFailed; 100]), []);
    }

    #[test]
    fn out_for_too_long_is_lost_only_while_another_serves() {
        let out = [BAD, BAD, BAD];
        let then = |rest: &[Event]| [&out[..], rest].concat();
        assert_eq!(run(POLICY, &then(&[Pass(29, true)])), [OUT]);
        assert_eq!(run(POLICY, &then(&[Pass(30, true)])), [OUT, LOST_IN_TIME]);
        assert_eq!(run(POLICY, &then(&[Pass(60, false)])), [OUT]);
        assert_eq!(
            run(POLICY, &then(&[Pass(29, true), OK, BAD, Pass(1, true)])),
            [OUT, LOST_IN_TIME]
        );
        assert_eq!(run(POLICY, &then(&[Pass(29, true), OK, OK, Pass(60, true)])), [OUT, BACK]);
        let never = Policy { lost_after: Duration::ZERO, ..POLICY };
        assert_eq!(run(never, &then(&[Pass(1_000_000, true)])), [OUT]);
        assert_eq!(run(POLICY, &[Pass(1_000_000, true)]), []);
    }

    #[test]
    fn only_the_time_in_which_another_served_makes_it_lost() {
        let out = [BAD, BAD, BAD];
        let then = |rest: &[Event]| [&out[..], rest].concat();
        // The whole pool was out: the first to return does not end what lives on the others.
        assert_eq!(run(POLICY, &then(&[Pass(60, false), Pass(1, true)])), [OUT]);
        assert_eq!(run(POLICY, &then(&[Pass(60, false), Pass(29, true)])), [OUT]);
        assert_eq!(
            run(POLICY, &then(&[Pass(60, false), Pass(29, true), Pass(1, true)])),
            [OUT, LOST_IN_TIME]
        );
        // What counted before an outage of all is not forgotten.
        assert_eq!(
            run(POLICY, &then(&[Pass(20, true), Pass(60, false), Pass(9, true), Pass(1, true)])),
            [OUT, LOST_IN_TIME]
        );
        // Time in service never counts, however long no tick came.
        assert_eq!(run(POLICY, &[Pass(60, true), BAD, BAD, BAD, Pass(29, true)]), [OUT]);
        let lives_again = [&out[..], &[Pass(29, true), OK, OK], &out, &[Pass(29, true)]].concat();
        assert_eq!(run(POLICY, &lives_again), [OUT, BACK, OUT]);
    }

    #[test]
    fn without_checks_it_is_tried_again() {
        let out = [TrafficFailed; 5];
        let then = |rest: &[Event]| [&out[..], rest].concat();
        assert_eq!(run(UNCHECKED, &then(&[Pass(9, true)])), [OUT_PASSIVELY]);
        assert_eq!(run(UNCHECKED, &then(&[Pass(10, true)])), [OUT_PASSIVELY, TRIED]);
        let failed_again = then(&[Pass(10, true), TrafficFailed]);
        assert_eq!(run(UNCHECKED, &failed_again), [OUT_PASSIVELY, TRIED, OUT_PASSIVELY]);
        let good_again = then(&[Pass(10, true), TrafficPassed, TrafficFailed]);
        assert_eq!(run(UNCHECKED, &good_again), [OUT_PASSIVELY, TRIED]);
    }

    #[test]
    fn trials_that_fail_do_not_stop_the_clock() {
        let round = [Pass(10, true), TrafficFailed];
        let events =
            [&[TrafficFailed; 5][..], &round, &round, &[Pass(9, true), Pass(1, true)]].concat();
        let trial = [TRIED, OUT_PASSIVELY];
        let expected = [&[OUT_PASSIVELY][..], &trial, &trial, &[LOST_IN_TIME]].concat();
        assert_eq!(run(UNCHECKED, &events), expected);
        let later = [&events[..], &[Pass(10, true), TrafficPassed, Pass(60, true)]].concat();
        assert_eq!(run(UNCHECKED, &later), [&expected[..], &[TRIED]].concat());
    }

    #[test]
    fn a_policy_of_nought_is_a_policy_of_one() {
        let hasty = Policy { rise: 0, fall: 0, ..POLICY };
        assert_eq!(run(hasty, &[OK, BAD, OK, GONE, OK]), [OUT, BACK, LOST, BACK]);
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            Just(OK),
            Just(BAD),
            Just(GONE),
            Just(TrafficFailed),
            Just(TrafficPassed),
            (0_u64..40, any::<bool>()).prop_map(|(seconds, another)| Pass(seconds, another)),
        ];
        prop::collection::vec(event, 0..200)
    }

    fn policies() -> impl Strategy<Value = Policy> {
        (any::<bool>(), 1_u32..4, 1_u32..4, 0_u32..4, prop_oneof![Just(0_u64), 1_u64..60]).prop_map(
            |(checked, rise, fall, passive_fall, lost_after)| Policy {
                checked,
                rise,
                fall,
                passive_fall,
                lost_after: Duration::from_secs(lost_after),
            },
        )
    }

    /// The last checks of `history`, newest first.
    fn last_checks(history: &[Event]) -> impl Iterator<Item = Check> {
        history.iter().rev().filter_map(|event| match event {
            Is(check) => Some(*check),
            _ => None,
        })
    }

    /// Whether the newest `count` checks of `history` were all `check`.
    fn ends_with(history: &[Event], count: u32, check: Check) -> bool {
        let same = last_checks(history).take_while(|&last| last == check).count();
        u32::try_from(same).unwrap() >= count
    }

    proptest! {
        #[test]
        fn every_change_has_its_reason(policy in policies(), events in events()) {
            let mut case = Case::new(policy);
            let mut changed_at = 0;
            for (index, &event) in events.iter().enumerate() {
                let before = case.verdict.state();
                let Some(change) = case.feed(event) else {
                    prop_assert_eq!(case.verdict.state(), before);
                    continue;
                };
                prop_assert_eq!((change.from, change.to), (before, case.verdict.state()));
                prop_assert_ne!(change.from, change.to);
                let so_far = &events[..=index];
                let since_change = &events[changed_at..=index];
                match change.cause {
                    Cause::ChecksPassed => {
                        prop_assert!(ends_with(since_change, policy.rise, Check::Passed));
                    }
                    Cause::TriedAgain => prop_assert!(!policy.checked),
                    Cause::Unreachable => {
                        prop_assert!(ends_with(so_far, policy.fall, Check::Unreachable));
                    }
                    Cause::ChecksFailed => {
                        let failed = last_checks(so_far).take_while(|&last| last != Check::Passed);
                        prop_assert!(failed.count() >= policy.fall as usize);
                    }
                    Cause::TrafficFailed => prop_assert!(policy.passive_fall > 0),
                    Cause::OutTooLong => {
                        prop_assert!(!policy.lost_after.is_zero());
                        prop_assert!(matches!(event, Pass(_, true)));
                        prop_assert_eq!(change.from, State::OutOfService);
                    }
                }
                changed_at = index + 1;
            }
        }

        #[test]
        fn fall_unreachable_checks_always_make_it_lost(policy in policies(), events in events()) {
            let mut case = Case::new(policy);
            for event in events {
                case.feed(event);
            }
            for _ in 0..policy.fall {
                case.feed(GONE);
            }
            prop_assert_eq!(case.verdict.state(), State::Lost);
            for _ in 0..policy.rise {
                case.feed(OK);
            }
            prop_assert_eq!(case.verdict.state(), State::InService);
        }
    }
}
