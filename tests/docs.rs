//! The guide says what the program does: names, values and examples in it are compared with the
//! code.
//!
//! What a reader looks up (metrics, log lines, reasons, config keys) must be there, and what is
//! there must exist. Names come from the program where it tells them, else from its source: a
//! table of them kept here would be forgotten just like the guide.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use steadfast::config::{Environment, parse};
use steadfast::ws::close::{CloseCode, CloseReason};
use steadfast::ws::frame::FrameError;

const DEADLINE: Duration = Duration::from_secs(30);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages of the guide, and what stands beside it.
fn pages() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| format!("docs/{}", name.to_str().unwrap()));
    let mut pages: Vec<String> = docs.filter(|name| name.ends_with(".md")).collect();
    pages.extend(["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(str::to_owned));
    pages.sort();
    pages
}

/// What stands under a heading, up to the next of its level or above.
fn section<'t>(page: &'t str, heading: &str) -> &'t str {
    let start = page.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let body = &page[start + heading.len()..];
    let level = heading.split(' ').next().unwrap().len();
    let ends = (1..=level).filter_map(|level| body.find(&format!("\n{} ", "#".repeat(level))));
    &body[..ends.min().unwrap_or(body.len())]
}

/// The cells of each row of each table, without the headers' dashes.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("| ---"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Pieces in backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn code(text: &str) -> &str {
    spans(text).next().unwrap_or_default()
}

// What the source says.

/// A source file without its tests and its comments.
fn source(path: &str) -> String {
    let whole = text(path);
    let code = whole.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// The string literals of a piece of code, each with where it begins and ends.
fn literals(code: &str) -> Vec<(usize, usize, &str)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = code[at..].find('"').map(|start| at + start) {
        let mut end = start + 1;
        while code.as_bytes()[end] != b'"' {
            end += if code.as_bytes()[end] == b'\\' { 2 } else { 1 };
        }
        found.push((start, end + 1, &code[start + 1..end]));
        at = end + 1;
    }
    found
}

/// From an opening bracket to the one that closes it.
fn bracketed(code: &str) -> &str {
    let quoted = literals(code);
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        if quoted.iter().any(|(start, end, _)| (*start..*end).contains(&at)) {
            continue;
        }
        match character {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &code[..=at];
        }
    }
    panic!("no end of {code}");
}

/// The literals in the body of a function, found behind `after`.
fn literals_of(path: &str, after: &str, function: &str) -> BTreeSet<String> {
    let source = source(path);
    let behind = &source[source.find(after).unwrap_or_else(|| panic!("{path}: no {after}"))..];
    let start = behind.find(function).unwrap_or_else(|| panic!("{path}: no {function}"));
    let body = &behind[start..];
    let body = bracketed(&body[body.find('{').unwrap()..]);
    literals(body).into_iter().map(|(_, _, literal)| literal.to_owned()).collect()
}

/// The literals in calls of `name(`, anywhere in the program, with its file.
fn literals_in_calls(name: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut found = Vec::new();
    for file in files {
        let source = source(&file);
        for (at, _) in source.match_indices(&format!("{name}(")) {
            let call = bracketed(&source[at + name.len()..]);
            found.extend(literals(call).into_iter().map(|(_, _, one)| (file.clone(), one.into())));
        }
    }
    found
}

// A running program.

/// A `steadfast` of ours; it ends with this.
struct Running {
    child: Child,
    lines: Receiver<String>,
    folder: PathBuf,
}

