//! Who may ask the admin API: not a page in somebody's browser, and with a token only who has it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};

use super::problem::Problem;
use crate::config::Secret;
use crate::route::host_name;

/// What a request has to show.
#[derive(Debug)]
pub(super) struct Guard {
    token: Arc<ArcSwapOption<Secret>>,
    name: String,
    address: SocketAddr,
}

impl Guard {
    /// Asks for `token`, as long as there is one. `name` is a host name by which the proxy may be asked,
    /// beside its addresses and `localhost`.
    pub(super) fn new(
        token: Arc<ArcSwapOption<Secret>>,
        name: String,
        address: SocketAddr,
    ) -> Self {
        Self { token, name, address }
    }

    /// Whether a request comes from where it may. The host that it asks must be an address,
    /// `localhost` or the configured name: a name that somebody else owns can be pointed at a
    /// loopback address. And `Origin`, which only pages send, must be the admin address itself.
    pub(super) fn admits(&self, target: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let refused = |detail| Err(Problem::new(StatusCode::FORBIDDEN, detail));
        if headers.get_all(HOST).iter().nth(1).is_some() {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "there is more than one Host"));
        }
        // RFC 9112 section 3.2.2: where the target names a host, that one is meant.
        let host = match target.authority() {
            // Who asks may stand before it; there may be a colon in that.
            Some(authority) => authority.as_str().rsplit('@').next(),
            None => headers.get(HOST).and_then(|host| host.to_str().ok()),
        };
        if !host.is_some_and(|host| self.is_own(host)) {
            return refused("ask by an IP address, localhost or the server's name");
        }
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if origin.is_some_and(|origin| Some(origin) == host && self.is_own(origin)) {
            return Ok(());
        }
        refused("this page may not ask the admin API")
    }

    fn is_own(&self, host: &str) -> bool {
        let name = host_name(host);
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || name == "localhost"
            // A server's name has no dots, so that ids have just one.
            || name.replace('.', "-").eq_ignore_ascii_case(&self.name)
            || *name == self.address.ip().to_string()
    }

    /// Whether a request has the token, where one is asked for.
    pub(super) fn authorizes(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let token = self.token.load();
        let Some(token) = &*token else { return Ok(()) };
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| match value.split_at_checked(7) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(given),
            _ => None,
        });
        if given.is_some_and(|given| equal(given, token.expose().as_bytes())) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "a bearer token is needed: admin_token of the config",
        ))
    }
}

/// Compares in a time that depends on the lengths alone, so that a token can't be guessed byte by
/// byte.
fn equal(left: &[u8], right: &[u8]) -> bool {
    let differences = left.iter().zip(right).fold(0, |all, (left, right)| all | (left ^ right));
    left.len() == right.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    fn guard(token: Option<&str>) -> Guard {
        let token = token.map(|token| Arc::new(Secret::new(token.to_owned())));
        Guard::new(
            Arc::new(ArcSwapOption::new(token)),
            "edge1".to_owned(),
            "127.0.0.1:9900".parse().unwrap(),
        )
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn pages_and_foreign_names_are_refused() {
        let guard = guard(None);
        for (host, origin, admitted) in [
            ("127.0.0.1:9900", None, true),
            ("[::1]:9900", None, true),
            ("localhost:9900", None, true),
            ("Edge1:9900", None, true),
            ("edge1.example", None, false),
            ("evil.example", None, false),
            ("127.0.0.1:9900", Some("http://127.0.0.1:9900"), true),
            ("127.0.0.1:9900", Some("http://evil.example"), false),
            ("127.0.0.1:9900", Some("http://127.0.0.1:8080"), false),
            ("127.0.0.1:9900", Some("null"), false),
        ] {
            let mut pairs = vec![("host", host)];
            pairs.extend(origin.map(|origin| ("origin", origin)));
            let target = Uri::from_static("/v1/pools");
            let admits = guard.admits(&target, &headers(&pairs));
            assert_eq!(admits.is_ok(), admitted, "{host} {origin:?}");
        }
        assert!(guard.admits(&Uri::from_static("/"), &headers(&[])).is_err(), "no Host");
    }

    #[test]
    fn one_host_is_asked_and_that_is_the_targets_where_it_names_one() {
        let guard = guard(None);
        let status = |target: &'static str, hosts: &[&'static str]| {
            let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let admits = guard.admits(&Uri::from_static(target), &headers(&hosts));
            admits.map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
        };
        let (own, foreign) = ("127.0.0.1:9900", "evil.example");
        assert_eq!(status("http://127.0.0.1:9900/v1/pools", &[foreign]), 200);
        assert_eq!(status("http://evil.example/v1/pools", &[own]), 403);
        assert_eq!(status("http://127.0.0.1:9900@evil.example/v1/pools", &[own]), 403);
        assert_eq!(status("http://evil.example@localhost/v1/pools", &[foreign]), 200);
        assert_eq!(status("/v1/pools", &[own, foreign]), 400);
        assert_eq!(status("/v1/pools", &[own, own]), 400);
    }

    #[test]
    fn the_token_must_be_the_one() {
        let guard = guard(Some("secret"));
        for (value, authorized) in [
            ("Bearer secret", true),
            ("bearer secret", true),
            ("Bearer secreT", false),
            ("Bearer secre", false),
            ("Bearer secret1", false),
            ("Basic secret", false),
            ("Bearer", false),
        ] {
            let headers = headers(&[("authorization", value)]);
            assert_eq!(guard.authorizes(&headers).is_ok(), authorized, "{value}");
        }
        assert!(guard.authorizes(&headers(&[])).is_err());
    }
}
