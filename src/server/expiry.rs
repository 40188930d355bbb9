//! Certificates that are about to expire: told while there is time to renew them.
//!
//! When a listener is opened or gets others, and once a day, since nobody reads a log of last month.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::fleet::Fleet;

/// How often it is told.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// With fewer days left it is told. Whoever renews by itself does so before.
const DAYS: f64 = 14.0;

/// Tells of each listener with a certificate that expires soon: now.
pub(super) fn tell(fleet: &Fleet) {
    let now = SystemTime::now();
    for listener in fleet.listeners.load().iter() {
        let first = listener.settings.first_to_expire(now);
        if let Some((pair, days)) = first.filter(|(_, days)| *days < DAYS) {
            let name = pair.names().first();
            warn!(
                listener = %listener.label,
                name,
                days = format!("{days:.1}"),
                "a certificate expires soon: renew it"
            );
        }
    }
}

/// Tells of them at once and every day from then on.
pub(super) async fn tell_every_day(fleet: Arc<Fleet>, stopped: impl Future<Output = ()>) {
    let mut days = interval(DAY);
    days.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            _ = days.tick() => tell(&fleet),
        }
    }
}
