//! A plain request: to a backend and its answer back, byte by byte as they come.
//!
//! It goes where connections of its key are, over a connection that is kept, or a fresh one. It is
//! sent again only where nothing of it was sent: because connecting failed, or because a kept
//! connection had just been closed by the backend. One of a session goes to the session's backend, or
//! nowhere.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::body::{Break, GoAhead, Progress, Reply, RequestBody};
use super::head::RequestHead;
use super::respond::Refused;
use super::session::{Held, Opening, Session};
use super::trace::Trace;
use super::upstream::{self, Sender};
use super::{Context, Route, elsewhere, headers};
use crate::pool::backend::RequestGauge;
use crate::pool::{Backend, Choice, Pool, Stay};
use crate::route::key::Key;

/// A plain request, and what decides where it goes.
pub(super) struct Plain {
    pub(super) head: RequestHead,
    pub(super) body: Incoming,
    pub(super) key: Option<Key>,
    pub(super) session: Session,
    pub(super) client: IpAddr,
}

/// Where a plain request goes.
enum Target {
    /// To the backend of its session, and no other.
    Session(Arc<Backend>),
    /// Where its key is, or anywhere.
    Choice(Choice),
}

impl Target {
    async fn of(
        context: &Context,
        route: &Route,
        key: Option<&Key>,
        session: &Session,
    ) -> Result<Self, Refused> {
        Ok(match (session, key) {
            (Session::Of(visit), _) => Self::Session(Arc::clone(visit.backend())),
            (_, Some(key)) => {
                let lives = elsewhere::lives_at(context, &route.pool, Some(key)).await;
                Self::Choice(route.pool.lookup(key.as_str(), lives)?)
            }
            (_, None) => Self::Choice(route.pool.any()?),
        })
    }

    fn backend(&self) -> &Arc<Backend> {
        match self {
            Self::Session(backend) => backend,
            Self::Choice(choice) => choice.backend(),
        }
    }

    /// Counts the request, which is sent now.
    fn request(&mut self) -> RequestGauge {
        match self {
            Self::Session(backend) => backend.request(),
            Self::Choice(choice) => choice.request(),
        }
    }

    /// Goes on to another backend, but not away from what other proxies have of its key.
    async fn go_on(&mut self, context: &Context, pool: &Pool) -> Result<(), Stay> {
        let Self::Choice(choice) = self else { return Err(Stay::Live) };
        if let Some(key) = choice.key()
            && let Some(lives) =
                elsewhere::still_lives_at(context, pool, key, choice.backend()).await
        {
            choice.lives_at(lives);
        }
        choice.go_on()
    }
}

/// Sends a plain request to a backend of its route and passes the answer on.
///
/// # Errors
///
/// The backend can't be reached, breaks off, or takes too long; or the client does.
pub(super) async fn forward(
    context: &Rc<Context>,
    route: &Arc<Route>,
    request: Plain,
    trace: &mut Trace<'_>,
) -> Result<Response<Reply>, Refused> {
    let Plain { head, body, key, session, client } = request;
    if let Some(key) = &key {
        // Where its connections were closed for a drain: not elsewhere before they have ended.
        route.pool.vacated(key.as_str()).await;
    }
    let mut choice = Target::of(context, route, key.as_ref(), &session).await?;
    let go_ahead = head.expects_continue().then(GoAhead::default);
    let (body, progress) = RequestBody::client(body, route.settings.body_timeout, go_ahead.clone());
    let mut exchange = Exchange { context, route, progress, go_ahead };
    let sent = exchange.send(&mut choice, head, body).await;
    trace.note_backend(choice.backend());
    let (answered, sender) = sent?;
    let is_ok = answered.response.status() == StatusCode::OK;
    let response = exchange.pass_on(answered, sender, choice.backend())?;
    let held = match session {
        Session::Of(visit) => Some(Held::visit(visit)),
        Session::Opens if is_ok => {
            let (pool, backend) = (Arc::clone(&route.pool), Arc::clone(choice.backend()));
            let (context, learn) = (Rc::clone(context), route.settings.learn);
            Some(Held::opening(Opening { context, pool, backend, client, learn }))
        }
        Session::Opens | Session::None => None,
    };
    Ok(response.map(|body| body.holding(held)))
}

struct Exchange<'a> {
    context: &'a Rc<Context>,
    route: &'a Arc<Route>,
    progress: Rc<Progress>,
    go_ahead: Option<GoAhead>,
}

