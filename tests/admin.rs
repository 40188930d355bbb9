//! The admin API: what it tells, to whom, and in which form.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use support::http::{Answer, get, read_answer, request};
use support::scripted::{Handed, Scripted};
use support::ws::{self, TEXT, Ws};
use support::{Proxy, config, connect, eventually, send};

/// A WebSocket with both its ends: who drops it ends it. A client's end alone would be passed on,
/// and the backend could go on speaking.
struct Opened {
    id: String,
    client: Ws,
    backend: std::net::TcpStream,
}

/// Opens many WebSockets; the ids are those that the backend was told.
fn open_all(proxy: &Proxy, handed: &Handed, rooms: impl Iterator<Item = String>) -> Vec<Opened> {
    let open = |room| {
        let client = ws::open(proxy.address, &format!("/?room={room}"));
        let (backend, head) = handed.next();
        let id = head.lines().find_map(|line| line.strip_prefix("steadfast-connection: "));
        Opened { id: id.expect("an id").to_owned(), client, backend }
    };
    rooms.map(open).collect()
}

/// All pages, one after the other: each page's ids.
fn pages(proxy: &Proxy, query: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = proxy.json(&format!("/v1/connections?{query}{cursor}"));
        let connections = page["connections"].as_array().unwrap().iter();
        pages.push(connections.map(|one| one["id"].as_str().unwrap().to_owned()).collect());
        match &page["next"] {
            Value::Null => return pages,
            next => cursor = format!("&cursor={}", next.as_str().unwrap()),
        }
        assert!(pages.len() < 100, "the pages have no end");
    }
}

/// A problem of RFC 9457, of this status.
#[track_caller]
fn expect_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["status"], status, "{problem}");
    for member in ["title", "detail"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
}

#[test]
fn every_connection_is_on_exactly_one_page() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[("server", "workers = 2")]));
    let mut opened = open_all(&proxy, &handed, (0..50).map(|number| number.to_string()));
    let ids: HashSet<String> = opened.iter().map(|one| one.id.clone()).collect();
    assert_eq!(ids.len(), 50);
    for limit in [1, 7, 25, 49, 50, 51, 1000] {
        let pages = pages(&proxy, &format!("limit={limit}"));
        let (last, full) = pages.split_last().unwrap();
        assert!(full.iter().all(|page| page.len() == limit), "{limit}");
        assert!((1..=limit).contains(&last.len()), "{limit}: {}", last.len());
        let listed: Vec<String> = pages.into_iter().flatten().collect();
        assert_eq!(listed.len(), 50, "limit {limit}");
        assert_eq!(listed.into_iter().collect::<HashSet<_>>(), ids);
    }
    assert_eq!(pages(&proxy, "").len(), 1, "100 on a page, if nothing else is asked for");
    // Pages go on behind a connection that is gone by then.
    let first = proxy.json("/v1/connections?limit=10");
    let seen: HashSet<String> = first["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap().to_owned())
        .collect();
    opened.retain(|one| !seen.contains(&one.id));
    proxy.wait_for_metric("steadfast_connections", &[], 40.0);
    let mut left: HashSet<String> = ids.difference(&seen).cloned().collect();
    let next = first["next"].as_str().unwrap();
    let rest = proxy.json(&format!("/v1/connections?limit=1000&cursor={next}"));
    for one in rest["connections"].as_array().unwrap() {
        assert!(left.remove(one["id"].as_str().unwrap()), "seen before: {one}");
    }
}

