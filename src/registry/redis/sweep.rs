//! Removes what dead proxies have left, and reads who else is there.
//!
//! Every proxy looks at all others now and then. One whose hash has expired is dead, or so far away
//! that it makes no difference: what it owned is removed by whoever gets the lock for it. A proxy that
//! comes back, because it was only paused, writes its hash first; so before each batch is looked
//! whether it has. What is removed nevertheless, it writes again.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use redis::Value;
use tokio::time::sleep;
use tracing::{info, warn};

use super::super::names::shards;
use super::super::{Peer, Truth, Unavailable};
use super::link::Link;
use super::pending::gone;
use super::presence::RING;
use super::shadow::Ledger;
use super::steps::{Steps, ask, carry_out, carry_out_where_it_fits, command, one, read};
use super::{Common, record};
use crate::observe::rate::{Allowed, allowed};

/// How long after a new connection the others are looked at: proxies that started at the same moment
/// have come by then.
const FIRST: Duration = Duration::from_secs(1);
/// Fields that are asked for at a time.
const PART: usize = 200;

/// Looks at the others, for as long as it is polled.
pub(super) async fn run(common: &Common, ledger: &Ledger, truth: &dyn Truth) {
    let mut epochs = common.link.epochs();
    let mut wait = FIRST;
    loop {
        // The link lives as long as this.
        let _ = epochs.wait_for(|epoch| *epoch > 0).await;
        epochs.mark_unchanged();
        tokio::select! {
            _ = epochs.changed() => {
                wait = FIRST;
                continue;
            }
            () = sleep(wait) => wait = common.times.look,
        }
        if let Err(error) = look(common, ledger, truth).await
            && error != Unavailable::Away
            && let Some(Allowed { suppressed }) = allowed!()
        {
            warn!(%error, suppressed, "the other proxies in the registry could not be read");
        }
    }
}

/// Looks at each other proxy once.
async fn look(common: &Common, ledger: &Ledger, truth: &dyn Truth) -> Result<(), Unavailable> {
    let (link, names, own) = (&common.link, &common.names, &*common.identity.proxy);
    let all: BTreeSet<String> = ask(link, one("SMEMBERS", &names.proxies())).await?;
    if !all.contains(own) {
        // Whoever removed it did not see it come back.
        carry_out(link, vec![command("SADD", names.proxies(), own)]).await?;
    }
    let others: Vec<String> = all.into_iter().filter(|proxy| proxy != own).collect();
    let hashes = others.iter().map(|proxy| one("HGETALL", &names.proxy(proxy)));
    let hashes = carry_out_where_it_fits(link, hashes.collect()).await?;
    let (mut peers, mut dead) = (Vec::new(), Vec::new());
    for (proxy, hash) in others.into_iter().zip(hashes) {
        // Where it is no hash nobody can tell whether the proxy lives.
        let Some(hash) = hash else { continue };
        let fields: HashMap<String, String> = read(hash)?;
        if fields.is_empty() { dead.push(proxy) } else { peers.push(peer(proxy, fields)) }
    }
    ledger.set_peers(peers);
    let mut all_swept = Ok(());
    for proxy in dead {
        // One that can't be removed must not keep the others.
        all_swept = sweep(common, ledger, truth, &proxy).await.and(all_swept);
    }
    all_swept
}

fn peer(proxy: String, mut fields: HashMap<String, String>) -> Peer {
    let admin = fields.remove("admin");
    let rings = fields.into_iter();
    let rings =
        rings.filter_map(|(field, ring)| Some((field.strip_prefix(RING)?.to_owned(), ring)));
    let mut rings: Vec<_> = rings.collect();
    rings.sort_unstable();
    Peer { proxy, admin, rings }
}

/// Removes what a dead proxy has left, unless another does.
async fn sweep(
    common: &Common,
    ledger: &Ledger,
    truth: &dyn Truth,
    proxy: &str,
) -> Result<(), Unavailable> {
    let (link, names, own) = (&common.link, &common.names, &*common.identity.proxy);
    let lock = names.sweep(proxy);
    let mut take = command("SET", lock.clone(), own);
    take.arg("NX").arg("PX").arg(millis(common.times.lock));
    if ask::<Value>(link, take).await? == Value::Nil {
        return Ok(());
    }
    info!(proxy, "another proxy is dead; what it owned is removed from the registry");
    let mut turn = Turn::Lock { renewed: Instant::now() };
    let pools = truth.rings().into_iter().map(|(pool, _)| pool).collect();
    let Some(removed) = clear(common, proxy, pools, &mut turn).await? else {
        info!(proxy, "it is back, or another has taken over; nothing more is removed");
        return carry_out(link, vec![one("DEL", &lock)]).await.map(drop);
    };
    let last = vec![command("SREM", names.proxies(), proxy), one("DEL", &lock)];
    carry_out(link, last).await?;
    ledger.counts().swept.inc();
    info!(proxy, connections = removed, "nothing of the dead proxy is left in the registry");
    Ok(())
}

