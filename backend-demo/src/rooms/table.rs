//! Who is in which room, and what each is told.
//!
//! No socket and no waiting: telling somebody is putting a text into a queue. One whose queue is
//! full is removed at once, which the others of its rooms are told, which may fill the next queue:
//! so removals are a list that is worked off, not a recursion.
//!
//! A room exists while it has members. Telling a room costs its members; nothing here costs more.
//!
//! Where messages are published, members that came through a proxy hear the room from there: what
//! a room is told goes into the queues of the others alone, and a notice of it is left, for whoever
//! called to publish. What is for one member goes into its queue, however it came.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{Label, Told};
use crate::publish::{ByProxy, ConnectionId, Notice};

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
    /// Its id at the proxy from which it hears its rooms; `None`: from here.
    by_proxy: Option<ConnectionId>,
    /// Only there to be dropped with the member: its connection sees that.
    _removed_when_dropped: oneshot::Sender<()>,
}

impl Member {
    pub(super) fn new(
        name: Label,
        queue: mpsc::Sender<Utf8Bytes>,
        by_proxy: Option<ConnectionId>,
        removed_when_dropped: oneshot::Sender<()>,
    ) -> Self {
        let rooms = BTreeSet::new();
        Self { name, rooms, queue, by_proxy, _removed_when_dropped: removed_when_dropped }
    }
}

/// Who is in a room of this instance.
#[derive(Debug)]
pub(super) struct Present<'a> {
    /// In the order in which they came; not all of them, in a large room.
    pub(super) names: Vec<&'a str>,
    /// How many do not hear it from a proxy.
    pub(super) without_proxy: u64,
    /// How many hear it from each proxy.
    pub(super) by_proxy: ByProxy,
}

/// All members and all rooms of one demo.
#[derive(Debug)]
pub(super) struct Table {
    /// The id of this instance.
    backend: String,
    members: BTreeMap<MemberId, Member>,
    /// No room is empty; each of its members has it among its own.
    rooms: BTreeMap<Label, BTreeSet<MemberId>>,
    next_id: MemberId,
    /// Whose queue was full. Empty between calls.
    too_slow: Vec<MemberId>,
    /// What is to be published of the call that was made last; `None`: nothing ever is.
    notices: Option<Vec<Notice>>,
}

impl Table {
    /// One without members; `publishes` says whether notices are left.
    pub(super) fn new(backend: String, publishes: bool) -> Self {
        Self {
            backend,
            members: BTreeMap::new(),
            rooms: BTreeMap::new(),
            next_id: 0,
            too_slow: Vec::new(),
            notices: publishes.then(Vec::new),
        }
    }

    /// Takes what is to be published, which is to be done after each call.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The id of a member at the proxy from which it hears its rooms.
    pub(super) fn by_proxy(&self, id: MemberId) -> Option<&ConnectionId> {
        self.members.get(&id)?.by_proxy.as_ref()
    }

