//! What is counted of the registry.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::observe::labels::{OutcomeLabel, ReasonLabel};
use crate::observe::series::Series;

/// The numbers; clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// 1 while it answers and messages arrive.
    pub up: Gauge,
    /// How many times it was lost.
    pub outages: Counter,
    /// Handshakes that came before their subscriptions stood, by what became of the wait.
    pub waits: Series<OutcomeLabel, Counter>,
    /// Messages that came, announcements of other proxies included.
    pub messages: Counter,
    /// Messages that were not handed on, by reason.
    pub dropped: Series<ReasonLabel, Counter>,
    /// Groups whose subscription stands.
    pub subscriptions: Gauge,
    /// Connections whose change is to be written.
    pub pending: Gauge,
    /// How long the oldest change of the last batch has waited, in seconds.
    pub lag: Gauge<f64, AtomicU64>,
    /// Commands that wrote connections and rooms.
    pub writes: Counter,
    /// The whole table written anew.
    pub rewrites: Counter,
    /// Dead proxies whose entries were removed.
    pub swept: Counter,
    since: Arc<Mutex<Since>>,
}

/// Since when it is away.
#[derive(Clone, Copy, Debug, Default)]
enum Since {
    /// It was never there.
    #[default]
    Start,
    /// It is there.
    Up,
    /// It went then.
    Lost(Instant),
}

/// How a handshake's wait for its subscriptions ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// They stand.
    Stood,
    /// They don't, and the handshake went on.
    TimedOut,
    /// The registry is away: nobody waited, or not to the end.
    Away,
}

/// Why a message was not handed on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dropped {
    /// It is larger than is allowed.
    TooLarge,
    /// Too many wait.
    Behind,
}

impl Counts {
    pub(super) fn waited(&self, wait: Wait) {
        let outcome = match wait {
            Wait::Stood => "stood",
            Wait::TimedOut => "timed_out",
            Wait::Away => "away",
        };
        self.waits.of(OutcomeLabel { outcome }).inc();
    }

    pub(super) fn message(&self) {
        self.messages.inc();
    }

    pub(super) fn dropped(&self, dropped: Dropped) {
        let reason = match dropped {
            Dropped::TooLarge => "too_large",
            Dropped::Behind => "behind",
        };
        self.dropped.of(ReasonLabel { reason }).inc();
    }

    pub(super) fn subscriptions(&self, standing: usize) {
        self.subscriptions.set(i64::try_from(standing).unwrap_or(i64::MAX));
    }

    pub(super) fn set_up(&self, up: bool) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        match (*since, up) {
            (Since::Up, false) => {
                self.outages.inc();
                *since = Since::Lost(Instant::now());
            }
            (_, true) => *since = Since::Up,
            (Since::Start | Since::Lost(_), false) => {}
        }
        drop(since);
        self.up.set(up.into());
    }

    /// Whether it is away, and that not only since a moment ago.
    pub(super) fn is_away_for(&self, long: Duration) -> bool {
        match *self.since.lock().unwrap_or_else(PoisonError::into_inner) {
            Since::Start => true,
            Since::Up => false,
            Since::Lost(when) => when.elapsed() >= long,
        }
    }
}