impl Running {
    /// Starts it with a config of its own in a folder of its own; its lines are those of
    /// standard output and standard error.
    fn start(name: &str, config: &str, arguments: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("steadfast-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_steadfast"))
            .args(arguments)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for reader in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(reader).lines().map_while(Result::ok) {
                    // Nobody waits for it any more: read on, so that the child can write.
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines, folder }
    }

    /// All lines up to the first that holds `wanted`.
    fn until(&self, wanted: &str) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            seen.push(line.unwrap_or_else(|_| panic!("no {wanted:?} in {seen:#?}")));
            if seen.last().unwrap().contains(wanted) {
                return seen;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn address_in(line: &str) -> SocketAddr {
    line.rsplit_once("address=").unwrap().1.trim().parse().unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/openmetrics-text\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const ONE_OF_EACH: &str = r#"
    [server]
    admin = "127.0.0.1:0"
    workers = 1
    [[listener]]
    bind = "127.0.0.1:0"
    [[route]]
    path = "/*"
    pool = "rooms"
    [pool.rooms]
    backends = [{ id = "nobody", address = "127.0.0.1:1" }]
    health.kind = "off"
"#;

// The comparisons.

/// The metrics of the guide: name to type.
fn documented_metrics(operate: &str) -> BTreeMap<String, String> {
    let rows = rows(section(operate, "## Metrics"));
    let named = rows.iter().filter(|row| code(row[0]).starts_with("steadfast_"));
    named.map(|row| (code(row[0]).to_owned(), row[1].to_owned())).collect()
}

/// The names that are registered: a literal with its help as the next one.
fn registered_metrics() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src/observe/metrics"), &mut files);
    let source: String = files.iter().map(|file| source(file)).collect();
    let literals = literals(&source);
    let pairs = literals.windows(2).filter(|pair| {
        source[pair[0].1..pair[1].0].trim() == "," && pair[1].2.starts_with(char::is_uppercase)
    });
    pairs.map(|pair| format!("steadfast_{}", pair[0].2)).collect()
}

fn without_suffix(sample: &str) -> &str {
    let suffixes = ["_total", "_info"];
    suffixes.iter().find_map(|suffix| sample.strip_suffix(suffix)).unwrap_or(sample)
}

#[test]
fn every_metric_is_in_the_guide_and_the_guide_has_no_other() {
    let operate = text("docs/operate.md");
    let documented = documented_metrics(&operate);
    let families: BTreeSet<String> =
        documented.keys().map(|sample| without_suffix(sample).to_owned()).collect();
    assert_eq!(families, registered_metrics());
    for page in pages() {
        let page = text(&page);
        let word = |character: char| !(character.is_ascii_lowercase() || character == '_');
        for name in page.split(word).filter(|word| word.starts_with("steadfast_")) {
            assert!(documented.contains_key(name), "{name} is no metric");
        }
    }
}

#[test]
fn a_running_proxy_shows_what_the_guide_says() {
    let proxy = Running::start("metrics", ONE_OF_EACH, &["run"]);
    let lines = proxy.until("ready");
    let line = |what: &str| lines.iter().find(|line| line.contains(what)).unwrap();
    let (listener, admin) = (address_in(line("listening")), address_in(line("admin API")));
    assert!(get(listener, "/").starts_with("HTTP/1.1 502 "));
    let page = get(admin, "/metrics");
    let documented = documented_metrics(&text("docs/operate.md"));
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut shown = 0;
    for (family, kind) in types {
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let sample = format!("{family}{suffix}");
        assert_eq!(documented.get(&sample).map(String::as_str), Some(kind), "{sample}");
        shown += 1;
    }
    assert!(shown > 15, "{page}");
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/v1/pools", 200), ("/", 404)] {
        let answer = get(admin, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
}

#[test]
fn the_guide_shows_what_the_demo_prints() {
    let arguments = ["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let demo = Running::start("demo", "", &arguments);
    let printed = demo.until("Ctrl-C").join("\n");
    let readme = text("README.md");
    let shown = readme.split("```text\n").nth(1).unwrap().split("\n```").next().unwrap();
    assert_eq!(without_ports(&printed), without_ports(shown));
}

fn without_ports(text: &str) -> String {
    const HOST: &str = "127.0.0.1:";
    let mut pieces = text.split(HOST);
    let mut all = pieces.next().unwrap().to_owned();
    for piece in pieces {
        all.push_str(HOST);
        all.push_str(piece.trim_start_matches(|character: char| character.is_ascii_digit()));
    }
    all
}

const CLOSE_REASONS: [CloseReason; 19] = [
    CloseReason::ClientClosed(None),
    CloseReason::ClientEnded,
    CloseReason::ClientReset,
    CloseReason::BackendClosed(None),
    CloseReason::BackendLost,
    CloseReason::ClientViolation(FrameError::Unmasked),
    CloseReason::ClientViolation(FrameError::MessageTooBig),
    CloseReason::BackendViolation(FrameError::Masked),
    CloseReason::BackendViolation(FrameError::MessageTooBig),
    CloseReason::IdleTimeout,
    CloseReason::PingTimeout,
    CloseReason::MaxAge,
    CloseReason::Shutdown,
    CloseReason::Drained,
    CloseReason::PlacedElsewhere,
    CloseReason::RouteRemoved,
    CloseReason::ClosedByApi(CloseCode::NORMAL),
    CloseReason::SlowClient,
    CloseReason::Internal,
];

/// The paths of the admin API, each with its methods.
fn api_paths() -> BTreeMap<String, BTreeSet<String>> {
    const METHODS: [&str; 4] = ["get", "post", "put", "delete"];
    let mut found = BTreeMap::new();
    for file in ["src/admin/api.rs", "src/admin/connections.rs", "src/admin/messages.rs"] {
        let source = source(file);
        for (at, route) in source.match_indices(".route(") {
            let call = bracketed(&source[at + route.len() - 1..]);
            let has = |method: &&&str| call.contains(&format!("{method}("));
            let methods = METHODS.iter().filter(has).map(|method| (*method).to_owned());
            found.insert(literals(call)[0].2.to_owned(), methods.collect());
        }
    }
    found
}

#[test]
fn the_description_of_the_api_has_all_of_it_and_nothing_else() {
    let description: serde_json::Value =
        serde_json::from_str(&text("src/admin/openapi.json")).unwrap();
    let paths = description["paths"].as_object().unwrap();
    let described = paths.iter().map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys().cloned().collect();
        (path.clone(), methods)
    });
    assert_eq!(described.collect::<BTreeMap<String, BTreeSet<String>>>(), api_paths());
    let whole = description.to_string();
    for reference in whole.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(description["components"]["schemas"][name].is_object(), "{name}");
    }
    let (api, connections) = (source("src/admin/api.rs"), source("src/admin/connections.rs"));
    for (name, fields) in [
        ("Connection", json_fields(&connections, "ConnectionView")),
        ("Pool", json_fields(&api, "PoolView")),
        ("Backend", json_fields(&api, "BackendView")),
        ("Drain", json_fields(&api, "DrainView")),
    ] {
        let schema = description["components"]["schemas"][name]["properties"].as_object().unwrap();
        assert_eq!(schema.keys().cloned().collect::<BTreeSet<_>>(), fields, "{name}");
    }
}

