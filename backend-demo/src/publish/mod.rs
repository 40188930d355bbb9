//! Where what is said in a room is sent: to Redis, to a proxy's admin API, or nowhere.
//!
//! With one of the first two, a room may have members on any instance of this server: a message is
//! sent once, and the proxies deliver it to all members that came through them, this instance's own
//! included. [`message`] is what is sent, [`redis`] and [`api`] are how it gets there.
//!
//! All WebSockets put their orders into one bounded queue, and one [`Courier`] takes them out and
//! carries them there, in order, over one connection. Who gives an order waits for its answer, not
//! for long, before it gives another, which keeps the order of one WebSocket also when an order
//! fails. While the place is away, orders are refused at once, and connecting is tried again and
//! again, with pauses that grow to a second. None is carried out later than its giver waits, and
//! none twice.

mod api;
mod message;
mod redis;

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

pub(crate) use self::message::{Answered, ByProxy, ConnectionId, Notice, Order, encoded};

/// Orders that wait, of all WebSockets together. Each of those waits for one, and when the server
/// stops each has one more to give.
const QUEUED_ORDERS: usize = 1024;
/// Orders that go out together.
const BATCH: usize = 64;
/// How long an order may wait for a place in the queue.
const QUEUE_WITHIN: Duration = Duration::from_secs(1);
/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long an order may take once it is in the queue: others go before it, and a connection may
/// have to be made first.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause before the second attempt to connect, doubled before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

const REDIS: &str = "Redis";
const PROXY: &str = "the proxy's admin API";

/// Where a demo sends what is said in its rooms.
#[derive(Clone, Default)]
pub enum Publish {
    /// To its own connections alone.
    #[default]
    Own,
    /// To a Redis from which proxies take it.
    Redis {
        /// `redis://` or `rediss://`, with host, port, user, password and database as usual.
        url: String,
        /// What the names of all that is Steadfast's there begin with: [`REDIS_PREFIX`] if in doubt.
        prefix: String,
    },
    /// To the admin API of one proxy, which reaches who came through that one.
    ProxyAdmin {
        /// `http://HOST:PORT`.
        url: String,
        /// The `admin_token` of the proxy, where it has one.
        token: Option<String>,
    },
}

/// What names in Redis begin with, unless a proxy's config says otherwise.
pub const REDIS_PREFIX: &str = "steadfast";

/// Which URLs of a Redis are taken.
const REDIS_URLS: &str = "write redis://HOST:PORT, or rediss://HOST:PORT for TLS, each with \
                          USER:PASSWORD@ before and /DATABASE behind it where there are such; \
                          Sentinels and Clusters are for proxies alone";

impl Publish {
    /// Whether it is somewhere to publish to, which nobody looks for yet.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL or the token, and what to write.
    pub fn check(&self) -> Result<(), String> {
        open(self.clone()).map(drop)
    }
}

// A URL may have a password in it.
impl fmt::Debug for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "Own",
            Self::Redis { .. } => "Redis",
            Self::ProxyAdmin { .. } => "ProxyAdmin",
        })
    }
}

