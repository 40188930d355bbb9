//! `steadfast status`: how a running proxy does, once or for as long as somebody watches.
//!
//! A look is three questions to the admin API; rates are what changed between two looks, a second
//! apart.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use clap::Args;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::answers::{Backend, Pools, Status};
use super::ask::{self, Admin, AdminOptions};
use super::drain;
use super::print::{self, Side, Table, between, byte_rate, counted, rate, short, span};
use super::rates::{Counts, Routes, rates, totals};
use crate::observe::access_log::unix_millis;

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(1);
/// The place on a terminal that does not tell.
const ENDLESS: Place = Place { rows: usize::MAX, columns: usize::MAX };

/// Which proxy, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    admin: AdminOptions,
    /// Show it anew every second until Ctrl-C; where standard output is no terminal, one block a
    /// second.
    #[arg(long)]
    watch: bool,
    /// Print one JSON object, with --watch one a line: `status`, `pools`, and the `rates` of each
    /// route per second, null at first.
    #[arg(long)]
    json: bool,
}

/// Prints it.
pub(super) fn status(options: &Options) -> anyhow::Result<ExitCode> {
    let admin = options.admin.find()?;
    ask::wait_for(async {
        if options.watch {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted?,
                ended = watch(&admin, options.json) => match ended? {},
            }
        } else {
            let before = Look::take(&admin).await?;
            tokio::time::sleep(PERIOD).await;
            let look = Look::take(&admin).await?;
            print::out(&look.shown(Some(&before), options.json)?)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Never ends by itself. A proxy that is away for a while, as in a restart, is waited for; one that
/// can't be asked at the beginning is an error.
async fn watch(admin: &Admin, as_json: bool) -> anyhow::Result<Infallible> {
    let redraws = !as_json && std::io::stdout().is_terminal();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Look> = None;
    let mut seen = false;
    loop {
        ticks.tick().await;
        let look = match Look::take(admin).await {
            Ok(look) => Some(look),
            Err(error) if !seen => return Err(error),
            Err(error) if redraws => {
                print::out(&frame(&print::plain(&format!("{error:#}")), place()))?;
                None
            }
            Err(error) => {
                print::complain([format!("{error:#}")]);
                None
            }
        };
        if let Some(look) = &look {
            let text = look.shown(before.as_ref(), as_json)?;
            match (redraws, as_json) {
                (true, _) => print::out(&frame(&text, place()))?,
                (false, true) => print::out(&text)?,
                (false, false) => print::out(&format!("{text}\n"))?,
            }
            seen = true;
        }
        before = look;
    }
}

/// What a terminal shows at a time.
#[derive(Clone, Copy)]
struct Place {
    rows: usize,
    columns: usize,
}

fn place() -> Place {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            Place { rows: size.ws_row.into(), columns: size.ws_col.into() }
        }
        _ => ENDLESS,
    }
}

/// What draws a text over the one before it. What doesn't fit is left out, so that nothing wraps
/// or scrolls.
fn frame(text: &str, Place { rows, columns }: Place) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let fit = if lines.len() < rows { lines.len() } else { rows.saturating_sub(2) };
    let mut frame = String::from("\x1b[H");
    for line in &lines[..fit] {
        frame.extend(line.chars().take(columns));
        frame.push_str("\x1b[K\r\n");
    }
    if fit < lines.len() {
        frame.push_str(&format!("{} do not fit\x1b[K", counted(lines.len() - fit, "more line")));
    }
    frame + "\x1b[J"
}

/// What a proxy was like at a moment.
struct Look {
    at: Instant,
    status: Value,
    pools: Value,
    totals: Routes<u64>,
}

impl Look {
    async fn take(admin: &Admin) -> anyhow::Result<Self> {
        let (status, pools, page) = tokio::try_join!(
            admin.get::<Value>("/v1/status"),
            admin.get::<Value>("/v1/pools"),
            admin.get_bytes("/metrics"),
        )?;
        let totals = totals(&String::from_utf8_lossy(&page));
        Ok(Self { at: Instant::now(), status, pools, totals })
    }

