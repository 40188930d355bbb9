//! The access log: one JSON line per answered request and per closed WebSocket.
//!
//! Lines are written by a thread of their own behind a bounded queue: a disk that is slow costs
//! lines, which are counted, and never holds up a worker. A file that was renamed, as log rotation
//! does it, is opened anew under its own name, by itself or when told to. Queries are left out of paths, since
//! tokens travel in them; headers are not logged at all.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tracing::warn;

use crate::config;

/// Lines that may wait for the writer.
const QUEUE: usize = 8192;
/// How often, at most, it is made sure that the file is still called so.
const LOOK: Duration = Duration::from_secs(1);

/// The file of the access log can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't open the access log {}", path.display())]
pub struct OpenError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// What the writer gets.
#[derive(Debug)]
enum Entry {
    Line(String),
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
    /// What comes next goes into a file that is opened anew.
    Reopen,
}

/// A place for lines with a writer that waits for them; `None`: they go nowhere.
#[derive(Debug)]
pub struct Opened(Option<SyncSender<Entry>>);

impl Opened {
    /// Opens the log and starts its writer.
    ///
    /// # Errors
    ///
    /// The file can't be opened for appending, or there is no thread left.
    pub fn open(settings: &config::AccessLog) -> Result<Self, OpenError> {
        let output = match settings {
            config::AccessLog::Off => return Ok(Self(None)),
            config::AccessLog::Stderr => Output::Stderr(io::stderr()),
            config::AccessLog::File(path) => Output::append_to(path)?,
        };
        let (queue, lines) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let started = thread.spawn(move || write_lines(&lines, output));
        let path = PathBuf::from("its thread");
        started.map_err(|source| OpenError { path, source })?;
        Ok(Self(Some(queue)))
    }
}

/// Where lines are recorded; cheap to share.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: Arc<ArcSwapOption<SyncSender<Entry>>>,
    dropped: Counter,
}

impl AccessLog {
    /// A log that goes there. `dropped` counts the lines that its writer was too slow for.
    pub fn new(opened: Opened, dropped: Counter) -> Self {
        let log = Self { queue: Arc::default(), dropped };
        log.redirect(opened);
        log
    }

    /// Has all lines from now on go elsewhere; those before are still written where they were to go.
    pub fn redirect(&self, opened: Opened) {
        self.queue.store(opened.0.map(Arc::new));
    }

    /// Has a file opened anew under its name, since it may have been renamed.
    pub fn reopen(&self) {
        if let Some(queue) = &*self.queue.load() {
            // A queue that is full has a writer that is stuck; it looks by itself later.
            let _ = queue.try_send(Entry::Reopen);
        }
    }

    /// Whether lines go anywhere: if not, they need not be made.
    pub fn is_on(&self) -> bool {
        self.queue.load().is_some()
    }

    /// Records a line; never waits.
    pub fn record(&self, line: &impl Serialize) {
        let queue = self.queue.load();
        let Some(queue) = &*queue else { return };
        let sent =
            serde_json::to_string(line).is_ok_and(|line| queue.try_send(Entry::Line(line)).is_ok());
        if !sent {
            self.dropped.inc();
        }
    }

    /// Waits until all that was recorded is written, for at most `limit`. Blocks.
    pub fn flush(&self, limit: Duration) {
        let queue = self.queue.load();
        let Some(queue) = &*queue else { return };
        let (done, written) = sync_channel(1);
        // A queue that is full has a writer that is stuck: nothing to wait for.
        if queue.try_send(Entry::Flush(done)).is_ok() {
            let _ = written.recv_timeout(limit);
        }
    }
}

/// Where a writer writes to.
enum Output {
    Stderr(io::Stderr),
    File {
        path: PathBuf,
        file: File,
        /// When it was last made sure that the file is still called so.
        looked: Instant,
    },
}

impl Output {
    fn append_to(path: &Path) -> Result<Self, OpenError> {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        let file = opened.map_err(|source| OpenError { path: path.to_owned(), source })?;
        Ok(Self::File { path: path.to_owned(), file, looked: Instant::now() })
    }

