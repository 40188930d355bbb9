//! One connection to Redis, and what goes over it.
//!
//! A batch of orders is one pipeline: they are carried out in their order, in one round trip. What
//! Redis refuses is an answer like any other; what it does not answer in time ends the connection,
//! since nobody can tell then what has become of it.
//!
//! PUBLISH is plain: this knows one Redis, or one behind a name, and no cluster.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Value};

use super::message::{Answered, Order};
use super::{ANSWER_WITHIN, CONNECT_WITHIN, PublishError, REDIS};

/// How often an idle connection is asked whether it still is one.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(1);

/// A Redis that may be connected to.
#[derive(Debug)]
pub(super) struct Redis {
    client: Client,
    prefix: String,
}

impl Redis {
    pub(super) fn new(url: &str, prefix: String) -> Result<Self, RedisError> {
        Ok(Self { client: Client::open(url)?, prefix })
    }

    pub(super) async fn connect(&self) -> Result<Link, RedisError> {
        // The defaults of the library are tighter than a machine that is busy with other things.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Link { connection, prefix: self.prefix.clone() })
    }
}

/// An open connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    prefix: String,
}

impl Link {
    /// Carries out orders; an error is the end of the connection.
    pub(super) async fn carry_out(
        &mut self,
        orders: &[Order],
    ) -> Result<Vec<Result<Answered, PublishError>>, RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for order in orders {
            for (index, argument) in order.command(&self.prefix).iter().enumerate() {
                if index == 0 {
                    pipeline.cmd(argument);
                } else {
                    pipeline.arg(argument);
                }
            }
        }
        let answers: Vec<RedisResult<Value>> = pipeline.query_async(&mut self.connection).await?;
        let answered = orders.iter().zip(answers).map(|(order, answer)| {
            answer
                .and_then(|answer| read(order, answer))
                .map_err(|error| PublishError::Refused { place: REDIS, detail: error.to_string() })
        });
        Ok(answered.collect())
    }

    /// Asks for a sign of life.
    pub(super) async fn check(&mut self) -> Result<(), RedisError> {
        redis::cmd("PING").query_async(&mut self.connection).await
    }
}

fn read(order: &Order, answer: Value) -> RedisResult<Answered> {
    Ok(match order {
        Order::Count { .. } => Answered::Members(redis::from_redis_value(answer)?),
        _ => Answered::Reached(redis::from_redis_value(answer)?),
    })
}
