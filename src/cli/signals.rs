//! The signals that stop a process, and how fast.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

use crate::shutdown::StopPlan;

/// Listens for SIGTERM, SIGINT and SIGHUP.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From now on these signals end up here.
    pub(super) fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hang_up = signal(SignalKind::hangup())?;
        Ok(Self { terminate, interrupt, hang_up })
    }

    /// Waits for the next signal and tells how to stop: SIGTERM takes the time that the config
    /// gives, SIGINT does not. A SIGHUP, by which others reload, must not end the process. Cancel
    /// safe.
    pub(super) async fn next(&mut self, delay: Duration, grace: Duration) -> StopPlan {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return StopPlan::graceful(delay, grace),
                _ = self.interrupt.recv() => return StopPlan::prompt(),
                _ = self.hang_up.recv() => {
                    warn!("SIGHUP: this version can't reload its config; restart it");
                }
            }
        }
    }
}
