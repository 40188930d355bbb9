//! Options of the documented config that this version does not act on yet.
//!
//! They are refused, never skipped: a proxy that starts with an option it ignores does something
//! else than its config says. And they are not taken for typing errors, since the guide has them.
//!
//! A feature that comes takes its lines out of these two tables; nothing else here needs to know.

/// Keys, by the tables they stand in, whatever their value is.
const KEYS: &[(&str, &[&str])] = &[
    ("server", &["otlp"]),
    ("listener", &["http2"]),
    ("listener.tls", &["client_ca"]),
    ("route", &["auth", "message_rate", "rebalance", "rehome"]),
    ("pool", &["discover", "rebalance_rate", "source"]),
];

/// Values, by table and key.
const VALUES: &[(&str, &str, &[&str])] = &[("route", "on_backend_loss", &["rehome"])];

/// What is said of such a key or value; what to do follows it.
pub(super) const NOT_SUPPORTED: &str = "not supported by this version";

/// The keys of a table that are known, but not acted on.
pub(super) fn keys(table: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(of, _)| *of == table).map_or(&[], |(_, keys)| keys)
}

/// The values of a key that are known, but not acted on.
pub(super) fn values(table: &str, key: &str) -> &'static [&'static str] {
    VALUES
        .iter()
        .find(|(of, name, _)| (*of, *name) == (table, key))
        .map_or(&[], |(_, _, values)| values)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::path::Path;

    use super::*;
    use crate::config::{Environment, parse};

    fn told(option: &str) -> String {
        let environment = Environment {
            variable: &|_| None,
            file: &|_| Ok(String::new()),
            host_name: "edge1",
            cores: NonZeroUsize::MIN,
            now: std::time::UNIX_EPOCH,
            authorities: &Vec::new,
        };
        parse(option, "config.toml", Path::new(""), &environment).unwrap_err().to_string()
    }

    fn header(table: &str) -> &'static str {
        match table {
            "server" => "[server]\n",
            "listener" => "[[listener]]\n",
            "listener.tls" => "[[listener]]\ntls.",
            "route" => "[[route]]\n",
            "pool" => "[pool.rooms]\n",
            "pool.health" => "[pool.rooms.health]\n",
            other => panic!("{other}"),
        }
    }

    #[test]
    fn each_of_them_is_refused_whatever_its_value() {
        for (table, keys) in KEYS {
            for key in *keys {
                for value in ["0", "\"off\"", "\"${UNSET}\"", "[]", "{ any = 1 }", "false", "1.5"] {
                    let told = told(&format!("{}{key} = {value}", header(table)));
                    assert!(told.contains(&format!("{key} is {NOT_SUPPORTED}")), "{told}");
                    assert!(!told.contains("no known key"), "{told}");
                }
            }
        }
        for (table, key, values) in VALUES {
            for value in *values {
                let told = told(&format!("{}{key} = \"{value}\"", header(table)));
                assert!(told.contains(&format!("{value:?} is {NOT_SUPPORTED}")), "{told}");
            }
        }
    }
}
