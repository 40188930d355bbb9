//! Publications on one worker: who of their audience is here, a few at a time.
//!
//! A queue of one connection is filled in no time, but each that was filled wakes a relay, and ten
//! thousand relays that wake at once are ten thousand writes before anybody else's turn comes. So an
//! audience is served in pieces of [`PIECE`] connections, and between two of them the worker does
//! whatever else there is to do, the writes of the piece before included.
//!
//! Only into its inbox it does not look meanwhile: what is asked of a worker is done in the order in
//! which it was asked. So those who send one thing after the other are heard in that order, whoever
//! joins or leaves.
//!
//! Messages to one audience that have come while a crowd was served go out together: a relay writes
//! what waits for its client with one system call, and that call is nearly all that a delivery costs.
//! So the faster messages come, the less each of them costs.

use std::sync::Arc;

use super::Publication;
use crate::ws::connection::{MAILBOX_BYTES, Serial, Undeliverable};
use crate::ws::table::Table;

/// How many connections are served in one turn of a worker. A turn of its runtime runs more than
/// twice as many tasks, so what a piece wakes does not pile up.
pub const PIECE: usize = 24;
/// How many messages go out together at the most.
const TOGETHER: usize = 64;
/// And how many bytes of frames: no more of a queue than leaves room for what a client that is a little
/// behind has not taken yet.
const TOGETHER_BYTES: usize = MAILBOX_BYTES / 4;

/// What a worker is in the middle of sending to one audience.
#[derive(Debug)]
pub struct FanOut {
    /// Never empty; each connection gets them in this order.
    publications: Vec<Arc<Publication>>,
    /// All up to here have them.
    last: Option<Serial>,
}

impl FanOut {
    /// Begins with a publication; `None` if nobody of its audience is here.
    pub fn begin(publication: Arc<Publication>, table: &Table) -> Option<Self> {
        let somebody = !publication.audience.after(table, None, 1).is_empty();
        somebody.then(|| Self { publications: vec![publication], last: None })
    }

    /// Whether this one, which comes next, can go out together with those before it.
    pub fn takes(&self, next: &Publication) -> bool {
        let all = self.publications.iter().map(|one| &**one).chain([next]);
        let bytes: Option<usize> = all.map(|one| one.action.frame_bytes()).sum();
        self.last.is_none()
            && self.publications.len() < TOGETHER
            && self.publications[0].audience == next.audience
            && bytes.is_some_and(|bytes| bytes <= TOGETHER_BYTES)
    }

    /// Adds one that it [takes](FanOut::takes).
    pub fn add(&mut self, next: Arc<Publication>) {
        self.publications.push(next);
    }

