//! The connection on which messages arrive, and what is subscribed on it.
//!
//! Messages have a connection of their own: a Redis that finds a subscriber too slow drops it, and commands
//! should not go with it. On it nothing is said but what is subscribed and unsubscribed, in batches of which
//! each is confirmed before the next. That messages arrive is not believed but tried: once a second, and
//! before anybody is told that it stands, a probe is published by way of the [`Link`](super::link::Link), and
//! must come in here. So a connection to a server that is no longer the right one is found out too.
//!
//! What arrives goes into a queue of bounded length and size, and from there, in its order, to whoever
//! delivers it. Where that one falls behind for longer than the queue holds, messages would be lost without
//! a word; so the connection is given up, and counted as lost, and made anew.
//!
//! In a Redis Cluster channels are sharded: each is subscribed by a command of its own, where its slot is,
//! and there is a probe for every shard.

use std::collections::{HashMap, HashSet};

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use super::super::names::{Names, Told};
use super::super::{Boxed, Channel, Event, Group, Truth};
use super::Common;
use super::connect::{Connection, Taker, failure};
use super::counts::{Counts, Dropped, Wait};
use super::groups::Groups;
use super::link::{Pauses, STEADY};
use super::placed::Placed;
use super::slots;
use crate::observe::rate::{Allowed, allowed};

/// Channels that are subscribed or given up with one command.
const BATCH: usize = 200;
/// How many commands for one channel each are under way at a time in a Cluster.
const CONCURRENT: usize = 64;
/// How long a batch may take, and a probe.
const CONFIRM: Duration = Duration::from_secs(2);
const ARRIVE: Duration = Duration::from_secs(1);
/// How long from one probe to the next.
const PROBE: Duration = Duration::from_secs(1);
/// Messages that may wait, and their bytes: so many, or twice the largest if that is more.
const QUEUE: usize = 16 * 1024;
const QUEUE_BYTES: usize = 32 << 20;
/// What is around a payload, which takes up to six times its size where every character is escaped: ids
/// that are left out, or the keys of an announcement.
const AROUND: usize = 1 << 20;
/// What a probe begins with. No message does: the byte is never used in MessagePack, nor in JSON.
const PROBE_MARK: &[u8] = b"\xc1probe:";

/// The subscriptions of one proxy.
pub(super) struct Subscriptions {
    shared: Arc<Shared>,
}

struct Shared {
    groups: Mutex<Groups>,
    /// Who waits for a group that does not stand yet. Never more than the handshakes under way.
    waiting: Mutex<HashMap<Group, Vec<oneshot::Sender<()>>>>,
    /// There is something in `groups` to be taken.
    work: Notify,
    /// Whether all that was wanted when the connection was made stands, and a probe came.
    stands: AtomicBool,
    counts: Counts,
}

/// Why a connection for messages was given up.
type Cause = String;

