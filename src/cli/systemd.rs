//! What a service manager such as systemd is told, after `sd_notify(3)`: that the proxy serves,
//! reloads, stops, and that it is alive.
//!
//! Nothing is told where `NOTIFY_SOCKET` is not set. What can't be told is logged and never keeps
//! the proxy from its work. A socket is opened for each message, so that a manager that was started
//! anew is found again; there is one every few seconds at most.

use std::env;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{self, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{error, warn};

use crate::fleet::Fleet;
use crate::server::plan::Planned;
use crate::server::reload::ReloadError;
use crate::shutdown::StopPlan;

/// How long a manager with much to do is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest status, in bytes: systemd drops messages of more than 4 KiB.
const STATUS: usize = 1024;
/// What a shutdown takes at the most beside its delay and its grace: the last lines of logs.
const AFTER_GRACE: Duration = Duration::from_secs(5);

/// The service manager that started this process, if one did and wants to be told.
#[derive(Clone, Debug)]
pub(super) struct Manager {
    socket: Option<SocketAddr>,
    /// How long it waits for a sign of life.
    watchdog: Option<Duration>,
    stopping: watch::Sender<bool>,
}

impl Manager {
    /// The one that the environment names.
    pub(super) fn of_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = socket.and_then(|name| match address(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!(%error, "NOTIFY_SOCKET is of no use; the service manager is told nothing");
                None
            }
        });
        let number = |name| env::var(name).ok()?.parse().ok();
        let watchdog =
            watchdog(number("WATCHDOG_USEC"), number("WATCHDOG_PID"), std::process::id());
        Self { socket, watchdog, stopping: watch::Sender::new(false) }
    }

    /// Says that the proxy serves.
    pub(super) async fn ready(&self) {
        self.tell("READY=1", "Serving").await;
    }

    /// Says that another config is about to be put in force.
    pub(super) async fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"), "Reloading").await;
    }

    /// Says that the proxy serves as before, or better, and how the reload went.
    pub(super) async fn reloaded(&self, outcome: &Result<Planned, ReloadError>) {
        self.tell("READY=1", &told(outcome)).await;
    }

    /// Says that the proxy stops, and how long that may take.
    pub(super) async fn stopping(&self, plan: &StopPlan) {
        self.stopping.send_replace(true);
        let longest = plan.delay + plan.grace + AFTER_GRACE;
        let state = format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", longest.as_micros());
        self.tell(&state, &format!("Stopping, within {longest:?}")).await;
    }

    /// Gives signs of life, from now until what this returns is dropped, but only while every
    /// worker answers.
    pub(super) fn watch(&self, fleet: &Arc<Fleet>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let (Some(period), Some(_)) = (self.watchdog, &self.socket) {
            let (manager, fleet) = (self.clone(), Arc::clone(fleet));
            tasks.spawn(async move {
                let (manager, fleet) = (&manager, &fleet);
                let alive = || manager.or_stopping(fleet.all_answer());
                keep_alive(period, alive, || manager.send("WATCHDOG=1\n".to_owned())).await;
            });
        }
        tasks
    }

    /// Takes a proxy that stops as alive: its workers end one by one, and the time that a stop may
    /// take is watched by itself.
    async fn or_stopping(&self, alive: impl Future<Output = bool>) -> bool {
        let mut stop = self.stopping.subscribe();
        let stopping = async {
            // The sender is this manager's own.
            let _ = stop.wait_for(|stopping| *stopping).await;
        };
        tokio::select! {
            biased;
            () = stopping => true,
            alive = alive => alive || *self.stopping.borrow(),
        }
    }

    async fn tell(&self, state: &str, status: &str) {
        self.send(format!("{state}\nSTATUS={}\n", one_line(status))).await;
    }

    async fn send(&self, message: String) {
        let Some(socket) = &self.socket else { return };
        let sent = tokio::time::timeout(PATIENCE, send(socket, message.as_bytes())).await;
        if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            warn!(%error, "can't tell the service manager");
        }
    }
}

/// Pings at half the time after which the manager gives the proxy up, as long as it is alive.
/// Returns only when it never will be again.
///
/// Whether it is alive may take any time to find out, and nobody but the manager limits that: what
/// comes too late for it is not in time, whatever this would say.
async fn keep_alive<A, P>(period: Duration, alive: impl Fn() -> A, ping: impl Fn() -> P)
where
    A: Future<Output = bool>,
    P: Future<Output = ()>,
{
    let mut turns = tokio::time::interval(period / 2);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let mut alive = pin!(alive());
        let in_time = tokio::time::timeout(period / 4, &mut alive).await;
        let alive = match in_time {
            Ok(alive) => alive,
            Err(_) => {
                warn!("a worker does not answer; the watchdog gets no sign of life until it does");
                alive.await
            }
        };
        if !alive {
            error!("a worker has ended; the watchdog gets no more signs of life");
            return;
        }
        ping().await;
    }
}