#[test]
fn filters_choose_by_pool_key_and_backend() {
    let (a, of_a) = Scripted::opening();
    let (b, of_b) = Scripted::opening();
    let (c, of_c) = Scripted::opening();
    let second = format!(
        "[[route]]\npath = \"/other/*\"\npool = \"other\"\nkey = \"query:room\"\n\
         [pool.other]\nbackends = [{{ id = \"c\", address = \"{}\" }}]\n",
        c.address
    );
    let two = config(&[("a", a.address), ("b", b.address)], &[("server", "workers = 2")]);
    let proxy = Proxy::start(&format!("{two}{second}"));
    let mut clients = Vec::new();
    for number in 0..20 {
        clients.push(ws::open(proxy.address, &format!("/?room=r{}", number % 5)));
        clients.push(ws::open(proxy.address, &format!("/other/?room=r{}", number % 5)));
    }
    let at_a: Vec<_> = (0..a.accepted()).map(|_| of_a.next()).collect();
    let at_b: Vec<_> = (0..b.accepted()).map(|_| of_b.next()).collect();
    let at_c: Vec<_> = (0..20).map(|_| of_c.next()).collect();
    assert_eq!(at_a.len() + at_b.len(), 20);
    let count = |query: &str| pages(&proxy, &format!("limit=3{query}")).concat().len();
    eventually("all are told", || (count("") == 40).then_some(()));
    assert_eq!(count("&pool=pool"), 20);
    assert_eq!(count("&pool=other"), 20);
    assert_eq!(count("&key=r1"), 8, "in all pools");
    assert_eq!(count("&pool=other&key=r1"), 4);
    assert_eq!(count("&backend=a"), at_a.len());
    assert_eq!(count("&backend=b"), at_b.len());
    assert_eq!(count("&backend=c&pool=other"), at_c.len());
    for nothing in ["&backend=c&pool=pool", "&key=R1", "&pool=none", "&backend=a&key=none"] {
        assert_eq!(count(nothing), 0, "{nothing}");
    }
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=x",
        "cursor=00",
        "colour=red",
        "limit=1&limit=2",
    ] {
        expect_problem(&get(proxy.admin, &format!("/v1/connections?{bad}")), 400);
    }
}

#[test]
fn one_connection_is_told_by_its_id_as_long_as_it_lives() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let before = millis();
    let opened = open_all(&proxy, &handed, ["a%20room".to_owned()].into_iter());
    let Opened { id, client, .. } = &opened[0];
    client.send(TEXT, "12345");
    client.send(TEXT, "678");
    let path = format!("/v1/connections/{id}");
    eventually("two messages", || (proxy.json(&path)["messages_from_client"] == 2).then_some(()));
    let told = proxy.json(&path);
    let expected = [
        ("id", Value::from(id.as_str())),
        ("proxy", Value::from(id.split_once('.').unwrap().0)),
        ("backend", "a".into()),
        ("pool", "pool".into()),
        ("route", "all".into()),
        ("key", "a room".into()),
        ("client", "127.0.0.1".into()),
        ("bytes_from_client", 8.into()),
        ("messages_from_backend", 0.into()),
        ("bytes_from_backend", 0.into()),
    ];
    for (member, value) in expected {
        assert_eq!(told[member], value, "{member}: {told}");
    }
    for time in ["since", "last_activity"] {
        let time = told[time].as_u64().unwrap();
        assert!((before - 1000..=millis() + 1000).contains(&time), "{told}");
    }
    assert_eq!(proxy.json("/v1/connections")["connections"][0], told);
    // Not another's, not one that could be, and none when it is gone.
    let (own, serial) = id.split_once('.').unwrap();
    let many = format!("{own}.3f0000ffffffffffff");
    for other in ["x", &format!("{own}x.{serial}"), &format!("{own}.{serial}0"), own, &many] {
        expect_problem(&get(proxy.admin, &format!("/v1/connections/{other}")), 404);
    }
    client.send_close(1000, "");
    drop(opened);
    eventually("it is gone", || (get(proxy.admin, &path).status == 404).then_some(()));
    expect_problem(&get(proxy.admin, &path), 404);
}

