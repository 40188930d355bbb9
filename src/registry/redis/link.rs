//! The connection for commands.
//!
//! It is kept by [`Link::run`]: opened, looked after, and opened anew when it is lost. Lost is what ended,
//! did not answer a command in time, or does not answer a PING within a second where nothing else was
//! answered for one: a Redis that stands still is away after two seconds at most. So is a server that
//! says it takes no writes, or none yet, and it is asked at the beginning. Any other refusal is the answer of the command that was refused.
//!
//! Who runs a command while it is away is told at once. Attempts to connect follow each other ever more
//! slowly, but never more than half a second apart: what comes back is found within a second. The log is
//! told once that it is away, and again when the reason has become another; and that it answers, unless
//! the last connection was lost at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult, ServerErrorKind, Value};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::super::Unavailable;
use super::super::names::Names;
use super::connect::{Connection, Lookout, Refused, failure};
use super::steps::{command, said};
use super::{Address, Counts, Place, Settings};
use crate::observe::rate::{Allowed, allowed};
use crate::random;

/// How long there may be no answer before one is asked for.
const QUIET: Duration = Duration::from_secs(1);
/// How long is waited before the first attempt after another, and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long after one reason why it is away another may be logged.
const OTHER_CAUSE: Duration = Duration::from_secs(10);
/// A connection that lasts so long was a good one.
pub(super) const STEADY: Duration = Duration::from_secs(5);

/// Reaches Redis for commands, whatever is there.
pub(super) struct Link {
    place: Place,
    /// A write that changes nothing: no proxy has an empty id.
    nothing: Cmd,
    now: Mutex<Now>,
    /// Which connection it is, from 1; 0: none.
    epoch: watch::Sender<u64>,
    counts: Counts,
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

/// What the log was told of it.
#[derive(Default)]
struct Said {
    /// Why it is away, and when that was said.
    away: Option<(String, Instant)>,
    /// Whether the last connection was lost at once.
    was_brief: bool,
}

impl Said {
    fn is_to_say(&self, cause: &str) -> bool {
        let Some((said, at)) = &self.away else { return true };
        said != cause && at.elapsed() > OTHER_CAUSE
    }
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
    pub(super) fn new(settings: &Settings, names: &Names, counts: Counts) -> Self {
        Self {
            place: settings.place.clone(),
            nothing: command("SREM", names.proxies(), ""),
            now: Mutex::default(),
            epoch: watch::Sender::new(0),
            counts,
        }
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

    /// The server that is reached, or one of them.
    pub(super) fn server(&self) -> Option<Address> {
        match &self.lock().connection {
            Some(Connection::One(_, address)) => Some(Address::clone(address)),
            Some(Connection::Cluster(_)) => match &self.place {
                Place::Cluster(members, _) => members.first().cloned(),
                _ => None,
            },
            None => None,
        }
    }

    /// Whether channels are sharded.
    pub(super) fn is_sharded(&self) -> bool {
        matches!(self.place, Place::Cluster(..))
    }

    /// Keeps a connection for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut pauses = Pauses::default();
        let mut said = Said::default();
        loop {
            let cause = match self.open().await {
                Ok(connection) => {
                    let number = self.begin(connection.clone());
                    let began = Instant::now();
                    tokio::select! {
                        () = self.look_after(connection, number) => {}
                        never = self.say_that_it_answers(&mut said) => match never {},
                    }
                    // One that is lost again at once is no reason for haste.
                    said.was_brief = began.elapsed() <= STEADY;
                    if !said.was_brief {
                        pauses = Pauses::default();
                    }
                    self.lock().cause.take().unwrap_or_default()
                }
                Err(error) => error.to_string(),
            };
            if said.is_to_say(&cause) {
                warn!(redis = %self.place, error = cause, "the registry is away");
                said.away = Some((cause, Instant::now()));
            }
            pauses.pause().await;
        }
    }

    async fn open(&self) -> RedisResult<Connection> {
        let mut connection = Connection::open(&self.place, None).await?;
        // Of a Cluster the masters are found anyway.
        if !self.is_sharded() {
            connection.try_to_write(&self.nothing).await?;
        }
        Ok(connection)
    }

    /// Says so at once, or, where the connection before was brief, when this one is not.
    async fn say_that_it_answers(&self, said: &mut Said) -> std::convert::Infallible {
        if said.was_brief {
            sleep(STEADY).await;
        }
        info!(redis = %self.place, "the registry answers");
        said.away = None;
        std::future::pending().await
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
                answers.refused.iter().for_each(|refused| self.tell_of(refused));
                if let Some(refusal) = answers.values.iter().find_map(of_no_use) {
                    self.lose(number, &refusal);
                }
                Ok(answers.values)
            }
            Err(error) => {
                let error = error.to_string();
                self.lose(number, &error);
                Err(Unavailable::NoAnswer(error))
            }
        }
    }

    fn tell_of(&self, refused: &Refused) {
        self.counts.refused_writes.inc();
        // Any other refusal is told of by whoever tries again.
        if refused.is_of_other_type
            && let Some(Allowed { suppressed }) = allowed!(1)
        {
            let Refused { command, key, .. } = refused;
            warn!(
                key,
                command,
                suppressed,
                "a key of the registry holds something else; it is not written"
            );
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