#[test]
fn every_close_reason_is_in_the_guide_with_who_and_its_code() {
    let operate = text("docs/operate.md");
    let rows = rows(section(&operate, "## Why a connection ended"));
    let documented: BTreeMap<&str, (&str, &str)> =
        rows.iter().skip(1).map(|row| (code(row[0]), (row[1], row[2]))).collect();
    let labels = literals_of("src/ws/close.rs", "impl CloseReason", "fn label");
    let names: BTreeSet<String> = documented.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, labels);
    let listed: BTreeSet<_> =
        CLOSE_REASONS.iter().map(|reason| reason.label().to_owned()).collect();
    assert_eq!(listed, labels, "the list in this test");
    for reason in CLOSE_REASONS {
        let (by, code) = documented[reason.label()];
        assert_eq!(by, reason.by().label(), "{reason}");
        let said = reason.code().map_or("`none`".to_owned(), |code| code.to_string());
        assert!(code.contains(&said), "{reason}: {code}");
    }
}

#[test]
fn every_refusal_is_in_the_guide_and_the_guide_has_no_other() {
    let mut labels = literals_of("src/http/respond.rs", "impl Refused", "fn label");
    labels.extend(literals_of("src/listen/limits.rs", "impl OverLimit", "fn label"));
    labels.extend(literals_of("src/listen/tls.rs", "impl TlsRefused", "fn label"));
    labels.extend(literals_of("src/http/gate.rs", "", "fn label"));
    let word = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        !text.is_empty() && text.bytes().all(fits)
    };
    let direct = literals_in_calls(".refuse").into_iter().map(|(_, literal)| literal);
    labels.extend(direct.filter(|literal| word(literal)));
    let operate = text("docs/operate.md");
    let rows = rows(section(&operate, "## Why a request was refused"));
    let documented: BTreeSet<String> =
        rows.iter().skip(1).map(|row| code(row[0]).to_owned()).collect();
    assert_eq!(documented, labels);
}

#[test]
fn every_state_of_a_backend_and_its_cause_is_in_the_guide() {
    let operate = text("docs/operate.md");
    let health = section(&operate, "## Health");
    let documented: BTreeSet<&str> = rows(health).iter().map(|row| code(row[0])).collect();
    for of in ["impl State", "impl Cause"] {
        for word in literals_of("src/pool/verdict.rs", of, "fn as_str") {
            assert!(documented.contains(word.as_str()), "{word}");
        }
    }
}

