//! One connection to Redis, whatever is there: a server, whichever Sentinels name, or a Cluster.
//!
//! A connection is good when it has answered: a server that is loading, wants another login, or is not
//! the master that the Sentinels said, is none. Each attempt asks the Sentinels anew, so a
//! fail-over is followed by connecting again.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{AsyncPushSender, ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, ProtocolVersion, PushInfo, RedisError,
    RedisResult, ServerErrorKind, Value,
};
use tokio::task::JoinSet;

use super::place::{Access, Address, Place};

/// How long a connection may take, from its first packet to its first answer. Of a Cluster every member
/// is connected to.
const CONNECT: Duration = Duration::from_secs(1);
const CONNECT_CLUSTER: Duration = Duration::from_secs(3);
/// How long a batch of commands may take.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How many times a command is sent again in a Cluster whose slots move.
const RETRIES: u32 = 3;
/// The commands that write.
const WRITES: [&str; 9] =
    ["HSET", "HSETNX", "HDEL", "SADD", "SREM", "SET", "DEL", "EXPIRE", "PEXPIRE"];
/// How many groups of commands, each for a key of its own, are under way at a time in a Cluster.
const CONCURRENT: usize = 64;

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server, which is there.
    One(MultiplexedConnection, Arc<Address>),
    /// To all members of a Cluster.
    Cluster(ClusterConnection),
}

/// What commands were answered.
pub(super) struct Answers {
    /// In their order; a refused one is an error in its place.
    pub(super) values: Vec<Value>,
    /// Those that were to write something, and were refused.
    pub(super) refused: Vec<Refused>,
}

/// A command that was refused.
pub(super) struct Refused {
    pub(super) command: String,
    pub(super) key: String,
    /// Whether that is because of what its key holds, and of nothing else.
    pub(super) is_of_other_type: bool,
}

/// What takes messages as they come; must not block.
pub(super) type Taker = Box<dyn Fn(PushInfo) + Send + Sync>;

impl Connection {
    /// Connects, and has it answer.
    pub(super) async fn open(place: &Place, taker: Option<Taker>) -> RedisResult<Self> {
        let limit = if matches!(place, Place::Cluster(..)) { CONNECT_CLUSTER } else { CONNECT };
        let opened = async {
            match place {
                Place::One(address, access) => {
                    let connection = one(address, access, taker).await?;
                    Ok(Self::One(connection, Arc::new(address.clone())))
                }
                Place::Sentinel { sentinels, master, access } => {
                    let (address, _) = master_of(sentinels, master, access).await?;
                    let connection = one(&address, access, taker).await?;
                    Ok(Self::One(connection, Arc::new(address)))
                }
                Place::Cluster(members, access) => {
                    cluster(members, access, taker).await.map(Self::Cluster)
                }
            }
        };
        let mut connection =
            tokio::time::timeout(limit, opened).await.unwrap_or_else(|_| Err(late()))?;
        connection.check(place).await?;
        Ok(connection)
    }

    /// Has the server answer, within a second.
    pub(super) async fn check(&mut self, place: &Place) -> RedisResult<()> {
        let is_master = matches!(place, Place::Sentinel { .. });
        let command = redis::cmd(if is_master { "ROLE" } else { "PING" });
        let answer = self.ask_in_time(&command).await?;
        if is_master && role(&answer) != Some(b"master") {
            return Err(failure("the server is no longer the master"));
        }
        Ok(())
    }

    /// Has the server refuse or carry out a write that changes nothing: one that takes none is of no use. What
    /// it refuses for any other reason is told when that matters.
    pub(super) async fn try_to_write(&mut self, nothing: &Cmd) -> RedisResult<()> {
        match self.ask_in_time(nothing).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                Err(failure("the server is a replica, which takes no writes; name its master"))
            }
            Err(error) if error.is_io_error() => Err(error),
            _ => Ok(()),
        }
    }

    async fn ask_in_time(&mut self, command: &Cmd) -> RedisResult<Value> {
        let asked = tokio::time::timeout(CONNECT, self.ask(command)).await;
        asked.unwrap_or_else(|_| Err(late()))
    }

    /// Runs one command; a refusal is an error.
    pub(super) async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::One(connection, _) => connection.req_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        answer?.extract_error()
    }

    /// Runs commands. Those for the same key are run one after the other.
    pub(super) async fn run_all(&mut self, commands: Vec<Cmd>) -> RedisResult<Answers> {
        match self {
            Self::One(connection, _) => {
                let (pipeline, count) = pipelined(commands);
                let values = connection.req_packed_commands(&pipeline, 0, count).await?;
                let refused = refused_writes(&pipeline, &values);
                Ok(Answers { values, refused })
            }
            Self::Cluster(connection) => by_key(connection, commands).await,
        }
    }
}