impl Subscriptions {
    pub(super) fn new(counts: Counts) -> Self {
        let shared = Shared {
            groups: Mutex::default(),
            waiting: Mutex::default(),
            work: Notify::new(),
            stands: AtomicBool::new(false),
            counts,
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn enter(&self, group: Group) {
        if self.shared.groups().enter(group) {
            self.shared.work.notify_one();
        }
    }

    pub(super) fn leave(&self, group: &Group) {
        // The task finds it at its next turn, a second from now at most.
        self.shared.groups().leave(group, Instant::now());
    }

    pub(super) fn rooms(&self) -> (usize, usize) {
        self.shared.groups().rooms()
    }

    /// Whether what is published arrives.
    pub(super) fn stand_all(&self) -> bool {
        self.shared.stands.load(Ordering::Acquire)
    }

    /// Whether what is sent to this group arrives.
    pub(super) fn stands(&self, group: &Group) -> bool {
        self.stand_all() && self.shared.groups().stands(group)
    }

    /// Waits until all of these stand, for at most `wait`; `None` where they do, or can't.
    pub(super) fn stand(
        &self,
        groups: &mut dyn Iterator<Item = Group>,
        wait: Duration,
    ) -> Option<Boxed<'static, ()>> {
        let missing: Vec<Group> = {
            let known = self.shared.groups();
            groups.filter(|group| !known.stands(group)).collect()
        };
        if missing.is_empty() {
            return None;
        }
        if !self.stand_all() {
            self.shared.counts.waited(Wait::Away);
            return None;
        }
        if wait.is_zero() {
            self.shared.counts.waited(Wait::TimedOut);
            return None;
        }
        let waiters: Vec<oneshot::Receiver<()>> =
            missing.into_iter().filter_map(|group| self.shared.wait_for(group)).collect();
        let shared = Arc::clone(&self.shared);
        Some(Box::pin(async move {
            let all = async {
                let mut stood = true;
                for waiter in waiters {
                    // It is gone without a word where the connection was lost.
                    stood &= waiter.await.is_ok();
                }
                stood
            };
            shared.counts.waited(match timeout(wait, all).await {
                Ok(true) => Wait::Stood,
                Ok(false) => Wait::Away,
                Err(_) => Wait::TimedOut,
            });
        }))
    }

    /// Keeps a connection for messages for as long as it is polled.
    pub(super) async fn run(
        &self,
        common: &Common,
        truth: &dyn Truth,
        events: &mpsc::Sender<Event>,
        placed: &Placed,
    ) {
        // It outlives connections: what has come is handed on, whatever becomes of the one it came by.
        let (inlet, outlet) = queue();
        tokio::select! {
            () = outlet.forward(events, placed) => {}
            () = self.keep_connected(common, truth, placed, inlet) => {}
        }
    }

    async fn keep_connected(
        &self,
        common: &Common,
        truth: &dyn Truth,
        placed: &Placed,
        queue: Queue,
    ) {
        let mut pauses = Pauses::default();
        let mut epochs = common.link.epochs();
        let mut is_told = false;
        loop {
            // Without the link there is no probe. It lives as long as this.
            let _ = epochs.wait_for(|epoch| *epoch > 0).await;
            let inlet = Arc::new(Inlet::new(common, Arc::clone(&self.shared), queue.clone()));
            let taker: Taker = {
                let inlet = Arc::clone(&inlet);
                Box::new(move |push| inlet.take(push))
            };
            let began = Instant::now();
            let cause = match Connection::open(&common.settings.place, Some(taker)).await {
                Ok(connection) => {
                    let session =
                        Session { shared: &self.shared, common, truth, placed, inlet: &inlet };
                    tokio::select! {
                        cause = session.keep(connection) => cause,
                        cause = inlet.lost() => cause,
                    }
                }
                Err(error) => error.to_string(),
            };
            is_told &= !self.shared.forget();
            if began.elapsed() > STEADY {
                pauses = Pauses::default();
            }
            if !is_told {
                warn!(error = cause, "messages of others may be missed");
                is_told = true;
            }
            pauses.pause().await;
        }
    }
}

impl Shared {
    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Group, Vec<oneshot::Sender<()>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it stands by now. The order of the two locks is the same where it is confirmed, so no
    /// confirmation falls between the look and the entry.
    fn wait_for(&self, group: Group) -> Option<oneshot::Receiver<()>> {
        let mut waiting = self.waiting();
        if self.groups().stands(&group) {
            return None;
        }
        let (stood, waiter) = oneshot::channel();
        let waiters = waiting.entry(group).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(stood);
        Some(waiter)
    }

    fn confirm(&self, groups: &[Group]) {
        let mut waiting = self.waiting();
        let mut known = self.groups();
        known.confirm(groups);
        self.counts.subscriptions(known.standing());
        drop(known);
        for waiter in groups.iter().filter_map(|group| waiting.remove(group)).flatten() {
            // Who has stopped waiting does not mind.
            let _ = waiter.send(());
        }
    }

    /// Nothing arrives any more; tells whether it did.
    fn forget(&self) -> bool {
        let stood = self.set_stands(false);
        let mut waiting = self.waiting();
        self.groups().forget();
        self.counts.subscriptions(0);
        waiting.clear();
        stood
    }

