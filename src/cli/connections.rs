//! `steadfast connections`: who is connected.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answers::{Connection, Peer};
use super::ask::{self, Admin, AdminOptions, encoded};
use super::print::{self, Side, Table, between, bytes, short, span};
use crate::observe::access_log::unix_millis;

/// The most connections on a page of the admin API.
const PAGE: usize = 1000;

/// Which connections, of which proxy.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    admin: AdminOptions,
    /// Those of this key only.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Those of this pool only; a key in another pool is another key.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Those at this backend only, by its id.
    #[arg(long, value_name = "ID")]
    backend: Option<String>,
    /// The members of this room only.
    #[arg(long, value_name = "ROOM")]
    room: Option<String>,
    /// How many at most.
    #[arg(long, value_name = "N", default_value = "100", value_parser = at_least_one)]
    limit: usize,
    /// Print one JSON object: `connections`, and `next`, which is null where they are all;
    /// `elsewhere`, the proxies that have others, and `partial`, where that is so.
    #[arg(long)]
    json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("must be a number from 1".to_owned()),
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Page {
    connections: Vec<Value>,
    next: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<Peer>,
    #[serde(default, skip_serializing_if = "is_false")]
    partial: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(partial: &bool) -> bool {
    !partial
}

/// Prints them, in the order in which the admin API gives them.
pub(super) fn connections(options: &Options) -> anyhow::Result<ExitCode> {
    let admin = options.admin.find()?;
    let page = ask::wait_for(collected(options, &admin))?;
    if options.json {
        print::json(&page)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Page { connections, next, elsewhere, partial } = page;
    let connections: Vec<Connection> = serde_json::from_value(Value::Array(connections))
        .with_context(|| format!("{admin} lists something else; is it another version?"))?;
    if connections.is_empty() {
        print::out("no connections\n")?;
    } else {
        print::out(&table(&connections, unix_millis(SystemTime::now())).to_string())?;
    }
    if next.is_some() {
        print::complain([format!("there are more than {}: see --limit", connections.len())]);
    }
    if partial {
        print::complain(["the registry is away: other proxies may have more"]);
    }
    if !elsewhere.is_empty() {
        let admins = elsewhere.iter().map(|one| match &one.admin {
            Some(admin) => format!("{} (--admin http://{admin})", one.proxy),
            None => format!("{} (no admin address)", one.proxy),
        });
        let admins: Vec<String> = admins.collect();
        print::complain([format!("others are at {}", admins.join(", "))]);
    }
    Ok(ExitCode::SUCCESS)
}

/// Page by page, up to the limit.
async fn collected(options: &Options, admin: &Admin) -> anyhow::Result<Page> {
    let mut filter = String::new();
    let filters = [
        ("key", &options.key),
        ("pool", &options.pool),
        ("backend", &options.backend),
        ("room", &options.room),
    ];
    for (name, value) in filters {
        if let Some(value) = value {
            filter.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    let mut all = Page::default();
    loop {
        let limit = (options.limit - all.connections.len()).min(PAGE);
        let cursor = all.next.map(|next| format!("&cursor={}", encoded(&next)));
        let cursor = cursor.unwrap_or_default();
        let path = format!("/v1/connections?limit={limit}{filter}{cursor}");
        let page: Page = admin.get(&path).await?;
        let is_empty = page.connections.is_empty();
        all.connections.extend(page.connections);
        all.next = page.next;
        all.elsewhere = page.elsewhere;
        all.partial |= page.partial;
        if all.next.is_none() || is_empty || all.connections.len() >= options.limit {
            return Ok(all);
        }
    }
}

fn table(connections: &[Connection], now: u64) -> Table {
    let mut table = Table::new(&[
        ("CONNECTION", Side::Left),
        ("KEY", Side::Left),
        ("BACKEND", Side::Left),
        ("ROUTE", Side::Left),
        ("CLIENT", Side::Left),
        ("AGE", Side::Right),
        ("IDLE", Side::Right),
        ("FROM CLIENT", Side::Right),
        ("FROM BACKEND", Side::Right),
    ]);
    let carried = |messages: u64, count: u64| format!("{messages} / {}", bytes(count));
    let unknown = || "-".to_owned();
    for one in connections {
        let traffic = one.traffic.as_ref();
        table.row(vec![
            one.id.clone(),
            one.key.as_deref().map_or_else(unknown, short),
            format!("{}/{}", one.pool, one.backend),
            short(&one.route),
            one.client.clone(),
            span(between(one.since, now)),
            traffic.map_or_else(unknown, |it| span(between(it.last_activity, now))),
            traffic
                .map_or_else(unknown, |it| carried(it.messages_from_client, it.bytes_from_client)),
            traffic.map_or_else(unknown, |it| {
                carried(it.messages_from_backend, it.bytes_from_backend)
            }),
        ]);
    }
    table
}
