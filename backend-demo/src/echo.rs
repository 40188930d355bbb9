//! The two servers that talk to one client alone.
//!
//! `/echo` sends back what it gets and says nothing of its own, so that a test can compare bytes.
//! `/ws` greets, and answers each text with a sentence, as the first example of most tutorials
//! does; it takes binary messages without an answer.
//!
//! Both read the next message only when the answer to the last was written, so a client that
//! doesn't read costs one message and is then not read from either.

use std::ops::ControlFlow;
use std::pin::pin;

use axum::extract::ws::{Message, WebSocket};

use crate::socket::{GOING_AWAY, close, next_message};
use crate::stop::Serving;

/// The largest message `/echo` takes: four times what people try when they try a large one.
pub(crate) const ECHO_MESSAGE_BYTES: usize = 64 << 20;
/// The largest message `/ws` takes.
pub(crate) const GREETER_MESSAGE_BYTES: usize = 1 << 20;

/// Serves one `/echo` connection to its end.
pub(crate) async fn echo(socket: WebSocket, serving: Serving) {
    answer(socket, serving, Some).await;
}

/// Serves one `/ws` connection to its end.
pub(crate) async fn greet(mut socket: WebSocket, serving: Serving, backend: &str) {
    let greeting = format!("Welcome! This is backend {backend}.");
    // A client that is gone already is found out by the first read.
    _ = socket.send(Message::text(greeting)).await;
    answer(socket, serving, |message| match message {
        Message::Text(text) => Some(Message::text(format!("Server received: {text}"))),
        _ => None,
    })
    .await;
}

async fn answer(
    mut socket: WebSocket,
    mut serving: Serving,
    reply: impl Fn(Message) -> Option<Message>,
) {
    let mut stopped = pin!(serving.stopped());
    loop {
        tokio::select! {
            () = &mut stopped => return close(socket, GOING_AWAY, "the backend stops").await,
            // Dropped half way only by the stop, which ends the connection anyway.
            turn = answer_one(&mut socket, &reply) => if turn.is_break() { return },
        }
    }
}

async fn answer_one(
    socket: &mut WebSocket,
    reply: &impl Fn(Message) -> Option<Message>,
) -> ControlFlow<()> {
    let Some(message) = next_message(socket).await else { return ControlFlow::Break(()) };
    let Some(reply) = reply(message) else { return ControlFlow::Continue(()) };
    match socket.send(reply).await {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