/// Why something was not sent, in words for the client that wanted it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("{place} is away")]
    Away { place: &'static str },
    #[error("{place} has too much to do")]
    Busy { place: &'static str },
    #[error("{place} did not answer, so it is not known whether this was done")]
    NoAnswer { place: &'static str },
    #[error("{place} refuses it: {detail}")]
    Refused { place: &'static str, detail: String },
    #[error("{place} has taken it, but knows of no proxy that delivers it")]
    Nobody { place: &'static str },
}

/// An order under way.
enum Job {
    Carry(Order, Option<Answer>),
    /// Answered when all orders before it are done.
    Flush(oneshot::Sender<()>),
}

type Answer = oneshot::Sender<Result<Answered, PublishError>>;

/// Gives orders, on behalf of all WebSockets.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: mpsc::Sender<Job>,
    place: &'static str,
}

/// Makes a publisher and its courier, or neither where nothing is to be published.
///
/// # Errors
///
/// What is wrong with a URL or a token.
pub(crate) fn open(publish: Publish) -> Result<Option<(Publisher, Courier)>, String> {
    let (place, name) = match publish {
        Publish::Own => return Ok(None),
        Publish::Redis { url, prefix } => {
            let redis = redis::Redis::new(&url, prefix);
            let redis = redis.map_err(|error| format!("{error}; {REDIS_URLS}"))?;
            (Place::Redis(Box::new(redis)), REDIS)
        }
        Publish::ProxyAdmin { url, token } => {
            let api = api::Api::new(&url, token.as_deref());
            (Place::Api(api.map_err(|error| error.to_string())?), PROXY)
        }
    };
    let (sender, queue) = mpsc::channel(QUEUED_ORDERS);
    let courier = Courier { place, name, queue };
    Ok(Some((Publisher { queue: sender, place: name }, courier)))
}

impl Publisher {
    /// Has an order carried out, and tells what was answered. Cancel safe: an order
    /// whose giver has gone is not begun.
    pub(crate) async fn carry_out(&self, order: Order) -> Result<Answered, PublishError> {
        let place = self.place;
        let needs_somebody = order.needs_somebody();
        let (answer, answered) = oneshot::channel();
        let queued = self.queue.send_timeout(Job::Carry(order, Some(answer)), QUEUE_WITHIN).await;
        queued.map_err(|_| PublishError::Busy { place })?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(Ok(Answered::Reached(0)))) if needs_somebody => {
                Err(PublishError::Nobody { place })
            }
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PublishError::Away { place }),
            Err(_) => Err(PublishError::NoAnswer { place }),
        }
    }

    /// Has an order carried out that nobody waits for. One that fails is lost.
    pub(crate) fn post(&self, order: Order) {
        if self.queue.try_send(Job::Carry(order, None)).is_err() {
            tracing::warn!(place = self.place, "too many orders wait: one is lost");
        }
    }

    /// Waits until all orders given so far are done.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Job::Flush(done)).await.is_ok() {
            _ = flushed.await;
        }
    }
}

/// Carries orders to their place.
#[derive(Debug)]
pub(crate) struct Courier {
    place: Place,
    name: &'static str,
    queue: mpsc::Receiver<Job>,
}

#[derive(Debug)]
enum Place {
    Redis(Box<redis::Redis>),
    Api(api::Api),
}

enum Link {
    Redis(redis::Link),
    Api(api::Link),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Courier {
    /// Carries orders until nobody is left who could give one.
    pub(crate) async fn run(mut self) {
        let mut pauses = Pauses::default();
        loop {
            let cause = match self.place.connect().await {
                Ok(mut link) => match self.carry(&mut link, &mut pauses).await {
                    Ok(()) => return,
                    Err(cause) => cause,
                },
                Err(cause) => cause,
            };
            if pauses.is_first() {
                tracing::warn!(place = self.name, error = cause, "can't publish");
            } else {
                tracing::debug!(place = self.name, error = cause, "still can't publish");
            }
            self.refuse_for(pauses.next()).await;
            if self.queue.is_closed() {
                return;
            }
        }
    }

    /// Carries orders over one connection until that breaks; `Ok`: nobody gives any.
    async fn carry(&mut self, link: &mut Link, pauses: &mut Pauses) -> Result<(), Cause> {
        let batch = match link {
            Link::Redis(_) => BATCH,
            Link::Api(_) => 1,
        };
        let mut jobs = Vec::with_capacity(batch);
        loop {
            let taken = self.queue.recv_many(&mut jobs, batch);
            match timeout(redis::CHECK_EVERY, taken).await {
                Ok(0) => return Ok(()),
                Ok(_) => self.deliver(link, jobs.drain(..)).await?,
                Err(_) => link.check().await?,
            }
            pauses.restart();
        }
    }

    async fn deliver(&self, link: &mut Link, jobs: impl Iterator<Item = Job>) -> Result<(), Cause> {
        let (mut orders, mut answers, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Flush(done) => flushed.push(done),
                // Its giver has given up, and may have said so.
                Job::Carry(_, Some(answer)) if answer.is_closed() => {}
                Job::Carry(order, answer) => {
                    orders.push(order);
                    answers.push(answer);
                }
            }
        }
        let results =
            if orders.is_empty() { Ok(Vec::new()) } else { link.carry_out(&orders).await };
        let (results, broken) = match results {
            Ok(results) => (results, Ok(())),
            Err(cause) => (Vec::new(), Err(cause)),
        };
        let mut results = results.into_iter();
        for answer in answers {
            let lost = Err(PublishError::NoAnswer { place: self.name });
            let result = results.next().unwrap_or(lost);
            match (answer, result) {
                // Gone meanwhile: it told its client that it does not know.
                (Some(answer), result) => _ = answer.send(result),
                (None, Err(error)) => tracing::debug!(%error, "not published"),
                (None, Ok(_)) => {}
            }
        }
        // To drop them is to answer.
        drop(flushed);
        broken
    }