impl Exchange<'_> {
    /// Sends the request to the first backend that can be reached, and waits for its answer.
    async fn send(
        &mut self,
        choice: &mut Target,
        mut head: RequestHead,
        body: RequestBody,
    ) -> Result<(Answered, Sender), Refused> {
        head.or_host(&choice.backend().address().to_string());
        let mut request = head.request(body);
        if let Some(go_ahead) = &self.go_ahead {
            go_ahead.on_continue(&mut request);
        }
        loop {
            let (mut sender, kept) = self.connect(choice).await?;
            let in_flight = choice.request();
            match self.attempt(&mut sender, request).await? {
                Attempt::Answered(response) => {
                    return Ok((Answered { response, in_flight }, sender));
                }
                // A kept connection was closed meanwhile; there are only so many of them.
                Attempt::Unsent(unsent) if kept => request = *unsent,
                Attempt::Unsent(_) => return Err(Refused::BrokeOff),
            }
        }
    }

    /// A connection to the chosen backend, or to the next one if it can't be reached; and whether
    /// it is one that was kept.
    async fn connect(&self, choice: &mut Target) -> Result<(Sender, bool), Refused> {
        loop {
            let backend = Arc::clone(choice.backend());
            if let Some(sender) = self.context.upstreams.take(&self.route.pool, &backend) {
                return Ok((sender, true));
            }
            match upstream::connect(&self.route.pool, &backend).await {
                Ok(fresh) => return Ok((fresh.driven(&self.context.tasks), false)),
                Err(error) => {
                    self.context.note_connect_failure(&self.route.pool, &backend, &error);
                    let gone_on = choice.go_on(self.context, &self.route.pool).await;
                    gone_on.map_err(|stay| match stay {
                        Stay::Live | Stay::NoneLeft => Refused::Unreachable,
                    })?;
                }
            }
        }
    }

    async fn attempt(
        &self,
        sender: &mut Sender,
        request: Request<RequestBody>,
    ) -> Result<Attempt, Refused> {
        let limit = self.route.settings.response_timeout;
        let sent = tokio::select! {
            sent = sender.try_send_request(request) => sent,
            () = self.progress.stood_still(limit) => return Err(Refused::TimedOut),
        };
        match sent {
            Ok(response) => Ok(Attempt::Answered(response)),
            Err(mut error) => match (self.progress.broken(), error.take_message()) {
                (Some(Break::TimedOut), _) => Err(Refused::BodyTimeout),
                (Some(Break::Broken), _) => Err(Refused::BodyBroken),
                (None, Some(request)) => Ok(Attempt::Unsent(Box::new(request))),
                (None, None) => Err(Refused::BrokeOff),
            },
        }
    }

    fn pass_on(
        &self,
        answered: Answered,
        sender: Sender,
        backend: &Arc<Backend>,
    ) -> Result<Response<Reply>, Refused> {
        self.route.pool.traffic_passed(backend);
        if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Refused::BadAnswer("a 101 that was not asked for".to_owned()));
        }
        let (upstreams, tasks) = (&self.context.upstreams, &self.context.tasks);
        upstream::keep_when_idle(upstreams, tasks, &self.route.pool, backend, sender);
        let mut response = answered.passed_on();
        if let Some(unasked) = self.go_ahead.as_ref().and_then(GoAhead::answered) {
            // The client may still send its body, or not: nobody can tell where its next request
            // would begin.
            response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
            response = response.map(|body| body.giving_up(unasked));
        }
        Ok(response)
    }
}

/// What became of a request on one connection.
enum Attempt {
    Answered(Response<Incoming>),
    /// Nothing of it was sent: it is as it was.
    Unsent(Box<Request<RequestBody>>),
}

/// A backend's answer, whose body is still to come.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    /// Counts the request until the answer is over.
    pub(super) in_flight: RequestGauge,
}

impl Answered {
    /// The answer as its client may see it.
    pub(super) fn passed_on(self) -> Response<Reply> {
        let (mut parts, body) = self.response.into_parts();
        let upgrades: Vec<HeaderValue> = match parts.status {
            // The protocols that it asks for are the very point of it (RFC 9110 section 15.5.22).
            StatusCode::UPGRADE_REQUIRED => {
                parts.headers.get_all(UPGRADE).iter().cloned().collect()
            }
            _ => Vec::new(),
        };
        headers::remove_hop_by_hop(&mut parts.headers);
        for protocol in upgrades {
            parts.headers.append(UPGRADE, protocol);
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        headers::strip_steadfast(&mut parts.headers);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        Response::from_parts(parts, Reply::backend(body, self.in_flight))
    }
}