#[test]
fn what_takes_a_restart_is_in_the_guide() {
    let operate = text("docs/operate.md");
    let rows = rows(section(&operate, "## Reload"));
    let row = rows.iter().find(|row| row[1].starts_with("when the process starts anew"));
    let told: BTreeSet<&str> = spans(row.unwrap()[0]).collect();
    assert_eq!(told, BTreeSet::from(steadfast::config::diff::FIXED));
}

#[test]
fn every_cause_of_a_drain_is_in_the_guide() {
    let operate = text("docs/operate.md");
    let rows = rows(section(&operate, "## Draining a backend"));
    let documented: BTreeSet<String> =
        rows.iter().skip(1).map(|row| code(row[0]).to_owned()).collect();
    assert_eq!(documented, literals_of("src/pool/drain.rs", "impl DrainCause", "fn as_str"));
}

#[test]
fn every_log_line_is_in_the_guide_at_its_level() {
    let operate = text("docs/operate.md");
    let documented = rows(section(&operate, "## Log events"));
    let mut lines = 0;
    for level in ["error", "warn", "info", "debug", "trace"] {
        for (file, literal) in literals_in_calls(&format!("{level}!")) {
            let constant = literal.split('{').next().unwrap().trim_end();
            let found = documented.iter().any(|row| {
                row[0] == level && spans(row[1]).any(|event| event.starts_with(constant))
            });
            assert!(found, "{file}: {level}: {literal}");
            lines += 1;
        }
    }
    assert!(lines > 20);
}