    /// Waits, and refuses all orders meanwhile.
    async fn refuse_for(&mut self, pause: Duration) {
        let refuse = async {
            while let Some(job) = self.queue.recv().await {
                if let Job::Carry(_, Some(answer)) = job {
                    _ = answer.send(Err(PublishError::Away { place: self.name }));
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = refuse => {}
            () = sleep(pause) => {}
        }
    }
}

impl Place {
    async fn connect(&self) -> Result<Link, Cause> {
        match self {
            Self::Redis(redis) => Ok(Link::Redis(redis.connect().await?)),
            Self::Api(api) => Ok(Link::Api(api.connect().await?)),
        }
    }
}

impl Link {
    async fn carry_out(
        &mut self,
        orders: &[Order],
    ) -> Result<Vec<Result<Answered, PublishError>>, Cause> {
        match self {
            Self::Redis(link) => Ok(link.carry_out(orders).await?),
            Self::Api(link) => {
                let mut results = Vec::new();
                for order in orders {
                    results.push(link.carry_out(order).await?);
                }
                Ok(results)
            }
        }
    }

    async fn check(&mut self) -> Result<(), Cause> {
        match self {
            Self::Redis(link) => Ok(link.check().await?),
            // One that the proxy has closed is found out by the next order, and costs it nothing.
            Self::Api(_) => Ok(()),
        }
    }
}

/// How long to wait between attempts to connect.
#[derive(Debug, Default)]
struct Pauses(Duration);

impl Pauses {
    /// The next pause: none at first, for a connection that worked may have broken by itself.
    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        pause
    }

    fn restart(&mut self) {
        self.0 = Duration::ZERO;
    }

    fn is_first(&self) -> bool {
        self.0.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_again() {
        let mut pauses = Pauses::default();
        let ms: Vec<u128> = (0..7).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(ms, [0, 100, 200, 400, 800, 1000, 1000]);
        assert!(!pauses.is_first());
        pauses.restart();
        assert!(pauses.is_first());
    }

    #[test]
    fn what_can_not_be_a_place_is_refused_and_own_needs_none() {
        let redis = |url: &str| Publish::Redis { url: url.into(), prefix: REDIS_PREFIX.into() };
        let api = |url: &str| Publish::ProxyAdmin { url: url.into(), token: None };
        assert!(open(Publish::Own).unwrap().is_none());
        assert!(open(redis("redis://:secret@127.0.0.1:1/2")).unwrap().is_some());
        assert!(open(redis("rediss://127.0.0.1:1")).unwrap().is_some());
        assert!(open(redis("http://127.0.0.1")).unwrap_err().contains("redis://HOST:PORT"));
        assert!(open(redis("redis+sentinel://127.0.0.1/x")).unwrap_err().contains("Sentinels"));
        assert!(open(api("127.0.0.1:9900")).unwrap().is_some());
        assert!(open(api("redis://127.0.0.1")).unwrap_err().contains("http://"));
        assert_eq!(format!("{:?}", redis("redis://:secret@h")), "Redis");
    }
}
