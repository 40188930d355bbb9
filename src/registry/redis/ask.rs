//! Answers for connections of other proxies.

use super::super::{Owned, Unavailable};
use super::Common;

pub(super) async fn owner(_common: &Common, _id: &str) -> Result<Option<Owned>, Unavailable> {
    Ok(None)
}

pub(super) async fn of_key(
    _common: &Common,
    _pool: &str,
    _key: &str,
    _after: Option<&str>,
    _limit: usize,
) -> Result<Vec<Owned>, Unavailable> {
    Ok(Vec::new())
}