fn millis() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[test]
fn pools_tell_of_each_backend_what_it_has() {
    let (a, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", a.address), ("b", "127.0.0.1:9".parse().unwrap())]);
    // Whose home b is goes on to a.
    let opened = open_all(&proxy, &handed, ["x", "x", "y"].into_iter().map(str::to_owned));
    let told = proxy.json("/v1/pools");
    let pools = told["pools"].as_array().unwrap();
    assert_eq!((pools.len(), &pools[0]["name"]), (1, &Value::from("pool")));
    let backends = pools[0]["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 2);
    for (backend, id, address) in
        [(&backends[0], "a", a.address.to_string()), (&backends[1], "b", "127.0.0.1:9".to_owned())]
    {
        assert_eq!(backend["id"], id);
        assert_eq!(backend["address"], address);
        assert_eq!(backend["state"], "in_service");
        assert_eq!(backend["weight"], 1);
        assert_eq!(backend["in_flight"], 0);
    }
    assert_eq!((&backends[0]["connections"], &backends[0]["keys"]), (&3.into(), &2.into()));
    assert_eq!((&backends[1]["connections"], &backends[1]["keys"]), (&0.into(), &0.into()));
    let share = |index: usize| backends[index]["ring_share"].as_f64().unwrap();
    assert!((share(0) + share(1) - 1.0).abs() < 1e-9, "{told}");
    drop(opened);
}

#[test]
fn what_is_not_there_is_a_problem() {
    let proxy = Proxy::before(&[("a", "127.0.0.1:9".parse().unwrap())]);
    for path in ["/", "/v1", "/v1/pool", "/v1/connections/", "/metrics/x"] {
        expect_problem(&get(proxy.admin, path), 404);
    }
    assert_eq!(proxy.json("/openapi.json")["openapi"], "3.1.0");
    for path in ["/v1/pools", "/metrics", "/healthz"] {
        expect_problem(&request(proxy.admin, "POST", path, &[], b"x"), 405);
    }
    assert_eq!(get(proxy.admin, "/healthz").status, 200);
    assert_eq!(get(proxy.admin, "/readyz").status, 200);
}

#[test]
fn what_is_no_text_is_a_problem_and_not_something_else() {
    let proxy = Proxy::before(&[("a", "127.0.0.1:9".parse().unwrap())]);
    for bad in ["%ff", "%zz", "50%", "%2"] {
        for (method, path) in [
            ("DELETE", format!("/v1/connections/x.1?reason={bad}")),
            ("GET", format!("/v1/connections?key={bad}")),
            ("GET", format!("/v1/connections?room={bad}")),
            ("GET", format!("/v1/route?url={bad}")),
            ("POST", format!("/v1/broadcast?except={bad}")),
            ("POST", format!("/v1/rooms/{bad}/messages")),
            ("POST", format!("/v1/keys/pool/{bad}/messages")),
            ("PUT", format!("/v1/rooms/{bad}/members/x.1")),
        ] {
            expect_problem(&request(proxy.admin, method, &path, &[], b""), 400);
        }
    }
}

/// Asks with these lines of head, and nothing else.
fn ask(proxy: &Proxy, path: &str, lines: &[String]) -> Answer {
    let stream = connect(proxy.admin);
    let head = format!("GET {path} HTTP/1.1\r\n{}Connection: close\r\n\r\n", lines.concat());
    send(&stream, head.as_bytes());
    read_answer(&stream, false)
}

#[test]
fn pages_of_others_and_names_of_others_may_not_ask() {
    let proxy = Proxy::before(&[("a", "127.0.0.1:9".parse().unwrap())]);
    let (admin, port) = (proxy.admin.to_string(), proxy.admin.port());
    let host = |host: &str| format!("Host: {host}\r\n");
    let origin = |origin: &str| format!("Origin: {origin}\r\n");
    for good in [
        vec![host(&admin)],
        vec![host("localhost")],
        vec![host(&format!("edge:{port}"))],
        vec![host(&format!("[::1]:{port}"))],
        vec![host(&admin), origin(&format!("http://{admin}"))],
    ] {
        assert_eq!(ask(&proxy, "/v1/pools", &good).status, 200, "{good:?}");
    }
    for bad in [
        vec![host("evil.example")],
        vec![host(&format!("evil.example:{port}"))],
        vec![host("127.0.0.1.evil.example")],
        vec![host(&admin), origin("http://evil.example")],
        vec![host(&admin), origin("null")],
        vec![host(&admin), origin(&format!("https://{admin}"))],
        vec![host(&admin), origin(&format!("http://127.0.0.1:{}", proxy.address.port()))],
        vec![host("evil.example"), origin("http://evil.example")],
    ] {
        for path in ["/v1/pools", "/metrics", "/healthz", "/nothing"] {
            expect_problem(&ask(&proxy, path, &bad), 403);
        }
    }
    // The target is asked, where it names somebody, and not the header beside it.
    let target = |host: &str| format!("http://{host}/v1/pools");
    assert_eq!(ask(&proxy, &target(&admin), &[host("evil.example")]).status, 200);
    expect_problem(&ask(&proxy, &target("evil.example"), &[host(&admin)]), 403);
    for second in [&*admin, "evil.example"] {
        expect_problem(&ask(&proxy, "/v1/pools", &[host(&admin), host(second)]), 400);
    }
}

#[test]
fn a_token_is_asked_for_where_it_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "in a file\n").unwrap();
    let from_file = format!("file:{}", file.display());
    for (setting, token) in [("s3cret", "s3cret"), (&from_file, "in a file")] {
        // A token has no spaces; a file may end in a new line.
        let token = token.replace(' ', "-");
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let more = format!("admin_token = \"{setting}\"");
        let proxy =
            Proxy::start(&config(&[("a", "127.0.0.1:9".parse().unwrap())], &[("server", &more)]));
        for path in ["/metrics", "/v1/pools", "/v1/connections", "/v1/connections/x.y"] {
            let wrong = format!("Bearer {token}x");
            for headers in [&[][..], &[("Authorization", &*wrong)], &[("Authorization", "Bearer")]]
            {
                let answer = request(proxy.admin, "GET", path, headers, b"");
                expect_problem(&answer, 401);
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
            let right = format!("Bearer {token}");
            let answer = request(proxy.admin, "GET", path, &[("Authorization", &right)], b"");
            let expected = if path.ends_with("x.y") { 404 } else { 200 };
            assert_eq!(answer.status, expected, "{path}");
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(proxy.admin, path).status, 200, "{path}");
        }
        assert!(!proxy.process.output().contains(&token), "it is in the log");
    }
}