    /// Opens the file anew where another one, or none, is called so now.
    fn follow_its_name(&mut self, now: bool) {
        let Self::File { path, file, looked } = self else { return };
        if !now && looked.elapsed() < LOOK {
            return;
        }
        *looked = Instant::now();
        let is = |found: io::Result<Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        if is(std::fs::metadata(&*path)) == is(file.metadata()) {
            return;
        }
        match Self::append_to(path) {
            Ok(opened) => *self = opened,
            // What is open still takes lines.
            Err(error) => warn!(%error, cause = %error.source, "can't open the access log anew"),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr(stderr) => stderr.write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr(stderr) => stderr.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

/// Writes until the last sender is gone; what is queued then is still written.
fn write_lines(entries: &Receiver<Entry>, output: Output) {
    let mut writer = BufWriter::new(output);
    let mut failing = false;
    while let Ok(first) = entries.recv() {
        writer.get_mut().follow_its_name(false);
        let mut written = Ok(());
        let mut flushes = Vec::new();
        // All that waits, at most a queue full, then the writer's own buffer.
        for entry in std::iter::once(first).chain(entries.try_iter().take(QUEUE)) {
            match entry {
                Entry::Line(line) => written = written.and_then(|()| writeln!(writer, "{line}")),
                Entry::Flush(done) => flushes.push(done),
                Entry::Reopen => {
                    written = written.and_then(|()| writer.flush());
                    writer.get_mut().follow_its_name(true);
                }
            }
        }
        let written = written.and_then(|()| writer.flush());
        // Whoever waited may have given up.
        for done in flushes {
            let _ = done.try_send(());
        }
        match written {
            Ok(()) => failing = false,
            // Once per outage: the next lines try again.
            Err(error) if !failing => {
                failing = true;
                warn!(%error, "can't write the access log; lines are lost");
            }
            Err(_) => {}
        }
    }
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
    path: &'a str,
    route: &'a str,
    backend: Option<&'a str>,
    request_id: Option<&'a str>,
    /// Null: the client went away before there was an answer.
    status: Option<u16>,
    /// Why the proxy itself answered; null: the backend did, or nobody.
    refused: Option<&'static str>,
    /// Bytes of the answer's body.
    bytes: u64,
    duration_ms: u64,
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
    /// Its path, without the query.
    pub path: String,
    /// Its route's name; empty where none matched.
    pub route: Arc<str>,
    /// The backend that it went to.
    pub backend: Option<String>,
    /// Its `X-Request-Id`, as the backend saw it.
    pub request_id: Option<String>,
    /// The status of the answer; `None` until there is one.
    pub status: Option<u16>,
    /// Why the proxy itself answered.
    pub refused: Option<&'static str>,
    /// Bytes of the answer's body so far.
    pub bytes: u64,
}

impl RequestRecord {
    /// A request that has just come.
    pub fn new(
        log: &AccessLog,
        client: IpAddr,
        listener: &Arc<str>,
        method: &http::Method,
        path: &str,
    ) -> Self {
        Self {
            log: log.clone(),
            started: Instant::now(),
            client,
            listener: Arc::clone(listener),
            method: method.to_string(),
            path: path.to_owned(),
            route: Arc::from(""),
            backend: None,
            request_id: None,
            status: None,
            refused: None,
            bytes: 0,
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        // A WebSocket is written down when it closes.
        if self.status == Some(101) {
            return;
        }
        self.log.record(&RequestLine {
            kind: "request",
            time: unix_millis(SystemTime::now()),
            client: self.client,
            listener: &self.listener,
            method: &self.method,
            path: &self.path,
            route: &self.route,
            backend: self.backend.as_deref(),
            request_id: self.request_id.as_deref(),
            status: self.status,
            refused: self.refused,
            bytes: self.bytes,
            duration_ms: millis(self.started),
        });
    }
}

/// The line of a closed WebSocket.
#[derive(Debug, Serialize)]
pub struct ConnectionLine<'a> {
    /// Always `connection`.
    pub kind: &'static str,
    /// When it closed, in Unix milliseconds.
    pub time: u64,
    /// Its id.
    pub connection: &'a str,
    /// The address of its client.
    pub client: IpAddr,
    /// Its route's name.
    pub route: &'a str,
    /// Its pool's name.
    pub pool: &'a str,
    /// Its backend's id.
    pub backend: &'a str,
    /// Its key; null: it had none.
    pub key: Option<&'a str>,
    /// When its handshake came, in Unix milliseconds.
    pub since: u64,
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

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A time as the API and the logs tell it: in Unix milliseconds.
pub fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
