//! Health checks: ask a backend how it is, again and again, and report the answer.
//!
//! One [`watch`] per backend runs for as long as its pool is in use. It makes a check at each
//! interval, give or take a tenth so that many proxies do not ask in step, and never two at once:
//! one that takes longer than the interval puts the next off. Beside that it tells the verdict
//! the time every second, which is all there is to do where checks are off.
//!
//! A check is what a client of the backend would do at its simplest: connect, or connect and GET,
//! or open a WebSocket (`websocket_check.rs`). Of a GET the head of the answer decides. Its body is read, up to a bound, only so as not to slam the
//! door on a backend that is still writing it. What the proxy could not do for want of its own
//! means is no check at all, and nobody's fault but its own.
//!
//! Where there is an answer, of whatever status, its head may also say that the backend is about to
//! go: `Steadfast-Drain: yes` has it drained for as long as its answers say so.
//!
//! What it costs: a connection per interval and backend, opened anew each time, since whether a
//! connection can be opened is what is asked.

use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::dial::{self, is_own_failure, is_unreachable};
use super::tls::BackendTls;
use super::verdict::Check;
use super::websocket_check;
use super::{Backend, BackendAddress, CheckKind, HealthSettings, Pool};
use crate::listen::Stream;
use crate::observe::rate::{Allowed, allowed};
use crate::ws::handshake::BadAnswer;

/// How often the verdict is told the time.
const TICK: Duration = Duration::from_secs(1);

/// The longest head of an answer that is read.
const HEAD_BYTES: usize = 16 * 1024;

/// How much of an answer's body is read before the connection is closed on it.
const BODY_BYTES: usize = 64 * 1024;

/// By which a backend says that it is about to go, with the value `yes`.
const DRAIN: &str = "steadfast-drain";

const USER_AGENT: &str = concat!("steadfast/", env!("CARGO_PKG_VERSION"));

/// Watches one backend of `pool` until `stop` is done, or it has left the config and has nothing.
///
/// Reports to the pool, which tells its observer of changes. The address is read anew at each
/// check; everything else is as `pool` has it, so a pool that was built anew is watched anew. Needs
/// a tokio runtime with I/O and time. Cancel safe: dropped, it leaves at most a check unfinished.
pub async fn watch(pool: Arc<Pool>, backend: Arc<Backend>, stop: impl Future<Output = ()>) {
    tokio::select! {
        () = stop => {}
        never = check_for_ever(&pool, &backend) => match never {},
        () = tick_till_it_left(&pool, &backend) => {}
    }
}

async fn tick_till_it_left(pool: &Pool, backend: &Arc<Backend>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        pool.tick(backend, now.into_std());
        if backend.has_left() && backend.slots() == 0 {
            return;
        }
    }
}

async fn check_for_ever(pool: &Pool, backend: &Arc<Backend>) -> Infallible {
    let health = &pool.settings().health;
    if health.kind == CheckKind::Off {
        return std::future::pending().await;
    }
    let random = RandomState::new();
    let mut made = true;
    let mut begin = Instant::now() + first_delay(health.interval, random.hash_one(0_u64));
    for number in 1_u64.. {
        sleep_until(begin).await;
        let outcome = check(health, &backend.address(), pool.settings().tls.as_ref()).await;
        let made_before = std::mem::replace(&mut made, report(pool, backend, &outcome));
        if let (true, false, Err(error)) = (made_before, made, outcome) {
            // Once for all in a row: the counter tells how many.
            let (pool, backend) = (pool.name(), backend.id());
            if let Some(Allowed { suppressed }) = allowed!() {
                tracing::warn!(pool, backend, %error, suppressed, "health checks can't be made");
            }
        }
        let due = begin + jittered(health.interval, random.hash_one(number));
        begin = due.max(Instant::now());
    }
    unreachable!("a number of 64 bits is not counted up")
}