/// One sample of a metric family.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

#[derive(Debug, Default)]
struct Family {
    kind: String,
    samples: Vec<Sample>,
}

/// Reads a page of the OpenMetrics text format, strictly; panics at what it does not allow.
fn parse(page: &str) -> HashMap<String, Family> {
    let body = page.strip_suffix("# EOF\n").expect("ends with # EOF");
    let mut families: HashMap<String, Family> = HashMap::new();
    let mut current = String::new();
    let mut series = HashSet::new();
    for line in body.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let (kind, rest) = meta.split_once(' ').unwrap();
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            if name != current {
                assert!(is_name(name), "{line}");
                let fresh = families.insert(name.to_owned(), Family::default()).is_none();
                assert!(fresh, "a family in two pieces: {line}");
                current = name.to_owned();
            }
            let family = families.get_mut(&current).unwrap();
            assert!(family.samples.is_empty(), "behind its samples: {line}");
            match kind {
                "TYPE" => {
                    let known = ["counter", "gauge", "histogram", "info"].contains(&text);
                    assert!(known && family.kind.is_empty(), "{line}");
                    family.kind = text.to_owned();
                }
                "HELP" => assert!(!text.is_empty(), "{line}"),
                "UNIT" => assert!(current.ends_with(&format!("_{text}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let sample = parse_sample(line);
        assert!(series.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
        let family = families.get_mut(&current).unwrap_or_else(|| panic!("of no family: {line}"));
        let suffix =
            sample.name.strip_prefix(&*current).unwrap_or_else(|| panic!("astray: {line}"));
        let allowed: &[&str] = match &*family.kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => panic!("without a type: {line}"),
        };
        assert!(allowed.contains(&suffix), "{}: {line}", family.kind);
        assert!(family.kind == "gauge" || sample.value >= 0.0, "{line}");
        family.samples.push(sample);
    }
    families
}

fn is_name(name: &str) -> bool {
    let first =
        name.chars().next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
    first && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_')
}

fn parse_sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels: Vec<(String, String)> = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label) && !labels.iter().any(|(other, _)| other == label), "{line}");
            let (text, behind) = quoted(value).unwrap_or_else(|| panic!("{line}"));
            labels.push((label.to_owned(), text));
            rest = behind.strip_prefix(',').unwrap_or(behind);
            assert!(behind.starts_with([',', '}']), "{line}");
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number, or more than one: {line}"));
    Sample { name: name.to_owned(), labels, value }
}