    fn set_stands(&self, stands: bool) -> bool {
        self.counts.set_up(stands);
        self.stands.swap(stands, Ordering::AcqRel)
    }
}

/// The near end of the queue between those who receive messages and the one who hands them on.
#[derive(Clone)]
struct Queue {
    messages: mpsc::Sender<(Told, Bytes)>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
}

/// The far end.
struct Outlet {
    messages: mpsc::Receiver<(Told, Bytes)>,
    waiting: Arc<AtomicUsize>,
}

fn queue() -> (Queue, Outlet) {
    let (messages, received) = mpsc::channel(QUEUE);
    let waiting = Arc::<AtomicUsize>::default();
    let queue = Queue { messages, waiting: Arc::clone(&waiting) };
    (queue, Outlet { messages: received, waiting })
}

impl Queue {
    /// Tells whether there was room.
    fn put(&self, told: Told, message: Bytes, most_bytes: usize) -> bool {
        let bytes = message.len();
        let waiting = self.waiting.fetch_add(bytes, Ordering::AcqRel);
        let is_put =
            waiting + bytes <= most_bytes && self.messages.try_send((told, message)).is_ok();
        if !is_put {
            self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        }
        is_put
    }
}

impl Outlet {
    /// Hands on what arrives, in its order; ends when nobody takes it.
    async fn forward(mut self, events: &mpsc::Sender<Event>, placed: &Placed) {
        while let Some((told, message)) = self.messages.recv().await {
            self.waiting.fetch_sub(message.len(), Ordering::AcqRel);
            match told {
                Told::Message(channel) => {
                    if events.send(Event::Message { channel, message }).await.is_err() {
                        return;
                    }
                }
                told @ (Told::Placed(_) | Told::Drain(_)) => placed.heard(&told, &message),
            }
        }
    }
}

/// Where messages come in from one connection; it does not block that.
struct Inlet {
    shared: Arc<Shared>,
    names: Names,
    queue: Queue,
    most_bytes: usize,
    largest: usize,
    /// The probe that came last, of each channel for probes.
    probed: watch::Sender<HashMap<Vec<u8>, u64>>,
    is_lost: watch::Sender<Option<&'static str>>,
}

impl Inlet {
    fn new(common: &Common, shared: Arc<Shared>, queue: Queue) -> Self {
        let largest = 6 * common.settings.max_message + AROUND;
        Self {
            shared,
            names: common.names.clone(),
            queue,
            most_bytes: QUEUE_BYTES.max(2 * largest),
            largest,
            probed: watch::Sender::default(),
            is_lost: watch::Sender::new(None),
        }
    }

    fn take(&self, push: PushInfo) {
        match push.kind {
            PushKind::Message | PushKind::SMessage => {
                let mut data = push.data.into_iter();
                let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
                    (data.next(), data.next())
                else {
                    return;
                };
                self.take_message(channel, payload);
            }
            PushKind::Disconnection => self.lose("the connection ended"),
            // Slots that move take their channels' subscriptions along.
            PushKind::SUnsubscribe => {
                let channel = match push.data.first() {
                    Some(Value::BulkString(channel)) => std::str::from_utf8(channel).ok(),
                    _ => None,
                };
                let group = channel.and_then(|channel| self.names.told(channel));
                if let Some(Told::Message(Channel::Group(group))) = group
                    && !self.shared.groups().stands(&group)
                {
                    return;
                }
                self.lose("a subscription was taken back");
            }
            _ => {}
        }
    }

