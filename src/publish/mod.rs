//! Messages of others to clients: what they may say, and how they reach whom they are for.
//!
//! A [`Publication`] is one message for an [`Audience`]. Each worker gets it once, finds the members
//! of the audience among its own connections by the indexes of its
//! [`Table`], and puts it into their queues a few at a time, in
//! [`deliver`]. A data message is encoded as a frame once, by whoever publishes it, and all members
//! share the bytes. From a queue it goes out between two messages of the backend, as
//! [`ws`](crate::ws) does it.
//!
//! What one publisher sends to one audience arrives in the order in which it was sent.

pub mod deliver;
pub mod envelope;

use std::rc::Rc;

use bytes::Bytes;

use crate::ws::close::CloseCode;
use crate::ws::connection::{Connection, Serial, Undeliverable};
use crate::ws::rooms::Room;
use crate::ws::table::Table;

/// The longest data message that is sent to clients, in bytes of its payload.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every connection.
    All,
    /// The members of a room.
    Room(Room),
    /// The connections of a key.
    Key {
        /// The name of its pool.
        pool: String,
        /// The key.
        key: String,
    },
    /// One connection.
    One(Serial),
}

impl Audience {
    /// Its connections behind a serial in ascending order, at most `limit`. Handshakes under way are
    /// among them.
    fn after(&self, table: &Table, serial: Option<Serial>, limit: usize) -> Vec<Rc<Connection>> {
        match self {
            Self::All => table.after(serial, limit, |_| true),
            Self::Room(room) => table.members_after(room, serial, limit),
            Self::Key { pool, key } => table.of_key_after(pool, key, serial, limit),
            Self::One(one) if serial.is_none() => table.get(*one).into_iter().collect(),
            Self::One(_) => Vec::new(),
        }
    }
}

/// What becomes of each member of an audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It gets this data message: one whole, unmasked frame.
    Send(Bytes),
    /// It is closed, behind what it was sent before.
    Close {
        /// The code of its Close.
        code: CloseCode,
        /// What its Close says.
        text: Box<str>,
    },
    /// It joins these rooms.
    Join(Vec<Room>),
    /// It leaves these rooms.
    Leave(Vec<Room>),
}

impl Action {
    /// How long its frame is; `None` if it is no message, and may change who hears the next one.
    fn frame_bytes(&self) -> Option<usize> {
        match self {
            Self::Send(frame) => Some(frame.len()),
            Self::Close { .. } | Self::Join(_) | Self::Leave(_) => None,
        }
    }

    fn act_on(&self, connection: &Connection, table: &Table) -> Result<(), Undeliverable> {
        match self {
            Self::Send(frame) => return connection.deliver(frame.clone()),
            Self::Close { code, text } => connection.close_by_api(*code, text.clone()),
            Self::Join(rooms) => {
                for room in rooms {
                    let joined = table.join(connection, room.clone());
                    joined.map_err(|_| Undeliverable::TooManyRooms)?;
                }
            }
            Self::Leave(rooms) => rooms.iter().for_each(|room| table.leave(connection, room)),
        }
        Ok(())
    }
}

/// A message on its way to an audience.
#[derive(Debug)]
pub struct Publication {
    audience: Audience,
    action: Action,
    /// Who is left out, in ascending order.
    except: Vec<Serial>,
}

impl Publication {
    /// A message to all of an audience but `except`.
    pub fn new(audience: Audience, action: Action, mut except: Vec<Serial>) -> Self {
        except.sort_unstable();
        Self { audience, action, except }
    }

    fn leaves_out(&self, connection: &Connection) -> bool {
        self.except.binary_search(&connection.serial).is_ok()
    }
}
