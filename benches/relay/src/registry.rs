//! The registry of a proxy that is alone: what others need of it, and no client of Redis.

#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/registry/interface.rs"]
mod interface;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/registry/memory.rs"]
pub(crate) mod memory;

pub(crate) use self::interface::{Change, Group, Record, Registry};