/// The fields of a struct that is written as JSON, and of those that are written as parts of it.
fn json_fields(source: &str, name: &str) -> BTreeSet<String> {
    let start = source.find(&format!("struct {name}")).unwrap_or_else(|| panic!("no {name}"));
    let body = bracketed(&source[start + source[start..].find('{').unwrap()..]);
    let mut found = BTreeSet::new();
    let mut flattened = false;
    for line in body.lines().map(|line| line.trim().trim_start_matches("pub ")) {
        if line == "#[serde(flatten)]" {
            flattened = true;
        } else if let Some((field, kind)) = line.split_once(": ") {
            if std::mem::take(&mut flattened) {
                let part =
                    kind.trim_end_matches([',', '>']).rsplit(['&', ' ', '<']).next().unwrap();
                found.extend(json_fields(source, part));
            } else {
                found.insert(field.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_field_of_the_access_log_is_in_the_guide() {
    let source = source("src/observe/access_log.rs");
    let mut of_connection = json_fields(&source, "ConnectionLine");
    of_connection.extend(json_fields(&source, "HandshakeFields"));
    let of_request = json_fields(&source, "RequestLine");
    assert!(of_request.len() > 12 && of_connection.len() > 20, "{of_request:?} {of_connection:?}");
    let operate = text("docs/operate.md");
    for (kind, fields) in [("request", of_request), ("connection", of_connection)] {
        let title = format!("| field of a `\"kind\": \"{kind}\"`");
        let table = &operate[operate.find(&title).unwrap_or_else(|| panic!("no {title}"))..];
        let table = table.split("\n\n").next().unwrap();
        let mut documented: BTreeSet<String> = BTreeSet::from(["kind".to_owned()]);
        for row in rows(table).iter().skip(1) {
            documented.extend(spans(row[0]).map(str::to_owned));
        }
        assert_eq!(documented, fields, "{kind}");
    }
}

/// The options of the example: section, key, value, and whether the value is the default.
fn options() -> Vec<(String, String, String, bool)> {
    let mut found = Vec::new();
    let mut heading = String::new();
    let mut is_absent = false; // the whole table, but what it would have is stated
    for line in text("config.example.toml").lines() {
        let header = line.strip_prefix('#').unwrap_or(line);
        if header.starts_with('[') {
            is_absent = line != header;
            let table = header.split(['#', ' ']).next().unwrap();
            heading = format!("## `{}`", table.replace("pool.rooms", "pool.NAME"));
        }
        let (given, comment) = match line.strip_prefix('#') {
            Some(option) => (option, true),
            None => (line, false),
        };
        if given.trim_start().starts_with("{ id") {
            let inner = given.split(['{', '}']).nth(1).unwrap();
            for (key, _) in inner.split(',').filter_map(|pair| pair.split_once('=')) {
                found.push((heading.clone(), key.trim().to_owned(), String::new(), false));
            }
            continue;
        }
        let Some((key, rest)) = given.split_once(" = ") else { continue };
        let is_key = |byte: u8| byte.is_ascii_lowercase() || b"._".contains(&byte);
        if !heading.is_empty() && key.bytes().all(is_key) {
            let (value, about) = rest.split_once("  #").unwrap_or((rest, ""));
            let stated = comment == is_absent && !about.contains("no default");
            found.push((heading.clone(), key.to_owned(), value.trim().to_owned(), stated));
        }
    }
    found
}

#[test]
fn every_config_key_is_in_the_guide_with_its_default() {
    let configure = text("docs/configure.md");
    let options = options();
    assert!(options.len() > 45, "{options:?}");
    for (heading, key, value, is_default) in &options {
        let rows = rows(section(&configure, heading));
        let row = rows.iter().find(|row| row[0] == format!("`{key}`"));
        let row = row.unwrap_or_else(|| panic!("{heading}: no {key}"));
        if *is_default {
            assert_eq!(row[2], format!("`{value}`"), "{heading} {key}");
        }
    }
    let headings: BTreeSet<&String> = options.iter().map(|(heading, ..)| heading).collect();
    for heading in headings {
        for row in rows(section(&configure, heading)) {
            let plain = row[0].trim_matches('`');
            let is_key = row[0].starts_with('`') && !plain.contains(['"', ' ']);
            let known = options.iter().any(|(table, key, ..)| table == heading && key == plain);
            assert!(!is_key || known, "{heading}: {plain} is not in the example");
        }
    }
}

#[test]
fn what_is_refused_by_name_is_in_the_guide() {
    let configure = text("docs/configure.md");
    let documented: BTreeSet<&str> = spans(section(&configure, "## Not supported yet")).collect();
    let source = source("src/config/unsupported.rs");
    let tables = source.split("pub(super)").next().unwrap();
    for (_, _, name) in literals(tables).into_iter().filter(|(_, _, name)| !name.is_empty()) {
        // Values stand in quotes, keys of inner tables behind their table's name.
        let found = documented.iter().any(|span| {
            *span == name
                || span.ends_with(&format!(".{name}"))
                || span.contains(&format!("\"{name}\""))
        });
        let is_place =
            ["listener.tls", "learn", "on_backend_loss", "balance", "kind"].contains(&name);
        assert!(found || is_place, "{name}");
    }
}

#[test]
fn examples_that_are_complete_are_valid() {
    let environment = Environment {
        variable: &|_| None,
        file: &|_| Err(io::ErrorKind::NotFound.into()),
        host_name: "edge1",
        cores: NonZeroUsize::MIN,
        now: std::time::SystemTime::now(),
        authorities: &Vec::new,
    };
    let mut checked = 0;
    for page in pages() {
        let whole = text(&page);
        for block in whole.split("```toml,check\n").skip(1) {
            let config = block.split("\n```").next().unwrap();
            let parsed = parse(config, &page, Path::new(""), &environment);
            parsed.unwrap_or_else(|problems| panic!("{problems}"));
            checked += 1;
        }
    }
    assert!(checked >= 3);
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let whole = text(&page);
        let folder = root().join(&page).parent().unwrap().to_owned();
        for link in whole.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(&page) } else { folder.join(file) };
            assert!(target.is_file(), "{page}: {link}");
            let target = fs::read_to_string(target).unwrap();
            let mut headings = target.lines().filter(|line| line.starts_with('#'));
            assert!(
                anchor.is_empty() || headings.any(|line| slug(line) == anchor),
                "{page}: {link}"
            );
        }
    }
}

/// The anchor of a heading, as mdBook and code hosts make it.
fn slug(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    title.chars().filter(|one| one.is_alphanumeric() || *one == '-' || *one == '_').collect()
}

#[test]
fn the_book_has_every_page() {
    let summary = text("docs/SUMMARY.md");
    for page in pages().iter().filter_map(|page| page.strip_prefix("docs/")) {
        assert!(page == "SUMMARY.md" || summary.contains(&format!("]({page})")), "{page}");
    }
}

#[test]
fn files_that_the_guide_names_exist() {
    for page in pages() {
        for span in spans(&text(&page)).filter(|span| !span.contains(char::is_whitespace)) {
            let of_ours = ["src/", "tests/", "backend-demo/", "docs/", "fuzz/"];
            if of_ours.iter().any(|folder| span.starts_with(folder)) {
                assert!(root().join(span).exists(), "{page}: {span}");
            }
        }
    }
}
