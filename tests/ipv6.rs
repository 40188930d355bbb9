//! IPv6: listeners, backends and keys by address.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::net::{SocketAddr, ToSocketAddrs};

use support::http::{self, get};
use support::scripted::Scripted;
use support::ws;
use support::{Backend, Proxy, config};

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// A config that listens at `bind`, with the client's address as key.
fn listening_at(bind: &str, backend: &str, more: &str) -> String {
    let config = config(&[("a", at("127.0.0.1:9"))], &[("listener", more)]);
    config
        .replace(
            "name = \"main\"\nbind = \"127.0.0.1:0\"",
            &format!("name = \"main\"\nbind = \"{bind}\""),
        )
        .replace("address = \"127.0.0.1:9\"", &format!("address = \"{backend}\""))
        .replace("\"query:room\"", "\"client_ip\"")
}

/// The `X-Forwarded-For` and the key that the backend is told.
#[track_caller]
fn told(
    proxy: SocketAddr,
    handed: &support::scripted::Handed,
    headers: &[(&str, &str)],
) -> (String, String) {
    let client = ws::ask(proxy, "/", headers);
    assert_eq!(client.answer.status, 101, "{}", client.answer.text());
    let (_, head) = handed.next();
    let header = |name| http::header(&head, name).unwrap().replace("%3A", ":");
    (header("x-forwarded-for"), header("steadfast-key"))
}

#[test]
fn a_listener_on_ipv6_loopback_has_clients_of_ipv6() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&listening_at("[::1]:0", &backend.address.to_string(), ""));
    assert_eq!(proxy.address.ip(), at("[::1]:1").ip());
    assert_eq!(told(proxy.address, &handed, &[]), ("::1".to_owned(), "::1".to_owned()));
}

#[test]
fn a_listener_on_every_address_takes_both_and_ipv4_counts_as_such() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&listening_at("[::]:0", &backend.address.to_string(), ""));
    let port = proxy.address.port();
    for (address, client) in [
        (SocketAddr::from(([127, 0, 0, 1], port)), "127.0.0.1"),
        (at(&format!("[::1]:{port}")), "::1"),
    ] {
        assert_eq!(told(address, &handed, &[]), (client.to_owned(), client.to_owned()));
    }
}

#[test]
fn limits_and_trust_hold_for_ipv4_within_ipv6() {
    let (backend, handed) = Scripted::opening();
    let more = "trusted = [\"127.0.0.1\"]\nlimits.connections_per_ip = 1";
    let proxy = Proxy::start(&listening_at("[::]:0", &backend.address.to_string(), more));
    let port = proxy.address.port();
    let (ipv4, ipv6) = (SocketAddr::from(([127, 0, 0, 1], port)), at(&format!("[::1]:{port}")));
    let forwarded = [("X-Forwarded-For", "2001:DB8::0:7")];
    let key = |address| told(address, &handed, &forwarded).1;
    assert_eq!(key(ipv4), "2001:db8::7");
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
    assert_eq!(key(ipv6), "::1", "not trusted");
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
    let _one = ws::open(ipv4, "/");
    let _other = ws::open(ipv6, "/");
    let third = support::connect(ipv4);
    assert!(support::read_to_end(&third).is_empty());
    proxy.wait_for_metric("steadfast_refused_total", &[("reason", "connections_per_ip")], 1.0);
}

#[test]
fn the_client_is_the_right_most_hop_that_is_not_trusted() {
    let (backend, handed) = Scripted::opening();
    let more = "trusted = [\"::1\", \"2001:db8::/32\", \"10.0.0.0/8\"]";
    let proxy = Proxy::start(&listening_at("[::1]:0", &backend.address.to_string(), more));
    for (forwarded, client) in [
        ("2001:470::1", "2001:470::1"),
        ("198.51.100.9, 2001:470:0:0::1, 2001:db8::5", "2001:470::1"),
        ("2001:470::1, [2001:db8::5]:4242, ::ffff:10.1.2.3", "2001:470::1"),
        ("[2001:470::1]:80", "2001:470::1"),
        ("::ffff:198.51.100.9", "198.51.100.9"),
        ("2001:470::1, nonsense, 2001:db8::5", "2001:db8::5"),
        ("2001:db8::5, 10.1.2.3", "2001:db8::5"),
    ] {
        let (told, key) = told(proxy.address, &handed, &[("X-Forwarded-For", forwarded)]);
        assert_eq!(key, client, "{forwarded}");
        assert_eq!(told, format!("{forwarded}, ::1"));
    }
}

#[test]
fn backends_are_reached_by_ipv6_address() {
    let backend = Backend::start_at("a", at("[::1]:0"));
    assert!(backend.address.is_ipv6());
    let health = [("health", "kind = \"http\"\ninterval = \"100ms\"\nrise = 1")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &health));
    let answer = get(proxy.address, "/health?room=red");
    assert_eq!((answer.status, answer.text()), (200, "a".to_owned()));
    let member = ws::open(proxy.address, "/rooms?room=red&name=n");
    assert!(member.read().text().contains("welcome"));
    assert_eq!(proxy.state("a"), "in_service");
    assert_eq!(proxy.metric("steadfast_refused_total", &[]), 0.0);
}

#[test]
fn backends_are_reached_by_a_name_that_stands_for_ipv6() {
    // Which names this machine has for it is the machine's affair; an address is a name, too.
    let names = ["localhost", "ip6-localhost", "ip6-loopback"];
    let is_ipv6 = |name: &&&str| {
        let found = (**name, 0).to_socket_addrs();
        found.is_ok_and(|mut found| found.any(|one| one.ip() == at("[::1]:1").ip()))
    };
    let name = names.iter().find(is_ipv6).copied().unwrap_or("[::1]");
    let backend = Backend::start_at("a", at("[::1]:0"));
    let port = backend.address.port();
    let proxy = Proxy::start(&listening_at("127.0.0.1:0", &format!("{name}:{port}"), ""));
    assert_eq!(get(proxy.address, "/health").text(), "a");
}