/// Reports what a check found, and tells whether it found anything.
fn report(pool: &Pool, backend: &Arc<Backend>, outcome: &Result<Answer, CheckError>) -> bool {
    let now = Instant::now().into_std();
    let drains = match outcome {
        Ok(answer) => answer.drains,
        Err(error) => error.drains(),
    };
    if let Some(drains) = drains {
        pool.announced(backend, drains);
    }
    let Err(error) = outcome else {
        pool.checked(backend, Check::Passed, &"", now);
        return true;
    };
    let Some(check) = error.finding() else {
        backend.counters().checks_not_made.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    tracing::debug!(pool = pool.name(), backend = backend.id(), %error, "health check failed");
    pool.checked(backend, check, error, now);
    true
}

/// How long to wait before the first check: soon, but not all at once.
fn first_delay(interval: Duration, random: u64) -> Duration {
    part(interval.min(Duration::from_secs(1)), random)
}

/// The interval, give or take a tenth.
fn jittered(interval: Duration, random: u64) -> Duration {
    interval - interval / 10 + part(interval / 5, random)
}

/// A part of `whole`, in proportion to `random` in all of `u64`; to a thousandth.
fn part(whole: Duration, random: u64) -> Duration {
    let thousandths = u32::try_from(random % 1001).unwrap_or(0);
    whole * thousandths / 1000
}

/// What a backend that is well has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether it is about to go; `None` where it says nothing in words.
    pub drains: Option<bool>,
}

/// Whether the head of an answer says that the backend is about to go.
pub(super) fn says_drain(headers: &HeaderMap) -> bool {
    let says_yes = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"yes");
    headers.get_all(DRAIN).iter().any(says_yes)
}

/// Why a check found a backend unfit, or was none.
#[derive(Debug)]
pub enum CheckError {
    /// No connection came about.
    Connect(io::Error),
    /// Connected, but no answer came before the time-out.
    NoAnswer(Duration),
    /// The connection broke, or what came was no HTTP.
    Broken(hyper::Error),
    /// The answer was another than 2xx, or than 101 where a WebSocket was asked for.
    Status {
        /// Which.
        status: StatusCode,
        /// Whether the backend says that it is about to go.
        drains: bool,
    },
    /// The 101 does not answer to the handshake.
    Handshake(BadAnswer),
    /// The WebSocket ended before the pong or the answer to the Close, or what came is no frame.
    Talk(io::Error),
    /// The path of the config can't be asked for.
    Path(http::Error),
}

impl CheckError {
    /// What the check found; `None` if only that the proxy could not make it.
    pub fn finding(&self) -> Option<Check> {
        match self {
            Self::Connect(error) if is_own_failure(error) => None,
            Self::Connect(error) if is_unreachable(error) => Some(Check::Unreachable),
            Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Some(Check::Refused)
            }
            _ => Some(Check::Failed),
        }
    }

    /// Whether the backend says that it is about to go; `None`: there was no answer that could.
    fn drains(&self) -> Option<bool> {
        match self {
            Self::Status { drains, .. } => Some(*drains),
            _ => None,
        }
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(formatter, "connect failed: {error}"),
            Self::NoAnswer(timeout) => write!(formatter, "no answer within {timeout:?}"),
            Self::Broken(error) => write!(formatter, "no valid answer: {error}"),
            Self::Status { status, .. } => write!(formatter, "status {status}"),
            Self::Handshake(error) => write!(formatter, "no valid handshake: {error}"),
            Self::Talk(error) => write!(formatter, "the WebSocket failed: {error}"),
            Self::Path(error) => write!(formatter, "the path can't be asked for: {error}"),
        }
    }
}

impl std::error::Error for CheckError {}

/// Makes one check, within `health.timeout` in all; cancel safe.
///
/// # Errors
///
/// Whatever keeps the backend from being well; [`CheckError::finding`] says what that counts for.
pub async fn check(
    health: &HealthSettings,
    address: &BackendAddress,
    tls: Option<&BackendTls>,
) -> Result<Answer, CheckError> {
    let deadline = Instant::now() + health.timeout;
    let stream = dial::open(address, tls, health.timeout, Duration::ZERO);
    let stream = stream.await.map_err(CheckError::Connect)?;
    match &health.kind {
        CheckKind::Http { path } => {
            let request = request(path, address).map_err(CheckError::Path)?;
            let answered = get(stream, request, deadline);
            let answered = answered.await?.ok_or(CheckError::NoAnswer(health.timeout))?;
            let (status, drains) = answered;
            if status.is_success() {
                Ok(Answer { drains: Some(drains) })
            } else {
                Err(CheckError::Status { status, drains })
            }
        }
        CheckKind::WebSocket { path } => {
            let host = address.to_string();
            let talked = websocket_check::check(stream, path, &host, USER_AGENT, HEAD_BYTES);
            let talked = timeout_at(deadline, talked).await;
            talked.unwrap_or(Err(CheckError::NoAnswer(health.timeout)))
        }
        CheckKind::Tcp | CheckKind::Off => Ok(Answer::default()),
    }
}

