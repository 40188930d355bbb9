//! Learnt sessions, shared by all proxies: a string each, which expires with its session.

use std::time::Duration;

use redis::Value;

use super::super::Unavailable;
use super::Common;
use super::placed::all_well;

/// How long a proxy waits to be told of a session that it does not know.
const FIND: Duration = Duration::from_millis(500);

pub(super) async fn find(common: &Common, name: &str) -> Result<Option<String>, Unavailable> {
    let mut get = redis::cmd("GET");
    get.arg(name);
    let asked = tokio::time::timeout(FIND, common.link.run_all(vec![get])).await;
    let answers = asked.map_err(|_| Unavailable::NoAnswer("in time".to_owned()))??;
    all_well(&answers)?;
    Ok(match answers.into_iter().next() {
        Some(Value::Nil) | None => None,
        Some(answer) => redis::from_redis_value(answer).ok(),
    })
}

pub(super) async fn keep(
    common: &Common,
    name: &str,
    backend: &str,
    life: Duration,
) -> Result<(), Unavailable> {
    let millis = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut set = redis::cmd("SET");
    set.arg(name).arg(backend).arg("PX").arg(millis);
    all_well(&common.link.run_all(vec![set]).await?)
}
