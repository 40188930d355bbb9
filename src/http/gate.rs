//! Between a client's socket and hyper: one message at a time, in time, and within its limits.
//!
//! hyper reads whatever comes and repairs what it can; it has one timer for a head that is late
//! and for a connection that idles, and answers neither with a 408. So the bytes of a client go
//! through a [`Gate`] first. It finds where each message ends (see [`framing`](super::framing)),
//! hands hyper one message and no byte of the next before that one is answered, and owns the two
//! timers: how long a head may take, and how long a connection may idle between an answer and the
//! next head. What it refuses (a head that is late, too large or malformed) it answers by itself;
//! hyper then sees an end of stream.
//!
//! It buffers at most one head. After a 101 the stream leaves by [`Gate::into_parts`], with what
//! the client had already sent behind its handshake.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::framing::{Body, BodyScanner, HeadLimits, HeadScanner, Refusal};
use crate::listen::{ListenerSettings, Stream};
use crate::observe::metrics::Metrics;

/// Bytes that are read at once while a head comes.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// Bytes that are read at once of a body.
const BODY_READ_BYTES: usize = 16 * 1024;
/// How long the rest of a refused request is read and forgotten, so that the answer arrives: a
/// socket that is closed with bytes unread resets the connection, and the answer with it.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it.
const LINGER_BYTES: usize = 256 * 1024;

/// The time-outs and limits of a gate.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// For the first head from the beginning, for later ones from their first byte.
    pub header: Duration,
    /// From an answer to the first byte of the next head.
    pub idle: Duration,
    /// The size of a head.
    pub head: HeadLimits,
}

impl From<&ListenerSettings> for GateLimits {
    fn from(settings: &ListenerSettings) -> Self {
        Self {
            header: settings.header_timeout,
            idle: settings.idle_timeout,
            head: HeadLimits { bytes: settings.head_bytes, headers: settings.headers },
        }
    }
}

/// Whose turn it is: shared between a gate and those who answer what it let through.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<Mutex<TurnState>>);

#[derive(Debug, Default)]
struct TurnState {
    answered: bool,
    /// The answer was a 101: what follows is no HTTP.
    switched: bool,
    waker: Option<Waker>,
}

impl Turn {
    /// To be held by the answer: when it is dropped, the request is answered.
    pub fn answer(&self) -> Answer {
        Answer(self.clone())
    }