/// How long the manager waits for a sign of life, if it means this process.
fn watchdog(micros: Option<u64>, of: Option<u64>, process: u32) -> Option<Duration> {
    let is_ours = of.is_none_or(|of| of == u64::from(process));
    micros.filter(|micros| is_ours && *micros > 0).map(Duration::from_micros)
}

/// A path, or an abstract name behind an `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "neither an absolute path nor an abstract name",
        )),
    }
}

async fn send(to: &SocketAddr, message: &[u8]) -> io::Result<()> {
    let socket = net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(to)?;
    UnixDatagram::from_std(socket)?.send(message).await.map(drop)
}

fn told(outcome: &Result<Planned, ReloadError>) -> String {
    match outcome {
        Ok(planned) if planned.needs_restart.is_empty() => {
            format!("Serving; reloaded with {} changes", planned.changes.len())
        }
        Ok(planned) => format!(
            "Serving; reloaded with {} changes, a restart is needed for {}",
            planned.changes.len(),
            planned.needs_restart.join(", ")
        ),
        Err(error) => format!("Serving by the config before; reload failed: {}", error.told()),
    }
}

/// As much of a text as a status may have: the first line break would end it.
fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(STATUS);
    text[..end].replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use super::*;
    use crate::fleet::all_answer;

    const PERIOD: Duration = Duration::from_secs(10);

    /// How many pings come within ten periods.
    async fn pings<A: Future<Output = bool>>(alive: impl Fn() -> A) -> usize {
        let pings = Cell::new(0);
        let ping = || {
            pings.set(pings.get() + 1);
            ready(())
        };
        let _ = tokio::time::timeout(PERIOD * 10, keep_alive(PERIOD, alive, ping)).await;
        pings.get()
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_is_alive_twice_a_period() {
        assert!((20..=21).contains(&pings(|| ready(true)).await));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_or_has_ended_is_not() {
        assert_eq!(pings(pending).await, 0);
        assert_eq!(pings(|| ready(false)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_a_late_ping() {
        let slow = || async {
            tokio::time::sleep(PERIOD * 2).await;
            true
        };
        assert!((4..=5).contains(&pings(slow).await));
    }

    #[tokio::test(start_paused = true)]
    async fn one_worker_that_reads_no_messages_keeps_the_pings_back() {
        let (inboxes, mut receivers) = crate::fleet::inboxes(2);
        let stuck = receivers.pop().unwrap();
        let mut other = receivers.pop().unwrap();
        let answering = tokio::spawn(async move {
            while let Some(message) = other.recv().await {
                if let crate::fleet::Message::Ping { reply } = message {
                    let _ = reply.send(());
                }
            }
        });
        assert_eq!(pings(|| all_answer(&inboxes)).await, 0);
        drop(stuck);
        assert!(!all_answer(&inboxes).await, "it has ended");
        assert!(all_answer(&inboxes[..1]).await);
        answering.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_stops_needs_no_workers() {
        let stopping = watch::Sender::new(false);
        let manager = Manager { socket: None, watchdog: None, stopping };
        let asking = manager.or_stopping(pending());
        let mut asking = pin!(asking);
        assert!(tokio::time::timeout(PERIOD, &mut asking).await.is_err());
        manager.stopping(&StopPlan::prompt()).await;
        assert!(asking.await);
        assert!(manager.or_stopping(ready(false)).await);
    }

    #[test]
    fn a_watchdog_of_another_process_is_none_of_ours() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some(1_000_000), None, 7), second);
        assert_eq!(watchdog(Some(1_000_000), Some(7), 7), second);
        assert_eq!(watchdog(Some(1_000_000), Some(8), 7), None);
        assert_eq!(watchdog(Some(0), None, 7), None);
        assert_eq!(watchdog(None, Some(7), 7), None);
    }

    #[test]
    fn a_status_is_one_short_line() {
        assert_eq!(one_line("a\nREADY=1\r\n"), "a READY=1  ");
        assert_eq!(one_line(&"ä".repeat(STATUS)).len(), STATUS);
        assert_eq!(one_line(&format!("x{}", "ä".repeat(STATUS))).len(), STATUS - 1);
    }

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        let abstract_name = address(OsStr::new("@name")).unwrap();
        assert_eq!(abstract_name.as_abstract_name(), Some(&b"name"[..]));
        assert!(address(OsStr::new("/run/systemd/notify")).unwrap().as_pathname().is_some());
        assert!(address(OsStr::new("vsock:2:1")).is_err());
        assert!(address(OsStr::new("")).is_err());
    }
}
