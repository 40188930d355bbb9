//! Who is in which room, and what each is told.
//!
//! No socket and no waiting: telling somebody is putting a text into a queue. One whose queue is
//! full is removed at once, which the others of its rooms are told, which may fill the next queue:
//! so removals are a list that is worked off, not a recursion.
//!
//! A room exists while it has members. Telling a room costs its members; nothing here costs more.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{Label, Told};

/// Rooms that one connection can be in.
const ROOMS_OF_ONE: usize = 16;
/// Names that a welcome has.
const NAMES_IN_WELCOME: usize = 100;

/// A connection in the table; never used twice, and rising, so that order is order of coming.
pub(super) type MemberId = u64;

/// One connection's side of the table.
#[derive(Debug)]
pub(super) struct Member {
    name: Label,
    /// Never more than `ROOMS_OF_ONE`.
    rooms: BTreeSet<Label>,
    queue: mpsc::Sender<Utf8Bytes>,
    /// Only there to be dropped with the member: its connection sees that.
    _removed_when_dropped: oneshot::Sender<()>,
}

impl Member {
    pub(super) fn new(
        name: Label,
        queue: mpsc::Sender<Utf8Bytes>,
        removed_when_dropped: oneshot::Sender<()>,
    ) -> Self {
        let rooms = BTreeSet::new();
        Self { name, rooms, queue, _removed_when_dropped: removed_when_dropped }
    }
}

/// All members and all rooms of one demo.
#[derive(Debug, Default)]
pub(super) struct Table {
    members: BTreeMap<MemberId, Member>,
    /// No room is empty; each of its members has it among its own.
    rooms: BTreeMap<Label, BTreeSet<MemberId>>,
    next_id: MemberId,
    /// Whose queue was full. Empty between calls.
    too_slow: Vec<MemberId>,
}

impl Table {
    /// Takes in a member: tells it its welcome before anything else, and the others that it came.
    ///
    /// `welcome` gets the names in the room, the new one's included.
    pub(super) fn enter(
        &mut self,
        member: Member,
        room: &Label,
        welcome: impl FnOnce(Vec<&str>) -> Utf8Bytes,
    ) -> MemberId {
        let id = self.next_id;
        self.next_id += 1;
        let joined = Told::Joined { room, joined: &member.name }.to_text();
        self.tell(room, &joined);
        self.members.insert(id, member);
        self.connect(id, room);
        let welcome = welcome(self.names(room));
        self.put(id, welcome);
        self.remove_slow();
        id
    }

