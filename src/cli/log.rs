//! Where log events go: to standard error, as text for a person or as JSON for a program.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};

/// The log of this process, whose level can be changed.
pub(super) struct Log(reload::Handle<LevelFilter, Registry>);

impl Log {
    /// Has events from now on be logged if they are at least so severe.
    pub(super) fn set_level(&self, level: LogLevel) {
        // It fails only when the process' subscriber is gone, which it never is.
        let _ = self.0.reload(filter(level));
    }
}

/// Has this process log; once.
pub(super) fn start(level: LogLevel, format: LogFormat) -> Log {
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = fmt::layer()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Log(handle)
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