    /// Takes in a member: tells it its welcome before anything else, and the others that it came.
    ///
    /// `welcome` gets who is in the room, the new one included.
    pub(super) fn enter(
        &mut self,
        member: Member,
        room: &Label,
        welcome: impl FnOnce(Present<'_>) -> Utf8Bytes,
    ) -> MemberId {
        let id = self.next_id;
        self.next_id += 1;
        self.tell(room, &self.joined(room, &member), member.by_proxy.clone());
        self.members.insert(id, member);
        self.connect(id, room);
        let welcome = welcome(self.present(room));
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
        let by_proxy = member.by_proxy.is_some();
        let told = member.rooms.iter().map(|room| {
            let said = Told::Said { room, from: &member.name, said: text, backend: &self.backend };
            (room.clone(), said.to_text())
        });
        for (room, said) in told.collect::<Vec<_>>() {
            self.tell_here(&room, &said);
            self.publish(&room, &said, None, by_proxy);
        }
        self.remove_slow();
        Ok(())
    }

    /// Tells whether the member would come into a room that it is not in.
    pub(super) fn may_join(&self, id: MemberId, room: &Label) -> Result<bool, String> {
        let Some(member) = self.members.get(&id) else { return Ok(false) };
        if !member.rooms.contains(room) && member.rooms.len() == ROOMS_OF_ONE {
            return Err(format!("you are in {ROOMS_OF_ONE} rooms, which is all that is allowed"));
        }
        Ok(!member.rooms.contains(room))
    }

    /// Adds the member to a room, and tells all who are in it, also the one that came.
    pub(super) fn join(&mut self, id: MemberId, room: &Label) -> Result<(), String> {
        let is_new = self.may_join(id, room)?;
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let (joined, by_proxy) = (self.joined(room, member), member.by_proxy.clone());
        // Who was there already is told, and the others know.
        if by_proxy.is_some() || !is_new {
            self.put(id, joined.clone());
        }
        if is_new {
            self.connect(id, room);
            self.tell(room, &joined, by_proxy);
        }
        self.remove_slow();
        Ok(())
    }

    /// Tells whether there is a room that the member could leave.
    pub(super) fn may_leave(&self, id: MemberId, room: &Label) -> Result<bool, String> {
        let Some(member) = self.members.get(&id) else { return Ok(false) };
        if member.rooms.contains(room) {
            return Ok(true);
        }
        Err(format!("you are not in room {}", &**room))
    }

    /// Takes the member out of a room, and tells all who were in it, also the one that went.
    pub(super) fn leave(&mut self, id: MemberId, room: &Label) -> Result<(), String> {
        self.may_leave(id, room)?;
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let (left, by_proxy) = (self.left(room, member), member.by_proxy.clone());
        if by_proxy.is_some() {
            self.put(id, left.clone());
        }
        self.tell(room, &left, by_proxy);
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
                self.tell(room, &self.left(room, &member), member.by_proxy.clone());
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

    fn joined(&self, room: &Label, member: &Member) -> Utf8Bytes {
        Told::Joined { room, joined: &member.name, backend: &self.backend }.to_text()
    }

    fn left(&self, room: &Label, member: &Member) -> Utf8Bytes {
        Told::Left { room, left: &member.name, backend: &self.backend }.to_text()
    }

    /// Tells a room, wherever its members are, but not the one that a proxy knows by that id.
    fn tell(&mut self, room: &Label, text: &Utf8Bytes, except: Option<ConnectionId>) {
        self.tell_here(room, text);
        self.publish(room, text, except, false);
    }

    /// Tells those who do not hear the room from a proxy.
    fn tell_here(&mut self, room: &Label, text: &Utf8Bytes) {
        for id in self.rooms.get(room).into_iter().flatten() {
            let member = self.members.get(id).filter(|member| member.by_proxy.is_none());
            if member.is_some_and(|member| member.queue.try_send(text.clone()).is_err()) {
                self.too_slow.push(*id);
            }
        }
    }

    /// Leaves a notice for those who do.
    fn publish(
        &mut self,
        room: &Label,
        text: &Utf8Bytes,
        except: Option<ConnectionId>,
        awaited: bool,
    ) {
        if let Some(notices) = &mut self.notices {
            notices.push(Notice { room: room.to_string(), text: text.clone(), except, awaited });
        }
    }

    fn put(&mut self, id: MemberId, text: Utf8Bytes) {
        let member = self.members.get(&id);
        if member.is_some_and(|member| member.queue.try_send(text).is_err()) {
            self.too_slow.push(id);
        }
    }

    fn present(&self, room: &Label) -> Present<'_> {
        let inside = self.rooms.get(room).into_iter().flatten();
        let members = inside.filter_map(|id| self.members.get(id));
        let names = members.clone().map(|member| &*member.name).take(NAMES_IN_WELCOME).collect();
        let (mut without_proxy, mut by_proxy) = (0, ByProxy::new());
        for member in members {
            match &member.by_proxy {
                None => without_proxy += 1,
                Some(id) => match by_proxy.get_mut(id.proxy()) {
                    Some(count) => *count += 1,
                    None => _ = by_proxy.insert(id.proxy().to_owned(), 1),
                },
            }
        }
        Present { names, without_proxy, by_proxy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: usize = 64;

    fn label(text: &str) -> Label {
        Label::parse(text).unwrap()
    }

    fn alone() -> Table {
        Table::new("a".into(), false)
    }

    struct Client {
        id: MemberId,
        queue: mpsc::Receiver<Utf8Bytes>,
        removed: oneshot::Receiver<()>,
    }

    impl Client {
        fn enter(table: &mut Table, name: &str, room: &str) -> Self {
            Self::enter_by(table, name, room, None)
        }

        fn enter_by(table: &mut Table, name: &str, room: &str, by: Option<&str>) -> Self {
            let (sender, queue) = mpsc::channel(QUEUE);
            let (removed_when_dropped, removed) = oneshot::channel();
            let by_proxy = by.map(|id| ConnectionId::parse(id).unwrap());
            let member = Member::new(label(name), sender, by_proxy, removed_when_dropped);
            let welcome = |present: Present<'_>| present.names.join(" ").into();
            let id = table.enter(member, &label(room), welcome);
            Self { id, queue, removed }
        }

        fn heard(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.queue.try_recv().ok()).map(|text| text.to_string()).collect()
        }
    }

    #[test]
    fn the_welcome_comes_first_and_names_all() {
        let mut table = alone();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut bob = Client::enter(&mut table, "bob", "r");
        assert_eq!(ann.heard(), ["ann", r#"{"room":"r","joined":"bob","backend":"a"}"#]);
        assert_eq!(bob.heard(), ["ann bob"]);
    }

    #[test]
    fn what_is_said_goes_to_all_rooms_of_the_speaker_and_no_others() {
        let mut table = alone();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut bob = Client::enter(&mut table, "bob", "s");
        let mut eve = Client::enter(&mut table, "eve", "t");
        table.join(ann.id, &label("s")).unwrap();
        let said = [
            r#"{"room":"r","from":"ann","said":"hi","backend":"a"}"#,
            r#"{"room":"s","from":"ann","said":"hi","backend":"a"}"#,
        ];
        table.say(ann.id, "hi").unwrap();
        let joined = r#"{"room":"s","joined":"ann","backend":"a"}"#;
        assert_eq!(ann.heard(), ["ann", joined, said[0], said[1]]);
        assert_eq!(bob.heard(), ["bob", joined, said[1]]);
        assert_eq!(eve.heard(), ["eve"]);
    }

    #[test]
    fn who_leaves_is_told_so_and_hears_no_more() {
        let mut table = alone();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut bob = Client::enter(&mut table, "bob", "r");
        table.leave(bob.id, &label("r")).unwrap();
        table.say(ann.id, "hi").unwrap();
        assert_eq!(bob.heard(), ["ann bob", r#"{"room":"r","left":"bob","backend":"a"}"#]);
        assert!(table.say(bob.id, "hello?").unwrap_err().contains("no room"));
        assert!(table.leave(bob.id, &label("r")).unwrap_err().contains("not in room r"));
        assert_eq!(ann.heard().len(), 4);
    }

    #[test]
    fn a_full_queue_removes_its_member_alone() {
        let mut table = alone();
        let mut ann = Client::enter(&mut table, "ann", "r");
        let mut slow = Client::enter(&mut table, "slow", "r");
        let mut last = Vec::new();
        for _ in 0..QUEUE {
            table.say(ann.id, "hi").unwrap();
            last = ann.heard();
        }
        assert_eq!(last.last().unwrap(), r#"{"room":"r","left":"slow","backend":"a"}"#);
        assert!(slow.removed.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Closed));
        assert_eq!(slow.heard().len(), QUEUE);
        assert_eq!(table.members.len(), 1);
    }

    #[test]
    fn one_removal_that_fills_the_next_queue_ends() {
        let mut table = alone();
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
        let mut table = alone();
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

    /// Who is told by a publication, and of what: `except text`, then ` !` where it is awaited.
    fn published(table: &mut Table) -> Vec<String> {
        let notices = table.take_notices().into_iter().map(|notice| {
            let told: serde_json::Value = serde_json::from_str(&notice.text).unwrap();
            assert_eq!(told["room"], *notice.room);
            let except = notice.except.map(|id| format!("{id:?}")).unwrap_or_default();
            let what = ["said", "joined", "left"].iter().find(|what| told[**what].is_string());
            let awaited = if notice.awaited { " !" } else { "" };
            format!("{}:{}{except}{awaited}", notice.room, what.unwrap())
        });
        notices.collect()
    }

    #[test]
    fn where_messages_are_published_each_is_one_notice() {
        let mut table = Table::new("a".into(), true);
        let mut ann = Client::enter_by(&mut table, "ann", "r", Some("p.1"));
        assert_eq!(published(&mut table), [r#"r:joinedConnectionId("p.1")"#]);
        let mut bob = Client::enter_by(&mut table, "bob", "r", Some("p.2"));
        let mut eve = Client::enter(&mut table, "eve", "r");
        assert_eq!(published(&mut table), [r#"r:joinedConnectionId("p.2")"#, "r:joined"]);
        // What the room hears comes by the proxy to those two, and from here to the third.
        assert_eq!((ann.heard(), bob.heard().len(), eve.heard().len()), (vec!["ann".into()], 1, 1));

        table.say(ann.id, "hi").unwrap();
        assert_eq!(published(&mut table), ["r:said !"]);
        table.say(eve.id, "hi").unwrap();
        assert_eq!(published(&mut table), ["r:said"]);
        assert_eq!((ann.heard().len(), bob.heard().len(), eve.heard().len()), (0, 0, 2));

        // Who asked hears the answer on its own socket, before its proxy may know of the room.
        table.join(ann.id, &label("s")).unwrap();
        table.join(ann.id, &label("s")).unwrap();
        assert_eq!(published(&mut table), [r#"s:joinedConnectionId("p.1")"#]);
        table.say(ann.id, "hi").unwrap();
        assert_eq!(published(&mut table), ["r:said !", "s:said !"]);
        table.leave(ann.id, &label("s")).unwrap();
        assert_eq!(published(&mut table), [r#"s:leftConnectionId("p.1")"#]);
        assert_eq!(ann.heard().len(), 3);

        table.remove(ann.id);
        assert_eq!(published(&mut table), [r#"r:leftConnectionId("p.1")"#]);
        assert_eq!(eve.heard().len(), 2);
        assert!(table.may_join(bob.id, &label("s")).unwrap());
        assert!(!table.may_join(bob.id, &label("r")).unwrap());
        assert!(table.may_leave(bob.id, &label("s")).is_err());
    }
}
