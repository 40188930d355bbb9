//! Where keys are that are not at home, and which backends are to be drained, shared by all proxies.
//!
//! What this proxy has placed is told by workers, under the lock of a pool's keys: it is put into a
//! map of what is to be written, and one task writes that down and announces it. Whatever it can't
//! write is not kept: after every doubt the truth is asked for what is to be there, and the difference
//! to what is there is written. What others have placed comes on the subscription connection
//! ([`Placed::heard`]), and is read anew with each connection, and every now and then for whatever was
//! missed. All of it goes through the same task, so that nothing old overtakes what is newer.
//!
//! A proxy writes its own fields and no others, `KEY@PROXY`, so nobody waits for anybody. What is made of
//! the drains that are read is in [`drains`](super::drains).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{Cmd, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::super::names::Told;
use super::super::{Event, Truth, Unavailable, Wanted};
use super::Common;
use super::connect::is_of_other_type;
use super::drains::{Amends, Drains};
use super::steps::said;
use crate::observe::access_log::unix_millis;
use crate::observe::rate::{Allowed, allowed};

/// Keys that may wait to be written. More of them are not noted one by one: all are written anew.
const MOST_PENDING: usize = 65_536;
/// Keys that are written and announced in one go.
const BATCH: usize = 500;
/// Announcements of others that may wait. What does not fit is read anew.
const MOST_HEARD: usize = 4096;
/// How often all placements are read, for what was missed.
const READ_PLACED: Duration = Duration::from_secs(30);
/// How often the drains are, and pools that are new to the config.
const READ_DRAINS: Duration = Duration::from_secs(10);
/// How long is waited after a failure that left the connection as it is.
const PAUSE: Duration = Duration::from_millis(500);
/// How long an operator waits for a drain to be written down.
const WRITE_WISH: Duration = Duration::from_secs(2);
/// How long is remembered that a drain was undone, for proxies that stand still so long.
const UNDONE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Fields that Redis is asked for at a time.
const PAGE: usize = 1000;

/// What is to be written: pools and keys, and where they are from now on.
type Pending = HashMap<(Arc<str>, Arc<str>), Option<Arc<str>>>;

/// What was announced, and on which channel.
type Heard = (Told, Box<[u8]>);

/// What others are told, and what they tell.
pub(super) struct Placed {
    pending: Mutex<Pending>,
    /// There is something pending, or to be read.
    work: Notify,
    /// What is pending is not all of it.
    is_missing: AtomicBool,
    heard: mpsc::Sender<Heard>,
    /// Taken by the task.
    received: Mutex<Option<mpsc::Receiver<Heard>>>,
    drains: Mutex<Drains>,
    /// Of who writes a wish: what is wished last is written last.
    turn: tokio::sync::Mutex<()>,
}

