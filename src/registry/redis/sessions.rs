//! Learnt sessions, shared by all proxies: a string each, which expires with its session.

use std::time::Duration;

use redis::Value;

use super::super::Unavailable;
use super::Common;
use super::placed::all_well;
use super::steps::{carry_out, one};

/// How long a proxy waits to be told of a session that it does not know.
const FIND: Duration = Duration::from_millis(500);

pub(super) async fn find(
    common: &Common,
    name: &str,
) -> Result<Option<(String, Duration)>, Unavailable> {
    let (mut get, mut left) = (redis::cmd("GET"), redis::cmd("PTTL"));
    get.arg(name);
    left.arg(name);
    let asked = common.link.run_all(vec![get, left]);
    let asked = tokio::time::timeout(FIND, asked).await;
    let answers = asked.map_err(|_| Unavailable::NoAnswer("in time".to_owned()))??;
    all_well(&answers)?;
    let Ok([backend, left]) = <[Value; 2]>::try_from(answers) else { return Ok(None) };
    let backend: Option<String> = redis::from_redis_value(backend).ok().flatten();
    let millis = redis::from_redis_value::<i64>(left).unwrap_or_default();
    // It may have expired between the two.
    let left = u64::try_from(millis).ok().filter(|millis| *millis > 0);
    Ok(backend.zip(left.map(Duration::from_millis)))
}

/// Waits no longer than a handshake may: what was sent to Redis by then is carried out all the same.
pub(super) async fn keep(
    common: &Common,
    name: &str,
    backend: &str,
    life: Duration,
) -> Result<(), Unavailable> {
    let millis = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut set = redis::cmd("SET");
    set.arg(name).arg(backend).arg("PX").arg(millis);
    let sent =
        tokio::time::timeout(common.settings.join_wait, common.link.run_all(vec![set])).await;
    all_well(&sent.map_err(|_| Unavailable::NoAnswer("in time".to_owned()))??)
}

/// Removes those that name this backend. What another backend has learnt between the look and that would
/// go too, but no two backends issue the same id.
pub(super) async fn forget(
    common: &Common,
    names: Vec<String>,
    backend: &str,
) -> Result<(), Unavailable> {
    let link = &common.link;
    let found = carry_out(link, names.iter().map(|name| one("GET", name)).collect()).await?;
    let is_its = |found: Value| {
        redis::from_redis_value::<Option<String>>(found)
            .is_ok_and(|at| at.as_deref() == Some(backend))
    };
    let its = names.iter().zip(found).filter_map(|(name, found)| is_its(found).then_some(name));
    carry_out(link, its.map(|name| one("DEL", name)).collect()).await.map(drop)
}
