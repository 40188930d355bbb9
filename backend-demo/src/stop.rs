//! How a demo tells its connections that it stops, and learns that they are gone.
//!
//! One `watch` does both: its value is whether the demo stops, and its receivers, one in each
//! request and WebSocket, are counted, so that "all are gone" is "nobody watches any more".

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::CONNECTION;
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode};
use tokio::sync::watch;

use crate::Backend;
use crate::socket::CLOSE_WITHIN;

/// How long all WebSockets together have: what each has for its Close, and some for a busy machine.
pub(crate) const WEBSOCKETS_WITHIN: Duration = CLOSE_WITHIN.saturating_add(Duration::from_secs(1));
/// How long plain requests have when the WebSockets are gone.
pub(crate) const REQUESTS_WITHIN: Duration = Duration::from_secs(1);

/// The demo's end of the signal.
#[derive(Debug, Default)]
pub(crate) struct StopSignal(watch::Sender<bool>);

impl StopSignal {
    /// Tells everybody to stop, and waits until nobody is left.
    pub(crate) async fn give(&self) {
        self.0.send_replace(true);
        self.0.closed().await;
    }
}

/// A connection's end of the signal: as long as it exists, the demo waits for it.
///
/// As an extractor it lets a request in, or refuses it with 503 where the demo stops already.
#[derive(Debug)]
pub(crate) struct Serving(watch::Receiver<bool>);

impl Serving {
    /// Waits for the stop. Cancel safe.
    pub(crate) async fn stopped(&mut self) {
        // An error says that the demo is gone altogether.
        _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

impl FromRequestParts<Arc<Backend>> for Serving {
    type Rejection = Refusal;

    async fn from_request_parts(_: &mut Parts, backend: &Arc<Backend>) -> Result<Self, Refusal> {
        // Counted before it looks: a stop in between would not wait for this one.
        let receiver = backend.stop_signal.0.subscribe();
        if *receiver.borrow() { Err(STOPPING) } else { Ok(Self(receiver)) }
    }
}

type Refusal = (StatusCode, [(HeaderName, &'static str); 1], &'static str);

const STOPPING: Refusal =
    (StatusCode::SERVICE_UNAVAILABLE, [(CONNECTION, "close")], "this backend stops\n");