/// What a server is, by its answer to `ROLE`.
fn role(answer: &Value) -> Option<&[u8]> {
    let Value::Array(parts) = answer else { return None };
    match parts.first() {
        Some(Value::BulkString(role)) => Some(role),
        _ => None,
    }
}

fn pipelined(commands: impl IntoIterator<Item = Cmd>) -> (Pipeline, usize) {
    let mut pipeline = Pipeline::new();
    let mut count = 0;
    for command in commands {
        pipeline.add_command(command);
        count += 1;
    }
    (pipeline, count)
}

async fn one(
    address: &Address,
    access: &Access,
    taker: Option<Taker>,
) -> RedisResult<MultiplexedConnection> {
    let client = redis::Client::open(access.to(address)?)?;
    let mut config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(ANSWER));
    if let Some(taker) = taker {
        config = config.set_push_sender(push_sender(taker));
    }
    client.get_multiplexed_async_connection_with_config(&config).await
}

fn push_sender(taker: Taker) -> impl AsyncPushSender {
    move |push: PushInfo| {
        taker(push);
        Ok::<(), std::convert::Infallible>(())
    }
}

async fn cluster(
    members: &[Address],
    access: &Access,
    taker: Option<Taker>,
) -> RedisResult<ClusterConnection> {
    let members = members.iter().map(|member| access.to(member));
    let mut builder = ClusterClientBuilder::new(members.collect::<RedisResult<Vec<_>>>()?)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(CONNECT)
        .response_timeout(ANSWER)
        .retries(RETRIES)
        .min_retry_wait(20)
        .max_retry_wait(200);
    if let Some(taker) = taker {
        builder = builder.push_sender(push_sender(taker));
    }
    builder.build()?.get_async_connection().await
}

/// Asks all Sentinels who the master is; the first that knows is believed, and comes along.
async fn master_of(
    sentinels: &[Address],
    master: &str,
    access: &Access,
) -> RedisResult<(Address, MultiplexedConnection)> {
    let mut error = failure("no Sentinel knows the master");
    let mut asking = JoinSet::new();
    for sentinel in sentinels {
        let (sentinel, master, access) = (sentinel.clone(), master.to_owned(), access.clone());
        asking.spawn(async move { first_answer(&sentinel, &master, &access).await });
    }
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok(Ok(known)) => return Ok(known),
            Ok(Err(failed)) => error = failed,
            Err(_) => {}
        }
    }
    Err(error)
}

/// Asks without login first: most Sentinels want none, and refuse one.
async fn first_answer(
    sentinel: &Address,
    master: &str,
    access: &Access,
) -> RedisResult<(Address, MultiplexedConnection)> {
    let ask = async |access: &Access| {
        let mut connection = one(sentinel, access, None).await?;
        Ok((ask_sentinel(&mut connection, master).await?, connection))
    };
    match ask(&Access::default()).await {
        Err(error) if wants_login(&error) && access.password.is_some() => {
            ask(&Access { database: 0, ..access.clone() }).await
        }
        answer => answer,
    }
}

fn wants_login(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH") || error.kind() == ErrorKind::AuthenticationFailed
}

async fn ask_sentinel(
    connection: &mut MultiplexedConnection,
    master: &str,
) -> RedisResult<Address> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let answer = connection.req_packed_command(&command).await?.extract_error()?;
    let known: Option<(String, u16)> = redis::from_redis_value(answer)?;
    let (host, port) = known.ok_or_else(|| failure("the Sentinels know no master of that name"))?;
    Ok(Address { host, port })
}

/// Asks a Sentinel, again and again, whether the master is still the one that it was.
///
/// The old master of a planned fail-over goes on as if nothing were, for ten seconds and more, while
/// those who look for the master are with the new one already.
#[derive(Default)]
pub(super) struct Lookout {
    sentinel: Option<MultiplexedConnection>,
}