fn request(path: &str, address: &BackendAddress) -> Result<Request<Empty<Bytes>>, http::Error> {
    Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
}

/// Asks, and tells the status of the answer and whether it says that the backend is about to go;
/// `None` if it did not come in time.
async fn get(
    stream: Stream,
    request: Request<Empty<Bytes>>,
    deadline: Instant,
) -> Result<Option<(StatusCode, bool)>, CheckError> {
    let mut http = http1::Builder::new();
    http.max_buf_size(HEAD_BYTES);
    let (mut sender, connection) =
        http.handshake(TokioIo::new(stream)).await.map_err(CheckError::Broken)?;
    let answer = async move {
        let Ok(response) = timeout_at(deadline, sender.send_request(request)).await else {
            return Ok(None);
        };
        let response = response.map_err(CheckError::Broken)?;
        let said = (response.status(), says_drain(response.headers()));
        // Whatever comes of the body, and whether it comes in time: the head has said it all.
        drop(timeout_at(deadline, read_some(response.into_body())).await);
        Ok(Some(said))
    };
    let mut answer = pin!(answer);
    tokio::select! {
        said = &mut answer => return said,
        // The backend has closed, as it was asked to; what it said is on its way to us.
        _ = connection => {}
    }
    answer.await
}

async fn read_some(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > BODY_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, oneshot};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::super::dial::tests::{Refusing, Silent};
    use super::super::tests::{backend_settings, settings};
    use super::super::verdict::{Cause, TRY_AGAIN};
    use super::super::{BackendEvent, BackendSettings, Event, State};
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// For backends that are never connected to.
    const NOWHERE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    fn http() -> CheckKind {
        CheckKind::Http { path: "/health?deep=1".to_owned() }
    }

    fn health(kind: CheckKind, timeout: Duration) -> HealthSettings {
        HealthSettings { timeout, ..settings(Vec::new(), kind).health }
    }

    /// A server that reads a head, writes `answer`, and holds the connection as long as it is
    /// wanted; tells the heads.
    async fn server(answer: &'static [u8]) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap() == 0 {
                    return head;
                }
            }
            // The check may have enough, and close, before all is written.
            drop(stream.write_all(answer).await);
            drop(stream.read(&mut [0]).await);
            head
        });
        (address, serving)
    }

    async fn answered(answer: &'static [u8], timeout: Duration) -> Result<Answer, CheckError> {
        let (address, _serving) = server(answer).await;
        check(&health(http(), timeout), &BackendAddress::Ip(address), None).await
    }

    #[tokio::test]
    async fn a_2xx_is_healthy_and_asked_for_politely() {
        let (address, serving) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        check(&health(http(), SOON), &BackendAddress::Ip(address), None).await.unwrap();
        let head = String::from_utf8(serving.await.unwrap()).unwrap().to_lowercase();
        assert!(head.starts_with("get /health?deep=1 http/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nhost: {address}\r\n")), "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nuser-agent: {USER_AGENT}\r\n")), "{head}");
    }

    #[tokio::test]
    async fn the_head_decides_whatever_the_body() {
        for healthy in [
            &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
            b"HTTP/1.0 200 OK\r\n\r\nup to the end",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 299 Fine\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nnever whole",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk",
        ] {
            let outcome = answered(healthy, Duration::from_millis(300)).await;
            assert!(outcome.is_ok(), "{outcome:?} {:?}", String::from_utf8_lossy(healthy));
        }
    }

    #[tokio::test]
    async fn a_backend_says_that_it_goes_whatever_its_status() {
        for (answer, says) in [
            (&b"HTTP/1.1 200 OK\r\nSteadfast-Drain: yes\r\n\r\n"[..], Some(true)),
            (b"HTTP/1.1 204 No Content\r\nsteadfast-drain: YES\r\n\r\n", Some(true)),
            (b"HTTP/1.1 200 OK\r\nSteadfast-Drain: no\r\n\r\n", Some(false)),
            (b"HTTP/1.1 200 OK\r\n\r\n", Some(false)),
        ] {
            assert_eq!(answered(answer, SOON).await.unwrap().drains, says);
        }
        let going = b"HTTP/1.1 503 Going\r\nSteadfast-Drain: yes\r\n\r\n";
        assert_eq!(answered(going, SOON).await.unwrap_err().drains(), Some(true));
        let out = b"HTTP/1.1 503 Out\r\n\r\n";
        assert_eq!(answered(out, SOON).await.unwrap_err().drains(), Some(false));
        assert_eq!(answered(b"nonsense\r\n\r\n", SOON).await.unwrap_err().drains(), None);
    }

    #[tokio::test]
    async fn another_status_is_a_failed_check() {
        for status in ["302 Found", "404 Not Found", "503 Service Unavailable"] {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            let error = answered(answer.leak().as_bytes(), SOON).await.unwrap_err();
            assert_eq!(error.finding(), Some(Check::Failed));
            assert_eq!(error.to_string(), format!("status {status}"));
        }
    }

    #[tokio::test]
    async fn no_answer_is_a_failed_check_but_no_silence() {
        let error = answered(b"", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, CheckError::NoAnswer(_)), "{error}");
        assert_eq!(error.finding(), Some(Check::Failed));
        let error = answered(b"SSH-2.0-OpenSSH_9.6\r\n", SOON).await.unwrap_err();
        assert!(matches!(error, CheckError::Broken(_)), "{error}");
        assert_eq!(error.finding(), Some(Check::Failed));
    }

    #[tokio::test]
    async fn an_answer_is_read_to_a_bound_only() {
        let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 4 << 20]].concat();
        answered(endless.leak(), SOON).await.unwrap();
        let head = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 64 << 10]].concat();
        let error = answered(head.leak(), SOON).await.unwrap_err();
        assert!(matches!(error, CheckError::Broken(_)), "{error}");
    }

    #[tokio::test]
    async fn tcp_only_connects() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = BackendAddress::Ip(listener.local_addr().unwrap());
        check(&health(CheckKind::Tcp, SOON), &address, None).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "nothing was said");
    }

    #[tokio::test]
    async fn a_refusal_and_silence_are_told_apart() {
        let refusing = Refusing::new();
        let silent = Silent::new().await;
        let short = Duration::from_millis(50);
        for kind in [CheckKind::Tcp, http()] {
            let address = BackendAddress::Ip(refusing.address);
            let refused = check(&health(kind.clone(), SOON), &address, None).await.unwrap_err();
            assert_eq!(refused.finding(), Some(Check::Refused), "{refused}");
            let address = BackendAddress::Ip(silent.address);
            let unreachable = check(&health(kind, short), &address, None).await.unwrap_err();
            assert_eq!(unreachable.finding(), Some(Check::Unreachable), "{unreachable}");
        }
    }

    #[test]
    fn own_failures_find_nothing() {
        // EMFILE
        let own = CheckError::Connect(io::Error::from_raw_os_error(24));
        assert_eq!(own.finding(), None);
        let backends = vec![backend_settings("a", 1)];
        let pool = Pool::new(settings(backends, CheckKind::Tcp), Arc::new(|_| {}));
        let backend = &pool.backends()[0];
        // EADDRNOTAVAIL
        let outcome = Err(CheckError::Connect(io::Error::from_raw_os_error(99)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let made = |_| report(&pool, backend, &outcome);
        assert!(!runtime.block_on(async { (0..10).any(made) }));
        assert!(backend.in_service());
        assert_eq!(backend.counters().checks_not_made.load(Ordering::Relaxed), 10);
        assert_eq!(backend.counters().check_failures.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn intervals_differ_by_a_tenth_at_most(millis in 1_u64..100_000, random in any::<u64>()) {
            let interval = Duration::from_millis(millis);
            let jittered = jittered(interval, random);
            prop_assert!(jittered >= interval * 9 / 10 && jittered <= interval * 11 / 10);
            prop_assert!(first_delay(interval, random) <= interval.min(TICK));
        }
    }

    /// A pool of one backend at `address` and one that is never watched, with its events.
    fn watched(
        address: SocketAddr,
        health: HealthSettings,
    ) -> (Arc<Pool>, mpsc::Receiver<BackendEvent>) {
        let (tell, events) = mpsc::channel(16);
        let watched = BackendAddress::Ip(address);
        let backends = vec![
            BackendSettings { address: watched, ..backend_settings("a", 1) },
            backend_settings("b", 1),
        ];
        let settings = super::super::PoolSettings { health, ..settings(backends, CheckKind::Off) };
        let observer = move |event: &Event| {
            if let Event::Backend(event) = event {
                drop(tell.try_send(event.clone()));
            }
        };
        let pool = Pool::new(settings, Arc::new(observer));
        (pool, events)
    }

    fn watch_first(pool: &Arc<Pool>) -> (JoinHandle<()>, oneshot::Sender<()>) {
        let (stop, stopped) = oneshot::channel();
        let backend = Arc::clone(&pool.backends()[0]);
        let stopped = async { drop(stopped.await) };
        (tokio::spawn(watch(Arc::clone(pool), backend, stopped)), stop)
    }

    fn often(kind: CheckKind) -> HealthSettings {
        HealthSettings { interval: Duration::from_millis(20), ..health(kind, SOON) }
    }

    async fn next(events: &mut mpsc::Receiver<BackendEvent>) -> (State, Cause) {
        let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
        (event.transition.to, event.transition.cause)
    }

    #[tokio::test]
    async fn a_backend_that_goes_and_comes_back_is_noticed() {
        let refusing = Refusing::new();
        let (pool, mut events) = watched(refusing.address, often(CheckKind::Tcp));
        let (watching, stop) = watch_first(&pool);
        assert_eq!(next(&mut events).await, (State::OutOfService, Cause::ChecksFailed));
        refusing.listen();
        assert_eq!(next(&mut events).await, (State::InService, Cause::ChecksPassed));
        drop(stop);
        timeout(SOON, watching).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_silent_backend_is_lost() {
        let silent = Silent::new().await;
        let timeout = Duration::from_millis(30);
        let health = HealthSettings { timeout, ..often(http()) };
        let (pool, mut events) = watched(silent.address, health);
        let (_watching, _stop) = watch_first(&pool);
        assert_eq!(next(&mut events).await, (State::Lost, Cause::Unreachable));
    }

    #[tokio::test]
    async fn a_slow_check_puts_the_next_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let health = HealthSettings {
            interval: Duration::from_millis(1),
            ..health(http(), Duration::from_millis(100))
        };
        let (pool, mut events) = watched(listener.local_addr().unwrap(), health);
        let (_watching, _stop) = watch_first(&pool);
        let mut accepted = 0;
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = next(&mut events) => break outcome,
                stream = listener.accept() => {
                    accepted += 1;
                    // One at a time: the end of this one comes before the next begins.
                    let (mut stream, _) = stream.unwrap();
                    let mut head = Vec::new();
                    drop(stream.read_to_end(&mut head).await);
                }
            }
        };
        assert_eq!(outcome, (State::OutOfService, Cause::ChecksFailed));
        assert!(accepted <= 4, "{accepted} checks, though three sufficed");
    }

    #[tokio::test(start_paused = true)]
    async fn without_checks_time_goes_on() {
        let (pool, mut events) = watched(NOWHERE, health(CheckKind::Off, SOON));
        let backend = &pool.backends()[0];
        let (_watching, _stop) = watch_first(&pool);
        let begin = Instant::now();
        (0..5).for_each(|_| pool.traffic_failed(backend, &"refused", begin.into_std()));
        let mut events_of = async || events.recv().await.unwrap().transition.cause;
        assert_eq!(events_of().await, Cause::TrafficFailed);
        assert_eq!(events_of().await, Cause::TriedAgain);
        assert!(begin.elapsed() >= TRY_AGAIN && begin.elapsed() <= TRY_AGAIN + 2 * TICK);
    }

    #[tokio::test(start_paused = true)]
    async fn out_too_long_is_lost_without_a_check() {
        let health =
            HealthSettings { lost_after: Duration::from_secs(5), ..health(CheckKind::Off, SOON) };
        let (pool, mut events) = watched(NOWHERE, health);
        let (_watching, _stop) = watch_first(&pool);
        let now = Instant::now().into_std();
        (0..5).for_each(|_| pool.traffic_failed(&pool.backends()[0], &"refused", now));
        let mut events_of = async || events.recv().await.unwrap().transition.cause;
        assert_eq!(events_of().await, Cause::TrafficFailed);
        assert_eq!(events_of().await, Cause::OutTooLong);
    }

    #[test]
    fn a_watch_may_run_on_any_thread() {
        fn sendable<T: Send>(_: &T) {}
        let (pool, _) = watched(NOWHERE, often(http()));
        let backend = Arc::clone(&pool.backends()[0]);
        sendable(&watch(pool, backend, std::future::pending()));
    }
}
