//! The signals that stop a process, and how fast.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::shutdown::StopPlan;

/// Listens for SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on these signals end up here.
    pub(super) fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for the next signal and tells how to stop: SIGTERM takes the time that the config
    /// gives, SIGINT does not. Cancel safe.
    pub(super) async fn next(&mut self, delay: Duration, grace: Duration) -> StopPlan {
        tokio::select! {
            _ = self.terminate.recv() => StopPlan::graceful(delay, grace),
            _ = self.interrupt.recv() => StopPlan::prompt(),
        }
    }
}
