//! Looks up connections of any proxy.

use std::collections::BTreeSet;

use super::super::names::shard;
use super::super::{Owned, Unavailable};
use super::steps::{ask, carry_out, command, read};
use super::{Common, record};

/// Members of a set that are asked for at a time.
const PART: usize = 1000;
/// How often ids that turn out to be nobody's are made up for.
const ROUNDS: usize = 4;
/// How many connections of a key are looked at to find one of another proxy.
const LOOKED_AT: usize = 32;

/// Finds a connection.
pub(super) async fn owner(common: &Common, id: &str) -> Result<Option<Owned>, Unavailable> {
    Ok(of_ids(common, [id.to_owned()]).await?.pop())
}

/// The connections of a key of a pool behind an id, in the order of their ids, at most `limit`.
pub(super) async fn of_key(
    common: &Common,
    pool: &str,
    key: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Owned>, Unavailable> {
    let name = common.names.key(pool, key);
    let (mut found, mut after) = (Vec::new(), after.map(str::to_owned));
    for _ in 0..ROUNDS {
        let wanted = limit.saturating_sub(found.len());
        let ids = first_behind(common, &name, after.as_deref(), wanted).await?;
        let is_last = ids.len() < wanted;
        after = ids.last().cloned().or(after);
        found.extend(of_ids(common, ids).await?);
        if is_last || found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

/// The backend of a connection that another proxy has of a key, if one has any. Waits no longer than a
/// handshake may.
pub(super) async fn lives_at(
    common: &Common,
    pool: &str,
    key: &str,
) -> Result<Option<String>, Unavailable> {
    let found = of_key(common, pool, key, None, LOOKED_AT);
    let found = tokio::time::timeout(common.settings.join_wait, found).await;
    let found = found.map_err(|_| Unavailable::NoAnswer("in time".to_owned()))??;
    let own = |id: &str| id.split_once('.').is_some_and(|(of, _)| *of == *common.identity.proxy);
    let others = found.iter().find(|one| !own(&one.id));
    Ok(others.map(|one| one.record.backend.to_string()))
}

/// The first members of a set behind one, in order, at most `limit`, whatever its size.
async fn first_behind(
    common: &Common,
    name: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<BTreeSet<String>, Unavailable> {
    let mut first = BTreeSet::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = command("SSCAN", name.to_owned(), cursor);
        scan.arg("COUNT").arg(PART);
        let (next, ids): (u64, Vec<String>) = ask(&common.link, scan).await?;
        for id in ids.into_iter().filter(|id| after.is_none_or(|after| **id > *after)) {
            first.insert(id);
            if first.len() > limit {
                first.pop_last();
            }
        }
        cursor = next;
        if cursor == 0 {
            return Ok(first);
        }
    }
}

/// Those of some ids that are connections.
async fn of_ids(
    common: &Common,
    ids: impl IntoIterator<Item = String>,
) -> Result<Vec<Owned>, Unavailable> {
    let known = ids.into_iter().filter_map(|id| {
        let (proxy, rest) = id.split_once('.')?;
        let ask = command("HGET", common.names.owns(proxy, shard(rest)), &id);
        Some((id, ask))
    });
    let (ids, asks): (Vec<String>, Vec<_>) = known.unzip();
    let mut found = Vec::new();
    for (id, json) in ids.into_iter().zip(carry_out(&common.link, asks).await?) {
        let json: Option<Vec<u8>> = read(json)?;
        let record = json.and_then(|json| record::decode(&json));
        found.extend(record.map(|record| Owned { id, record }));
    }
    Ok(found)
}