    fn take_message(&self, channel: Vec<u8>, payload: Vec<u8>) {
        if let Some(number) = payload.strip_prefix(PROBE_MARK) {
            let number = number.try_into().map_or(0, u64::from_be_bytes);
            self.probed.send_modify(|probed| {
                probed.insert(channel, number);
            });
            return;
        }
        let Ok(channel) = String::from_utf8(channel) else { return };
        let Some(told) = self.names.told(&channel) else { return };
        self.shared.counts.message();
        if payload.len() > self.largest {
            self.shared.counts.dropped(Dropped::TooLarge);
            if let Some(Allowed { suppressed }) = allowed!() {
                let bytes = payload.len();
                warn!(channel, bytes, suppressed, "a published message is too large");
            }
            return;
        }
        if !self.queue.put(told, payload.into(), self.most_bytes) {
            self.shared.counts.dropped(Dropped::Behind);
            self.lose("messages come faster than they are delivered");
        }
    }

    fn lose(&self, cause: &'static str) {
        self.is_lost.send_if_modified(|known| known.replace(cause).is_none());
    }

    async fn lost(&self) -> Cause {
        let mut lost = self.is_lost.subscribe();
        match lost.wait_for(Option::is_some).await {
            Ok(cause) => cause.unwrap_or_default().to_owned(),
            Err(_) => Cause::new(),
        }
    }
}

/// One connection for messages, while it lasts.
struct Session<'a> {
    shared: &'a Arc<Shared>,
    common: &'a Common,
    truth: &'a dyn Truth,
    placed: &'a Placed,
    inlet: &'a Inlet,
}

