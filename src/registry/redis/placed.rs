//! Where keys are that are not at home, and which backends are to be drained, shared by all proxies.

use tokio::sync::mpsc;

use super::super::names::Told;
use super::super::{Event, Truth, Unavailable};
use super::Common;

/// What others are to be told.
#[derive(Default)]
pub(super) struct Placed {}

impl Placed {
    pub(super) fn tell(&self, _pool: &str, _key: &str, _backend: Option<&str>) {}

    /// Takes what was announced on a channel that is not for messages. Does not wait.
    pub(super) fn heard(&self, _told: &Told, _payload: &[u8]) {}

    /// Has everything read anew, because announcements may have been missed.
    pub(super) fn missed(&self) {}

    pub(super) async fn run(
        &self,
        common: &Common,
        _truth: &dyn Truth,
        _events: &mpsc::Sender<Event>,
    ) {
        let _ = common.link.epochs();
        std::future::pending::<()>().await;
    }
}

pub(super) async fn drain(
    _common: &Common,
    _pool: &str,
    _backend: &str,
    _wanted: bool,
) -> Result<(), Unavailable> {
    Ok(())
}
