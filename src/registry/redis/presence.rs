//! That the proxy lives, as others see it: its hash, which expires unless it is renewed.
//!
//! A renewal that finds nothing says that the proxy was taken for dead, or that Redis has forgotten
//! everything: the hash is written again, and then the whole table. Whoever was removing what the proxy
//! owns sees the hash and stops; but he may have looked just before, so when his lock must have expired
//! all is written once more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use redis::Cmd;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::{Truth, Unavailable};
use super::placed::Placed;
use super::shadow::Ledger;
use super::steps::{ask, carry_out, command, one, read};
use super::{Common, outside, sweep};

/// What stands before the name of a pool in the field of its ring.
pub(super) const RING: &str = "ring:";

type Fields = BTreeMap<String, String>;

/// Keeps the proxy known, for as long as it is polled.
pub(super) async fn keep(common: &Common, ledger: &Ledger, truth: &dyn Truth, placed: &Placed) {
    let mut epochs = common.link.epochs();
    let mut presence = Presence {
        common,
        ledger,
        truth,
        placed,
        started: SystemTime::now(),
        written: Fields::new(),
        admin: None,
        again: None,
        was_there: false,
    };
    loop {
        ledger.set_announced(false);
        ledger.doubt();
        // The link lives as long as this.
        let Ok(epoch) = epochs.wait_for(|epoch| *epoch > 0).await.map(|epoch| *epoch) else {
            return;
        };
        epochs.mark_unchanged();
        if let Err(error) = presence.through(epoch, &mut epochs).await {
            if error != Unavailable::Away {
                warn!(%error, "the registry does not take this proxy; it is tried again");
            }
            let _ = tokio::time::timeout(common.times.renew, epochs.changed()).await;
        }
    }
}

/// Takes the proxy out of the registry, with all that it owns.
pub(super) async fn end(common: &Common, ledger: &Ledger) -> Result<(), Unavailable> {
    ledger.flush(common).await?;
    let proxy = &common.identity.proxy;
    let hash = common.names.proxy(proxy);
    let fields: Fields = ask(&common.link, one("HGETALL", &hash)).await?;
    let pools = fields.keys().filter_map(|field| Some(field.strip_prefix(RING)?.to_owned()));
    sweep::clear(common, proxy, pools.collect(), &mut sweep::Turn::Own).await?;
    let last = vec![one("DEL", &hash), command("SREM", common.names.proxies(), &**proxy)];
    carry_out(&common.link, last).await.map(drop)
}

struct Presence<'a> {
    common: &'a Common,
    ledger: &'a Ledger,
    truth: &'a dyn Truth,
    placed: &'a Placed,
    started: SystemTime,
    /// What the hash has, as far as it is known.
    written: Fields,
    /// Where the admin API is bound, and where others reach it.
    admin: Option<(SocketAddr, SocketAddr)>,
    /// When all is to be written once more.
    again: Option<Instant>,
    /// Whether it was announced before.
    was_there: bool,
}

