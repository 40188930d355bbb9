//! The bodies of requests and answers on their way through.
//!
//! Both are passed on frame by frame as they come, trailers included, and never collected. What is
//! added is what only a proxy needs: a limit on how long a client may pause ([`RequestBody`]), an
//! `Expect: 100-continue` that waits for the backend's word (RFC 9110 section 10.1.1), and guards
//! that end with the answer ([`Reply`]).

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::gate::Answer;
use super::session::Held;
use crate::observe::access_log::RequestRecord;
use crate::pool::backend::RequestGauge;

/// What a piece of a body waits for before it goes out.
pub(super) type Hold = Pin<Box<dyn Future<Output = ()>>>;

/// What goes wrong with a body.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// How long a client that asked first waits for a backend that says neither 100 nor an answer.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The body of an answer on its way to the client.
#[derive(Debug)]
pub struct Reply {
    content: Content,
    /// Tells the gate when the answer is over.
    answer: Option<Answer>,
    /// The backend has this request in flight until the answer is over.
    _in_flight: Option<RequestGauge>,
    /// The request's body is given up when the answer is over.
    unasked: Option<Unasked>,
    /// The session of the request, or what finds one in this body.
    session: Option<Box<Held>>,
    /// A piece that waits, at most once in a body.
    held_back: Option<Box<HeldBack>>,
    /// Written to the access log when the answer is over.
    record: Option<Box<RequestRecord>>,
}

/// A piece of a body, and what it waits for.
struct HeldBack {
    frame: Frame<Bytes>,
    until: Hold,
}

impl fmt::Debug for HeldBack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HeldBack").field("frame", &self.frame).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Content {
    Empty,
    Text(Bytes),
    Backend(Incoming),
}

impl Reply {
    /// No body.
    pub fn empty() -> Self {
        Self::new(Content::Empty)
    }

    /// A short text.
    pub fn text(text: String) -> Self {
        Self::new(Content::Text(text.into()))
    }

    /// The body of a backend's answer.
    pub fn backend(body: Incoming, in_flight: RequestGauge) -> Self {
        Self { _in_flight: Some(in_flight), ..Self::new(Content::Backend(body)) }
    }

    fn new(content: Content) -> Self {
        Self {
            content,
            answer: None,
            _in_flight: None,
            unasked: None,
            session: None,
            held_back: None,
            record: None,
        }
    }

    /// Ends `answer`, and writes `record` down, when this body has gone out.
    pub fn ending(mut self, answer: Answer, record: Option<Box<RequestRecord>>) -> Self {
        self.answer = Some(answer);
        self.record = record;
        self
    }

    /// Gives up the body of the request when this one has gone out.
    pub fn giving_up(mut self, unasked: Unasked) -> Self {
        self.unasked = Some(unasked);
        self
    }

    /// Holds a session until this body has gone out.
    pub(super) fn holding(mut self, session: Option<Held>) -> Self {
        self.session = session.map(Box::new);
        self
    }

