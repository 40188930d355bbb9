//! Sending to this proxy's own clients: to one, or to an audience, on all workers or on none.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{ASK, Fleet, Message};
use crate::publish::envelope::{self, Envelope, EnvelopeError};
use crate::publish::{Audience, Publication};
use crate::ws::connection::Undeliverable;
use crate::ws::rooms::NotARoom;

/// Why a message did not reach the queue of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// The id is not one of this proxy's.
    #[error("no connection of this proxy has this id")]
    Unknown,
    /// The connection has ended.
    #[error("the connection is gone")]
    Gone,
    /// Its queue does not take it.
    #[error("the connection takes no message: {}", .0.label())]
    Refused(Undeliverable),
    /// Its worker has too much to do, or has ended.
    #[error("the worker of the connection does not answer")]
    Busy,
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It is no message.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It has no audience and names no connection.
    #[error("it must name the connection that it is for")]
    Nobody,
    /// It has an audience, and names a connection.
    #[error("it has an audience, and names one connection beside it")]
    OneOfMany,
    /// The connection that it names is not one of this proxy's.
    #[error("no connection of this proxy has this id")]
    Unknown,
    /// A room can't have this name.
    #[error(transparent)]
    Room(#[from] NotARoom),
    /// A worker has too much to do, or has ended.
    #[error("a worker does not answer")]
    Busy,
}

impl PublishError {
    /// Its word in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Envelope(EnvelopeError::TooLong { .. } | EnvelopeError::TooLarge { .. }) => {
                "too_large"
            }
            Self::Envelope(_) | Self::Nobody | Self::OneOfMany | Self::Room(_) => "malformed",
            Self::Unknown => "gone",
            Self::Busy => "busy",
        }
    }
}

impl Fleet {
    /// Sends a message to one client, as [`Server::deliver`](crate::server::Server::deliver) says.
    pub(crate) async fn deliver(
        &self,
        connection_id: &str,
        frame: Bytes,
    ) -> Result<(), DeliverError> {
        let serial = self.serial(connection_id).ok_or(DeliverError::Unknown)?;
        let inbox = self.inboxes.get(serial.worker()).ok_or(DeliverError::Unknown)?;
        let (reply, answer) = oneshot::channel();
        let message = Message::Deliver { serial, frame, reply };
        inbox.try_send(message).map_err(|_| DeliverError::Busy)?;
        match tokio::time::timeout(ASK, answer).await {
            Ok(Ok(Some(delivered))) => delivered.map_err(DeliverError::Refused),
            Ok(Ok(None)) => Err(DeliverError::Gone),
            Ok(Err(_)) | Err(_) => Err(DeliverError::Busy),
        }
    }

    /// Sends a message to its audience, on all workers or on none. Tells whether anybody is there;
    /// `None` if a worker does not answer.
    pub(crate) async fn publish(&self, publication: Publication) -> Option<bool> {
        let all = async {
            let mut somebody = false;
            for answer in self.hand_out(publication).await? {
                somebody |= answer.await.ok()?;
            }
            Some(somebody)
        };
        tokio::time::timeout(ASK, all).await.ok()?
    }

    /// Puts a message into the inboxes of all workers, or of none: `None`, if one has ended. What is
    /// handed out one after the other, is sent in this order.
    async fn hand_out(&self, publication: Publication) -> Option<Vec<oneshot::Receiver<bool>>> {
        let publication = Arc::new(publication);
        let mut places = Vec::with_capacity(self.inboxes.len());
        for inbox in &self.inboxes {
            places.push(inbox.reserve().await.ok()?);
        }
        let answers = places.into_iter().map(|place| {
            let (reply, answer) = oneshot::channel();
            place.send(Message::Publish { publication: Arc::clone(&publication), reply });
            answer
        });
        Some(answers.collect())
    }

    /// Publishes a message, as [`Server::publish`](crate::server::Server::publish) says.
    pub(crate) async fn publish_message(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<bool, PublishError> {
        let publication = self.publication(audience, message)?;
        self.publish(publication).await.ok_or(PublishError::Busy)
    }

    /// Has a message sent that came from elsewhere, without waiting for it.
    pub(crate) async fn pass_on(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<(), PublishError> {
        let handed_out = self.hand_out(self.publication(audience, message)?);
        let handed_out = tokio::time::timeout(ASK, handed_out).await;
        handed_out.ok().flatten().map(drop).ok_or(PublishError::Busy)
    }

    fn publication(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<Publication, PublishError> {
        let Envelope { action, except, connection } = envelope::read(message, self.max_message)?;
        let audience = match (audience, connection) {
            (Some(audience), None) => audience,
            (None, Some(id)) => Audience::One(self.serial(&id).ok_or(PublishError::Unknown)?),
            (Some(_), Some(_)) => return Err(PublishError::OneOfMany),
            (None, None) => return Err(PublishError::Nobody),
        };
        let except = except.iter().filter_map(|id| self.serial(id)).collect();
        Ok(Publication::new(audience, action, except))
    }
}
