//! The connection for commands.
//!
//! It is kept by [`Link::run`]: opened, looked after, and opened anew when it is lost. Lost is what ended,
//! did not answer a command in time, or does not answer a PING within a second where nothing else was
//! answered for one: a Redis that stands still is away after two seconds at most. So is a server that
//! says it takes no writes, or none yet. Any other refusal is the answer of the command that was refused.
//!
//! Who runs a command while it is away is told at once. Attempts to connect follow each other ever more
//! slowly, but never more than half a second apart: what comes back is found within a second.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, ServerErrorKind, Value};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::super::Unavailable;
use super::connect::{Connection, Lookout, failure};
use super::steps::said;
use super::{Place, Settings};
use crate::random;

/// How long there may be no answer before one is asked for.
const QUIET: Duration = Duration::from_secs(1);
/// How long is waited before the first attempt after another, and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A connection that lasts so long was a good one.
pub(super) const STEADY: Duration = Duration::from_secs(5);

/// Reaches Redis for commands, whatever is there.
pub(super) struct Link {
    place: Place,
    now: Mutex<Now>,
    /// Which connection it is, from 1; 0: none.
    epoch: watch::Sender<u64>,
}

/// The connection as it is.
#[derive(Default)]
struct Now {
    /// Which it is, or was.
    number: u64,
    connection: Option<Connection>,
    /// Whether anything was answered since somebody last looked.
    was_answered: bool,
    /// Why the last one was lost, until somebody has read it.
    cause: Option<String>,
}

/// The pauses between attempts: ever longer, never too long, and not the same for all proxies.
pub(super) struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: PAUSE }
    }
}

impl Pauses {
    /// Waits for the next attempt.
    pub(super) async fn pause(&mut self) {
        // Between three quarters of it and the whole.
        let [part] = random::bytes().map(u32::from);
        let less = self.next / 4 * part / 255;
        sleep(self.next - less).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
    }
}

impl Link {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { place: settings.place.clone(), now: Mutex::default(), epoch: watch::Sender::new(0) }
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        *self.epoch.borrow() > 0
    }

    /// Tells of each new connection by its number, and of its loss by a 0. After a 0 or another number
    /// anything may have been forgotten.
    pub(super) fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Whether channels are sharded.
    pub(super) fn is_sharded(&self) -> bool {
        matches!(self.place, Place::Cluster(..))
    }

    /// Keeps a connection for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut pauses = Pauses::default();
        // One line says that it is away, however many attempts fail.
        let mut is_told = false;
        loop {
            let cause = match Connection::open(&self.place, None).await {
                Ok(connection) => {
                    info!(redis = %self.place, "the registry answers");
                    let number = self.begin(connection.clone());
                    let began = Instant::now();
                    self.look_after(connection, number).await;
                    is_told = false;
                    // One that is lost again at once is no reason for haste.
                    if began.elapsed() > STEADY {
                        pauses = Pauses::default();
                    }
                    self.lock().cause.take().unwrap_or_default()
                }
                Err(error) => error.to_string(),
            };
            if !is_told {
                warn!(redis = %self.place, error = cause, "the registry is away");
                is_told = true;
            }
            pauses.pause().await;
        }
    }

    fn begin(&self, connection: Connection) -> u64 {
        let mut now = self.lock();
        now.number += 1;
        now.connection = Some(connection);
        now.was_answered = true;
        now.cause = None;
        self.epoch.send_replace(now.number);
        now.number
    }

    /// Returns when that connection is lost.
    async fn look_after(&self, mut connection: Connection, number: u64) {
        let mut epochs = self.epochs();
        let is_master = matches!(self.place, Place::Sentinel { .. });
        let mut lookout = Lookout::default();
        loop {
            tokio::select! {
                _ = epochs.wait_for(|epoch| *epoch != number) => return,
                () = sleep(QUIET) => {}
            }
            let was_answered = std::mem::take(&mut self.lock().was_answered);
            // That it answers does not say that it is still the master.
            if was_answered && !is_master {
                continue;
            }
            let check = async {
                connection.check(&self.place).await?;
                if lookout.approves(&self.place, &connection).await {
                    Ok(())
                } else {
                    Err(failure("the Sentinels say that another is the master"))
                }
            };
            let checked = tokio::select! {
                _ = epochs.wait_for(|epoch| *epoch != number) => return,
                checked = check => checked,
            };
            if let Err(error) = checked {
                self.lose(number, &error.to_string());
            }
        }
    }

    /// That connection is of no use any more; another may have come meanwhile.
    fn lose(&self, number: u64, cause: &str) {
        let mut now = self.lock();
        if now.number == number && now.connection.take().is_some() {
            now.cause = Some(cause.to_owned());
            self.epoch.send_replace(0);
        }
    }

    /// Runs commands in one go, and gives their answers in the same order; one that Redis refused is an
    /// error in its place. Commands may have been carried out also where the whole is an error, so they
    /// must be such that twice does no harm.
    pub(super) async fn run_all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Unavailable> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let (number, connection) = {
            let now = self.lock();
            (now.number, now.connection.clone())
        };
        let Some(mut connection) = connection else { return Err(Unavailable::Away) };
        let mut epochs = self.epochs();
        let answers = tokio::select! {
            answers = connection.run_all(commands) => answers,
            // Nobody waits for what does not answer longer than it takes to find out.
            _ = epochs.wait_for(|epoch| *epoch != number) => {
                return Err(Unavailable::NoAnswer("the connection was lost".to_owned()));
            }
        };
        match answers {
            Ok(answers) => {
                self.lock().was_answered = true;
                if let Some(refusal) = answers.iter().find_map(of_no_use) {
                    self.lose(number, &refusal);
                }
                Ok(answers)
            }
            Err(error) => {
                let error = error.to_string();
                self.lose(number, &error);
                Err(Unavailable::NoAnswer(error))
            }
        }
    }

    /// Publishes a message; tells how many have it.
    pub(super) async fn publish(
        &self,
        channel: &str,
        message: &[u8],
    ) -> Result<usize, Unavailable> {
        let mut command = redis::cmd(if self.is_sharded() { "SPUBLISH" } else { "PUBLISH" });
        command.arg(channel).arg(message);
        let answers = self.run_all(vec![command]).await?;
        match answers.first() {
            Some(Value::Int(count)) => Ok(usize::try_from(*count).unwrap_or(0)),
            Some(Value::ServerError(error)) => Err(Unavailable::Refused(said(error))),
            other => Err(Unavailable::NoAnswer(format!("{other:?}"))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The refusal of a server that will refuse everything, or every change.
fn of_no_use(answer: &Value) -> Option<String> {
    let Value::ServerError(error) = answer else { return None };
    let is_of_no_use = matches!(
        error.kind(),
        Some(
            ServerErrorKind::ReadOnly | ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown
        )
    );
    is_of_no_use.then(|| said(error))
}