    fn poll_content(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.content {
            Content::Empty => Poll::Ready(None),
            Content::Text(text) => {
                let text = std::mem::take(text);
                self.content = Content::Empty;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            Content::Backend(body) => {
                Pin::new(body).poll_frame(context).map_err(|error| Box::new(error) as BodyError)
            }
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(held_back) = &mut self.held_back {
            ready!(held_back.until.as_mut().poll(context));
            return Poll::Ready(self.held_back.take().map(|held_back| Ok(held_back.frame)));
        }
        let polled = self.poll_content(context);
        if let (Some(record), Poll::Ready(Some(Ok(frame)))) = (&mut self.record, &polled) {
            record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if let (Some(session), Poll::Ready(Some(Ok(frame)))) = (&mut self.session, &polled)
            && let Some(data) = frame.data_ref()
            && let Some(mut until) = session.look_at(data)
            && until.as_mut().poll(context).is_pending()
        {
            let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
            self.held_back = Some(Box::new(HeldBack { frame, until }));
            return Poll::Pending;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        if self.held_back.is_some() {
            return false;
        }
        match &self.content {
            Content::Empty => true,
            Content::Text(text) => text.is_empty(),
            Content::Backend(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Text(text) => SizeHint::with_exact(text.len() as u64),
            Content::Backend(body) => body.size_hint(),
        }
    }
}

/// What the sender of a request sees of its body, which hyper has.
#[derive(Debug)]
pub struct Progress {
    /// When something of the request last went on.
    last: Cell<Instant>,
    broken: Cell<Option<Break>>,
}

/// Why a request body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The client paused for too long.
    TimedOut,
    /// The client went away, or sent what is no body.
    Broken,
}

impl Progress {
    fn new() -> Rc<Self> {
        Rc::new(Self { last: Cell::new(Instant::now()), broken: Cell::new(None) })
    }

    /// Why the body ended early, if it did.
    pub fn broken(&self) -> Option<Break> {
        self.broken.get()
    }

    /// Resolves when nothing of the request has gone on for so long. Cancel safe.
    pub async fn stood_still(&self, limit: Duration) {
        loop {
            let until = self.last.get() + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// The body of a request on its way to a backend.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// As it comes from the client.
    Client(Box<ClientBody>),
}

/// A client's body, and how long is waited for it.
#[derive(Debug)]
pub struct ClientBody {
    body: Incoming,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// The timer runs for the next frame.
    waiting: bool,
    go_ahead: Option<GoAhead>,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// The body of a client's request; `limit` is the longest pause between two of its reads.
    /// With `go_ahead` it is not asked for before that was given: a client that sent
    /// `Expect: 100-continue` is told to go on when its body is first read.
    pub fn client(
        body: Incoming,
        limit: Duration,
        go_ahead: Option<GoAhead>,
    ) -> (Self, Rc<Progress>) {
        let progress = Progress::new();
        if body.is_end_stream() {
            return (Self::Empty, progress);
        }
        let timer = Box::pin(sleep(if go_ahead.is_some() { CONTINUE_WAIT } else { limit }));
        let waiting = false;
        let shared = Rc::clone(&progress);
        let client = ClientBody { body, limit, timer, waiting, go_ahead, progress: shared };
        (Self::Client(Box::new(client)), progress)
    }
}

impl ClientBody {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(go_ahead) = &self.go_ahead {
            if self.timer.as_mut().poll(context).is_ready() {
                go_ahead.give();
            }
            if ready!(go_ahead.poll(context)) == Decision::GiveUp {
                return Poll::Ready(Some(Err("nobody asked for the request body".into())));
            }
            self.go_ahead = None;
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                self.progress.broken.set(Some(Break::Broken));
                Poll::Ready(Some(Err(Box::new(error))))
            }
            Poll::Ready(frame) => {
                self.waiting = false;
                self.progress.last.set(Instant::now());
                Poll::Ready(frame.map(|frame| frame.map_err(|error| Box::new(error) as BodyError)))
            }
            Poll::Pending => self.poll_timer(context),
        }
    }

    fn poll_timer(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !std::mem::replace(&mut self.waiting, true) {
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        if self.timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.progress.broken.set(Some(Break::TimedOut));
        Poll::Ready(Some(Err("the request body came too slowly".into())))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Client(client) => client.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(client) => client.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(client) => client.body.size_hint(),
        }
    }
}

/// The backend's word that a client may send its body.
#[derive(Clone, Debug, Default)]
pub struct GoAhead(Arc<Mutex<GoAheadState>>);

#[derive(Debug, Default)]
struct GoAheadState {
    word: Word,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Word {
    /// Neither a 100 nor an answer came yet.
    #[default]
    None,
    /// The body may come.
    Given,
    /// The answer came without a 100: the body is not to come.
    Answered,
    /// And that answer is over.
    GivenUp,
}

/// What is decided about a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    GoAhead,
    GiveUp,
}

impl GoAhead {
    /// Has it given by the backend's 100 to `request`.
    pub fn on_continue<B>(&self, request: &mut http::Request<B>) {
        let go_ahead = self.clone();
        hyper::ext::on_informational(request, move |response| {
            if response.status() == http::StatusCode::CONTINUE {
                go_ahead.give();
            }
        });
    }

    /// Takes note that the answer has come. Where nobody had asked for the body, nobody will: it
    /// is given up when what this returns is dropped, and no sooner, since the connection to the
    /// backend ends with it.
    pub fn answered(&self) -> Option<Unasked> {
        let mut state = self.state();
        if !matches!(state.word, Word::None) {
            return None;
        }
        state.word = Word::Answered;
        Some(Unasked(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, GoAheadState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it, unless the answer was first.
    fn give(&self) {
        let mut state = self.state();
        if matches!(state.word, Word::None) {
            state.tell(Word::Given);
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Decision> {
        let mut state = self.state();
        match state.word {
            Word::Given => Poll::Ready(Decision::GoAhead),
            Word::GivenUp => Poll::Ready(Decision::GiveUp),
            Word::None | Word::Answered => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl GoAheadState {
    fn tell(&mut self, word: Word) {
        self.word = word;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Held by an answer that came before anybody had asked for the request's body.
#[derive(Debug)]
pub struct Unasked(GoAhead);

impl Drop for Unasked {
    fn drop(&mut self) {
        self.0.state().tell(Word::GivenUp);
    }
}
