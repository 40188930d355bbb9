//! The names of keys and channels in Redis; all begin with the configured prefix.
//!
//! Keys and rooms stand in them as they are: the name of a pool has neither a slash nor a colon, so
//! the first of those ends it, whatever follows.

use std::sync::Arc;

use super::{Channel, Group};

/// Makes names, and reads those of channels.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: Arc<str>,
}

/// What a channel is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Messages to clients.
    Message(Channel),
    /// Changes of what proxies have placed in a pool.
    Placed(String),
    /// Changes of which backends of a pool are to be drained.
    Drain(String),
}

impl Names {
    /// Names that begin with `prefix` and a colon.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// A proxy that lives: a hash that expires.
    pub fn proxy(&self, proxy: &str) -> String {
        format!("{}:proxy:{proxy}", self.prefix)
    }

    /// The set of all proxies that may own something.
    pub fn proxies(&self) -> String {
        format!("{}:proxies", self.prefix)
    }

    /// The hash of the connections of a proxy in one shard; `shard` is two hexadecimal digits.
    pub fn owns(&self, proxy: &str, shard: &str) -> String {
        format!("{}:owns:{proxy}:{shard}", self.prefix)
    }

    /// The set of the connections of a key.
    pub fn key(&self, pool: &str, key: &str) -> String {
        format!("{}:key:{pool}/{key}", self.prefix)
    }

    /// The hash of the proxies that have members of a room.
    pub fn room(&self, room: &str) -> String {
        format!("{}:room:{room}", self.prefix)
    }

    /// The hash of keys that are placed elsewhere than at home, and the channel of its changes.
    pub fn placed(&self, pool: &str) -> String {
        format!("{}:placed:{pool}", self.prefix)
    }

    /// The hash of backends that are to be drained, and the channel of its changes.
    pub fn drain(&self, pool: &str) -> String {
        format!("{}:drain:{pool}", self.prefix)
    }

    /// The hash of backends whose drain was undone.
    pub fn undrained(&self, pool: &str) -> String {
        format!("{}:undrained:{pool}", self.prefix)
    }

    /// The backend of a learnt session.
    pub fn session(&self, pool: &str, id: &str) -> String {
        format!("{}:session:{pool}/{id}", self.prefix)
    }

    /// The lock of whoever removes what a dead proxy has left.
    pub fn sweep(&self, proxy: &str) -> String {
        format!("{}:sweep:{proxy}", self.prefix)
    }

    /// A channel on which a proxy hears only itself; the number tells it from others.
    pub fn probe(&self, proxy: &str, number: u32) -> String {
        format!("{}:probe:{proxy}:{number}", self.prefix)
    }

    /// The channel on which messages for these arrive.
    pub fn channel(&self, channel: &Channel) -> String {
        let prefix = &self.prefix;
        match channel {
            Channel::Group(Group::Room(room)) => format!("{prefix}:to:room:{room}"),
            Channel::Group(Group::Key { pool, key }) => format!("{prefix}:to:key:{pool}/{key}"),
            Channel::Proxy(proxy) => format!("{prefix}:to:proxy:{proxy}"),
            Channel::All => format!("{prefix}:to:all"),
        }
    }

    /// What a channel of this name is for; `None`: it is none of ours.
    pub fn told(&self, name: &str) -> Option<Told> {
        let name = name.strip_prefix(&*self.prefix)?.strip_prefix(':')?;
        if let Some(pool) = name.strip_prefix("placed:") {
            return Some(Told::Placed(pool.to_owned()));
        }
        if let Some(pool) = name.strip_prefix("drain:") {
            return Some(Told::Drain(pool.to_owned()));
        }
        let to = name.strip_prefix("to:")?;
        let channel = match to.split_once(':') {
            None if to == "all" => Channel::All,
            Some(("room", room)) => Channel::Group(Group::Room(room.into())),
            Some(("proxy", proxy)) => Channel::Proxy(proxy.into()),
            Some(("key", of_pool)) => {
                let (pool, key) = of_pool.split_once('/')?;
                Channel::Group(Group::Key { pool: pool.into(), key: key.into() })
            }
            _ => return None,
        };
        Some(Told::Message(channel))
    }
}

/// The shard of a connection by the part of its id behind the dot, of which it is the beginning.
pub fn shard(rest: &str) -> &str {
    rest.get(..2).unwrap_or_default()
}

/// All shards.
pub fn shards() -> impl Iterator<Item = String> {
    (0..64).map(|shard| format!("{shard:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_those_of_the_guide() {
        let names = Names::new("steadfast");
        assert_eq!(names.proxy("edge1-5"), "steadfast:proxy:edge1-5");
        assert_eq!(names.proxies(), "steadfast:proxies");
        assert_eq!(names.owns("edge1-5", shard("3f00000001")), "steadfast:owns:edge1-5:3f");
        assert_eq!(names.key("rooms", "a/b"), "steadfast:key:rooms/a/b");
        assert_eq!(names.room("lobby"), "steadfast:room:lobby");
        assert_eq!(names.placed("rooms"), "steadfast:placed:rooms");
        assert_eq!(names.drain("rooms"), "steadfast:drain:rooms");
        assert_eq!(names.undrained("rooms"), "steadfast:undrained:rooms");
        assert_eq!(names.session("rooms", "x"), "steadfast:session:rooms/x");
        let room = Channel::Group(Group::Room("a:b/c".into()));
        assert_eq!(names.channel(&room), "steadfast:to:room:a:b/c");
        assert_eq!(names.channel(&Channel::Proxy("p".into())), "steadfast:to:proxy:p");
        assert_eq!(names.channel(&Channel::All), "steadfast:to:all");
    }

    #[test]
    fn others_are_none_of_ours() {
        let names = Names::new("a:b");
        for other in ["", "a:b", "a:to:all", "a:b:to:all:", "a:b:to:key:pool", "a:b:to:house:x"] {
            assert_eq!(names.told(other), None, "{other}");
        }
        assert_eq!(names.told("a:b:placed:p"), Some(Told::Placed("p".to_owned())));
        assert_eq!(names.told("a:b:drain:p"), Some(Told::Drain("p".to_owned())));
    }

    proptest! {
        #[test]
        fn what_is_made_is_read(prefix in ".*", pool in "[A-Za-z0-9_-]{1,64}", text in ".*", which in 0_u8..4) {
            let text: Arc<str> = text.into();
            let channel = match which {
                0 => Channel::Group(Group::Room(text)),
                1 => Channel::Group(Group::Key { pool: pool.into(), key: text }),
                2 => Channel::Proxy(text),
                _ => Channel::All,
            };
            let names = Names::new(&prefix);
            prop_assert_eq!(names.told(&names.channel(&channel)), Some(Told::Message(channel)));
        }
    }
}
