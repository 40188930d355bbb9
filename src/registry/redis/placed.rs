//! Where keys are that are not at home, and which backends are to be drained, shared by all proxies.

use tokio::sync::mpsc;

use super::super::{Event, Truth, Unavailable};
use super::Common;

/// What others are to be told.
#[derive(Default)]
pub(super) struct Placed {}

impl Placed {
    pub(super) fn tell(&self, _pool: &str, _key: &str, _backend: Option<&str>) {}

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
