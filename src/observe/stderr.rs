//! Standard error: one for the process, and one writer for all that goes there.
//!
//! Log events and an access log that goes there too take turns line by line, since they share the
//! queue. This is the one thing of a process that its proxies share, so it is the one global.

use std::io::{self, Stderr, Write};
use std::sync::{LazyLock, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use super::lines::{Lines, Output};

static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);
static WRITER: Mutex<Option<Lines>> = Mutex::new(None);

/// The way to standard error; its writer is started the first time.
///
/// # Errors
///
/// There is no thread left.
pub fn lines() -> io::Result<Lines> {
    let mut writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lines) = &*writer {
        return Ok(lines.clone());
    }
    let lines = Lines::start("stderr", StandardError(io::stderr()), dropped())?;
    Ok(writer.insert(lines).clone())
}

/// Counts the log events that standard error was too slow for, or did not take.
pub fn dropped() -> Counter {
    DROPPED.clone()
}

struct StandardError(Stderr);

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Output for StandardError {
    fn tell_dropped(&self, lines: u64) {
        // It goes through the queue as well, in which there is room now.
        warn!(lines, "standard error is too slow: lines were dropped");
    }
    // That it can't be written can be told nowhere; the counter tells it.
}
