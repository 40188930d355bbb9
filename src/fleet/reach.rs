//! Sending to clients of any proxy, and asking about them.
//!
//! What is for many goes through the registry, also to this proxy's own: so everybody has the messages
//! of one publisher in the same order, and nobody twice. Where the registry is away it goes to this
//! proxy's own connections alone, and whoever sent it is told that this was not all. What only another
//! proxy can do fails then.

use std::sync::PoisonError;

use super::Fleet;
use crate::publish::envelope::{self, Said};
use crate::publish::{Action, Audience, Publication};
use crate::registry::{Channel, Group, Others, State, Unavailable};
use crate::ws::connection::Serial;
use crate::ws::message::Payload;

/// Whom an id names.
pub(crate) enum Whose<'f> {
    /// A connection that is this proxy's, or was.
    Ours(Serial),
    /// One of another proxy, as far as its id tells.
    Others(&'f dyn Others, &'f str),
    /// Nobody's.
    Nobodys,
}

/// How far a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// How many proxies have somebody of the audience.
    pub(crate) proxies: usize,
    /// Only this proxy's own could be reached.
    pub(crate) partial: bool,
}

/// Why a message did not go out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReachError {
    /// A worker of this proxy does not answer.
    #[error("a worker does not answer; try again")]
    Busy,
    /// It takes the registry.
    #[error(transparent)]
    Registry(#[from] Unavailable),
}

impl Fleet {
    /// The longest data message that goes to a client, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.max_message
    }

    /// The address of the admin API, if there is one.
    pub(crate) fn admin_address(&self) -> Option<String> {
        self.admin_address.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.to_string())
    }

    /// Says where the admin API is from now on.
    pub(crate) fn set_admin_address(&self, address: Option<std::net::SocketAddr>) {
        *self.admin_address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// Tells whose connection an id names.
    pub(crate) fn whose<'f>(&'f self, id: &'f str) -> Whose<'f> {
        if let Some(serial) = self.serial(id) {
            return Whose::Ours(serial);
        }
        let Some((proxy, rest)) = id.split_once('.') else { return Whose::Nobodys };
        let is_id = !proxy.is_empty() && !rest.is_empty() && !rest.contains('.');
        match self.shared.registry.others() {
            Some(others) if is_id && *proxy != *self.shared.proxy_id => {
                Whose::Others(others, proxy)
            }
            _ => Whose::Nobodys,
        }
    }

    /// Sends a message to an audience, wherever it is, but to none of these ids.
    pub(crate) async fn reach(
        &self,
        audience: Audience,
        payload: Payload<'_>,
        except: &[String],
    ) -> Result<Reached, ReachError> {
        let registry = &self.shared.registry;
        let others = registry.others();
        // While its own subscriptions don't stand, this proxy would not hear what it says.
        let in_reach = others.filter(|_| registry.state() == State::Up);
        if let Some((others, channel)) = in_reach.zip(channel(&audience)) {
            let message = envelope::write(Said::Message(payload), except, None);
            match others.publish(&channel, message).await {
                Ok(proxies) => return Ok(Reached { proxies, partial: false }),
                // Nothing was sent, so nobody has it twice.
                Err(Unavailable::Away) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let except = except.iter().filter_map(|id| self.serial(id)).collect();
        let publication = Publication::new(audience, Action::Send(payload.frame()), except);
        let somebody = self.publish(publication).await.ok_or(ReachError::Busy)?;
        Ok(Reached { proxies: usize::from(somebody), partial: others.is_some() })
    }

    /// Hands something on to the proxy of a connection; tells whether that proxy is there.
    pub(crate) async fn hand_on(
        &self,
        others: &dyn Others,
        proxy: &str,
        id: &str,
        said: Said<'_>,
    ) -> Result<bool, Unavailable> {
        let message = envelope::write(said, &[], Some(id));
        Ok(others.publish(&Channel::Proxy(proxy.into()), message).await? > 0)
    }
}

/// The channel of an audience; one connection has none of its own.
fn channel(audience: &Audience) -> Option<Channel> {
    Some(match audience {
        Audience::All => Channel::All,
        Audience::Room(room) => Channel::Group(room.group()),
        Audience::Key { pool, key } => {
            Channel::Group(Group::Key { pool: pool.as_str().into(), key: key.as_str().into() })
        }
        Audience::One(_) => return None,
    })
}
