//! The signals that a process listens to: how fast to stop, and when to reload.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::shutdown::StopPlan;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To stop, in the time that the config gives (SIGTERM).
    Stop,
    /// To stop at once (SIGINT).
    StopNow,
    /// To reload the config and open the logs anew (SIGHUP).
    Reload,
}

impl Asked {
    /// How to stop, where it is that; `delay` and `grace` are the config's.
    pub(super) fn plan(self, delay: Duration, grace: Duration) -> Option<StopPlan> {
        match self {
            Self::Stop => Some(StopPlan::graceful(delay, grace)),
            Self::StopNow => Some(StopPlan::prompt()),
            Self::Reload => None,
        }
    }
}

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

    /// Waits for the next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::StopNow,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    /// Waits for one that stops the process; others wait to be asked for. Cancel safe.
    pub(super) async fn stop(&mut self, delay: Duration, grace: Duration) -> StopPlan {
        tokio::select! {
            _ = self.terminate.recv() => StopPlan::graceful(delay, grace),
            _ = self.interrupt.recv() => StopPlan::prompt(),
        }
    }

    /// Waits for one that stops the process, past all others. Cancel safe.
    pub(super) async fn next_stop(&mut self, delay: Duration, grace: Duration) -> StopPlan {
        loop {
            if let Some(plan) = self.next().await.plan(delay, grace) {
                return plan;
            }
        }
    }
}