    fn shown(&self, before: Option<&Self>, as_json: bool) -> anyhow::Result<String> {
        let elapsed = |before: &Self| self.at.saturating_duration_since(before.at);
        // One that was started anew meanwhile counts from 0 again.
        let before = before.filter(|before| before.status["started"] == self.status["started"]);
        let rates = before.map(|before| rates(&before.totals, &self.totals, elapsed(before)));
        if as_json {
            let all =
                json!({ "status": self.status, "pools": self.pools["pools"], "rates": rates });
            return Ok(serde_json::to_string(&all)? + "\n");
        }
        let unknown = "this is another version's status";
        let status = Status::deserialize(&self.status).context(unknown)?;
        let pools = Pools::deserialize(&self.pools).context(unknown)?;
        Ok(written(&status, &pools, rates.as_ref(), unix_millis(SystemTime::now()))?)
    }
}

fn written(
    status: &Status,
    pools: &Pools,
    rates: Option<&Routes<f64>>,
    now: u64,
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "{}  version {}  up {}  {}  {}  {}",
        print::plain(&status.proxy),
        print::plain(&status.version),
        span(between(status.started, now)),
        if status.ready { "ready" } else { "NOT READY" },
        counted(status.workers, "worker"),
        counted(status.connections, "connection"),
    )?;
    match &status.last_reload {
        None => writeln!(text, "last reload  none since the start")?,
        Some(reload) => {
            let ago = span(between(reload.at, now));
            match &reload.error {
                None => writeln!(text, "last reload  {ago} ago: took effect")?,
                Some(error) => {
                    writeln!(text, "last reload  {ago} ago: FAILED: {}", print::plain(error))?;
                }
            }
        }
    }
    writeln!(text, "\n{}\n{}\n{}", backends(pools, now), listeners(status), routes(status, rates))?;
    for pool in pools.pools.iter().filter(|pool| pool.panicking) {
        let name = print::plain(&pool.name);
        writeln!(
            text,
            "pool {name} panics: so few backends are in service that health is ignored"
        )?;
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

fn backends(pools: &Pools, now: u64) -> Table {
    let mut table = Table::new(&[
        ("POOL", Side::Left),
        ("BACKEND", Side::Left),
        ("ADDRESS", Side::Left),
        ("STATE", Side::Left),
        ("CONNECTIONS", Side::Right),
        ("KEYS", Side::Right),
        ("IN FLIGHT", Side::Right),
        ("SHARE", Side::Right),
        ("DRAIN", Side::Left),
    ]);
    for pool in &pools.pools {
        for backend in &pool.backends {
            table.row(vec![
                pool.name.clone(),
                backend.id.clone(),
                backend.address.clone(),
                backend.state.clone(),
                backend.connections.to_string(),
                backend.keys.to_string(),
                backend.in_flight.to_string(),
                format!("{:.1}%", backend.ring_share * 100.0),
                draining(backend, now),
            ]);
        }
    }
    table
}

fn draining(backend: &Backend, now: u64) -> String {
    match &backend.drain {
        None => "-".to_owned(),
        Some(drain) if drain.left > 0 => drain::left(drain, now),
        Some(_) if backend.connections > 0 => "the last are closing".to_owned(),
        Some(_) => "done".to_owned(),
    }
}

fn listeners(status: &Status) -> Table {
    let mut table = Table::new(&[
        ("LISTENER", Side::Left),
        ("ADDRESS", Side::Left),
        ("TLS", Side::Left),
        ("CLIENTS", Side::Right),
    ]);
    for listener in &status.listeners {
        table.row(vec![
            listener.name.clone(),
            listener.address.clone(),
            if listener.tls { "yes" } else { "no" }.to_owned(),
            listener.clients.to_string(),
        ]);
    }
    table
}

/// Rates are per second, messages and bytes as `from the client > from the backend`.
fn routes(status: &Status, rates: Option<&Routes<f64>>) -> Table {
    let mut table = Table::new(&[
        ("ROUTE", Side::Left),
        ("POOL", Side::Left),
        ("CONNECTIONS", Side::Right),
        ("OPENED/s", Side::Right),
        ("CLOSED/s", Side::Right),
        ("REQUESTS/s", Side::Right),
        ("REFUSED/s", Side::Right),
        ("MESSAGES/s IN", Side::Right),
        ("OUT", Side::Right),
        ("BYTES/s IN", Side::Right),
        ("OUT", Side::Right),
    ]);
    let mut row = |name: String, pool: String, connections: String, counts: Option<Counts<f64>>| {
        let figure = |shown: fn(f64) -> String, of: fn(&Counts<f64>) -> f64| {
            counts.as_ref().map_or_else(|| "-".to_owned(), |counts| shown(of(counts)))
        };
        table.row(vec![
            name,
            pool,
            connections,
            figure(rate, |counts| counts.opened),
            figure(rate, |counts| counts.closed),
            figure(rate, |counts| counts.requests),
            figure(rate, |counts| counts.refused),
            figure(rate, |counts| counts.messages_from_client),
            figure(rate, |counts| counts.messages_from_backend),
            figure(byte_rate, |counts| counts.bytes_from_client),
            figure(byte_rate, |counts| counts.bytes_from_backend),
        ]);
    };
    let of_route = |name: &str| Some(rates?.get(name).copied().unwrap_or_default());
    for route in &status.routes {
        let connections = route.connections.to_string();
        row(short(&route.name), route.pool.clone(), connections, of_route(&route.name));
    }
    let nowhere = rates.and_then(|rates| rates.get("")).copied();
    if let Some(nowhere) = nowhere {
        row("(none)".to_owned(), "-".to_owned(), "-".to_owned(), Some(nowhere));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100_000;

    fn example(error: Option<&str>) -> String {
        let status = Status::deserialize(&json!({
            "proxy": "edge-1", "version": "1.2.3", "started": 39_000, "ready": true,
            "workers": 1, "connections": 2, "last_reload": { "at": 90_000, "error": error },
            "listeners": [
                { "name": "main", "address": "127.0.0.1:8080", "tls": false, "clients": 3 },
            ],
            "routes": [{ "name": "rooms", "pool": "rooms", "connections": 2 }],
        }));
        let backend = |id: &str, drain: Value| {
            json!({
                "id": id, "address": "127.0.0.1:1", "state": "in_service", "connections": 2,
                "keys": 1, "in_flight": 0, "ring_share": 0.3333, "drain": drain,
            })
        };
        let drain = json!({ "by": ["api"], "since": 1, "total": 9, "left": 4, "until": 130_000 });
        let pools = Pools::deserialize(&json!({ "pools": [{
            "name": "rooms", "panicking": true,
            "backends": [backend("a", Value::Null), backend("b", drain)],
        }] }));
        let counts =
            Counts { messages_from_client: 12.0, bytes_from_backend: 2048.0, ..Counts::default() };
        let rates = Routes::from([("rooms".to_owned(), counts)]);
        written(&status.unwrap(), &pools.unwrap(), Some(&rates), NOW).unwrap()
    }

    #[test]
    fn a_person_sees_all_of_it_in_columns() {
        let wanted = "\
edge-1  version 1.2.3  up 1m 1s  ready  1 worker  2 connections
last reload  10s ago: took effect

POOL   BACKEND  ADDRESS      STATE       CONNECTIONS  KEYS  IN FLIGHT  SHARE  DRAIN
rooms  a        127.0.0.1:1  in_service            2     1          0  33.3%  -
rooms  b        127.0.0.1:1  in_service            2     1          0  33.3%  4 of 9 left, 30s

LISTENER  ADDRESS         TLS  CLIENTS
main      127.0.0.1:8080  no         3

ROUTE  POOL   CONNECTIONS  OPENED/s  CLOSED/s  REQUESTS/s  REFUSED/s  MESSAGES/s IN  OUT  BYTES/s IN      OUT
rooms  rooms            2         0         0           0          0             12    0         0 B  2.0 KiB

pool rooms panics: so few backends are in service that health is ignored
";
        assert_eq!(example(None), wanted);
        assert!(example(Some("bad\x1b")).contains("10s ago: FAILED: bad\u{fffd}\n"));
    }

    #[test]
    fn what_does_not_fit_a_terminal_is_left_out() {
        let narrow = |rows| Place { rows, columns: 2 };
        assert_eq!(frame("a\nbbb\n", narrow(3)), "\x1b[Ha\x1b[K\r\nbb\x1b[K\r\n\x1b[J");
        let cut = "\x1b[Ha\x1b[K\r\n3 more lines do not fit\x1b[K\x1b[J";
        assert_eq!(frame("a\nb\nc\nd\n", narrow(3)), cut);
        assert_eq!(frame("a\nb\n", narrow(0)), "\x1b[H2 more lines do not fit\x1b[K\x1b[J");
    }
}
