//! Rooms: what one member says, all members hear.
//!
//! A connection begins in the room of its URL and may join others. [`protocol`] is what goes over
//! the wire, [`table`] knows who is where and puts messages into queues, and [`serve`] carries
//! them between those and one socket.
//!
//! Nobody waits for a slow member: it has a bounded queue, and when that is full it is taken out
//! of its rooms and its connection is closed with 1013. So what a room costs is its members times
//! that bound at worst, and the text of a message is kept once, however many queues it is in.
//!
//! Where messages are [published](crate::publish), a room may have members on many instances, and
//! those that came through a proxy hear it from there. What a client asks for is then done before
//! its next message is read; if it can't be, the client is told, and nothing else changes.

mod protocol;
mod table;

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use tokio::sync::{mpsc, oneshot};

use self::protocol::{Asked, Members, Told, Welcome};
use self::table::{Member, MemberId, Present, Table};
use crate::Backend;
use crate::publish::{Answered, ByProxy, ConnectionId, Notice, Order, Publisher, encoded};
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
    publisher: Option<Publisher>,
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
    pub(crate) fn new(backend: String, publisher: Option<Publisher>) -> Self {
        let table = Mutex::new(Table::new(backend.clone(), publisher.is_some()));
        Self { backend, table, publisher }
    }

    /// The room that a proxy is to put a newcomer into, as it is written in a header.
    pub(crate) fn to_join(&self, newcomer: &Newcomer) -> Option<String> {
        self.by_proxy(newcomer).map(|_| encoded(&newcomer.room))
    }

    /// Waits until all that was published has been sent.
    pub(crate) async fn flush(&self) {
        if let Some(publisher) = &self.publisher {
            publisher.flush().await;
        }
    }

    /// The id by which a proxy knows a newcomer, if that proxy is to tell it what its rooms hear.
    fn by_proxy(&self, newcomer: &Newcomer) -> Option<ConnectionId> {
        self.publisher.as_ref().and_then(|_| ConnectionId::parse(&newcomer.connection))
    }

    /// Held for a moment, never over an await. A panic under it would be a bug of one connection,
    /// and no reason to end all the others.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many members of its room each proxy has, before a newcomer is one: to be asked before its
    /// proxy is told to make it one. `None`: nobody can tell, or need.
    pub(crate) async fn count(&self, newcomer: &Newcomer) -> Option<ByProxy> {
        let room = newcomer.room.to_string();
        match self.publisher.as_ref()?.carry_out(Order::Count { room }).await {
            Ok(Answered::Members(members)) => Some(members),
            Ok(Answered::Reached(_)) => None,
            Err(error) => {
                tracing::debug!(%error, "can't count members");
                None
            }
        }
    }

    /// `others` is what was [counted](Self::count).
    fn enter(&self, newcomer: &Newcomer, others: Option<&ByProxy>) -> Seat<'_> {
        let (sender, queue) = mpsc::channel(QUEUED_MESSAGES);
        let (removed_when_dropped, removed) = oneshot::channel();
        let by_proxy = self.by_proxy(newcomer);
        let own = by_proxy.clone();
        let member = Member::new(newcomer.name.clone(), sender, by_proxy, removed_when_dropped);
        let mut table = self.table();
        let id = table.enter(member, &newcomer.room, |present| {
            let members = match &self.publisher {
                None => Members::Names(present.names),
                Some(_) => Members::Count(others.map(|others| count(others, present, own))),
            };
            let welcome = Welcome {
                backend: &self.backend,
                connection: &newcomer.connection,
                room: &newcomer.room,
                members,
            };
            Told::Welcome { welcome }.to_text()
        });
        self.post(table.take_notices());
        Seat { rooms: self, id, queue, removed }
    }

    /// Says `text` in every room that the member is in. An error is a sentence for it.
    async fn say(&self, id: MemberId, text: &str) -> Result<(), String> {
        self.change(|table| table.say(id, text)).await
    }

    async fn join(&self, id: MemberId, room: &Label) -> Result<(), String> {
        if let Some(connection) = self.moves(|table| table.may_join(id, room), id)? {
            self.carry_out(Order::Join { room: room.to_string(), connection }).await?;
        }
        self.change(|table| table.join(id, room)).await
    }

    async fn leave(&self, id: MemberId, room: &Label) -> Result<(), String> {
        if let Some(connection) = self.moves(|table| table.may_leave(id, room), id)? {
            self.carry_out(Order::Leave { room: room.to_string(), connection }).await?;
        }
        self.change(|table| table.leave(id, room)).await
    }

    /// The connection that a proxy has to move first; `None`: the table alone decides.
    ///
    /// Only a member's own task moves it, so what `may` allows stays allowed.
    fn moves(
        &self,
        may: impl FnOnce(&Table) -> Result<bool, String>,
        id: MemberId,
    ) -> Result<Option<ConnectionId>, String> {
        let table = self.table();
        let moves = may(&table)?;
        Ok(table.by_proxy(id).filter(|_| moves).cloned())
    }

    /// Changes the table, and publishes what others are to hear of it.
    ///
    /// An error may be of the latter alone: those whom this instance tells itself have heard it.
    async fn change(
        &self,
        change: impl FnOnce(&mut Table) -> Result<(), String>,
    ) -> Result<(), String> {
        let (changed, notices) = {
            let mut table = self.table();
            (change(&mut table), table.take_notices())
        };
        let mut notices = notices.into_iter();
        while let Some(notice) = notices.next() {
            if let Err(error) = self.carry_out(Order::Tell(notice)).await {
                // The next would fail as well: nobody is to wait for each of them.
                self.post(notices.collect());
                return changed.and(Err(error));
            }
        }
        changed
    }

    async fn carry_out(&self, order: Order) -> Result<(), String> {
        let Some(publisher) = &self.publisher else { return Ok(()) };
        let done = publisher.carry_out(order).await;
        done.map(drop).map_err(|error| error.to_string())
    }

    /// Publishes without waiting.
    fn post(&self, notices: Vec<Notice>) {
        let orders = notices.into_iter().map(Order::Tell);
        if let Some(publisher) = &self.publisher {
            orders.for_each(|order| publisher.post(order));
        }
    }
}