/// By what right something is removed.
pub(super) enum Turn {
    /// It is the proxy's own.
    Own,
    /// The proxy is dead, and it is locked for us.
    Lock {
        /// When that was said last.
        renewed: Instant,
    },
}

impl Turn {
    /// Whether that is still so.
    async fn holds(&mut self, common: &Common, proxy: &str) -> Result<bool, Unavailable> {
        let Self::Lock { renewed } = self else { return Ok(true) };
        let lock = common.names.sweep(proxy);
        let looks = vec![one("EXISTS", &common.names.proxy(proxy)), one("GET", &lock)];
        let mut answers = carry_out(&common.link, looks).await?.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Nil);
        let (is_back, holder): (bool, Option<String>) = (read(next())?, read(next())?);
        if is_back || holder.as_deref() != Some(&common.identity.proxy) {
            return Ok(false);
        }
        let life = common.times.lock;
        if renewed.elapsed() > life / 3 {
            let renew = command("PEXPIRE", lock, millis(life));
            carry_out(&common.link, vec![renew]).await?;
            *renewed = Instant::now();
        }
        Ok(true)
    }
}

/// Removes the connections of a proxy, and what it has placed in these pools and in theirs. Tells how
/// many connections that were; `None`: it must not go on.
pub(super) async fn clear(
    common: &Common,
    proxy: &str,
    mut pools: BTreeSet<String>,
    turn: &mut Turn,
) -> Result<Option<usize>, Unavailable> {
    let mut removed = 0;
    for shard in shards() {
        let key = common.names.owns(proxy, &shard);
        let mut cursor = 0;
        loop {
            if !turn.holds(common, proxy).await? {
                return Ok(None);
            }
            let (next, rows) = scan(&common.link, &key, cursor).await?;
            removed += rows.len();
            remove(common, proxy, &rows, &mut pools).await?;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    for pool in pools {
        if !clear_placed(common, proxy, &pool, turn).await? {
            return Ok(None);
        }
    }
    Ok(Some(removed))
}

/// Removes connections, of which it notes the pools.
async fn remove(
    common: &Common,
    proxy: &str,
    rows: &[Row],
    pools: &mut BTreeSet<String>,
) -> Result<(), Unavailable> {
    let mut steps = Steps::of(&common.names, proxy);
    let mut rooms = BTreeSet::new();
    for (id, json) in rows {
        let Some(rest) = rest(id, proxy) else { continue };
        let record = record::decode(json);
        if let Some(record) = &record {
            rooms.extend(record.rooms.iter().cloned());
            if !pools.contains(&*record.pool) {
                pools.insert(record.pool.to_string());
            }
        }
        steps.remove(rest, &record.and_then(gone));
    }
    rooms.iter().for_each(|room| steps.room(room, 0));
    steps.take(&common.link).await.map(drop)
}

/// Removes what a proxy has placed in a pool, and says so. `false`: it must not go on.
async fn clear_placed(
    common: &Common,
    proxy: &str,
    pool: &str,
    turn: &mut Turn,
) -> Result<bool, Unavailable> {
    let name = common.names.placed(pool);
    let mut cursor = 0;
    loop {
        if !turn.holds(common, proxy).await? {
            return Ok(false);
        }
        let (next, rows) = scan(&common.link, &name, cursor).await?;
        let fields = rows.iter().filter_map(|(field, _)| {
            let (key, of) = std::str::from_utf8(field).ok()?.rsplit_once('@')?;
            (of == proxy).then_some((field, key))
        });
        let (fields, keys): (Vec<&Vec<u8>>, Vec<&str>) = fields.unzip();
        if !fields.is_empty() {
            let forget = command("HDEL", name.clone(), fields);
            carry_out(&common.link, vec![forget]).await?;
            let nowhere =
                |key: &&str| serde_json::json!({ "key": key, "proxy": proxy, "backend": null });
            let changes: Vec<_> = keys.iter().map(nowhere).collect();
            let changes = serde_json::Value::from(changes).to_string();
            common.link.publish(&name, changes.as_bytes()).await?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(true);
        }
    }
}

/// A field of a hash, and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// Some fields of a hash, and from where to go on; 0: nothing follows. What is no hash has none.
pub(super) async fn scan(
    link: &Link,
    key: &str,
    cursor: u64,
) -> Result<(u64, Vec<Row>), Unavailable> {
    let mut scan = command("HSCAN", key.to_owned(), cursor);
    scan.arg("COUNT").arg(PART);
    let answer = carry_out_where_it_fits(link, vec![scan]).await?.pop().flatten();
    answer.map_or_else(|| Ok((0, Vec::new())), read)
}

/// What stands behind the dot in the id of a connection of a proxy.
pub(super) fn rest<'a>(id: &'a [u8], proxy: &str) -> Option<&'a str> {
    std::str::from_utf8(id).ok()?.strip_prefix(proxy)?.strip_prefix('.')
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
