//! The sticky cookie: minted for who brings no key, on every kind of answer, and then followed.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashSet;

use support::http::{Answer, headers, request};
use support::named::{Named, addresses};
use support::scripted::Scripted;
use support::ws::{self, Ws};
use support::{Proxy, config};

/// What a route has that only the cookie gives keys.
fn fleet(cookie: &str) -> (Vec<Named>, Proxy) {
    let backends: Vec<Named> = ["a", "b", "c"].into_iter().map(Named::start).collect();
    let cookie = format!("sticky_cookie = {cookie}");
    let proxy = Proxy::start(&config(&addresses(&backends), &[("route", &cookie)]));
    (backends, proxy)
}

fn get(proxy: &Proxy, path: &str, sent: &[(&str, &str)]) -> Answer {
    let answer = request(proxy.address, "GET", path, sent, b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn open(proxy: &Proxy, path: &str, sent: &[(&str, &str)]) -> Ws {
    let client = ws::ask(proxy.address, path, sent);
    assert_eq!(client.answer.status, 101, "{}", client.answer.head);
    client
}

/// The cookie of the proxy in an answer, if there is one: the pair, and its attributes.
fn minted(answer: &Answer) -> Option<(String, String)> {
    let all = headers(&answer.head, "set-cookie");
    let ours = all.iter().find(|cookie| cookie.starts_with("steadfast="))?;
    let (pair, attributes) = ours.split_once("; ").unwrap();
    Some((pair.to_owned(), attributes.to_owned()))
}

#[test]
fn who_brings_no_key_gets_one_and_stays_over_http_and_websocket() {
    let (_backends, proxy) = fleet("{}");
    let mut seen = HashSet::new();
    for round in 0..20 {
        // The first request is a plain one or a handshake.
        let (cookie, backend) = if round % 2 == 0 {
            let answer = get(&proxy, "/", &[]);
            (minted(&answer).unwrap(), answer.text())
        } else {
            let client = open(&proxy, "/", &[]);
            (minted(&client.answer).unwrap(), client.read().text())
        };
        let (pair, attributes) = cookie;
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let value = pair.strip_prefix("steadfast=").unwrap();
        assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
        for _ in 0..3 {
            let answer = get(&proxy, "/", &[("Cookie", &pair)]);
            assert_eq!(answer.text(), backend);
            assert_eq!(minted(&answer), None, "it has one");
            let client = open(&proxy, "/", &[("Cookie", &pair)]);
            assert_eq!(client.read().text(), backend);
            assert_eq!(minted(&client.answer), None);
            let key = proxy.json(&format!("/v1/connections?key={value}"));
            assert_eq!(key["connections"][0]["backend"], *backend, "the value is the key");
        }
        seen.insert((pair, backend));
    }
    assert_eq!(seen.len(), 20, "each client has a key of its own");
    let backends: HashSet<&String> = seen.iter().map(|(_, backend)| backend).collect();
    assert_eq!(backends.len(), 3);
}

#[test]
fn none_is_minted_where_the_request_has_a_key() {
    let (_backends, proxy) = fleet("{}");
    assert_eq!(minted(&get(&proxy, "/?room=red", &[])), None);
    assert_eq!(minted(&open(&proxy, "/?room=red", &[]).answer), None);
    // The sources of `key` come first.
    let with_both = get(&proxy, "/?room=red", &[("Cookie", "steadfast=other")]);
    assert_eq!(with_both.text(), get(&proxy, "/?room=red", &[]).text());
    assert!(minted(&get(&proxy, "/?room=", &[("Cookie", "steadfast=")])).is_some());
}

#[test]
fn cookies_of_the_backend_are_kept() {
    let (_backends, proxy) = fleet("{}");
    let answer = get(&proxy, "/", &[]);
    let all = headers(&answer.head, "set-cookie");
    assert_eq!(all.len(), 2, "{}", answer.head);
    assert_eq!(all[0], "own=1");
}

#[test]
fn attributes_are_as_configured() {
    let (_backends, proxy) = fleet(
        "{ name = \"steadfast\", domain = \"example.com\", path = \"/x\", same_site = \"none\", \
         secure = \"always\", http_only = false, max_age = \"2h\" }",
    );
    let (_, attributes) = minted(&get(&proxy, "/", &[])).unwrap();
    assert_eq!(attributes, "Path=/x; Domain=example.com; Max-Age=7200; Secure; SameSite=None");
}

#[test]
fn secure_goes_by_a_trusted_proxy_in_front() {
    let backend = Named::start("a");
    let with = |trusted: &'static str| {
        let more = [("route", "sticky_cookie = {}"), ("listener", trusted)];
        Proxy::start(&config(&[("a", backend.address)], &more))
    };
    let by_tls = [("X-Forwarded-Proto", "https")];
    let (believing, doubting) = (with("trusted = [\"127.0.0.1\"]"), with(""));
    let attributes = |answer: &Answer| minted(answer).unwrap().1;
    assert_eq!(
        attributes(&get(&believing, "/", &by_tls)),
        "Path=/; Secure; HttpOnly; SameSite=Lax"
    );
    assert!(attributes(&open(&believing, "/", &by_tls).answer).contains("; Secure"));
    assert!(!attributes(&get(&believing, "/", &[])).contains("Secure"));
    assert!(!attributes(&get(&doubting, "/", &by_tls)).contains("Secure"));
}

#[test]
fn a_refusal_of_the_backend_carries_it_too() {
    let refusing = Scripted::answering(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let more = [("route", "sticky_cookie = {}")];
    let proxy = Proxy::start(&config(&[("a", refusing.address)], &more));
    let plain = request(proxy.address, "GET", "/", &[], b"");
    let handshake = ws::ask(proxy.address, "/", &[]).answer;
    for answer in [plain, handshake] {
        assert_eq!(answer.status, 403);
        assert!(minted(&answer).is_some(), "{}", answer.head);
    }
}

#[test]
fn two_proxies_agree_on_a_cookie() {
    let backends: Vec<Named> = ["a", "b", "c"].into_iter().map(Named::start).collect();
    let config = config(&addresses(&backends), &[("route", "sticky_cookie = {}")]);
    let (one, two) = (Proxy::start(&config), Proxy::start(&config));
    for _ in 0..10 {
        let first = get(&one, "/", &[]);
        let (pair, _) = minted(&first).unwrap();
        let second = get(&two, "/", &[("Cookie", &pair)]);
        assert_eq!(second.text(), first.text());
        assert_eq!(minted(&second), None);
        assert_eq!(open(&two, "/", &[("Cookie", &pair)]).read().text(), first.text());
    }
}