impl Session<'_> {
    /// Subscribes what is wanted, and gives up what is not, until something goes wrong.
    async fn keep(&self, mut connection: Connection) -> Cause {
        match self.try_to_keep(&mut connection).await {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        }
    }

    async fn try_to_keep(
        &self,
        connection: &mut Connection,
    ) -> RedisResult<std::convert::Infallible> {
        let mut epochs = self.common.link.epochs();
        let mut others = HashSet::new();
        let probes = self.probe_channels(connection).await?;
        self.subscribe(connection, self.own_channels(&probes)).await?;
        let mut number = 0;
        loop {
            self.subscribe_pools(connection, &mut others).await?;
            while self.subscribe_wanted(connection).await? + self.give_up(connection).await? > 0 {}
            let epoch = *epochs.borrow_and_update();
            number += 1;
            let stands = epoch > 0 && self.probe(&probes, number).await?;
            if self.shared.set_stands(stands) != stands && stands {
                info!("messages of others arrive");
                // What was announced before this is not known.
                self.placed.missed();
            }
            self.work_until(connection, &mut epochs, epoch).await?;
        }
    }

    /// Subscribes and gives up what comes up, until it is time for the next probe.
    async fn work_until(
        &self,
        connection: &mut Connection,
        epochs: &mut watch::Receiver<u64>,
        epoch: u64,
    ) -> RedisResult<()> {
        let next = tokio::time::Instant::now() + PROBE;
        loop {
            let given_up = self.shared.groups().next_given_up();
            let given_up = given_up.map_or(next, |at| next.min(at.into()));
            tokio::select! {
                () = self.shared.work.notified() => {}
                () = sleep_until(given_up) => {}
                _ = epochs.wait_for(|now| *now != epoch) => return Ok(()),
            }
            while self.subscribe_wanted(connection).await? + self.give_up(connection).await? > 0 {}
            if tokio::time::Instant::now() >= next {
                return Ok(());
            }
        }
    }

    async fn subscribe_wanted(&self, connection: &mut Connection) -> RedisResult<usize> {
        let groups = self.shared.groups().take_wanted(BATCH);
        if !groups.is_empty() {
            self.subscribe(connection, self.channels_of(&groups)).await?;
            self.shared.confirm(&groups);
        }
        Ok(groups.len())
    }

    async fn give_up(&self, connection: &mut Connection) -> RedisResult<usize> {
        let groups = self.shared.groups().take_given_up(Instant::now(), BATCH);
        if !groups.is_empty() {
            in_time(connection.change(false, self.channels_of(&groups))).await?;
            self.shared.counts.subscriptions(self.shared.groups().standing());
        }
        Ok(groups.len())
    }

    /// Subscribes the channels of pools that are new.
    async fn subscribe_pools(
        &self,
        connection: &mut Connection,
        known: &mut HashSet<String>,
    ) -> RedisResult<()> {
        let names = &self.common.names;
        let mut now = HashSet::new();
        for (pool, _) in self.truth.rings() {
            now.extend([names.placed(&pool), names.drain(&pool)]);
        }
        let new: Vec<String> = now.difference(known).cloned().collect();
        let gone: Vec<String> = known.difference(&now).cloned().collect();
        *known = now;
        if !gone.is_empty() {
            in_time(connection.change(false, gone)).await?;
        }
        if !new.is_empty() {
            self.subscribe(connection, new).await?;
            self.placed.missed();
        }
        Ok(())
    }

    async fn subscribe(
        &self,
        connection: &mut Connection,
        channels: Vec<String>,
    ) -> RedisResult<()> {
        for batch in channels.chunks(BATCH) {
            in_time(connection.change(true, batch.to_vec())).await?;
        }
        Ok(())
    }

    fn channels_of(&self, groups: &[Group]) -> Vec<String> {
        let name = |group: &Group| self.common.names.channel(&Channel::Group(group.clone()));
        groups.iter().map(name).collect()
    }

    fn own_channels(&self, probes: &[String]) -> Vec<String> {
        let own = Channel::Proxy(Arc::clone(&self.common.identity.proxy));
        let own = [Channel::All, own].map(|channel| self.common.names.channel(&channel));
        own.into_iter().chain(probes.iter().cloned()).collect()
    }

    /// A channel for probes in each shard; without shards the one.
    async fn probe_channels(&self, connection: &mut Connection) -> RedisResult<Vec<String>> {
        let probe = |number| self.common.names.probe(&self.common.identity.proxy, number);
        if !self.common.link.is_sharded() {
            return Ok(vec![probe(0)]);
        }
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let shards = slots::shards(&connection.ask(&command).await?);
        Ok(slots::one_in_each(&shards, probe))
    }

    /// Publishes a probe on each of these channels, and waits until all have come in. `false`: the link
    /// is away.
    async fn probe(&self, channels: &[String], number: u64) -> RedisResult<bool> {
        let payload = [PROBE_MARK, &number.to_be_bytes()].concat();
        let mut probed = self.inlet.probed.subscribe();
        for channel in channels {
            let published = timeout(ARRIVE, self.common.link.publish(channel, &payload)).await;
            if !matches!(published, Ok(Ok(_))) {
                return Ok(false);
            }
        }
        let all_came = |probed: &HashMap<Vec<u8>, u64>| {
            channels.iter().all(|channel| probed.get(channel.as_bytes()) == Some(&number))
        };
        let came = timeout(ARRIVE, probed.wait_for(all_came)).await;
        if came.is_err() { Err(failure("a probe did not arrive")) } else { Ok(true) }
    }
}

async fn in_time(change: impl Future<Output = RedisResult<()>>) -> RedisResult<()> {
    timeout(CONFIRM, change).await.unwrap_or_else(|_| Err(failure("not confirmed in time")))
}

impl Connection {
    /// Subscribes channels, or gives them up; done when all are confirmed.
    async fn change(&mut self, wanted: bool, channels: Vec<String>) -> RedisResult<()> {
        match self {
            Self::One(connection, _) if wanted => connection.subscribe(channels).await,
            Self::One(connection, _) => connection.unsubscribe(channels).await,
            Self::Cluster(connection) => {
                let mut changing = JoinSet::new();
                for channel in channels {
                    let mut connection = connection.clone();
                    if changing.len() >= CONCURRENT
                        && let Some(Ok(changed)) = changing.join_next().await
                    {
                        let () = changed?;
                    }
                    changing.spawn(async move {
                        if wanted {
                            connection.ssubscribe(channel).await
                        } else {
                            connection.sunsubscribe(channel).await
                        }
                    });
                }
                while let Some(changed) = changing.join_next().await {
                    changed.map_err(|_| failure("a subscription panicked"))??;
                }
                Ok(())
            }
        }
    }
}
