//! Removes what dead proxies have left.

use super::Common;

pub(super) async fn run(common: &Common) {
    tracing::debug!(identity = ?common.identity, "sweeping");
    std::future::pending::<()>().await;
}