    /// Serves the next few connections, and tells whether there may be more; `undeliverable` hears of
    /// each message that one does not take.
    pub fn go_on(&mut self, table: &Table, mut undeliverable: impl FnMut(Undeliverable)) -> bool {
        let Self { publications, last } = self;
        let piece = publications[0].audience.after(table, *last, PIECE);
        for connection in &piece {
            for publication in publications.iter().filter(|one| !one.leaves_out(connection)) {
                if let Err(reason) = publication.action.act_on(connection, table) {
                    undeliverable(reason);
                }
            }
        }
        *last = piece.last().map(|connection| connection.serial);
        piece.len() == PIECE
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::rc::Rc;
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::super::{Action, Audience};
    use super::*;
    use crate::registry::memory::Memory;
    use crate::ws::close::CloseCode;
    use crate::ws::connection::{Facts, Names};
    use crate::ws::message::Payload;
    use crate::ws::rooms::{MAX_ROOMS, Room};
    use crate::ws::table::Entry;

    fn table() -> Rc<Table> {
        Rc::new(Table::new(0, Arc::<Memory>::default()))
    }

    fn enter(table: &Rc<Table>, key: &str) -> Entry {
        table.enter(Facts {
            names: Arc::new(Names { route: "r".into(), pool: "p".into() }),
            key: Some(key.into()),
            client: IpAddr::from([127, 0, 0, 1]).into(),
            since: SystemTime::now().into(),
        })
    }

    fn key(key: &str) -> Audience {
        Audience::Key { pool: "p".to_owned(), key: key.to_owned() }
    }

    fn room(name: &str) -> Room {
        Room::new(name).unwrap()
    }

    fn send(text: &str) -> Action {
        Action::Send(Payload::Text(text).frame())
    }

    /// Publishes, and does all that is to be done.
    fn publish(table: &Table, audience: Audience, action: Action, except: Vec<Serial>) -> bool {
        let publication = Arc::new(Publication::new(audience, action, except));
        let Some(mut fan_out) = FanOut::begin(publication, table) else { return false };
        while fan_out.go_on(table, |reason| panic!("{reason:?}")) {}
        true
    }

    fn got(entry: &Entry) -> Vec<Bytes> {
        let mut frames = [const { Bytes::new() }; 9];
        let count = entry.connection().next_messages(&mut frames, MAILBOX_BYTES);
        frames[..count].to_vec()
    }

    #[test]
    fn each_audience_gets_its_messages_and_nobody_else_does() {
        let table = table();
        let all = ["a", "a", "b"].map(|key| enter(&table, key));
        let serial = |index: usize| all[index].connection().serial;
        table.join(all[2].connection(), room("r")).unwrap();
        table.join(all[0].connection(), room("r")).unwrap();
        for (audience, except, wanted) in [
            (Audience::All, vec![], [true, true, true]),
            (Audience::All, vec![serial(2), serial(0)], [false, true, false]),
            (key("a"), vec![], [true, true, false]),
            (Audience::Room(room("r")), vec![], [true, false, true]),
            (Audience::Room(room("r")), vec![serial(0)], [false, false, true]),
            (Audience::One(serial(1)), vec![], [false, true, false]),
        ] {
            assert!(publish(&table, audience.clone(), send("x"), except));
            let heard = all.each_ref().map(|entry| got(entry).len());
            assert_eq!(heard, wanted.map(usize::from), "{audience:?}");
        }
        for nobody in [key("c"), Audience::Room(room("q")), Audience::One(Serial::new(0, 9))] {
            assert!(!publish(&table, nobody, send("x"), Vec::new()));
        }
    }

    #[test]
    fn a_crowd_is_served_in_pieces_that_share_one_frame() {
        let table = table();
        let crowd: Vec<Entry> = (0..2 * PIECE + 1).map(|_| enter(&table, "k")).collect();
        let frame = Payload::Text("x").frame();
        let publication = Publication::new(key("k"), Action::Send(frame.clone()), Vec::new());
        let mut fan_out = FanOut::begin(Arc::new(publication), &table).unwrap();
        let mut go_on = || fan_out.go_on(&table, |reason| panic!("{reason:?}"));
        for have in [PIECE, 2 * PIECE] {
            assert!(go_on());
            let served = crowd.iter().filter(|one| one.connection().has_messages()).count();
            assert_eq!(served, have);
        }
        assert!(!go_on());
        for entry in &crowd {
            let got = got(entry);
            assert_eq!((got.len(), got[0].as_ptr()), (1, frame.as_ptr()), "the same bytes");
        }
    }

    #[test]
    fn messages_to_one_audience_go_out_together() {
        let table = table();
        let all = ["a", "a", "b"].map(|key| enter(&table, key));
        let serial = all[0].connection().serial;
        let to = |audience: Audience, action, except: &[Serial]| {
            Arc::new(Publication::new(audience, action, except.to_vec()))
        };
        let mut fan_out = FanOut::begin(to(key("a"), send("1"), &[]), &table).unwrap();
        for (text, except) in [("2", &[serial][..]), ("3", &[])] {
            let next = to(key("a"), send(text), except);
            assert!(fan_out.takes(&next));
            fan_out.add(next);
        }
        let leave = Action::Leave(vec![room("x")]);
        let long = send(&"x".repeat(TOGETHER_BYTES));
        for other in
            [to(key("b"), send("4"), &[]), to(key("a"), leave, &[]), to(key("a"), long, &[])]
        {
            assert!(!fan_out.takes(&other), "{other:?}");
        }
        assert!(!fan_out.go_on(&table, |reason| panic!("{reason:?}")));
        let frames = |texts: &[&str]| -> Vec<Bytes> {
            texts.iter().map(|text| Payload::Text(text).frame()).collect()
        };
        let wanted = [frames(&["1", "3"]), frames(&["1", "2", "3"]), frames(&[])];
        assert_eq!(all.each_ref().map(got), wanted);
    }

    #[test]
    fn what_goes_out_together_has_a_limit() {
        let table = table();
        let crowd: Vec<Entry> = (0..=PIECE).map(|_| enter(&table, "k")).collect();
        let next = || Arc::new(Publication::new(key("k"), send("x"), Vec::new()));
        let mut fan_out = FanOut::begin(next(), &table).unwrap();
        for _ in 1..TOGETHER {
            assert!(fan_out.takes(&next()));
            fan_out.add(next());
        }
        assert!(!fan_out.takes(&next()));
        let mut begun = FanOut::begin(next(), &table).unwrap();
        assert!(begun.go_on(&table, |reason| panic!("{reason:?}")));
        assert!(!begun.takes(&next()), "somebody would miss it");
        drop(crowd);
    }

    #[test]
    fn a_crowd_joins_leaves_and_closes_at_a_word() {
        let table = table();
        let all = ["a", "a", "b"].map(|key| enter(&table, key));
        publish(&table, key("a"), Action::Join(vec![room("x"), room("y")]), Vec::new());
        assert_eq!(table.members_after(&room("x"), None, 9).len(), 2);
        // Whoever leaves while the room is gone through does not hide the next one.
        publish(&table, Audience::Room(room("x")), Action::Leave(vec![room("x")]), Vec::new());
        assert!(table.members_after(&room("x"), None, 9).is_empty());
        assert_eq!(table.members_after(&room("y"), None, 9).len(), 2);
        let close = Action::Close { code: CloseCode::NORMAL, text: "".into() };
        publish(&table, Audience::Room(room("y")), close, Vec::new());
        let closed = all.each_ref().map(|one| one.connection().asked_to_close().is_some());
        assert_eq!(closed, [true, true, false]);
    }

    #[test]
    fn who_does_not_take_it_is_told_of() {
        let table = table();
        let entry = enter(&table, "k");
        let rooms: Vec<Room> = (0..=MAX_ROOMS).map(|number| room(&number.to_string())).collect();
        let mut told = Vec::new();
        for action in [
            Action::Join(rooms),
            Action::Close { code: CloseCode::NORMAL, text: "".into() },
            send("x"),
        ] {
            let publication = Publication::new(Audience::All, action, Vec::new());
            let mut fan_out = FanOut::begin(Arc::new(publication), &table).unwrap();
            fan_out.go_on(&table, |reason| told.push(reason));
        }
        assert_eq!(told, [Undeliverable::TooManyRooms, Undeliverable::Closing]);
        assert_eq!(table.rooms_of(entry.connection()).len(), MAX_ROOMS);
    }
}
