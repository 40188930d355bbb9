//! Where it is recorded who owns a connection, and how a message finds it.
//!
//! A proxy knows its own connections by the tables of its workers, and nothing else is needed as long
//! as it is alone: [`Memory`](memory::Memory). Several proxies share a Redis:
//! [`redis::Redis`]. What is there is the shadow of those tables: it is written behind
//! them, never waited for, and written anew after any doubt.
//!
//! Three ways go through a registry. Workers tell it of connections, and of the [`Group`]s that have
//! members here. Messages of anybody for a group, a proxy or everyone come out of it as [`Event`]s,
//! and so does what other proxies have placed and who drains what. And it can be asked for what only
//! another proxy knows.
//!
//! Nothing here knows of a socket to a client: names are text, and what the registry needs of the
//! proxy it is given as [`Truth`].

mod interface;
pub mod memory;
pub mod names;
pub mod redis;

pub use interface::{
    Boxed, Change, Channel, Event, Group, Others, Owned, Page, Peer, Record, Registry, Shadow,
    State, Truth, Unavailable, Wanted,
};
