//! `[server]`: the process, its admin API and its logs.
//!
//! The admin API can close every connection, so it is not opened to other machines without a
//! token. What the token is goes into no message: the place of its value is hidden first of all.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::limits::{duration_or_zero, number, time_out};
use super::names;
use super::secret::{self, Taken};
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::value::quoted;
use crate::config::{AccessLog, Environment, LogFormat, LogLevel, Secret, ServerSettings};

const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// More threads than that are a slip of the hand.
const MOST_WORKERS: u32 = 1024;

/// Resolves `[server]`, and tells where its `admin` stands.
pub(super) fn resolve(
    mut table: Cursor<'_>,
    folder: &Path,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> (ServerSettings, Option<Located<SocketAddr>>) {
    table.set_place("server".to_owned());
    let admin = admin(&mut table, problems);
    let admin_token = token(&mut table, folder, environment, problems);
    if let Some(admin) = &admin
        && !admin.value.ip().to_canonical().is_loopback()
        && matches!(admin_token, Taken::Absent)
    {
        let what = format!(
            "is {}, which other machines can reach: set admin_token, or use 127.0.0.1",
            admin.value
        );
        table.note(problems, admin.span.clone(), "admin", &what);
    }
    let (log_level, log_format) = log(&mut table, problems);
    let settings = ServerSettings {
        name: name(&mut table, environment, problems),
        workers: workers(&mut table, environment, problems),
        admin: admin.as_ref().map(|admin| admin.value),
        admin_token: admin_token.given(),
        shutdown_delay: duration_or_zero(&mut table, "shutdown_delay", Duration::ZERO, problems),
        shutdown_grace: time_out(&mut table, "shutdown_grace", Duration::from_secs(25), problems),
        log_level,
        log_format,
        access_log: access_log(&mut table, folder, problems),
    };
    table.finish(problems);
    (settings, admin)
}

fn name(table: &mut Cursor<'_>, environment: &Environment<'_>, problems: &mut Problems) -> String {
    let host = || match names::into_name(environment.host_name) {
        name if name.is_empty() => "steadfast".to_owned(),
        name => name,
    };
    let Some(name) = table.take::<String>("name", problems) else { return host() };
    if (1..=names::LONGEST).contains(&name.value.chars().count()) {
        return names::into_name(&name.value);
    }
    let what =
        format!("must have 1 to {} characters; leave it out for the host name", names::LONGEST);
    table.note(problems, name.span, "name", &what);
    host()
}

fn workers(
    table: &mut Cursor<'_>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> usize {
    let remedy = "0 takes as many as there are cores";
    match number(table, "workers", 0u32, 0..=MOST_WORKERS, remedy, problems) {
        0 => environment.cores.get(),
        workers => usize::try_from(workers).unwrap_or(1),
    }
}

fn admin(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<Located<SocketAddr>> {
    let text = table.take::<String>("admin", problems)?;
    super::socket_address(table, "admin", &text, "127.0.0.1:9900", problems)
}

fn token(
    table: &mut Cursor<'_>,
    folder: &Path,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Taken<Secret> {
    const KEY: &str = "admin_token";
    let taken = secret::take(table, KEY, folder, environment, problems);
    let Taken::Given(text) = taken else { return taken.without() };
    if text.value.is_empty() || !text.value.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = format!(
            "{}must be one or more visible ASCII characters, without spaces: it goes in a header",
            text.source
        );
        table.note(problems, text.span, KEY, &what);
        return Taken::Wrong;
    }
    Taken::Given(Secret::new(text.value))
}

fn log(table: &mut Cursor<'_>, problems: &mut Problems) -> (LogLevel, LogFormat) {
    let mut log = table.table("log", "server.log", "log.", problems);
    let level = super::choice(&mut log, "level", &LEVELS, LogLevel::Info, problems);
    let format = super::choice(&mut log, "format", &FORMATS, LogFormat::Text, problems);
    log.finish(problems);
    (level, format)
}

fn access_log(table: &mut Cursor<'_>, folder: &Path, problems: &mut Problems) -> AccessLog {
    let Some(text) = table.take::<String>("access_log", problems) else { return AccessLog::Off };
    match text.value.as_str() {
        "off" => AccessLog::Off,
        "stderr" => AccessLog::Stderr,
        // Files of these names are hardly ever meant.
        "" | "on" | "true" | "false" | "none" | "stdout" => {
            let what = format!(
                "can't be {}; write \"off\", \"stderr\" or the path of a file",
                quoted(&text.value)
            );
            table.note(problems, text.span, "access_log", &what);
            AccessLog::Off
        }
        path => AccessLog::File(folder.join(path)),
    }
}