/// The text of a quoted value, and what stands behind its quote.
fn quoted(value: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut characters = value.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((text, &value[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => text.push('\n'),
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            _ => text.push(character),
        }
    }
    None
}

#[test]
fn the_parser_of_this_test_is_strict() {
    let page = |lines: &str| format!("# HELP a Text.\n# TYPE a counter\n{lines}# EOF\n");
    let refused = |lines: &str| {
        let page = page(lines);
        std::panic::catch_unwind(|| parse(&page)).is_err()
    };
    let good = "a_total{x=\"1\",y=\"a\\\"b\\\\\\n\"} 1\na_total 2\n";
    let family = &parse(&page(good))["a"];
    assert_eq!(family.samples[0].labels[1].1, "a\"b\\\n");
    for bad in [
        "a 1\n",
        "b_total 1\n",
        "a_total{x=\"1\" 1\n",
        "a_total{x=1} 1\n",
        "a_total x\n",
        "a_total 1\na_total 2\n",
        "a_total{x=\"1\",x=\"2\"} 1\n",
        "a_total -1\n",
        "1a_total 1\n",
        "a_total 1\n# TYPE a gauge\n",
        "# EOF\n",
    ] {
        assert!(refused(bad), "{bad}");
    }
}

/// The page as Prometheus asks for it.
fn metrics(proxy: &Proxy) -> Answer {
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
    request(proxy.admin, "GET", "/metrics", &[("Accept", accept)], b"")
}

#[test]
fn metrics_are_openmetrics_without_keys_or_ids() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    parse(&metrics(&proxy).text());
    // Something of everything: connections, closes, refusals, requests, a backend that goes.
    let opened = open_all(&proxy, &handed, (0..3).map(|number| format!("secret-room-{number}")));
    opened[0].client.send(TEXT, "hello");
    drop(opened);
    let dead = Proxy::start(&config(
        &[("a", "127.0.0.1:9".parse().unwrap())],
        &[("health", "kind = \"tcp\"\ninterval = \"50ms\"\nfall = 1")],
    ));
    eventually("out of service", || (dead.state("a") == "out_of_service").then_some(()));
    assert_eq!(get(dead.address, "/?room=secret-room").status, 503);
    proxy.wait_for_metric("steadfast_connections", &[], 0.0);
    for proxy in [&proxy, &dead] {
        let answer = metrics(proxy);
        let content_type = answer.header("content-type").unwrap();
        assert!(content_type.starts_with("application/openmetrics-text; version=1.0.0"));
        let page = answer.text();
        assert!(!page.contains("secret-room") && !page.contains("127.0.0.1"), "{page}");
        let families = parse(&page);
        let labels = [
            "route",
            "pool",
            "backend",
            "listener",
            "reason",
            "direction",
            "code",
            "outcome",
            "by",
            "le",
            "version",
        ];
        for (name, family) in &families {
            assert!(name.starts_with("steadfast_"), "{name}");
            assert!(!family.kind.is_empty(), "{name} has no type");
            let all = family.samples.iter().flat_map(|sample| &sample.labels);
            all.for_each(|(label, _)| assert!(labels.contains(&label.as_str()), "{name}: {label}"));
        }
        families.values().filter(|family| family.kind == "histogram").for_each(expect_cumulative);
    }
    let families = parse(&metrics(&proxy).text());
    let count = families["steadfast_handshake_duration_seconds"]
        .samples
        .iter()
        .find(|sample| sample.name.ends_with("_count"))
        .unwrap()
        .value;
    assert_eq!(count, 3.0);
}

