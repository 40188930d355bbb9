//! Rooms: what one member says, all members hear.
//!
//! A connection begins in the room of its URL and may join others. [`protocol`] is what goes over
//! the wire, [`table`] knows who is where and puts messages into queues, and [`serve`] carries
//! them between those and one socket.
//!
//! Nobody waits for a slow member: it has a bounded queue, and when that is full it is taken out
//! of its rooms and its connection is closed with 1013. So what a room costs is its members times
//! that bound at worst, and the text of a message is kept once, however many queues it is in.

mod protocol;
mod table;

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use tokio::sync::{mpsc, oneshot};

use self::protocol::{Asked, Told, Welcome};
use self::table::{Member, MemberId, Table};
use crate::Backend;
use crate::socket::{GOING_AWAY, TRY_AGAIN_LATER, close, next_message};
use crate::stop::Serving;

pub(crate) use self::protocol::{BadLabel, Label, MESSAGE_BYTES};

/// Messages that wait for one member. A large room is loud when all join at once; idle it is free.
const QUEUED_MESSAGES: usize = 1024;

/// All rooms of one demo.
#[derive(Debug)]
pub(crate) struct Rooms {
    backend: String,
    table: Mutex<Table>,
}

/// Who comes in, and where to.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) room: Label,
    pub(crate) name: Label,
    /// The proxy's id of the connection; empty where there is none.
    pub(crate) connection: String,
}

impl Rooms {
    pub(crate) fn new(backend: String) -> Self {
        Self { backend, table: Mutex::default() }
    }

    /// Held for a moment, never over an await. A panic under it would be a bug of one connection,
    /// and no reason to end all the others.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, newcomer: &Newcomer) -> Seat<'_> {
        let (sender, queue) = mpsc::channel(QUEUED_MESSAGES);
        let (removed_when_dropped, removed) = oneshot::channel();
        let member = Member::new(newcomer.name.clone(), sender, removed_when_dropped);
        let id = self.table().enter(member, &newcomer.room, |members| {
            let welcome = Welcome {
                backend: &self.backend,
                connection: &newcomer.connection,
                room: &newcomer.room,
                members,
            };
            Told::Welcome { welcome }.to_text()
        });
        Seat { rooms: self, id, queue, removed }
    }
}

/// One connection's place in the table, given up when it is dropped.
struct Seat<'a> {
    rooms: &'a Rooms,
    id: MemberId,
    queue: mpsc::Receiver<Utf8Bytes>,
    /// Ends when the table has put this member out because its queue was full.
    removed: oneshot::Receiver<()>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.rooms.table().remove(self.id);
    }
}

enum End {
    ClientLeft,
    Stopped,
    TooSlow,
}

/// Serves one `/rooms` connection to its end.
pub(crate) async fn serve(
    mut socket: WebSocket,
    mut serving: Serving,
    backend: &Backend,
    newcomer: Newcomer,
) {
    let seat = backend.rooms.enter(&newcomer);
    // The seat ends there: the others need not wait until this client has answered a Close.
    match converse(&mut socket, &mut serving, seat).await {
        End::ClientLeft => {}
        End::Stopped => close(socket, GOING_AWAY, "the backend stops").await,
        End::TooSlow => close(socket, TRY_AGAIN_LATER, "reads too slowly for its rooms").await,
    }
}

async fn converse(socket: &mut WebSocket, serving: &mut Serving, mut seat: Seat<'_>) -> End {
    let mut stopped = pin!(serving.stopped());
    loop {
        tokio::select! {
            () = &mut stopped => return End::Stopped,
            _ = &mut seat.removed => return End::TooSlow,
            // Dropped half way only where the connection ends.
            goes_on = turn(socket, seat.rooms, seat.id, &mut seat.queue) => {
                if !goes_on { return End::ClientLeft }
            }
        }
    }
}

/// Carries one message, in whichever direction there is one; tells whether there may be another.
async fn turn(
    socket: &mut WebSocket,
    rooms: &Rooms,
    id: MemberId,
    queue: &mut mpsc::Receiver<Utf8Bytes>,
) -> bool {
    tokio::select! {
        // What waits goes out first, or a client that talks fast would fill its own queue.
        biased;
        Some(text) = queue.recv() => socket.send(Message::Text(text)).await.is_ok(),
        message = next_message(socket) => match message {
            Some(message) => { obey(rooms, id, &message); true }
            None => false,
        },
    }
}

fn obey(rooms: &Rooms, id: MemberId, message: &Message) {
    let asked = Asked::parse(message);
    let mut table = rooms.table();
    let done = match &asked {
        Ok(Asked::Say(text)) => table.say(id, text),
        Ok(Asked::Join(room)) => table.join(id, room),
        Ok(Asked::Leave(room)) => table.leave(id, room),
        Err(error) => Err(error.clone()),
    };
    if let Err(error) = done {
        table.answer(id, &Told::Error { error: &error });
    }
}
