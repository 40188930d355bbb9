//! What is asked of whoever owns the proxy and knows its config file.

use tokio::sync::{mpsc, oneshot};

use super::Fleet;
use crate::server::plan::Planned;
use crate::server::reload::ReloadError;

/// What is asked of whoever owns the proxy and knows its config file.
#[derive(Debug)]
pub(crate) enum Order {
    /// Read the config file and put it in force.
    Reload {
        /// Gets what has changed, or what was wrong.
        reply: oneshot::Sender<Result<Planned, ReloadError>>,
    },
    /// Tell what a reload of this text would change.
    Plan {
        /// The text of a config file.
        text: String,
        /// Gets what would change, or what is wrong.
        reply: oneshot::Sender<Result<Planned, ReloadError>>,
    },
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// It runs without a config file.
    #[error("this proxy has no config file to reload")]
    NoFile,
    /// It is stopping, or has too many orders.
    #[error("the proxy takes no orders now; is it stopping?")]
    Busy,
    /// It was carried out, and failed.
    #[error(transparent)]
    Failed(#[from] ReloadError),
}

impl Fleet {
    /// Names who carries out [`Order`]s; once.
    pub(crate) fn obey(&self, operator: mpsc::Sender<Order>) {
        let _ = self.operator.set(operator);
    }

    /// Has the config file reloaded.
    pub(crate) async fn reload(&self) -> Result<Planned, OrderError> {
        self.order(|reply| Order::Reload { reply }).await
    }

    /// Asks what the reload of a text would change.
    pub(crate) async fn plan(&self, text: String) -> Result<Planned, OrderError> {
        self.order(|reply| Order::Plan { text, reply }).await
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<Planned, ReloadError>>) -> Order,
    ) -> Result<Planned, OrderError> {
        let operator = self.operator.get().ok_or(OrderError::NoFile)?;
        let (reply, answer) = oneshot::channel();
        operator.try_send(order(reply)).map_err(|_| OrderError::Busy)?;
        Ok(answer.await.map_err(|_| OrderError::Busy)??)
    }
}