    /// Has the gate hand nothing on any more, and judge nothing: the answer to come is a 101. What
    /// the client sends from now on leaves by [`Gate::into_parts`].
    pub fn switch(&self) {
        self.state().switched = true;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, TurnState> {
        // Plain fields: whole after any panic. Never contended, since all is on one thread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_answered(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.switched && std::mem::take(&mut state.answered) {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Held by an answer as long as it is written.
#[derive(Debug)]
pub struct Answer(Turn);

impl Drop for Answer {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answered = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// What the gate is doing.
#[derive(Debug)]
enum Phase {
    /// A head is to come, or is coming.
    Head { scanner: HeadScanner, begun: bool },
    /// So many bytes of a head are still to be handed on; then comes the body.
    Handing { left: usize, body: Body },
    /// A body is coming; of what is buffered, so many bytes were found to belong to it.
    Body { scanner: BodyScanner, cleared: usize },
    /// The whole message was handed on, and is not answered yet.
    Answering,
    /// An answer of the gate's own is written; then nothing more comes.
    Refusing { answer: Bytes },
    /// Nothing more is handed on.
    Over,
}

/// A client's stream, as hyper may see it.
#[derive(Debug)]
pub struct Gate {
    stream: Stream,
    /// Bytes that were read and not handed on, from `start` on. Never more than a head and a read.
    buffer: Vec<u8>,
    start: usize,
    phase: Phase,
    /// For a head, or for idling; not looked at in other phases.
    timer: Pin<Box<Sleep>>,
    limits: GateLimits,
    turn: Turn,
    /// The client has ended its stream.
    ended: bool,
    metrics: Arc<Metrics>,
    lingering: Option<Linger>,
}

/// The end of a connection whose client may still be sending.
#[derive(Debug)]
struct Linger {
    until: Instant,
    bytes: usize,
}

impl Gate {
    /// A gate before a fresh connection; its first head is awaited from now.
    pub fn new(stream: Stream, limits: GateLimits, turn: Turn, metrics: Arc<Metrics>) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            phase: Phase::Head { scanner: HeadScanner::new(limits.head), begun: false },
            timer: Box::pin(sleep(limits.header)),
            limits,
            turn,
            ended: false,
            metrics,
            lingering: None,
        }
    }

    /// The stream, and what was read from it and not handed on.
    pub fn into_parts(self) -> (Stream, Vec<u8>) {
        let mut buffer = self.buffer;
        buffer.drain(..self.start);
        (self.stream, buffer)
    }

    fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.buffer.len() {
            (self.buffer, self.start) = (Vec::new(), 0); // an idle connection holds no buffer
        }
    }

    /// Reads up to so many bytes more into the buffer. Ready with `false`: the client has ended its
    /// stream.
    fn poll_more<const BYTES: usize>(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        // On the stack and not set to zero: most often nothing has come, and then nothing is spent.
        let mut scratch = [const { MaybeUninit::uninit() }; BYTES];
        let mut read = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(read.filled());
        self.ended |= read.filled().is_empty();
        Poll::Ready(Ok(!read.filled().is_empty()))
    }

    /// Hands buffered bytes on, at most `limit`; tells how many.
    fn hand_on(&mut self, limit: usize, to: &mut ReadBuf<'_>) -> usize {
        let length = self.buffered().len().min(limit).min(to.remaining());
        to.put_slice(&self.buffered()[..length]);
        self.consume(length);
        length
    }

    /// Answers by itself, and hands nothing on any more.
    fn refuse(&mut self, reason: &'static str, status: StatusCode, text: &str) {
        self.metrics.refuse("", reason);
        let phrase = status.canonical_reason().unwrap_or_default();
        let answer = format!(
            "HTTP/1.1 {} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            status.as_u16(),
            text.len(),
        );
        self.phase = Phase::Refusing { answer: answer.into() };
    }

    /// Looks for a whole head. Ready: the phase has changed.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Phase::Head { scanner, begun } = &mut self.phase else {
                return Poll::Ready(Ok(()));
            };
            match scanner.scan(&self.buffer[self.start..]) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    self.phase = Phase::Handing { left: head.len, body: head.body };
                    return Poll::Ready(Ok(()));
                }
                Err(refusal) => {
                    self.refuse(label(refusal), refusal.status(), &refusal.to_string());
                    return Poll::Ready(Ok(()));
                }
            }
            if self.timer.as_mut().poll(context).is_ready() {
                if *begun || !self.buffer.is_empty() {
                    let status = StatusCode::REQUEST_TIMEOUT;
                    self.refuse("head_timeout", status, "the request came too slowly");
                } else {
                    self.phase = Phase::Over;
                }
                return Poll::Ready(Ok(()));
            }
            if self.ended || !ready!(self.poll_more::<HEAD_READ_BYTES>(context))? {
                self.phase = Phase::Over;
                return Poll::Ready(Ok(()));
            }
            self.head_has_begun();
        }
    }

    fn head_has_begun(&mut self) {
        let header = self.limits.header;
        if let Phase::Head { begun, .. } = &mut self.phase
            && !std::mem::replace(begun, true)
        {
            self.timer.as_mut().reset(Instant::now() + header);
        }
    }

    /// A message was answered and handed on whole: the next may come.
    fn next_message(&mut self) {
        let begun = !self.buffer.is_empty();
        self.phase = Phase::Head { scanner: HeadScanner::new(self.limits.head), begun };
        let wait = if begun { self.limits.header } else { self.limits.idle };
        self.timer.as_mut().reset(Instant::now() + wait);
    }

    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let Phase::Body { scanner, cleared } = &mut self.phase else {
                return Poll::Ready(Ok(()));
            };
            match scanner.feed(&self.buffer[self.start + *cleared..]) {
                Ok(taken) => *cleared += taken,
                Err(refusal) => {
                    // Counted by whoever reads the body.
                    self.phase = Phase::Over;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
                }
            }
            let (limit, done) = (*cleared, scanner.done());
            if limit > 0 {
                let handed = self.hand_on(limit, to);
                if done && handed == limit {
                    self.phase = Phase::Answering;
                } else if let Phase::Body { cleared, .. } = &mut self.phase {
                    *cleared -= handed;
                }
                return Poll::Ready(Ok(()));
            }
            if !ready!(self.poll_more::<BODY_READ_BYTES>(context))? {
                self.phase = Phase::Over;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Waits for the answer. Meanwhile the client may end its stream, or send ahead, within the
    /// size of a head. Ready: the phase has changed, or the client has gone.
    fn poll_answered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.turn.poll_answered(context).is_ready() {
                self.next_message();
                return Poll::Ready(Ok(()));
            }
            if self.ended || self.buffered().len() >= self.limits.head.bytes {
                return Poll::Pending;
            }
            if !ready!(self.poll_more::<HEAD_READ_BYTES>(context))? && self.buffer.is_empty() {
                self.phase = Phase::Over;
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_refusing(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Phase::Refusing { answer } = &mut self.phase {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, answer))?;
            answer.advance(written);
            if answer.is_empty() {
                self.phase = Phase::Over;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the client may be sending what nobody will read.
    fn has_unread(&self) -> bool {
        let unread = matches!(self.phase, Phase::Handing { .. } | Phase::Body { .. } | Phase::Over);
        !self.ended && (unread || !self.buffer.is_empty())
    }

    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; HEAD_READ_BYTES];
        let Some(linger) = &mut self.lingering else { return Poll::Ready(()) };
        self.timer.as_mut().reset(linger.until);
        loop {
            if self.timer.as_mut().poll(context).is_ready() || linger.bytes > LINGER_BYTES {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => linger.bytes += buffer.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        loop {
            match &mut gate.phase {
                Phase::Head { .. } => ready!(gate.poll_head(context))?,
                Phase::Handing { left, body } => {
                    let (left, body) = (*left, *body);
                    let handed = gate.hand_on(left, to);
                    gate.phase = match body {
                        _ if handed < left => Phase::Handing { left: left - handed, body },
                        Body::None => Phase::Answering,
                        Body::Length(_) | Body::Chunked => Phase::Body {
                            scanner: BodyScanner::new(body, gate.limits.head),
                            cleared: 0,
                        },
                    };
                    return Poll::Ready(Ok(()));
                }
                Phase::Body { .. } => return gate.poll_body(context, to),
                Phase::Answering => ready!(gate.poll_answered(context))?,
                Phase::Refusing { .. } => ready!(gate.poll_refusing(context))?,
                Phase::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if gate.lingering.is_none() {
            ready!(Pin::new(&mut gate.stream).poll_shutdown(context))?;
            if !gate.has_unread() {
                return Poll::Ready(Ok(()));
            }
            gate.lingering = Some(Linger { until: Instant::now() + LINGER, bytes: 0 });
        }
        gate.poll_linger(context).map(Ok)
    }
}

/// As it stands in a metric label.
fn label(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TooLarge | Refusal::TooManyHeaders | Refusal::TargetTooLong => "head_too_large",
        Refusal::Bad(_) | Refusal::NotImplemented(_) | Refusal::Version => "bad_request",
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::observe::metrics::Nothing;

    const SOON: Duration = Duration::from_secs(10);
    const A_WHILE: Duration = Duration::from_millis(100);

    async fn gate() -> (TcpStream, Gate, Turn) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let limits =
            GateLimits { header: SOON, idle: SOON, head: HeadLimits { bytes: 1024, headers: 10 } };
        let (turn, metrics) = (Turn::default(), Arc::new(Metrics::new(Box::new(Nothing))));
        let gate = Gate::new(Stream::Tcp(stream), limits, turn.clone(), metrics);
        (client, gate, turn)
    }

    async fn read(gate: &mut Gate) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 1024];
        let count = timeout(SOON, gate.read(&mut buffer)).await.unwrap()?;
        buffer.truncate(count);
        Ok(buffer)
    }

    #[tokio::test]
    async fn what_follows_a_101_is_kept_and_not_judged() {
        let (mut client, mut gate, turn) = gate().await;
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
        // No head could begin like this.
        let frames = [0x81, 0x01, 0x00, 0x0a];
        client.write_all(&[&head[..], &frames].concat()).await.unwrap();
        assert_eq!(read(&mut gate).await.unwrap(), head);
        let answer = turn.answer();
        turn.switch();
        drop(answer);
        assert!(timeout(A_WHILE, read(&mut gate)).await.is_err());
        let (_stream, behind) = gate.into_parts();
        assert_eq!(behind, frames);
        assert!(client.try_read(&mut [0]).is_err(), "the client was told something");
    }

    #[tokio::test]
    async fn nothing_is_handed_on_behind_a_malformed_chunk() {
        let (mut client, mut gate, _turn) = gate().await;
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(&[&head[..], b"2\r\nokx0\r\n\r\n"].concat()).await.unwrap();
        assert_eq!(read(&mut gate).await.unwrap(), head);
        assert!(read(&mut gate).await.is_err());
        assert_eq!(read(&mut gate).await.unwrap(), b"");
    }
}
