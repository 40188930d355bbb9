//! Why the proxy itself answers a request, and what it answers.
//!
//! One place turns a failure into a status, a text for a person and a metric label. An answer of a
//! backend never comes through here: it reaches its client as it is.

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION};
use http::{Response, StatusCode};

use super::body::Reply;
use crate::pool::{Moved, NoBackend};
use crate::route::Learn;
use crate::route::key::KeyError;
use crate::ws::handshake::HandshakeError;

/// Why a client gets an answer of the proxy's own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// No `Host`, or several, where there must be one (RFC 9112 section 3.2).
    #[error("the request must have exactly one Host")]
    Host,
    /// No route is for this host and path.
    #[error("no route is for this host and path")]
    NoRoute,
    /// The key can't be one.
    #[error("the key of this request is not valid: {0}")]
    Key(#[from] KeyError),
    /// No proper WebSocket handshake.
    #[error("not a WebSocket handshake: {0}")]
    Handshake(#[from] HandshakeError),
    /// The route allows other origins.
    #[error("this origin may not connect")]
    Origin,
    /// The route has as many connections as it may.
    #[error("this route is full")]
    RouteFull,
    /// No backend is in service.
    #[error("no backend is in service")]
    NoBackend,
    /// The backends that this may go to have as many connections as they may.
    #[error("the backend is full")]
    BackendFull,
    /// The backend gets as many handshakes as it may, and more wait than may.
    #[error("too many handshakes at once")]
    HandshakeRate,
    /// The backend of this request can't be reached.
    #[error("the backend can't be reached")]
    Unreachable,
    /// The backend broke off before its answer.
    #[error("the backend broke off before its answer")]
    BrokeOff,
    /// The backend's answer is not a valid one.
    #[error("the backend's answer is not valid: {0}")]
    BadAnswer(String),
    /// The backend did not answer in time.
    #[error("the backend did not answer in time")]
    TimedOut,
    /// The session of this request was at a backend that is lost.
    #[error("{}", session_unknown(*.0))]
    SessionLost(Learn),
    /// The client did not go on with its body in time.
    #[error("the request body came too slowly")]
    BodyTimeout,
    /// The client broke off its body, or sent a malformed one.
    #[error("the request body is incomplete")]
    BodyBroken,
}

/// A server's own words for a session that it does not know, by which a client knows to begin anew.
fn session_unknown(learn: Learn) -> &'static str {
    match learn {
        Learn::SignalR => "No Connection with that ID",
        Learn::Off | Learn::SocketIo => r#"{"code":1,"message":"Session ID unknown"}"#,
    }
}

impl From<NoBackend> for Refused {
    fn from(none: NoBackend) -> Self {
        match none {
            NoBackend::OutOfService { .. } => Self::NoBackend,
            NoBackend::Full { .. } => Self::BackendFull,
        }
    }
}

impl From<Moved> for Refused {
    fn from(_: Moved) -> Self {
        Self::NoBackend
    }
}

impl Refused {
    /// The status that the client gets.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::SessionLost(Learn::SignalR) => StatusCode::NOT_FOUND,
            Self::Host | Self::Key(_) | Self::SessionLost(_) | Self::BodyBroken => {
                StatusCode::BAD_REQUEST
            }
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Handshake(error) => error.status(),
            Self::Origin => StatusCode::FORBIDDEN,
            Self::RouteFull | Self::NoBackend | Self::BackendFull | Self::HandshakeRate => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Unreachable | Self::BrokeOff | Self::BadAnswer(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// As it stands in a metric label and a log field.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Host => "bad_request",
            Self::NoRoute => "no_route",
            Self::Key(_) => "bad_key",
            Self::Handshake(_) => "bad_handshake",
            Self::Origin => "origin",
            Self::RouteFull => "route_connections",
            Self::NoBackend => "no_backend",
            Self::BackendFull => "backend_connections",
            Self::HandshakeRate => "handshake_rate",
            Self::Unreachable => "unreachable",
            Self::BrokeOff => "broke_off",
            Self::BadAnswer(_) => "bad_answer",
            Self::TimedOut => "backend_timeout",
            Self::SessionLost(_) => "session_lost",
            Self::BodyTimeout => "body_timeout",
            Self::BodyBroken => "body_broken",
        }
    }

    /// The answer.
    pub(super) fn response(&self) -> Response<Reply> {
        let mut response = Response::new(Reply::text(self.to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        match self {
            Self::SessionLost(learn) if *learn != Learn::SignalR => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            Self::NoBackend | Self::RouteFull | Self::BackendFull | Self::HandshakeRate => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Handshake(error) if error.status() == StatusCode::UPGRADE_REQUIRED => {
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            _ => {}
        }
        response
    }
}
