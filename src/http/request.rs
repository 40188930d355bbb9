//! One request, from its head to its answer: route, key and session, then a tunnel or a forward.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{HOST, HeaderValue, SET_COOKIE};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tracing::debug;

use super::body::Reply;
use super::forward::{self, Plain};
use super::gate::Turn;
use super::head::RequestHead;
use super::headers::{self, ClientFacts};
use super::respond::Refused;
use super::session::{RequestLine, Session};
use super::trace::Trace;
use super::tunnel::{self, Handshake, Opened};
use super::{Accepted, Context, Route};
use crate::listen::ListenerSettings;
use crate::route::key::{RequestFacts, find_key};
use crate::route::sticky;
use crate::ws::handshake;

impl Context {
    /// Answers a request, whatever comes of it; one that was refused is counted with why.
    pub(super) async fn answer(
        self: &Rc<Self>,
        accepted: &Rc<Accepted>,
        turn: &Turn,
        opened: &Opened,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Infallible> {
        let answer = turn.answer();
        let mut trace = Trace::new(&self.shared, accepted, &request);
        let answered = self.respond(accepted, opened, request, &mut trace).await;
        let refused = answered.as_ref().err().map(Refused::label);
        let response = answered.unwrap_or_else(|refused| {
            let (route, reason) = (trace.route(), refused.label());
            trace.metrics.refuse(route, reason);
            debug!(peer = %accepted.peer, route = %route, reason, "refused: {refused}");
            refused.response()
        });
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            turn.switch();
        }
        let record = trace.answer(response.status(), refused);
        Ok(response.map(|body| body.ending(answer, record)))
    }

    async fn respond(
        self: &Rc<Self>,
        accepted: &Rc<Accepted>,
        opened: &Opened,
        request: Request<Incoming>,
        trace: &mut Trace<'_>,
    ) -> Result<Response<Reply>, Refused> {
        let (parts, body) = request.into_parts();
        let host = host_of(&parts)?;
        let settings = &accepted.listener.settings;
        let route = self.route_of(settings, host.as_ref(), parts.uri.path())?;
        trace.route = Some(Arc::clone(&route));
        let peer = accepted.peer.ip();
        let client = headers::client_address(peer, &settings.trusted, &parts.headers);
        let facts = RequestFacts {
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
            client,
        };
        let found = find_key(&route.settings.key, &facts)?;
        trace.note_key(found.as_ref());
        let key = found.map(|found| found.key);
        let asked = RequestLine {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            client,
        };
        let session = Session::of(self, &route.settings, &route.pool, asked).await?;
        let cookie = route.settings.sticky_cookie.as_ref();
        let cookie = cookie.filter(|_| key.is_none() && !session.is_learnt());
        let minted = cookie.map(|_| sticky::mint(crate::random::bytes()));
        let is_handshake = handshake::is_handshake(&parts.headers);
        if is_handshake {
            handshake::check_request(&parts.method, parts.version, &parts.headers)?;
        }
        let facts = ClientFacts {
            peer,
            trusted: headers::is_trusted(peer, &settings.trusted),
            https: accepted.listener.tls.is_some(),
            local_port: accepted.listener.address.port(),
        };
        let head = RequestHead::new(parts, host, &facts);
        trace.note_head(client, &head);
        let set = cookie.zip(minted.as_ref());
        let set = set.and_then(|(cookie, key)| cookie.set(key, head.came_by_tls()));
        let key = key.or(minted);
        let answered = if is_handshake {
            let accepted = Rc::clone(accepted);
            let handshake = Handshake { head, key, session, client, accepted };
            let (tunnel, response) = tunnel::open(self, &route, handshake, trace).await?;
            opened.set(tunnel);
            Ok(response)
        } else {
            let request = Plain { head, body, key, session, client };
            forward::forward(self, &route, request, trace).await
        };
        let mut response = answered?;
        if let Some(cookie) = set {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// The route of a request, by the snapshot in force.
    fn route_of(
        &self,
        settings: &ListenerSettings,
        host: Option<&HeaderValue>,
        path: &str,
    ) -> Result<Arc<Route>, Refused> {
        let snapshot = self.shared.snapshot.load();
        let host = host.and_then(|host| host.to_str().ok());
        let found = snapshot.route(settings.name.as_deref(), host, path);
        found.map(Arc::clone).ok_or(Refused::NoRoute)
    }
}

/// The host of a request (RFC 9112 section 3.2): an absolute-form target has its own. HTTP/1.0
/// may go without.
fn host_of(parts: &http::request::Parts) -> Result<Option<HeaderValue>, Refused> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && parts.version == Version::HTTP_11) {
        return Err(Refused::Host);
    }
    match parts.uri.authority() {
        Some(authority) => {
            let name = authority.as_str().rsplit('@').next().unwrap_or_default();
            HeaderValue::from_str(name).map(Some).map_err(|_| Refused::Host)
        }
        None => Ok(host.cloned()),
    }
}
