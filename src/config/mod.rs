//! The configuration: one TOML file, checked whole, resolved into what the program runs on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::listen::ListenerSettings;
use crate::pool::PoolSettings;
use crate::route::RouteSettings;

/// A config that was found valid as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The process.
    pub server: ServerSettings,
    /// Where clients connect; at least one.
    pub listeners: Vec<ListenerSettings>,
    /// Where requests go; no two match with equal right.
    pub routes: Vec<RouteSettings>,
    /// The pools that routes name.
    pub pools: Vec<PoolSettings>,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSettings {
    /// Part of the proxy id; has no dot.
    pub name: String,
    /// Worker threads, at least 1: `workers = 0` is resolved to the cores that the process may use.
    pub workers: usize,
    /// The address of the admin API.
    pub admin: Option<SocketAddr>,
    /// The bearer token that the admin API asks for.
    pub admin_token: Option<Secret>,
    /// After SIGTERM: not ready, but still accepting.
    pub shutdown_delay: Duration,
    /// After that: all is over within this.
    pub shutdown_grace: Duration,
    /// What is logged.
    pub log_level: LogLevel,
    /// How it is written.
    pub log_format: LogFormat,
    /// Where the access log goes.
    pub access_log: AccessLog,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// To standard error.
    Stderr,
    /// To the end of this file.
    File(PathBuf),
}

/// The least severe event that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For the operator, now.
    Error,
    /// For the operator, later.
    Warn,
    /// Lifecycle.
    Info,
    /// One connection.
    Debug,
    /// Everything.
    Trace,
}

/// How log events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// A secret from the config; neither `Debug` nor an error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself, for a comparison or a handshake, never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(..)")
    }
}
