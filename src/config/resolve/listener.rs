//! `[[listener]]`: where clients connect, whom to believe, how much one may ask for.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::limits::{count_or_zero, keepalive, number, size, time_out};
use super::names;
use super::tls::{self, Files};
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::value::quoted;
use crate::listen::{ListenerSettings, ProxyProtocol};

/// How long a request head may be: below, a browser's own headers don't fit; above, each idle
/// client could make the proxy hold a megabyte for nothing.
const HEAD: RangeInclusive<u64> = 1024..=1024 * 1024;

/// Header lines in a head: what the `http` crate's map can take is a little more.
const HEADERS: RangeInclusive<u32> = 1..=10_000;

/// One listener, and where the parts of it stand that others are compared with.
pub(super) struct Resolved {
    pub(super) place: String,
    pub(super) name: Option<Located<String>>,
    pub(super) bind: Option<Located<SocketAddr>>,
    /// `None` where the address is missing or wrong.
    pub(super) settings: Option<ListenerSettings>,
}

/// Resolves the listener that is the `index`-th in the file.
pub(super) fn resolve(
    mut table: Cursor<'_>,
    index: usize,
    files: Files<'_>,
    problems: &mut Problems,
) -> Resolved {
    table.set_place(names::place("listener", table.peek("name"), index));
    let name = names::name(&mut table, problems);
    let bind = bind(&mut table, problems);
    let trusted = trusted(&mut table, problems);
    let proxy_protocol = proxy_protocol(&mut table, &trusted, problems);
    let certificates = tls::certificates(&mut table, files, problems);
    let (header_timeout, tls_timeout, idle_timeout) = timeouts(&mut table, problems);
    let (head_bytes, headers, connections, connections_per_ip) = limits(&mut table, problems);
    let keepalive = keepalive(&mut table, Duration::from_secs(60), problems);
    let settings = bind.as_ref().map(|bind| ListenerSettings {
        name: name.as_ref().map(|name| name.value.clone()),
        bind: bind.value,
        proxy_protocol,
        certificates,
        tls_timeout,
        trusted,
        header_timeout,
        idle_timeout,
        head_bytes,
        headers,
        connections,
        connections_per_ip,
        keepalive,
    });
    let place = table.place().to_owned();
    table.finish(problems);
    Resolved { place, name, bind, settings }
}

fn bind(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<Located<SocketAddr>> {
    let remedy = "write where to listen, such as bind = \"0.0.0.0:8080\"";
    let text = table.require::<String>("bind", remedy, problems)?;
    super::socket_address(table, "bind", &text, "0.0.0.0:8080", problems)
}

fn trusted(table: &mut Cursor<'_>, problems: &mut Problems) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in table.list::<String>("trusted", problems) {
        let address = || text.value.parse::<IpAddr>().ok().map(IpNet::from);
        match text.value.parse::<IpNet>().ok().or_else(address) {
            Some(network) => networks.push(canonical(network.trunc())),
            None => {
                let what = format!(
                    "has {}, which is no network; write one such as \"10.0.0.0/8\", or an IP address",
                    quoted(&text.value)
                );
                table.note(problems, text.span, "trusted", &what);
            }
        }
    }
    networks
}

/// A network of IPv4 addresses within IPv6 is one of IPv4, as addresses of peers are.
fn canonical(network: IpNet) -> IpNet {
    let IpAddr::V4(address) = network.network().to_canonical() else { return network };
    let length = network.prefix_len().checked_sub(network.max_prefix_len() - 32);
    length.and_then(|length| IpNet::new(address.into(), length).ok()).unwrap_or(network)
}

fn proxy_protocol(
    table: &mut Cursor<'_>,
    trusted: &[IpNet],
    problems: &mut Problems,
) -> ProxyProtocol {
    const KEY: &str = "proxy_protocol";
    const CHOICES: [(&str, ProxyProtocol); 2] =
        [("off", ProxyProtocol::Off), ("accept", ProxyProtocol::Accept)];
    let span = table.span_of(KEY);
    let chosen = super::choice(table, KEY, &CHOICES, ProxyProtocol::Off, problems);
    if chosen == ProxyProtocol::Accept && trusted.is_empty() {
        let what = "\"accept\" is of use only with trusted: write there who may send the header";
        table.note(problems, span.unwrap_or_default(), KEY, what);
    }
    chosen
}

fn timeouts(table: &mut Cursor<'_>, problems: &mut Problems) -> (Duration, Duration, Duration) {
    let mut timeouts = table.table("timeouts", "listener.timeouts", "timeouts.", problems);
    let header = time_out(&mut timeouts, "header", Duration::from_secs(10), problems);
    let tls = time_out(&mut timeouts, "tls", Duration::from_secs(10), problems);
    let idle = time_out(&mut timeouts, "idle", Duration::from_secs(75), problems);
    timeouts.finish(problems);
    (header, tls, idle)
}

fn limits(table: &mut Cursor<'_>, problems: &mut Problems) -> (usize, usize, usize, usize) {
    let mut limits = table.table("limits", "listener.limits", "limits.", problems);
    let head = size(&mut limits, "head", 32 * 1024, &HEAD, problems);
    let remedy = "browsers send about 20";
    let headers = number(&mut limits, "headers", 100u32, HEADERS, remedy, problems);
    let connections = count_or_zero(&mut limits, "connections", problems);
    let connections_per_ip = count_or_zero(&mut limits, "connections_per_ip", problems);
    limits.finish(problems);
    let fit = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    (fit(head), fit(headers.into()), connections, connections_per_ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_within_ipv6_are_those_of_ipv4() {
        for (written, meant) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            let network: IpNet = written.parse().expect(written);
            assert_eq!(canonical(network).to_string(), meant);
        }
    }
}
