//! Writes the whole table to Redis, as a difference to what is there.
//!
//! Connections open and close meanwhile. What Redis has is read first, then the table, page by page;
//! each page is written before the changes that came behind it are. A connection that ended before its
//! page was read isn't in it, and the end of one that ended later is still to be written. What Redis
//! had at the beginning and no page has, has ended in between. Rooms come last, when all records are
//! there; those that have no member here any more were named in records that were read.
//!
//! Of all that is in Redis only ids are kept meanwhile.

use std::collections::HashSet;
use std::time::Instant;

use tracing::{debug, info};

use super::super::names::{shard, shards};
use super::super::{Truth, Unavailable};
use super::Common;
use super::pending::{Pending, gone};
use super::shadow::Ledger;
use super::steps::{carry_out_where_it_fits, command, read};
use super::{record, sweep};

/// Connections, or rooms, that are read or written at a time.
const PART: usize = 200;

/// Rewrites the table. Without an error there may be a new doubt, of which the ledger tells.
pub(super) async fn whole(
    common: &Common,
    ledger: &Ledger,
    truth: &dyn Truth,
) -> Result<(), Unavailable> {
    let began = Instant::now();
    ledger.note(Pending::begin);
    let mut there = what_is_there(common, ledger).await?;
    let live = write_pages(common, ledger, truth, &mut there).await?;
    let stale = there.len();
    remove(common, ledger, there).await?;
    let Some(last) = ledger.note(Pending::settle) else {
        debug!("the registry is in doubt again");
        return Ok(());
    };
    ledger.write_batch(common, &last).await?;
    write_rooms(common, ledger).await?;
    ledger.counts().rewrites.inc();
    info!(connections = live, stale, took = ?began.elapsed(), "the registry has all connections");
    Ok(())
}

/// What Redis has of this proxy: the parts of ids behind the dot.
async fn what_is_there(common: &Common, ledger: &Ledger) -> Result<HashSet<Box<str>>, Unavailable> {
    let mut there = HashSet::new();
    for shard in shards() {
        let key = common.names.owns(&common.identity.proxy, &shard);
        let mut cursor = 0;
        loop {
            let (next, rows) = sweep::scan(&common.link, &key, cursor).await?;
            let records = rows.iter().filter_map(|(_, json)| record::decode(json));
            let rooms: HashSet<_> = records.flat_map(|record| record.rooms).collect();
            ledger.note(|pending| rooms.iter().for_each(|room| pending.suspect(room)));
            let rests = rows.iter().filter_map(|(id, _)| sweep::rest(id, &common.identity.proxy));
            there.extend(rests.map(Box::from));
            ledger.flush(common).await?;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(there)
}

/// Writes all connections that live, and takes them out of what is there. Tells how many.
async fn write_pages(
    common: &Common,
    ledger: &Ledger,
    truth: &dyn Truth,
    there: &mut HashSet<Box<str>>,
) -> Result<usize, Unavailable> {
    let (mut cursor, mut count) = (None, 0);
    loop {
        let page = truth.page(cursor).await;
        let page = page.ok_or_else(|| Unavailable::NoAnswer("a worker is busy".to_owned()))?;
        let mut steps = common.own_steps();
        for (rest, record) in &page.connections {
            steps.put(rest, record);
            there.remove(rest);
            count += 1;
        }
        ledger.take_steps(common, steps).await?;
        ledger.flush(common).await?;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(count);
        }
    }
}

/// Removes connections that have ended.
async fn remove(
    common: &Common,
    ledger: &Ledger,
    ended: HashSet<Box<str>>,
) -> Result<(), Unavailable> {
    let ended: Vec<Box<str>> = ended.into_iter().collect();
    for part in ended.chunks(PART) {
        let proxy = &common.identity.proxy;
        let ask = part.iter().map(|rest| {
            command("HGET", common.names.owns(proxy, shard(rest)), format!("{proxy}.{rest}"))
        });
        let found = carry_out_where_it_fits(&common.link, ask.collect()).await?;
        let mut steps = common.own_steps();
        for (rest, json) in part.iter().zip(found) {
            let json: Option<Vec<u8>> = json.map_or(Ok(None), read)?;
            let record = json.and_then(|json| record::decode(&json));
            steps.remove(rest, &record.and_then(gone));
        }
        ledger.take_steps(common, steps).await?;
        ledger.flush(common).await?;
    }
    Ok(())
}

/// Writes the numbers of all rooms.
async fn write_rooms(common: &Common, ledger: &Ledger) -> Result<(), Unavailable> {
    let mut after = None;
    loop {
        let (rooms, last) = ledger.note(|pending| pending.rooms_after(after.as_deref(), PART));
        let mut steps = common.own_steps();
        rooms.iter().for_each(|(room, members)| steps.room(room, *members));
        ledger.take_steps(common, steps).await?;
        ledger.flush(common).await?;
        if last.is_none() {
            return Ok(());
        }
        after = last;
    }
}