/// How many members a room has with the one that has just come in, `own` to its proxy.
///
/// A proxy writes down some moments later who has come, so of those that came here more may be known
/// here; who came to another instance in the same moment, nobody knows of yet.
fn count(others: &ByProxy, present: Present<'_>, own: Option<ConnectionId>) -> u64 {
    let Present { without_proxy, mut by_proxy, .. } = present;
    let mut newcomer = 0;
    // Among the others it was not counted.
    if let Some(own) = own
        && let Some(here) = by_proxy.get_mut(own.proxy())
    {
        (*here, newcomer) = (*here - 1, 1);
    }
    for (proxy, count) in others {
        let here = by_proxy.entry(proxy.clone()).or_default();
        *here = (*here).max(*count);
    }
    let all = by_proxy.into_values().chain([without_proxy, newcomer]);
    all.fold(0, u64::saturating_add)
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
        let mut table = self.rooms.table();
        table.remove(self.id);
        self.rooms.post(table.take_notices());
    }
}

enum End {
    ClientLeft,
    Stopped,
    TooSlow,
}

/// Serves one `/rooms` connection to its end; `others` were [counted](Rooms::count) before its 101.
pub(crate) async fn serve(
    mut socket: WebSocket,
    mut serving: Serving,
    backend: &Backend,
    newcomer: Newcomer,
    others: Option<ByProxy>,
) {
    let seat = backend.rooms.enter(&newcomer, others.as_ref());
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
            Some(message) => { obey(rooms, id, &message).await; true }
            None => false,
        },
    }
}

async fn obey(rooms: &Rooms, id: MemberId, message: &Message) {
    let done = match Asked::parse(message) {
        Ok(Asked::Say(text)) => rooms.say(id, &text).await,
        Ok(Asked::Join(room)) => rooms.join(id, &room).await,
        Ok(Asked::Leave(room)) => rooms.leave(id, &room).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        let mut table = rooms.table();
        table.answer(id, &Told::Error { error: &error });
        rooms.post(table.take_notices());
    }
}
