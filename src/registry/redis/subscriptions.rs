//! Which groups have members here, and the connection on which messages for them arrive.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::memory::Rooms;
use super::super::{Boxed, Event, Group};
use super::Common;

/// The subscriptions of one proxy.
#[derive(Default)]
pub(super) struct Subscriptions {
    rooms: Mutex<Rooms>,
}

impl Subscriptions {
    pub(super) fn enter(&self, group: Group) {
        if let Group::Room(room) = group {
            self.rooms.lock().unwrap_or_else(PoisonError::into_inner).enter(room);
        }
    }

    pub(super) fn leave(&self, group: &Group) {
        if let Group::Room(room) = group {
            self.rooms.lock().unwrap_or_else(PoisonError::into_inner).leave(room);
        }
    }

    pub(super) fn rooms(&self) -> (usize, usize) {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }

    /// Whether what is published arrives.
    pub(super) fn stand_all(&self) -> bool {
        false
    }

    pub(super) fn stand(
        &self,
        _groups: &mut dyn Iterator<Item = Group>,
        _wait: Duration,
    ) -> Option<Boxed<'static, ()>> {
        None
    }

    pub(super) async fn run(&self, _common: &Common, _events: &mpsc::Sender<Event>) {
        std::future::pending::<()>().await;
    }
}
