//! How busy the workers are: the share of its time that a worker does not wait.
//!
//! A worker is one thread, and what it has to relay waits while it is busy: near 1 for one of them,
//! its clients feel it, however idle the others are. Runtimes count the time themselves, and add it
//! up when they begin to wait; the share is taken every few seconds, on the control runtime.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::RuntimeMetrics;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// What a share is taken of.
const SPAN: Duration = Duration::from_secs(5);

/// How busy the workers of a proxy are.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// The runtime of each; set when they have started.
    workers: OnceLock<Vec<RuntimeMetrics>>,
    /// The bits of the share.
    busiest: AtomicU64,
}

impl Busy {
    /// Reads these from now on. Once.
    pub(super) fn read(&self, workers: Vec<RuntimeMetrics>) {
        // It is done once, by the one who starts them.
        let _ = self.workers.set(workers);
    }

    fn each(&self) -> impl Iterator<Item = Duration> {
        let workers = self.workers.get().into_iter().flatten();
        workers.map(|worker| worker.worker_total_busy_duration(0))
    }

    /// How long all of them together have been busy.
    pub(super) fn total(&self) -> Duration {
        self.each().sum()
    }

    /// Which share of the last seconds the busiest was busy.
    pub(super) fn busiest(&self) -> f64 {
        f64::from_bits(self.busiest.load(Ordering::Relaxed))
    }

    /// Takes the share again and again. Cancel safe.
    pub(super) async fn sample(&self) {
        let mut spans = interval(SPAN);
        spans.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut began = spans.tick().await;
        let mut before: Vec<Duration> = self.each().collect();
        // Filled anew each time: an idle proxy takes nothing of the heap.
        let mut now = Vec::with_capacity(before.len());
        loop {
            spans.tick().await;
            let ended = Instant::now();
            now.clear();
            now.extend(self.each());
            let share = share_of_busiest(&before, &now, ended - began);
            self.busiest.store(share.to_bits(), Ordering::Relaxed);
            began = ended;
            std::mem::swap(&mut before, &mut now);
        }
    }
}

/// The share of a span that the busiest was busy. A long turn is added up when it is over, which may
/// be more than the span.
fn share_of_busiest(before: &[Duration], now: &[Duration], span: Duration) -> f64 {
    let spent = before.iter().zip(now).map(|(before, now)| now.saturating_sub(*before));
    let most = spent.max().unwrap_or_default();
    if span.is_zero() { 0.0 } else { (most.as_secs_f64() / span.as_secs_f64()).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_counts() {
        let seconds =
            |all: &[u64]| all.iter().copied().map(Duration::from_secs).collect::<Vec<_>>();
        let share = |before: &[u64], now: &[u64]| {
            share_of_busiest(&seconds(before), &seconds(now), Duration::from_secs(4))
        };
        assert_eq!(share(&[10, 20, 5], &[11, 22, 5]), 0.5);
        assert_eq!(share(&[0], &[9]), 1.0);
        assert_eq!(share(&[], &[]), 0.0);
        assert_eq!(share_of_busiest(&[], &[], Duration::ZERO), 0.0);
    }
}
