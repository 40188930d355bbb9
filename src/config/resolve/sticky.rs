//! `sticky_cookie` of a route: the cookie that is minted where no source of the key is present.
//!
//! What a browser would not store is a mistake here: a proxy that sets a cookie in vain gives its
//! client another key, and another backend, with every request.

use std::time::Duration;

use super::route::{is_host_name, is_token};
use crate::config::problems::Problems;
use crate::config::raw::Cursor;
use crate::config::value::quoted;
use crate::route::{SameSite, Secure, StickyCookie};

const SAME_SITE: [(&str, SameSite); 3] =
    [("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)];
const SECURE: [(&str, Secure); 3] =
    [("auto", Secure::Auto), ("always", Secure::Always), ("never", Secure::Never)];

/// Takes the cookie of a route, where it has one.
pub(super) fn cookie(route: &mut Cursor<'_>, problems: &mut Problems) -> Option<StickyCookie> {
    if !route.has("sticky_cookie") {
        // Asked for all the same, so that it is known where a key is misspelt.
        route.table("sticky_cookie", "route.sticky_cookie", "sticky_cookie.", problems);
        return None;
    }
    let mut table = route.table("sticky_cookie", "route.sticky_cookie", "sticky_cookie.", problems);
    let cookie = StickyCookie {
        name: name(&mut table, problems),
        domain: domain(&mut table, problems),
        path: path(&mut table, problems),
        same_site: super::choice(&mut table, "same_site", &SAME_SITE, SameSite::Lax, problems),
        secure: super::choice(&mut table, "secure", &SECURE, Secure::Auto, problems),
        http_only: table.take("http_only", problems).is_none_or(|taken| taken.value),
        max_age: max_age(&mut table, problems),
    };
    stored_by_browsers(&cookie, &table, problems);
    table.finish(problems);
    Some(cookie)
}

fn name(table: &mut Cursor<'_>, problems: &mut Problems) -> String {
    let Some(text) = table.take::<String>("name", problems) else { return "steadfast".to_owned() };
    if !is_token(&text.value) || text.value.len() > 64 {
        let what =
            format!("can't be {}; use 1 to 64 letters, digits, - and _", quoted(&text.value));
        table.note(problems, text.span, "name", &what);
    }
    text.value
}

/// An empty one is none.
fn domain(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<String> {
    let text = table.take::<String>("domain", problems)?;
    if text.value.is_empty() {
        return None;
    }
    if !is_host_name(&text.value) {
        let what = format!(
            "is no host name: {}; write one such as \"example.com\", which is for all below it too",
            quoted(&text.value)
        );
        table.note(problems, text.span, "domain", &what);
    }
    Some(text.value)
}

fn path(table: &mut Cursor<'_>, problems: &mut Problems) -> String {
    let Some(text) = table.take::<String>("path", problems) else { return "/".to_owned() };
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b';';
    if !text.value.starts_with('/') || !text.value.bytes().all(fits) {
        let what = "must begin with a slash and have no spaces, ; or other than ASCII characters";
        table.note(problems, text.span, "path", what);
    }
    text.value
}

/// Clients count it in whole seconds.
fn max_age(table: &mut Cursor<'_>, problems: &mut Problems) -> Duration {
    let Some(taken) = table.take::<Duration>("max_age", problems) else { return Duration::ZERO };
    if taken.value.subsec_nanos() != 0 {
        let what = "must be whole seconds; \"0s\" is for as long as the browser is open";
        table.note(problems, taken.span, "max_age", what);
    }
    taken.value
}

/// RFC 6265bis sections 4.1.3 and 5.7: what `Secure` is a condition of.
fn stored_by_browsers(cookie: &StickyCookie, table: &Cursor<'_>, problems: &mut Problems) {
    if cookie.same_site == SameSite::None && cookie.secure == Secure::Never {
        let what =
            "\"none\" is stored by no browser beside secure = \"never\"; write \"auto\" there";
        table.note(problems, table.span(), "same_site", what);
    }
    let lower = cookie.name.to_ascii_lowercase();
    if lower.starts_with("__secure-") || lower.starts_with("__host-") {
        if cookie.secure != Secure::Always {
            let what =
                "begins with what browsers store only with secure = \"always\"; write that too";
            table.note(problems, table.span(), "name", what);
        }
        if lower.starts_with("__host-") && (cookie.domain.is_some() || cookie.path != "/") {
            let what = "begins with what browsers store only for path = \"/\" and without a domain";
            table.note(problems, table.span(), "name", what);
        }
    }
}
