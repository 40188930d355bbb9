//! Commands that write or remove what a proxy owns, in an order that leaves nothing behind.
//!
//! A record tells where else its connection is named. So it is there before anything else of its
//! connection is, and goes when nothing else is left: whoever dies in between leaves enough to find the
//! rest. New records come before old ones go, since both may be of one room. All commands have one key and a result that does not depend on what was there.

use redis::{Cmd, ServerError, Value};

use super::super::names::{Names, shard};
use super::super::{Record, Unavailable};
use super::connect::is_of_other_type;
use super::link::Link;
use super::pending::{Batch, Gone};
use super::record;

/// Commands that are sent in one go.
const BATCH: usize = 200;

/// Commands about the connections of one proxy.
pub(super) struct Steps<'a> {
    names: &'a Names,
    proxy: &'a str,
    /// What names a connection that goes.
    first: Vec<Cmd>,
    /// Records that are there.
    records: Vec<Cmd>,
    /// Records that go.
    gone: Vec<Cmd>,
    /// What names a connection that is there.
    last: Vec<Cmd>,
}

impl<'a> Steps<'a> {
    /// None yet.
    pub(super) fn of(names: &'a Names, proxy: &'a str) -> Self {
        Self {
            names,
            proxy,
            first: Vec::new(),
            records: Vec::new(),
            gone: Vec::new(),
            last: Vec::new(),
        }
    }

    /// Writes a connection.
    pub(super) fn put(&mut self, rest: &str, record: &Record) {
        let id = self.id(rest);
        if let Some(key) = &record.key {
            self.last.push(command("SADD", self.names.key(&record.pool, key), &id));
        }
        let mut write = command("HSET", self.names.owns(self.proxy, shard(rest)), &id);
        write.arg(record::encode(record));
        self.records.push(write);
    }

    /// Removes a connection.
    pub(super) fn remove(&mut self, rest: &str, gone: &Gone) {
        let id = self.id(rest);
        if let Some((pool, key)) = gone {
            self.first.push(command("SREM", self.names.key(pool, key), &id));
        }
        self.gone.push(command("HDEL", self.names.owns(self.proxy, shard(rest)), &id));
    }

    /// Writes how many members a room has.
    pub(super) fn room(&mut self, room: &str, members: usize) {
        let name = self.names.room(room);
        if members == 0 {
            self.first.push(command("HDEL", name, self.proxy));
        } else {
            let mut write = command("HSET", name, self.proxy);
            write.arg(members);
            self.last.push(write);
        }
    }

    /// Writes all of a batch.
    pub(super) fn batch(&mut self, batch: &Batch) {
        batch.gone.iter().for_each(|(rest, gone)| self.remove(rest, gone));
        batch.live.iter().for_each(|(rest, record)| self.put(rest, record));
        batch.rooms.iter().for_each(|(room, members)| self.room(room, *members));
    }

    /// Takes the steps; tells how many commands that were.
    pub(super) async fn take(self, link: &Link) -> Result<usize, Unavailable> {
        let mut count = 0;
        // The next begin when these are done: in a Cluster nothing else orders them.
        for commands in [self.first, self.records, self.gone, self.last] {
            count += commands.len();
            carry_out_where_it_fits(link, commands).await?;
        }
        Ok(count)
    }

    fn id(&self, rest: &str) -> String {
        format!("{}.{rest}", self.proxy)
    }
}

/// Runs commands, some at a time, and gives their answers.
///
/// One that was refused makes the whole an error.
pub(super) async fn carry_out(link: &Link, commands: Vec<Cmd>) -> Result<Vec<Value>, Unavailable> {
    let answers = carry_out_where_it_fits(link, commands).await?.into_iter();
    let other_type = || Unavailable::NoAnswer("a key holds something of another type".to_owned());
    answers.map(|answer| answer.ok_or_else(other_type)).collect()
}

/// Runs commands, some at a time. One whose key holds something of another type has no answer, and is
/// passed over: to try all again would not help, and the rest is as good as without it.
///
/// One that was refused for anything else makes the whole an error.
pub(super) async fn carry_out_where_it_fits(
    link: &Link,
    mut commands: Vec<Cmd>,
) -> Result<Vec<Option<Value>>, Unavailable> {
    let mut answers = Vec::with_capacity(commands.len());
    while !commands.is_empty() {
        let rest = commands.split_off(commands.len().min(BATCH));
        for answer in link.run_all(commands).await? {
            answers.push(match answer {
                answer if is_of_other_type(&answer) => None,
                Value::ServerError(refusal) => {
                    return Err(Unavailable::Refused(said(&refusal)));
                }
                answer => Some(answer),
            });
        }
        commands = rest;
    }
    Ok(answers)
}

/// A refusal in the words of Redis.
pub(super) fn said(refusal: &ServerError) -> String {
    let code = refusal.code();
    refusal.details().map_or_else(|| code.to_owned(), |details| format!("{code} {details}"))
}

/// Reads an answer as what it should be.
pub(super) fn read<T: redis::FromRedisValue>(answer: Value) -> Result<T, Unavailable> {
    redis::from_redis_value(answer).map_err(|error| Unavailable::NoAnswer(error.to_string()))
}

/// Runs one command, and reads its answer.
pub(super) async fn ask<T: redis::FromRedisValue>(
    link: &Link,
    command: Cmd,
) -> Result<T, Unavailable> {
    read(carry_out(link, vec![command]).await?.pop().unwrap_or(Value::Nil))
}

/// A command with one key alone.
pub(super) fn one(name: &str, key: &str) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    command
}

/// A command with one key and one more argument.
pub(super) fn command(name: &str, key: String, argument: impl redis::ToRedisArgs) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key).arg(argument);
    command
}