    /// Says `text` in every room that the member is in. An error is a sentence for it.
    pub(super) fn say(&mut self, id: MemberId, text: &str) -> Result<(), String> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        if member.rooms.is_empty() {
            return Err("you are in no room, so nobody hears you: join one".into());
        }
        let from = member.name.clone();
        for room in member.rooms.clone() {
            self.tell(&room, &Told::Said { room: &room, from: &from, said: text }.to_text());
        }
        self.remove_slow();
        Ok(())
    }

    /// Adds the member to a room, and tells all who are in it, also the one that came.
    pub(super) fn join(&mut self, id: MemberId, room: &Label) -> Result<(), String> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let joined = Told::Joined { room, joined: &member.name }.to_text();
        if member.rooms.contains(room) {
            self.put(id, joined); // The others know.
        } else if member.rooms.len() == ROOMS_OF_ONE {
            return Err(format!("you are in {ROOMS_OF_ONE} rooms, which is all that is allowed"));
        } else {
            self.connect(id, room);
            self.tell(room, &joined);
        }
        self.remove_slow();
        Ok(())
    }

    /// Takes the member out of a room, and tells all who were in it, also the one that went.
    pub(super) fn leave(&mut self, id: MemberId, room: &Label) -> Result<(), String> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        if !member.rooms.contains(room) {
            return Err(format!("you are not in room {}", &**room));
        }
        let left = Told::Left { room, left: &member.name }.to_text();
        self.tell(room, &left);
        self.disconnect(id, room);
        self.remove_slow();
        Ok(())
    }

    /// Tells one member alone.
    pub(super) fn answer(&mut self, id: MemberId, told: &Told<'_>) {
        self.put(id, told.to_text());
        self.remove_slow();
    }

    /// Takes out a member that goes, or was removed already, and tells the others.
    pub(super) fn remove(&mut self, id: MemberId) {
        self.too_slow.push(id);
        self.remove_slow();
    }

    fn remove_slow(&mut self) {
        while let Some(id) = self.too_slow.pop() {
            let Some(member) = self.members.remove(&id) else { continue };
            for room in &member.rooms {
                self.disconnect(id, room);
                self.tell(room, &Told::Left { room, left: &member.name }.to_text());
            }
        }
    }

    fn connect(&mut self, id: MemberId, room: &Label) {
        self.rooms.entry(room.clone()).or_default().insert(id);
        if let Some(member) = self.members.get_mut(&id) {
            member.rooms.insert(room.clone());
        }
    }

    fn disconnect(&mut self, id: MemberId, room: &Label) {
        if let Some(member) = self.members.get_mut(&id) {
            member.rooms.remove(room);
        }
        if let Some(inside) = self.rooms.get_mut(room) {
            inside.remove(&id);
            if inside.is_empty() {
                self.rooms.remove(room);
            }
        }
    }

    fn tell(&mut self, room: &Label, text: &Utf8Bytes) {
        for id in self.rooms.get(room).into_iter().flatten() {
            let member = self.members.get(id);
            if member.is_some_and(|member| member.queue.try_send(text.clone()).is_err()) {
                self.too_slow.push(*id);
            }
        }
    }

    fn put(&mut self, id: MemberId, text: Utf8Bytes) {
        let member = self.members.get(&id);
        if member.is_some_and(|member| member.queue.try_send(text).is_err()) {
            self.too_slow.push(id);
        }
    }

    fn names(&self, room: &Label) -> Vec<&str> {
        let inside = self.rooms.get(room).into_iter().flatten();
        let names = inside.filter_map(|id| self.members.get(id)).map(|member| &*member.name);
        names.take(NAMES_IN_WELCOME).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: usize = 64;

    fn label(text: &str) -> Label {
        Label::parse(text).unwrap()
    }

    struct Client {
        id: MemberId,
        queue: mpsc::Receiver<Utf8Bytes>,
        removed: oneshot::Receiver<()>,
    }

    impl Client {
        fn enter(table: &mut Table, name: &str, room: &str) -> Self {
            let (sender, queue) = mpsc::channel(QUEUE);
            let (removed_when_dropped, removed) = oneshot::channel();
            let member = Member::new(label(name), sender, removed_when_dropped);
            let id = table.enter(member, &label(room), |names| names.join(" ").into());
            Self { id, queue, removed }
        }

        fn heard(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.queue.try_recv().ok()).map(|text| text.to_string()).collect()
        }
    }

    #[test]
    fn the_welcome_comes_first_and_names_all() {
        let mut table = Table::default();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut bob = Client::enter(&mut table, "bob", "r");
        assert_eq!(ann.heard(), ["ann", r#"{"room":"r","joined":"bob"}"#]);
        assert_eq!(bob.heard(), ["ann bob"]);
    }

    #[test]
    fn what_is_said_goes_to_all_rooms_of_the_speaker_and_no_others() {
        let mut table = Table::default();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut bob = Client::enter(&mut table, "bob", "s");
        let mut eve = Client::enter(&mut table, "eve", "t");
        table.join(ann.id, &label("s")).unwrap();
        let said = [
            r#"{"room":"r","from":"ann","said":"hi"}"#,
            r#"{"room":"s","from":"ann","said":"hi"}"#,
        ];
        table.say(ann.id, "hi").unwrap();
        let joined = r#"{"room":"s","joined":"ann"}"#;
        assert_eq!(ann.heard(), ["ann", joined, said[0], said[1]]);
        assert_eq!(bob.heard(), ["bob", joined, said[1]]);
        assert_eq!(eve.heard(), ["eve"]);
    }

    #[test]
    fn who_leaves_is_told_so_and_hears_no_more() {
        let mut table = Table::default();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut bob = Client::enter(&mut table, "bob", "r");
        table.leave(bob.id, &label("r")).unwrap();
        table.say(ann.id, "hi").unwrap();
        assert_eq!(bob.heard(), ["ann bob", r#"{"room":"r","left":"bob"}"#]);
        assert!(table.say(bob.id, "hello?").unwrap_err().contains("no room"));
        assert!(table.leave(bob.id, &label("r")).unwrap_err().contains("not in room r"));
        assert_eq!(ann.heard().len(), 4);
    }

    #[test]
    fn a_full_queue_removes_its_member_alone() {
        let mut table = Table::default();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut slow = Client::enter(&mut table, "slow", "r");
        let mut last = Vec::new();
        for _ in 0..QUEUE {
            table.say(ann.id, "hi").unwrap();
            last = ann.heard();
        }
        assert_eq!(last.last().unwrap(), r#"{"room":"r","left":"slow"}"#);
        assert!(slow.removed.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Closed));
        assert_eq!(slow.heard().len(), QUEUE);
        assert_eq!(table.members.len(), 1);
    }

    #[test]
    fn one_removal_that_fills_the_next_queue_ends() {
        let mut table = Table::default();
        let clients: Vec<_> =
            (0..QUEUE + 8).map(|n| Client::enter(&mut table, &n.to_string(), "r")).collect();
        // The first got a welcome and QUEUE others' names; its removal filled the second's, and so on.
        assert!(table.members.len() < clients.len());
        for client in &clients {
            table.remove(client.id);
        }
        assert!(table.members.is_empty() && table.rooms.is_empty());
    }

    #[test]
    fn rooms_of_one_and_names_of_many_are_bounded() {
        let mut table = Table::default();
        let mut ann = Client::enter(&mut table, "ann", "0");
        for n in 1..ROOMS_OF_ONE {
            table.join(ann.id, &label(&n.to_string())).unwrap();
        }
        assert!(table.join(ann.id, &label("more")).is_err());
        table.join(ann.id, &label("0")).unwrap();
        assert_eq!(ann.heard().len(), 1 + ROOMS_OF_ONE);

        let mut crowd: Vec<Client> = Vec::new();
        let mut welcome = String::new();
        for _ in 0..=NAMES_IN_WELCOME {
            let mut client = Client::enter(&mut table, "x", "crowd");
            welcome = client.heard().remove(0);
            crowd.push(client);
            crowd.iter_mut().for_each(|client| drop(client.heard()));
        }
        assert_eq!(table.rooms[&label("crowd")].len(), NAMES_IN_WELCOME + 1);
        assert_eq!(welcome.split(' ').count(), NAMES_IN_WELCOME);
    }
}
