//! What all WebSockets of a demo have in common: reading a message, and ending with a Close.
//!
//! Pings are answered and the client's Close is returned below, in the WebSocket library; both
//! happen while somebody reads, so every task here keeps reading until there is nothing more.

use std::time::Duration;

use axum::extract::WebSocketUpgrade;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use tokio::time::timeout;

/// How long a client has to take our Close and answer it.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Close code of a backend that stops (RFC 6455 section 7.4.1).
pub(crate) const GOING_AWAY: u16 = 1001;
/// Close code for who does not keep up: "try again later", from the IANA registry.
pub(crate) const TRY_AGAIN_LATER: u16 = 1013;

/// Sets how much one message may have, and buffers for many small connections.
///
/// The library's own default is two buffers of 128 KiB for each connection, idle or not.
pub(crate) fn sized(upgrade: WebSocketUpgrade, message_bytes: usize) -> WebSocketUpgrade {
    upgrade
        .max_message_size(message_bytes)
        .max_frame_size(message_bytes)
        .read_buffer_size(16 << 10)
        .write_buffer_size(16 << 10)
}

/// Waits for the next text or binary message; `None` when the WebSocket has ended, however.
///
/// Cancel safe: what was read of a message stays in the socket.
pub(crate) async fn next_message(socket: &mut WebSocket) -> Option<Message> {
    loop {
        match socket.recv().await? {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => return Some(message),
            // Of a Close: read on, so that the answer to it goes out.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => {}
            Err(error) => {
                tracing::debug!(%error, "WebSocket broke off");
                return None;
            }
        }
    }
}

/// Sends a Close and waits, not for long, until the client has answered it.
pub(crate) async fn close(mut socket: WebSocket, code: u16, reason: &'static str) {
    let farewell = async {
        let frame = CloseFrame { code, reason: reason.into() };
        if socket.send(Message::Close(Some(frame))).await.is_ok() {
            while next_message(&mut socket).await.is_some() {}
        }
    };
    if timeout(CLOSE_WITHIN, farewell).await.is_err() {
        tracing::debug!(code, "client did not answer the Close in time");
    }
}
