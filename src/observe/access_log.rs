//! The access log: one JSON line per answered request and per closed WebSocket.
//!
//! Lines go through a bounded queue to a thread that writes them: a disk that is slow costs lines,
//! which are counted, and never holds up a worker. A file that was renamed, as log rotation does it,
//! is opened anew under its own name, by itself or when told to.
//!
//! What could be a secret is left out: queries, headers, a key that came in a cookie or a header, a
//! subprotocol that is too long to be one. What a WebSocket's line tells of its handshake is kept,
//! as the text that it will be in the line, only while the log is on.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tracing::warn;

use super::lines::{Lines, Output};
use super::rate::{Allowed, allowed};
use super::stderr;
use crate::config;

/// How often, at most, it is made sure that the file is still called so.
const LOOK: Duration = Duration::from_secs(1);
/// The longest subprotocol that is written down. Those that are registered are shorter; clients put
/// tokens where a subprotocol belongs, and those are longer.
const SUBPROTOCOL_BYTES: usize = 24;

/// The file of the access log can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't open the access log {}", path.display())]
pub struct OpenError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A place for lines with a writer that waits for them; `None`: they go nowhere.
#[derive(Debug)]
pub struct Opened(Option<Lines>);

impl Opened {
    /// Opens the log and starts its writer. `dropped` counts the lines that it is too slow for.
    ///
    /// # Errors
    ///
    /// The file can't be opened for appending, or there is no thread left.
    pub fn open(settings: &config::AccessLog, dropped: Counter) -> Result<Self, OpenError> {
        let started = match settings {
            config::AccessLog::Off => return Ok(Self(None)),
            config::AccessLog::Stderr => stderr::lines().map(|lines| lines.counting(dropped)),
            config::AccessLog::File(path) => {
                Lines::start("access-log", LogFile::append_to(path)?, dropped)
            }
        };
        let path = PathBuf::from("its thread");
        Ok(Self(Some(started.map_err(|source| OpenError { path, source })?)))
    }
}

/// Where lines are recorded; cheap to share.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<ArcSwapOption<Lines>>);

impl AccessLog {
    /// A log that goes there.
    pub fn new(opened: Opened) -> Self {
        let log = Self(Arc::default());
        log.redirect(opened);
        log
    }

    /// Has all lines from now on go elsewhere; those before are still written where they were to go.
    pub fn redirect(&self, opened: Opened) {
        self.0.store(opened.0.map(Arc::new));
    }

    /// Has a file opened anew under its name, since it may have been renamed.
    pub fn reopen(&self) {
        if let Some(lines) = &*self.0.load() {
            lines.reopen();
        }
    }

    /// Whether lines go anywhere: if not, they need not be made.
    pub fn is_on(&self) -> bool {
        self.0.load().is_some()
    }

    /// Records a line, which ends with what was kept as `rest` if anything was; never waits.
    pub fn record(&self, line: &impl Serialize, rest: Option<&Rest>) {
        let lines = self.0.load();
        let Some(lines) = &*lines else { return };
        match object(line) {
            Some(mut line) => {
                if let Some(rest) = rest {
                    line.truncate(line.len() - 1);
                    line.push(',');
                    line.push_str(&rest.0[1..]);
                }
                line.push('\n');
                lines.send(line);
            }
            None => lines.drop_one(),
        }
    }

    /// Waits until all that was recorded is written, for at most `limit`. Blocks.
    pub fn flush(&self, limit: Duration) {
        if let Some(lines) = &*self.0.load() {
            lines.flush(limit);
        }
    }
}

/// Fields of a line that are kept until it is written: the text of a JSON object, in one piece.
#[derive(Debug)]
pub struct Rest(Box<str>);

/// The text of a JSON object that has fields; `None`: it can't be written as one.
fn object(fields: &impl Serialize) -> Option<String> {
    let text = serde_json::to_string(fields).ok()?;
    (text.len() > 2 && text.starts_with('{')).then_some(text)
}

/// A file that is appended to, under its name.
struct LogFile {
    path: PathBuf,
    file: File,
    /// When it was last made sure that the file is still called so.
    looked: Instant,
}

impl LogFile {
    fn append_to(path: &Path) -> Result<Self, OpenError> {
        // A FIFO is opened for reading too: else this would wait for its reader, and lines be lost
        // whenever that starts anew.
        let fifo = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
        let opened = OpenOptions::new().read(fifo).create(true).append(true).open(path);
        let file = opened.map_err(|source| OpenError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, looked: Instant::now() })
    }
}

impl Output for LogFile {
    /// Opens the file anew where another one, or none, is called so now.
    fn follow_its_name(&mut self, now: bool) {
        if !now && self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let is = |found: io::Result<Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        if is(std::fs::metadata(&self.path)) == is(self.file.metadata()) {
            return;
        }
        match Self::append_to(&self.path) {
            Ok(opened) => *self = opened,
            // What is open still takes lines.
            Err(error) => warn!(%error, cause = %error.source, "can't open the access log anew"),
        }
    }

    fn tell_dropped(&self, lines: u64) {
        if let Some(Allowed { suppressed }) = allowed!() {
            warn!(lines, suppressed, "the access log is too slow: lines were dropped");
        }
    }

