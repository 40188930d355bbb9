//! The connection for commands.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, Value};
use tokio::sync::watch;

use super::super::Unavailable;
use super::{Place, Settings};

/// How long a batch of commands may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long is waited before the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// Reaches Redis for commands, whatever is there.
pub(super) struct Link {
    place: Place,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Which connection it is, from 1; 0: none.
    epoch: watch::Sender<u64>,
    lost: Arc<tokio::sync::Notify>,
}

impl Link {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            place: settings.place.clone(),
            connection: Mutex::default(),
            epoch: watch::Sender::new(0),
            lost: Arc::default(),
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

    /// Keeps a connection for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut number = 0;
        loop {
            if let Ok(connection) = self.connect().await {
                number += 1;
                *self.lock() = Some(connection);
                self.epoch.send_replace(number);
                self.lost.notified().await;
                *self.lock() = None;
                self.epoch.send_replace(0);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let Place::One(address, access) = &self.place else {
            return Err(redis::RedisError::from((redis::ErrorKind::InvalidClientConfig, "later")));
        };
        let client = redis::Client::open(access.to(address)?)?;
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER));
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Runs commands in one go, and gives their answers in the same order; one that Redis refused is an
    /// error in its place. Commands may have been carried out also where the whole is an error, so they
    /// must be such that twice does no harm.
    pub(super) async fn run_all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Unavailable> {
        let Some(mut connection) = self.lock().clone() else { return Err(Unavailable::Away) };
        let mut pipeline = Pipeline::with_capacity(commands.len());
        let count = commands.len();
        for command in commands {
            pipeline.add_command(command);
        }
        let answers = connection.req_packed_commands(&pipeline, 0, count).await;
        answers.map_err(|error| {
            self.lost.notify_one();
            Unavailable::NoAnswer(error.to_string())
        })
    }

    /// Publishes a message; tells how many have it.
    pub(super) async fn publish(
        &self,
        channel: &str,
        message: &[u8],
    ) -> Result<usize, Unavailable> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(message);
        let answers = self.run_all(vec![command]).await?;
        match answers.first() {
            Some(Value::Int(count)) => Ok(usize::try_from(*count).unwrap_or(0)),
            other => Err(Unavailable::NoAnswer(format!("{other:?}"))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
