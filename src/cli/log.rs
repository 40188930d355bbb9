//! Where log events go: to standard error, as text for a person or as JSON for a program.
//!
//! Whoever logs does not wait for standard error: a terminal that is stopped or a pipe that nobody
//! reads costs lines, see [`observe::lines`](crate::observe::lines). A panic is an event as well. What is
//! queued when the process ends is still written, if that takes no longer than [`FLUSH`].

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::time::Duration;

use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};
use crate::observe::lines::Lines;
use crate::observe::stderr;

/// How long the last lines of the process may take.
const FLUSH: Duration = Duration::from_secs(1);
/// How long a thread that panics waits for its line to be written. It may be a worker, whose other
/// connections go on; but where panics abort, nothing comes after.
const PANIC_FLUSH: Duration = Duration::from_millis(100);

/// The log of this process, whose level can be changed. When it is dropped, what is queued has been
/// written.
pub(super) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    lines: Lines,
}

impl Log {
    /// Has events from now on be logged if they are at least so severe.
    pub(super) fn set_level(&self, level: LogLevel) {
        // It fails only when the process' subscriber is gone, which it never is.
        let _ = self.level.reload(filter(level));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.flush(FLUSH);
    }
}

/// Has this process log; once.
///
/// # Errors
///
/// There is no thread left for it.
pub(super) fn start(level: LogLevel, format: LogFormat) -> io::Result<Log> {
    let queue = stderr::lines()?;
    let (filter, level) = reload::Layer::new(filter(level));
    let lines = fmt::layer()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(Events(queue.clone()));
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    let at_panic = queue.clone();
    std::panic::set_hook(Box::new(move |panic| {
        tell_panic(panic);
        at_panic.flush(PANIC_FLUSH);
    }));
    Ok(Log { level, lines: queue })
}

fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    error!(
        thread = thread.name(),
        at = panic.location().map(tracing::field::display),
        cause = panic.payload_as_str(),
        // Only where RUST_BACKTRACE asks for it.
        backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(&backtrace)),
        "a panic: a fault of the program"
    );
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Makes a line of what is written at once, which is how events are written.
struct Events(Lines);

impl<'a> MakeWriter<'a> for Events {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        EventWriter(&self.0)
    }
}

struct EventWriter<'a>(&'a Lines);

impl Write for EventWriter<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.send(String::from_utf8_lossy(event).into_owned());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tracing::{debug, info};

    use super::*;

    const IN_CHILD: &str = "STEADFAST_TEST_OF_A_PANIC";

    /// In a process of its own, since a process has one log.
    #[test]
    fn a_panic_is_a_line_and_what_is_queued_at_the_end_is_written() {
        if std::env::var_os(IN_CHILD).is_some() {
            let log = start(LogLevel::Info, LogFormat::Json).unwrap();
            info!("before");
            let panicking = std::thread::Builder::new().name("worker-7".to_owned());
            let ended = panicking.spawn(|| panic!("a \"fault\"")).unwrap().join();
            assert!(ended.is_err());
            debug!("not told");
            log.set_level(LogLevel::Debug);
            debug!("after");
            drop(log);
            std::process::exit(7);
        }
        let name = std::thread::current().name().unwrap().to_owned();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(IN_CHILD, "1")
            .env("RUST_BACKTRACE", "1")
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(7), "{child:?}");
        let text = String::from_utf8(child.stderr).unwrap();
        let events: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let messages: Vec<_> =
            events.iter().map(|event| event["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["before", "a panic: a fault of the program", "after"]);
        let panic = &events[1];
        assert_eq!((&panic["level"], &panic["thread"]), (&"ERROR".into(), &"worker-7".into()));
        assert_eq!(panic["cause"], "a \"fault\"");
        assert!(panic["at"].as_str().unwrap().contains("log.rs:"), "{panic}");
        assert!(panic["backtrace"].as_str().unwrap().contains("log::tests"), "{panic}");
    }
}