fn expect_cumulative(family: &Family) {
    let buckets = family.samples.iter().filter(|sample| sample.name.ends_with("_bucket"));
    let buckets: Vec<(&str, f64)> = buckets
        .map(|sample| {
            (&*sample.labels.iter().find(|(label, _)| label == "le").unwrap().1, sample.value)
        })
        .collect();
    let rising = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
    assert!(rising, "{buckets:?}");
    if let Some((last, count)) = buckets.last() {
        let whole = family.samples.iter().find(|sample| sample.name.ends_with("_count")).unwrap();
        assert_eq!((*last, *count), ("+Inf", whole.value));
    }
}

#[test]
fn gauges_are_zero_again_when_all_connections_have_ended() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[("server", "workers = 2")]));
    let gauges = [
        "steadfast_client_connections",
        "steadfast_connections",
        "steadfast_backend_connections",
        "steadfast_placed_keys",
        "steadfast_worker_connections_most",
        "steadfast_backend_in_flight",
    ];
    let opened = open_all(&proxy, &handed, (0..30).map(|number| number.to_string()));
    for (gauge, value) in gauges.iter().zip([30.0, 30.0, 30.0, 30.0, 15.0, 0.0]) {
        proxy.wait_for_metric(gauge, &[], value);
    }
    // In every way that there is: a Close, an end, a backend's end, and one that was refused.
    for (number, one) in opened.into_iter().enumerate() {
        match number % 3 {
            0 => one.client.send_close(1000, ""),
            1 => drop(one.client),
            _ => drop(one.backend),
        }
    }
    get(proxy.address, "/?room=x");
    for gauge in gauges {
        proxy.wait_for_metric(gauge, &[], 0.0);
    }
    assert_eq!(proxy.metric("steadfast_closes_total", &[]), 30.0);
    assert_eq!(proxy.metric("steadfast_connections_opened_total", &[]), 30.0);
}

/// The worker in an id: the serial begins with it, behind two digits of a shard.
fn worker(id: &str) -> u16 {
    let serial = &id.split_once('.').unwrap().1[2..];
    u16::from_str_radix(&serial[..4], 16).unwrap()
}

#[test]
fn workers_have_their_equal_share_of_live_connections() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[("server", "workers = 2")]));
    let spread = || {
        let of = |which: &str| proxy.metric(&format!("steadfast_worker_connections_{which}"), &[]);
        (of("least"), of("most"))
    };
    let mut opened = open_all(&proxy, &handed, (0..100).map(|number| number.to_string()));
    let (least, most) = spread();
    assert!(least + most == 100.0 && most - least <= 4.0, "{least} {most}");
    // All of one worker end: new ones go there until it is even again.
    opened.retain(|one| worker(&one.id) == 1);
    let kept = opened.len() as f64;
    proxy.wait_for_metric("steadfast_client_connections", &[], kept);
    assert_eq!(spread(), (0.0, kept));
    let more = open_all(&proxy, &handed, (0..50).map(|number| format!("more-{number}")));
    let (least, most) = spread();
    assert!(least + most == kept + 50.0 && most - least <= 4.0, "{least} {most}");
    // And half of all, whoever has them.
    opened.extend(more);
    let half: Vec<_> = opened.into_iter().step_by(2).collect();
    let live = half.len() as f64;
    proxy.wait_for_metric("steadfast_client_connections", &[], live);
    let again = open_all(&proxy, &handed, (0..50).map(|number| format!("again-{number}")));
    let (least, most) = spread();
    assert!(least + most == live + 50.0 && most - least <= 4.0, "{least} {most}");
    drop((half, again));
}
