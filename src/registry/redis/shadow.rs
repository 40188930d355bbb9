//! Who owns what, written down behind the workers.
//!
//! What workers tell is [noted](Pending) under a short lock, and one writer takes it to Redis: a few
//! milliseconds of changes at a time, in [`Steps`]. After any doubt about what Redis has, at the
//! beginning too, it [rewrites](super::rewrite) the whole. Nobody else writes for this proxy, so what
//! is taken later is also newer.
//!
//! While nothing changes, nothing is written and no timer runs here.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tracing::warn;

use super::super::{Change, Peer, Record, Shadow, Truth, Unavailable};
use super::pending::{Batch, Pending};
use super::placed::Placed;
use super::steps::Steps;
use super::{Common, Counts, presence, rewrite};
use crate::observe::rate::{Allowed, allowed};

/// For so long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(5);
/// How long after a failure the next attempt begins, and after many of them in a row.
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// What is to be written, and who else is there.
pub(super) struct Ledger {
    noted: Mutex<Noted>,
    /// Told when there is something to write.
    wake: Notify,
    /// Whether the proxy's own hash stands: nothing is written for a proxy that others take for dead.
    announced: watch::Sender<bool>,
    peers: Mutex<Vec<Peer>>,
    counts: Counts,
}

#[derive(Default)]
struct Noted {
    pending: Pending,
    /// When the oldest of it came.
    since: Option<Instant>,
}

impl Ledger {
    /// An empty one that counts there.
    pub(super) fn new(counts: Counts) -> Self {
        Self {
            noted: Mutex::default(),
            wake: Notify::new(),
            announced: watch::Sender::new(false),
            peers: Mutex::default(),
            counts,
        }
    }

    /// Keeps the proxy and what it owns in Redis, for as long as it is polled.
    pub(super) async fn run(&self, common: &Common, truth: &dyn Truth, placed: &Placed) {
        tokio::join!(presence::keep(common, self, truth, placed), self.write(common, truth));
    }

    /// Removes all that the proxy owns, and the proxy itself. Nothing may run any more.
    pub(super) async fn sign_off(&self, common: &Common) {
        if let Err(error) = presence::end(common, self).await {
            warn!(%error, "could not sign off from the registry; what is left there is for others to remove");
        }
    }

    /// The others, as they were read last.
    pub(super) fn peers(&self) -> Vec<Peer> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes who else is there.
    pub(super) fn set_peers(&self, peers: Vec<Peer>) {
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    /// Has the whole table rewritten when the proxy's hash stands.
    pub(super) fn doubt(&self) {
        self.note(Pending::doubt);
        self.wake.notify_one();
    }

    /// Says whether the proxy's own hash stands.
    pub(super) fn set_announced(&self, announced: bool) {
        self.announced.send_replace(announced);
    }

    /// What it counts.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    async fn write(&self, common: &Common, truth: &dyn Truth) {
        let mut announced = self.announced.subscribe();
        let mut retry = RETRY;
        loop {
            self.wake.notified().await;
            // Its sender lives as long as this.
            let _ = announced.wait_for(|announced| *announced).await;
            let written = if self.look(Pending::is_doubtful) {
                rewrite::whole(common, self, truth).await
            } else {
                tokio::time::sleep(GATHER).await;
                self.flush(common).await
            };
            let Err(error) = written else {
                retry = RETRY;
                continue;
            };
            // That it is away has been said.
            if error != Unavailable::Away
                && let Some(Allowed { suppressed }) = allowed!()
            {
                warn!(%error, suppressed, "the registry may lack connections; all are written anew");
            }
            self.doubt();
            tokio::time::sleep(retry).await;
            // A connection that is new has had none of these failures.
            retry = if error == Unavailable::Away { RETRY } else { (retry * 2).min(LONGEST_RETRY) };
        }
    }

    /// Writes what is to be written by now.
    pub(super) async fn flush(&self, common: &Common) -> Result<(), Unavailable> {
        let (batch, since) = {
            let mut noted = self.lock();
            let batch = noted.pending.take();
            self.counts.pending.set(0);
            (batch, noted.since.take())
        };
        self.write_batch(common, &batch).await?;
        if let Some(since) = since {
            self.counts.lag.set(since.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Writes a batch.
    pub(super) async fn write_batch(
        &self,
        common: &Common,
        batch: &Batch,
    ) -> Result<(), Unavailable> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut steps = common.own_steps();
        steps.batch(batch);
        let written = self.take_steps(common, steps).await;
        if written.is_err() {
            let rooms = batch.rooms.iter();
            self.note(|pending| rooms.for_each(|(room, _)| pending.suspect(room)));
        }
        written
    }

    /// Takes steps, and counts them.
    pub(super) async fn take_steps(
        &self,
        common: &Common,
        steps: Steps<'_>,
    ) -> Result<(), Unavailable> {
        let count = steps.take(&common.link).await?;
        self.counts.writes.inc_by(count as u64);
        Ok(())
    }

    /// Changes what is pending.
    pub(super) fn note<T>(&self, change: impl FnOnce(&mut Pending) -> T) -> T {
        let mut noted = self.lock();
        let was_empty = noted.pending.is_empty();
        let told = change(&mut noted.pending);
        self.counts.pending.set(i64::try_from(noted.pending.len()).unwrap_or(i64::MAX));
        if noted.pending.is_empty() {
            noted.since = None;
        } else if was_empty {
            noted.since = Some(Instant::now());
            drop(noted);
            self.wake.notify_one();
        }
        told
    }

    /// Asks what is pending.
    pub(super) fn look<T>(&self, ask: impl FnOnce(&Pending) -> T) -> T {
        ask(&self.lock().pending)
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shadow for Ledger {
    fn put(&self, id: Box<str>, record: Record, change: Change) {
        self.note(|pending| pending.put(id, record, &change));
    }

    fn remove(&self, id: Box<str>, record: Record) {
        self.note(|pending| pending.remove(id, record));
    }
}