    fn tell_failed(&self, error: &io::Error) {
        if let Some(Allowed { suppressed }) = allowed!() {
            warn!(%error, suppressed, "can't write the access log; lines are lost");
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What was asked for, as lines of both kinds tell it.
#[derive(Debug, Default, Serialize)]
pub struct Asked {
    /// The host that it was asked of.
    pub host: Option<String>,
    /// Its path, without the query.
    pub path: String,
    /// Its `X-Request-Id`, as the backend saw it if it came that far.
    pub request_id: Option<String>,
    /// The trace that its `traceparent` belongs to.
    pub trace_id: Option<String>,
}

/// The line of an answered request.
#[derive(Debug, Serialize)]
struct RequestLine<'a> {
    kind: &'static str,
    /// When the answer was over, in Unix milliseconds.
    time: u64,
    client: IpAddr,
    listener: &'a str,
    method: &'a str,
    /// It asked for a WebSocket.
    websocket: bool,
    #[serde(flatten)]
    asked: &'a Asked,
    route: &'a str,
    backend: Option<&'a str>,
    /// Null: the client went away before there was an answer.
    status: Option<u16>,
    /// Why the proxy itself answered, or nobody; null: the backend did.
    refused: Option<&'static str>,
    /// Bytes of the answer's body.
    bytes: u64,
    duration_ms: u64,
}

/// What a WebSocket's line tells of its handshake.
#[derive(Debug, Serialize)]
struct HandshakeFields<'a> {
    #[serde(flatten)]
    asked: &'a Asked,
    key: Option<&'a str>,
    subprotocol: Option<&'a str>,
    handshake_ms: u64,
}

/// A request under way, written down when its answer is over.
#[derive(Debug)]
pub struct RequestRecord {
    log: AccessLog,
    started: Instant,
    /// Who asked.
    pub client: IpAddr,
    /// Where it came in.
    pub listener: Arc<str>,
    /// Its method.
    pub method: String,
    /// It asks for a WebSocket.
    pub websocket: bool,
    /// What it asks for.
    pub asked: Asked,
    /// Its key, if that may be written down.
    pub key: Option<Arc<str>>,
    /// Its route's name; empty where none matched.
    pub route: Arc<str>,
    /// The backend that it went to.
    pub backend: Option<String>,
    /// The status of the answer; `None` until there is one.
    pub status: Option<u16>,
    /// Why the proxy itself answered.
    pub refused: Option<&'static str>,
    /// Bytes of the answer's body so far.
    pub bytes: u64,
    /// Something else tells of it.
    told: bool,
}

impl RequestRecord {
    /// A request that has just come.
    pub fn new(
        log: &AccessLog,
        client: IpAddr,
        listener: &Arc<str>,
        method: &http::Method,
    ) -> Self {
        Self {
            log: log.clone(),
            started: Instant::now(),
            client,
            listener: Arc::clone(listener),
            method: method.to_string(),
            websocket: false,
            asked: Asked::default(),
            key: None,
            route: Arc::from(""),
            backend: None,
            status: None,
            refused: None,
            bytes: 0,
            told: false,
        }
    }

    /// The request has become a WebSocket, whose line, when it closes, tells this of its handshake.
    pub fn into_rest(mut self, subprotocol: Option<&str>) -> Option<Rest> {
        self.told = true;
        let rest = object(&HandshakeFields {
            asked: &self.asked,
            key: self.key.as_deref(),
            subprotocol: subprotocol.filter(|name| name.len() <= SUBPROTOCOL_BYTES),
            handshake_ms: millis(self.started.elapsed()),
        });
        rest.map(|rest| Rest(rest.into()))
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let line = RequestLine {
            kind: "request",
            time: unix_millis(SystemTime::now()),
            client: self.client,
            listener: &self.listener,
            method: &self.method,
            websocket: self.websocket,
            asked: &self.asked,
            route: &self.route,
            backend: self.backend.as_deref(),
            status: self.status,
            refused: self.refused,
            bytes: self.bytes,
            duration_ms: millis(self.started.elapsed()),
        };
        self.log.record(&line, None);
    }
}

/// The line of a closed WebSocket.
#[derive(Debug, Serialize)]
pub struct ConnectionLine<'a> {
    /// Always `connection`.
    pub kind: &'static str,
    /// When it closed, in Unix milliseconds.
    pub time: u64,
    /// Its proxy's id.
    pub proxy: &'a str,
    /// Its id.
    pub connection: &'a str,
    /// The address of its client.
    pub client: IpAddr,
    /// Where it came in.
    pub listener: &'a str,
    /// Its route's name.
    pub route: &'a str,
    /// Its pool's name.
    pub pool: &'a str,
    /// Its backend's id.
    pub backend: &'a str,
    /// When its handshake came, in Unix milliseconds.
    pub since: u64,
    /// When a frame last went either way, in Unix milliseconds.
    pub last_activity: u64,
    /// From `since` to `time`.
    pub duration_ms: u64,
    /// Who ended it.
    pub by: &'static str,
    /// Why.
    pub reason: &'static str,
    /// With which close code; null: none was said.
    pub code: Option<u16>,
    /// Something was left unsaid.
    pub cut: bool,
    /// Data messages from the client.
    pub messages_from_client: u64,
    /// Their payload.
    pub bytes_from_client: u64,
    /// Data messages from the backend.
    pub messages_from_backend: u64,
    /// Their payload.
    pub bytes_from_backend: u64,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time as the API and the logs tell it: in Unix milliseconds.
pub fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
