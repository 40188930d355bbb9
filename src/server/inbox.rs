//! What a worker was asked, in the order in which it was.
//!
//! A publication that comes next and is for the same audience as the one that is about to go out
//! [goes with it](Inbox::add_to). What comes behind it and does not go along is held, and is the next.

use tokio::sync::mpsc;

use crate::fleet::Message;
use crate::publish::deliver::FanOut;

/// The far end of a worker's queue.
pub(super) struct Inbox {
    queue: mpsc::Receiver<Message>,
    /// Comes before the queue.
    held: Option<Message>,
}

impl Inbox {
    pub(super) fn new(queue: mpsc::Receiver<Message>) -> Self {
        Self { queue, held: None }
    }

    /// The next message; `None` once nobody can ask any more. Cancel safe.
    pub(super) async fn recv(&mut self) -> Option<Message> {
        match self.held.take() {
            Some(message) => Some(message),
            None => self.queue.recv().await,
        }
    }

    /// Adds to a fan-out that has not begun whatever comes next and goes out together with it.
    pub(super) fn add_to(&mut self, fan_out: &mut FanOut) {
        while self.held.is_none()
            && let Ok(message) = self.queue.try_recv()
        {
            match message {
                Message::Publish { publication, reply } if fan_out.takes(&publication) => {
                    fan_out.add(publication);
                    // Whoever asked may have stopped waiting.
                    let _ = reply.send(true);
                }
                other => self.held = Some(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::SystemTime;

    use tokio::sync::oneshot;

    use super::*;
    use crate::publish::{Action, Audience, Publication};
    use crate::registry::memory::Memory;
    use crate::ws::connection::{Facts, Names};
    use crate::ws::message::Payload;
    use crate::ws::table::Table;

    fn publish(text: &str) -> (Message, oneshot::Receiver<bool>) {
        let action = Action::Send(Payload::Text(text).frame());
        let publication = Arc::new(Publication::new(Audience::All, action, Vec::new()));
        let (reply, answer) = oneshot::channel();
        (Message::Publish { publication, reply }, answer)
    }

    #[tokio::test]
    async fn what_comes_between_two_messages_stays_between_them() {
        let table = Rc::new(Table::new(0, Arc::<Memory>::default()));
        let _entry = table.enter(Facts {
            names: Arc::new(Names { route: "r".into(), pool: "p".into() }),
            key: None,
            client: IpAddr::from([127, 0, 0, 1]).into(),
            since: SystemTime::now().into(),
        });
        let (sender, queue) = mpsc::channel(8);
        let mut inbox = Inbox::new(queue);
        let (ping, _pong) = oneshot::channel();
        let (first, _) = publish("1");
        let (second, answered) = publish("2");
        let (third, unanswered) = publish("3");
        for message in [first, second, Message::Ping { reply: ping }, third] {
            sender.send(message).await.unwrap();
        }
        let Some(Message::Publish { publication, .. }) = inbox.recv().await else { panic!() };
        let mut fan_out = FanOut::begin(publication, &table).unwrap();
        inbox.add_to(&mut fan_out);
        assert_eq!(answered.await, Ok(true), "it goes along");
        assert!(matches!(inbox.recv().await, Some(Message::Ping { .. })));
        assert!(matches!(inbox.recv().await, Some(Message::Publish { .. })));
        drop((sender, unanswered));
        assert!(inbox.recv().await.is_none());
    }
}
