//! Where other proxies have a key that this one has heard nothing of.
//!
//! They tell each other of keys away from home alone ([`pool`](crate::pool)). So a key that would not go
//! to its home here, because that is out of service, full or drained, or because it can't be
//! connected to, may have live connections there all the same: in that case, and in no other, the
//! registry is asked before the key goes on, for no longer than a handshake may wait for it. Where
//! it is away or does not answer, the key goes where it can.

use std::sync::Arc;
use std::time::Duration;

use super::Context;
use crate::pool::{Backend, Pool};
use crate::registry::Registry;
use crate::route::key::Key;

/// How soon the registry has heard that connections have ended with their backend.
const SOON: Duration = Duration::from_millis(100);

/// Where a key that comes anew has live connections, if that is to be asked.
pub(super) async fn lives_at(
    context: &Context,
    pool: &Pool,
    key: Option<&Key>,
) -> Option<Arc<Backend>> {
    let key = key.filter(|key| pool.is_in_doubt(key.as_str()))?;
    find(&*context.shared.registry, pool, key.as_str()).await
}

/// Where a key has live connections that could not be connected to `failed`.
pub(super) async fn still_lives_at(
    context: &Context,
    pool: &Pool,
    key: &str,
    failed: &Arc<Backend>,
) -> Option<Arc<Backend>> {
    if pool.find_elsewhere(key).is_some() {
        return None;
    }
    let registry = &*context.shared.registry;
    let lives = find(registry, pool, key).await?;
    if !Arc::ptr_eq(&lives, failed) {
        return Some(lives);
    }
    // It may have just died, and what lived there with it.
    tokio::time::sleep(SOON).await;
    find(registry, pool, key).await
}

/// The backend where other proxies have live connections of a key.
pub(crate) async fn find(registry: &dyn Registry, pool: &Pool, key: &str) -> Option<Arc<Backend>> {
    let id = registry.others()?.lives_at(pool.name(), key).await.ok()??;
    pool.backend(&id).filter(|backend| !backend.is_lost()).cloned()
}