impl Lookout {
    /// Whether the connection is to the server that it should be to; that no Sentinel answers does not
    /// say that it is not. Takes a second at most.
    pub(super) async fn approves(&mut self, place: &Place, connection: &Connection) -> bool {
        let (Place::Sentinel { sentinels, master, access }, Connection::One(_, address)) =
            (place, connection)
        else {
            return true;
        };
        let asked = async {
            match self.sentinel.take() {
                Some(mut sentinel) => {
                    let known = ask_sentinel(&mut sentinel, master).await?;
                    Ok((known, sentinel))
                }
                None => master_of(sentinels, master, access).await,
            }
        };
        let Ok(Ok((known, sentinel))) = tokio::time::timeout(CONNECT, asked).await else {
            return true;
        };
        self.sentinel = Some(sentinel);
        known == **address
    }
}

/// Runs commands in a Cluster: those of each key as one pipeline, which goes where the key is and again
/// if that has moved.
async fn by_key(connection: &ClusterConnection, commands: Vec<Cmd>) -> RedisResult<Answers> {
    let values = commands.iter().map(|_| Value::Nil).collect();
    let mut answers = Answers { values, refused: Vec::new() };
    let mut groups: Vec<(Vec<usize>, Vec<Cmd>)> = Vec::new();
    let mut of_key: std::collections::HashMap<Vec<u8>, usize> = std::collections::HashMap::new();
    for (index, command) in commands.into_iter().enumerate() {
        let group = *of_key.entry(key_of(&command)).or_insert_with(|| {
            groups.push(Default::default());
            groups.len() - 1
        });
        groups[group].0.push(index);
        groups[group].1.push(command);
    }
    let mut running = JoinSet::new();
    let mut groups = groups.into_iter();
    loop {
        while running.len() < CONCURRENT
            && let Some((indices, commands)) = groups.next()
        {
            let mut connection = connection.clone();
            running.spawn(async move {
                let (pipeline, count) = pipelined(commands);
                let values = connection.req_packed_commands(&pipeline, 0, count).await?;
                let refused = refused_writes(&pipeline, &values);
                Ok::<_, RedisError>((indices, Answers { values, refused }))
            });
        }
        let Some(ended) = running.join_next().await else { return Ok(answers) };
        let (indices, of_group) = ended.map_err(|_| failure("a batch of commands panicked"))??;
        for (index, value) in indices.into_iter().zip(of_group.values) {
            answers.values[index] = value;
        }
        answers.refused.extend(of_group.refused);
    }
}

/// The commands of a pipeline that were to write, and were refused.
fn refused_writes(pipeline: &Pipeline, answers: &[Value]) -> Vec<Refused> {
    let refused = pipeline.cmd_iter().zip(answers).filter_map(|(command, answer)| {
        let Value::ServerError(_) = answer else { return None };
        let name = word(command, 0);
        let writes = WRITES.iter().any(|one| name.eq_ignore_ascii_case(one.as_bytes()));
        writes.then(|| Refused {
            command: String::from_utf8_lossy(name).into_owned(),
            key: String::from_utf8_lossy(&key_of(command)).into_owned(),
            is_of_other_type: is_of_other_type(answer),
        })
    });
    refused.collect()
}

/// Whether a command was refused because its key holds something of another type: so it will be until
/// somebody removes that, and is of no other key.
pub(super) fn is_of_other_type(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "WRONGTYPE")
}

fn word(command: &Cmd, index: usize) -> &[u8] {
    match command.args_iter().nth(index) {
        Some(redis::Arg::Simple(word)) => word,
        _ => &[],
    }
}

/// The key of a command that has one; what has none is alike, and nothing.
fn key_of(command: &Cmd) -> Vec<u8> {
    let name = word(command, 0);
    let is_script = name.eq_ignore_ascii_case(b"EVAL") || name.eq_ignore_ascii_case(b"EVALSHA");
    word(command, if is_script { 3 } else { 1 }).to_vec()
}

fn late() -> RedisError {
    failure("no answer in time")
}

pub(super) fn failure(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Io, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_command_is_where_it_is_routed_by() {
        let key = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            for word in &words[1..] {
                command.arg(*word);
            }
            String::from_utf8(key_of(&command)).unwrap()
        };
        assert_eq!(key(&["HSET", "a", "b", "c"]), "a");
        assert_eq!(key(&["EVAL", "return 1", "1", "a", "b"]), "a");
        assert_eq!(key(&["evalsha", "0f", "1", "a"]), "a");
        assert_eq!(key(&["PING"]), "");
    }
}