impl Presence<'_> {
    /// Keeps the proxy known on one connection to Redis.
    async fn through(
        &mut self,
        epoch: u64,
        epochs: &mut watch::Receiver<u64>,
    ) -> Result<(), Unavailable> {
        self.announce(epoch).await?;
        self.ledger.set_announced(true);
        let times = &self.common.times;
        let mut renewals = tokio::time::interval_at(Instant::now() + times.renew, times.renew);
        renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let again = self.again;
            let once_more = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = epochs.changed() => return Ok(()),
                _ = renewals.tick() => {
                    if !self.renew(epoch).await? {
                        info!("the registry has forgotten this proxy; all is written anew");
                        self.write_anew(epoch).await?;
                    }
                }
                () = once_more => {
                    self.again = None;
                    self.write_anew(epoch).await?;
                }
            }
        }
    }

    /// Writes the hash, and has all else written that others may have removed.
    async fn write_anew(&mut self, epoch: u64) -> Result<(), Unavailable> {
        self.announce(epoch).await?;
        self.placed.missed();
        self.ledger.doubt();
        Ok(())
    }

    /// Writes the hash.
    async fn announce(&mut self, epoch: u64) -> Result<(), Unavailable> {
        let Common { names, identity, times, .. } = self.common;
        let key = names.proxy(&identity.proxy);
        // By another way than before, maybe.
        self.admin = None;
        let fields = self.fields(epoch).await;
        let mut commands = vec![self.expire(), set(&key, &fields), self.expire()];
        commands.push(command("SADD", names.proxies(), &*identity.proxy));
        commands.extend(forget(&key, &self.written, &fields));
        let mut answers = carry_out(&self.common.link, commands).await?.into_iter();
        let lived: bool = read(answers.next().unwrap_or(redis::Value::Nil))?;
        if !lived && self.was_there {
            self.again = Some(Instant::now() + times.lock);
        }
        self.was_there = true;
        self.written = fields;
        Ok(())
    }

    /// Renews the hash. `false`: it was not there.
    async fn renew(&mut self, epoch: u64) -> Result<bool, Unavailable> {
        let link = &self.common.link;
        if !ask::<bool>(link, self.expire()).await? {
            return Ok(false);
        }
        let fields = self.fields(epoch).await;
        if fields == self.written {
            return Ok(true);
        }
        let key = self.common.names.proxy(&self.common.identity.proxy);
        let is_other =
            |(field, value): &(&String, &String)| self.written.get(*field) != Some(*value);
        let other: Vec<_> = fields.iter().filter(is_other).collect();
        let new = other.iter().filter(|(field, _)| !self.written.contains_key(*field)).count();
        if let Some(forget) = forget(&key, &self.written, &fields) {
            carry_out(link, vec![forget]).await?;
        }
        // One that is gone since the command before has more fields that are new.
        let lived = other.is_empty() || ask::<usize>(link, set(&key, other)).await? <= new;
        self.written = fields;
        Ok(lived)
    }

    fn expire(&self) -> Cmd {
        let Common { names, identity, times, .. } = self.common;
        command("EXPIRE", names.proxy(&identity.proxy), times.life.as_secs())
    }

    async fn fields(&mut self, epoch: u64) -> Fields {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut fields = Fields::from([
            ("name".to_owned(), self.common.identity.name.clone()),
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("started".to_owned(), started.as_millis().to_string()),
            ("connections".to_owned(), self.truth.connections().to_string()),
            ("epoch".to_owned(), epoch.to_string()),
        ]);
        if let Some(admin) = self.admin().await {
            fields.insert("admin".to_owned(), admin.to_string());
        }
        let rings = self.truth.rings().into_iter();
        fields.extend(rings.map(|(pool, ring)| (format!("{RING}{pool}"), ring)));
        fields
    }

    /// Where others reach the admin API; found out anew where that is bound elsewhere than before.
    async fn admin(&mut self) -> Option<SocketAddr> {
        let bound = self.truth.admin()?;
        if let Some((known, reached)) = self.admin
            && known == bound
        {
            return Some(reached);
        }
        let reached = match self.common.link.server() {
            Some(redis) => outside::reached_at(bound, &redis).await,
            None => bound,
        };
        self.admin = Some((bound, reached));
        Some(reached)
    }
}

fn set<'a>(key: &str, fields: impl IntoIterator<Item = (&'a String, &'a String)>) -> Cmd {
    let mut command = one("HSET", key);
    for (field, value) in fields {
        command.arg(field).arg(value);
    }
    command
}

/// Removes the fields that are no more.
fn forget(key: &str, old: &Fields, new: &Fields) -> Option<Cmd> {
    let mut gone = old.keys().filter(|field| !new.contains_key(*field)).peekable();
    gone.peek()?;
    let mut command = one("HDEL", key);
    for field in gone {
        command.arg(field);
    }
    Some(command)
}
