//! What is written of a connection: one JSON object, which anybody may read.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::super::Record;

#[derive(Serialize, Deserialize)]
struct Written<'a> {
    backend: Cow<'a, str>,
    pool: Cow<'a, str>,
    route: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    client: IpAddr,
    opened_at: u64,
    #[serde(default)]
    rooms: Vec<Cow<'a, str>>,
}

/// Writes a record.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let written = Written {
        backend: (&*record.backend).into(),
        pool: (&*record.pool).into(),
        route: (&*record.route).into(),
        key: record.key.as_deref().map(Cow::from),
        client: record.client,
        opened_at: record.opened_at,
        rooms: record.rooms.iter().map(|room| Cow::from(&**room)).collect(),
    };
    // Names, numbers and lists of them: nothing that JSON lacks.
    serde_json::to_vec(&written).unwrap_or_default()
}

/// Reads a record; what a later version adds is passed over. `None`: it is none.
pub(super) fn decode(json: &[u8]) -> Option<Record> {
    let written: Written<'_> = serde_json::from_slice(json).ok()?;
    Some(Record {
        backend: written.backend.into(),
        pool: written.pool.into(),
        route: written.route.into(),
        key: written.key.map(Into::into),
        client: written.client,
        opened_at: written.opened_at,
        rooms: written.rooms.into_iter().map(Into::into).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: Option<&str>) -> Record {
        Record {
            backend: "a".into(),
            pool: "rooms".into(),
            route: "chat".into(),
            key: key.map(Into::into),
            client: [192, 0, 2, 7].into(),
            opened_at: 1_700_000_000_000,
            rooms: vec!["lobby".into(), "a \"b\" é".into()],
        }
    }

    #[test]
    fn what_is_written_is_that_of_the_guide() {
        let json = r#"{"backend":"a","pool":"rooms","route":"chat","key":"k","client":"192.0.2.7","opened_at":1700000000000,"rooms":["lobby","a \"b\" é"]}"#;
        assert_eq!(String::from_utf8(encode(&record(Some("k")))).unwrap(), json);
    }

    #[test]
    fn what_is_written_is_read() {
        for record in [record(Some("")), record(None)] {
            assert_eq!(decode(&encode(&record)), Some(record));
        }
        let more =
            r#"{"backend":"a","pool":"p","route":"r","client":"::1","opened_at":1,"new":[1]}"#;
        assert_eq!(decode(more.as_bytes()).unwrap().rooms, Vec::<std::sync::Arc<str>>::new());
        assert_eq!(decode(b"{}"), None);
    }
}