impl Default for Placed {
    fn default() -> Self {
        let (heard, received) = mpsc::channel(MOST_HEARD);
        Self {
            pending: Mutex::default(),
            work: Notify::new(),
            is_missing: AtomicBool::new(false),
            heard,
            received: Mutex::new(Some(received)),
            drains: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

/// An announcement: of one key, or of several.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Announced<'a> {
    #[serde(borrow)]
    One(Change<'a>),
    #[serde(borrow)]
    Several(Vec<Change<'a>>),
}

/// Where a proxy has a key from now on; at `null` it is nowhere.
#[derive(Deserialize, Serialize)]
struct Change<'a> {
    #[serde(borrow)]
    key: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    proxy: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    backend: Option<std::borrow::Cow<'a, str>>,
}

/// What stands in the hashes of drains, and of those that were undone.
#[derive(Deserialize, Serialize)]
struct Wish<'a> {
    /// In Unix milliseconds.
    since: u64,
    /// The proxy that was asked.
    by: &'a str,
}

/// Keys of one pool, and where they are from now on.
type Changes = Vec<(Arc<str>, Option<Arc<str>>)>;

impl Placed {
    /// Notes what others are to be told. Does not wait.
    pub(super) fn tell(&self, pool: &str, key: &str, backend: Option<&str>) {
        let mut pending = self.pending();
        if pending.len() >= MOST_PENDING {
            pending.clear();
            self.is_missing.store(true, Ordering::Release);
        } else {
            pending.insert((pool.into(), key.into()), backend.map(Arc::from));
        }
        drop(pending);
        self.work.notify_one();
    }

    /// Takes what was announced on a channel that is not for messages. Does not wait.
    pub(super) fn heard(&self, told: &Told, payload: &[u8]) {
        if self.heard.try_send((told.clone(), payload.into())).is_err() {
            self.missed();
        }
    }

    /// Has everything read anew, because announcements may have been missed.
    pub(super) fn missed(&self) {
        self.is_missing.store(true, Ordering::Release);
        self.work.notify_one();
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drains(&self) -> MutexGuard<'_, Drains> {
        self.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn run(
        &self,
        common: &Common,
        truth: &dyn Truth,
        events: &mpsc::Sender<Event>,
    ) {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It runs once.
        let Some(mut received) = received else { return };
        let mut epochs = common.link.epochs();
        let task = Task { placed: self, common, truth, events };
        loop {
            // The link lives as long as this.
            if epochs.wait_for(|epoch| *epoch > 0).await.is_err() {
                return;
            }
            let epoch = *epochs.borrow_and_update();
            tokio::select! {
                outcome = task.connected(&mut received) => {
                    if let Err(error) = outcome {
                        // That it is away has been said.
                        if error != Unavailable::Away
                            && let Some(Allowed { suppressed }) = allowed!(1)
                        {
                            warn!(%error, suppressed, "placements could not be written or read");
                        }
                        sleep(PAUSE).await;
                    }
                }
                () = is_over(&mut epochs, epoch) => {}
            }
        }
    }

    /// Writes down that a backend is to be drained by all proxies, or no longer, and tells them. If
    /// that fails it is made up for as soon as it can be.
    pub(super) async fn drain(
        &self,
        common: &Common,
        pool: &str,
        backend: &str,
        wanted: bool,
    ) -> Result<(), Unavailable> {
        self.drains().wish(pool, backend, wanted);
        if self.write_wish(common, pool, backend, wanted).await? {
            Ok(())
        } else {
            Err(Unavailable::NoAnswer("a key holds something of another type".to_owned()))
        }
    }

    /// Writes down a wish, unless another has come meanwhile. `false`: what is at its key does not let it.
    async fn write_wish(
        &self,
        common: &Common,
        pool: &str,
        backend: &str,
        wanted: bool,
    ) -> Result<bool, Unavailable> {
        let written = async {
            let _turn = self.turn.lock().await;
            if !self.drains().is_wished(pool, backend, wanted) {
                return Ok(true);
            }
            let fits = write_wish(common, pool, backend, wanted).await?;
            if fits {
                self.drains().written(pool, backend, wanted);
            }
            Ok(fits)
        };
        let late = |_| Unavailable::NoAnswer("in time".to_owned());
        timeout(WRITE_WISH, written).await.map_err(late)?
    }
}

/// Waits until the connection is another.
async fn is_over(epochs: &mut watch::Receiver<u64>, epoch: u64) {
    let _ = epochs.wait_for(|now| *now != epoch).await;
}

/// `false`: what is at a key does not let it.
async fn write_wish(
    common: &Common,
    pool: &str,
    backend: &str,
    wanted: bool,
) -> Result<bool, Unavailable> {
    let (asked, undone) = (common.names.drain(pool), common.names.undrained(pool));
    let wish = wish(common);
    // That it was undone goes first, and comes first; in a Cluster nothing else orders the two.
    let (first, then) = if wanted {
        // Who asks again does not change since when it has been so.
        (vec![command("HDEL", &undone, [backend])], command("HSETNX", &asked, [backend, &wish]))
    } else {
        let seconds = UNDONE.as_secs().to_string();
        let remember = command("HSET", &undone, [backend, &wish]);
        let expire = command("EXPIRE", &undone, [&seconds]);
        (vec![remember, expire], command("HDEL", &asked, [backend]))
    };
    let mut fits = true;
    for commands in [first, vec![then]] {
        let answers = common.link.run_all(commands).await?;
        all_well_where_it_fits(&answers)?;
        fits &= !answers.iter().any(is_of_other_type);
    }
    common.link.publish(&asked, backend.as_bytes()).await?;
    Ok(fits)
}

/// What is written of a drain that is asked for or undone now.
fn wish(common: &Common) -> String {
    json(&Wish { since: unix_millis(SystemTime::now()), by: &common.identity.proxy })
}

/// The task that writes and reads, while there is a connection.
struct Task<'a> {
    placed: &'a Placed,
    common: &'a Common,
    truth: &'a dyn Truth,
    events: &'a mpsc::Sender<Event>,
}

impl Task<'_> {
    /// Does all there is to do until something fails. To be dropped when the connection is another.
    async fn connected(&self, received: &mut mpsc::Receiver<Heard>) -> Result<(), Unavailable> {
        // What can't be written must not keep anything from being read.
        let written = self.write_wishes().await;
        self.read_all_drains().await?;
        let amended = self.amend_drains().await;
        self.renew(true).await?;
        written.and(amended)?;
        let mut pools = self.pools();
        let (mut drains, mut placed) = (Instant::now() + READ_DRAINS, Instant::now() + READ_PLACED);
        loop {
            tokio::select! {
                biased;
                () = self.placed.work.notified() => {
                    if self.placed.is_missing.swap(false, Ordering::AcqRel) {
                        self.renew(true).await?;
                        self.read_all_drains().await?;
                        self.amend_drains().await?;
                    }
                    self.write_pending().await?;
                }
                Some((told, payload)) = received.recv() => self.take(told, &payload).await?,
                () = sleep_until(drains) => {
                    self.write_wishes().await?;
                    self.read_all_drains().await?;
                    self.amend_drains().await?;
                    if self.pools() != pools {
                        pools = self.pools();
                        self.renew(false).await?;
                    }
                    drains = Instant::now() + READ_DRAINS;
                }
                () = sleep_until(placed) => {
                    self.renew(false).await?;
                    placed = Instant::now() + READ_PLACED;
                }
            }
        }
    }

    /// The names of the pools in force.
    fn pools(&self) -> Vec<String> {
        self.truth.rings().into_iter().map(|(pool, _)| pool).collect()
    }

    async fn emit(&self, event: Event) {
        // Who took them is gone when the proxy stops.
        let _ = self.events.send(event).await;
    }

    async fn take(&self, told: Told, payload: &[u8]) -> Result<(), Unavailable> {
        match told {
            Told::Drain(pool) => {
                self.read_drains(&pool, payload).await?;
                self.amend_drains().await?;
            }
            Told::Message(_) => {}
            Told::Placed(pool) => {
                // What is no announcement is nobody's of ours.
                let changes = match serde_json::from_slice(payload) {
                    Ok(Announced::One(change)) => vec![change],
                    Ok(Announced::Several(changes)) => changes,
                    Err(_) => Vec::new(),
                };
                for change in changes {
                    if change.proxy == *self.common.identity.proxy {
                        continue;
                    }
                    let Change { key, proxy, backend } = change;
                    self.emit(Event::Placed {
                        pool: pool.clone(),
                        key: key.into_owned(),
                        proxy: proxy.into_owned(),
                        backend: backend.map(std::borrow::Cow::into_owned),
                    })
                    .await;
                }
            }
        }
        Ok(())
    }

    /// Writes what is there that should not be, and what is not there that should, and has others'
    /// placements known. `first`: others may do the same at this moment.
    async fn renew(&self, first: bool) -> Result<(), Unavailable> {
        // It is in what the truth says now.
        self.placed.pending().clear();
        let mut all_written = Ok(());
        for pool in self.pools() {
            let mut there = self.read(&pool).await?;
            let changes = self.difference(&pool, &there);
            if !changes.is_empty() {
                let written = self.write(&pool, changes).await;
                if first && written.is_ok() {
                    // Of two who come at once, one at least finds the other.
                    there = self.read(&pool).await?;
                }
                all_written = all_written.and(written);
            }
            let placed = there.into_iter().filter(|(_, proxy, _)| !self.is_own(proxy)).collect();
            self.emit(Event::PlacedAnew { pool, placed }).await;
        }
        all_written
    }

    fn is_own(&self, proxy: &str) -> bool {
        *proxy == *self.common.identity.proxy
    }

    /// What is to be written of this proxy's own placements.
    fn difference(&self, pool: &str, there: &[(String, String, String)]) -> Changes {
        let mut wanted: HashMap<Arc<str>, Arc<str>> = self.truth.placed(pool).into_iter().collect();
        let mut changes = Changes::new();
        for (key, _, backend) in there.iter().filter(|(_, proxy, _)| self.is_own(proxy)) {
            match wanted.get(key.as_str()) {
                Some(at) if **at == **backend => drop(wanted.remove(key.as_str())),
                Some(_) => {}
                None => changes.push((key.as_str().into(), None)),
            }
        }
        changes.extend(wanted.into_iter().map(|(key, at)| (key, Some(at))));
        changes
    }

    /// Reads all placements of a pool: keys, proxies and backends.
    async fn read(&self, pool: &str) -> Result<Vec<(String, String, String)>, Unavailable> {
        let fields = self.read_hash(&self.common.names.placed(pool)).await?;
        let placed = fields.into_iter().filter_map(|(field, backend)| {
            let (key, proxy) = field.rsplit_once('@')?;
            Some((key.to_owned(), proxy.to_owned(), backend))
        });
        Ok(placed.collect())
    }

    async fn read_hash(&self, name: &str) -> Result<HashMap<String, String>, Unavailable> {
        let (mut all, mut cursor) = (HashMap::new(), "0".to_owned());
        loop {
            let scan = command("HSCAN", name, [&cursor, "COUNT", &PAGE.to_string()]);
            let answers = self.common.link.run_all(vec![scan]).await?;
            if answers.iter().any(is_of_other_type) {
                return Ok(all);
            }
            all_well(&answers)?;
            let page: (String, HashMap<Vec<u8>, Vec<u8>>) = answers
                .into_iter()
                .next()
                .and_then(|answer| redis::from_redis_value(answer).ok())
                .ok_or_else(|| Unavailable::NoAnswer(format!("no hash at {name}")))?;
            // What is no text is none of ours, and must not hide the rest.
            all.extend(page.1.into_iter().filter_map(|(field, value)| {
                Some((String::from_utf8(field).ok()?, String::from_utf8(value).ok()?))
            }));
            cursor = page.0;
            if cursor == "0" {
                return Ok(all);
            }
        }
    }

    async fn write_pending(&self) -> Result<(), Unavailable> {
        let pending = std::mem::take(&mut *self.placed.pending());
        let mut by_pool: HashMap<Arc<str>, Changes> = HashMap::new();
        for ((pool, key), backend) in pending {
            by_pool.entry(pool).or_default().push((key, backend));
        }
        for (pool, changes) in by_pool {
            self.write(&pool, changes).await?;
        }
        Ok(())
    }

    async fn write(&self, pool: &str, changes: Changes) -> Result<(), Unavailable> {
        let name = self.common.names.placed(pool);
        let proxy = &*self.common.identity.proxy;
        for changes in changes.chunks(BATCH) {
            let write = |(key, backend): &(Arc<str>, Option<Arc<str>>)| {
                let field = format!("{key}@{proxy}");
                match backend {
                    Some(backend) => command("HSET", &name, [&field, &**backend]),
                    None => command("HDEL", &name, [&field]),
                }
            };
            let answers = self.common.link.run_all(changes.iter().map(write).collect()).await?;
            let mut told: Vec<Change<'_>> = changes
                .iter()
                .map(|(key, backend)| Change {
                    key: (&**key).into(),
                    proxy: proxy.into(),
                    backend: backend.as_deref().map(Into::into),
                })
                .collect();
            let told = match told.len() {
                1 => Announced::One(told.remove(0)),
                _ => Announced::Several(told),
            };
            // Others hear of it also where Redis takes no writes, but still passes messages on.
            self.common.link.publish(&name, json(&told).as_bytes()).await?;
            all_well_where_it_fits(&answers)?;
        }
        Ok(())
    }

    async fn write_wishes(&self) -> Result<(), Unavailable> {
        let wishes = self.placed.drains().wishes();
        // One that can't be written must not keep the others.
        let mut all_written = Ok(());
        for (pool, backend, wanted) in wishes {
            let written = self.placed.write_wish(self.common, &pool, &backend, wanted).await;
            all_written = all_written.and(written.map(drop));
        }
        all_written
    }

    async fn read_all_drains(&self) -> Result<(), Unavailable> {
        for pool in self.pools() {
            self.read_drains(&pool, b"").await?;
        }
        Ok(())
    }

    /// `news`: the backend that somebody has just spoken of.
    async fn read_drains(&self, pool: &str, news: &[u8]) -> Result<(), Unavailable> {
        let names = &self.common.names;
        // In this order: what is undone between the two is found in one of them at least.
        let wishes = self.read_hash(&names.drain(pool)).await?;
        let asked: BTreeSet<String> = wishes.keys().cloned().collect();
        let undone = self.read_hash(&names.undrained(pool)).await?.into_keys().collect();
        let backends = self.placed.drains().read(pool, &asked, &undone);
        let wanted = |backend: String| Wanted {
            since: wishes.get(&backend).and_then(|wish| since(wish)),
            is_news: backend.as_bytes() == news,
            backend,
        };
        let backends = backends.into_iter().map(wanted).collect();
        self.emit(Event::Drains { pool: pool.to_owned(), backends }).await;
        Ok(())
    }

    /// Writes back the drains that Redis has lost, and removes what is left there of those undone.
    async fn amend_drains(&self) -> Result<(), Unavailable> {
        let amends = self.placed.drains().amends();
        for Amends { pool, lost, undone } in amends {
            let name = self.common.names.drain(&pool);
            let wish = wish(self.common);
            let write = |backend: &String| command("HSETNX", &name, [backend, &wish]);
            let answers = self.common.link.run_all(lost.iter().map(write).collect()).await?;
            all_well_where_it_fits(&answers)?;
            let remove = |backend: &String| command("HDEL", &name, [backend]);
            let removed = self.common.link.run_all(undone.iter().map(remove).collect()).await?;
            all_well_where_it_fits(&removed)?;
            let written = answers.iter().filter(|answer| **answer == Value::Int(1)).count();
            if written > 0 {
                info!(
                    pool,
                    backends = written,
                    "the registry has lost drains; they are there again"
                );
                self.common.link.publish(&name, b"").await?;
            }
        }
        Ok(())
    }
}

/// Since when it is wished, if that is written as it should be.
fn since(wish: &str) -> Option<SystemTime> {
    let Wish { since, .. } = serde_json::from_str(wish).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(since))
}

fn command<const COUNT: usize>(name: &str, key: &str, arguments: [&str; COUNT]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    for argument in arguments {
        command.arg(argument);
    }
    command
}

/// An error if Redis has refused one of the commands.
pub(super) fn all_well(answers: &[Value]) -> Result<(), Unavailable> {
    none_refused(answers.iter())
}

/// The same, but for what was refused because a key holds something of another type.
fn all_well_where_it_fits(answers: &[Value]) -> Result<(), Unavailable> {
    none_refused(answers.iter().filter(|answer| !is_of_other_type(answer)))
}

fn none_refused<'a>(mut answers: impl Iterator<Item = &'a Value>) -> Result<(), Unavailable> {
    let refused = answers.find_map(|answer| match answer {
        Value::ServerError(error) => Some(said(error)),
        _ => None,
    });
    refused.map_or(Ok(()), |error| Err(Unavailable::Refused(error)))
}

fn json(value: &impl Serialize) -> String {
    // Text and numbers alone.
    serde_json::to_string(value).unwrap_or_default()
}
