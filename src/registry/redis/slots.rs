//! The slots of a Redis Cluster: which channel is in which shard.

use redis::Value;

/// How many slots there are.
const SLOTS: u16 = 16_384;
/// How many names are tried to find one in each shard: enough for hundreds of shards of like size. One
/// that is not found has no probe.
const TRIES: u32 = 8192;

/// Some slots, from and to, and which shard has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    from: u16,
    to: u16,
    shard: usize,
}

/// The slot of a name without braces (the hash tags of the Redis Cluster specification): CRC-16 (XMODEM).
fn slot(name: &str) -> u16 {
    let crc = name.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS
}

/// Reads the answer to `CLUSTER SLOTS`; what is of another form in it is left out.
pub(super) fn shards(answer: &Value) -> Vec<Part> {
    let Value::Array(ranges) = answer else { return Vec::new() };
    let mut masters: Vec<&Value> = Vec::new();
    let mut parts = Vec::new();
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let [Value::Int(from), Value::Int(to), Value::Array(master), ..] = &range[..] else {
            continue;
        };
        // Address, port and id of the master; the id is last, and the same for all its ranges.
        let (Ok(from), Ok(to), Some(master)) =
            (u16::try_from(*from), u16::try_from(*to), master.get(2))
        else {
            continue;
        };
        let known = masters.iter().position(|known| *known == master);
        let shard = known.unwrap_or_else(|| {
            masters.push(master);
            masters.len() - 1
        });
        parts.push(Part { from, to, shard });
    }
    parts
}

/// The first names, by number, of which there is one in each shard.
pub(super) fn one_in_each(parts: &[Part], name: impl Fn(u32) -> String) -> Vec<String> {
    let shards = parts.iter().map(|part| part.shard + 1).max().unwrap_or(0);
    let mut found: Vec<Option<String>> = vec![None; shards];
    for number in 0..TRIES {
        if found.iter().all(Option::is_some) {
            break;
        }
        let name = name(number);
        let slot = slot(&name);
        let part = parts.iter().find(|part| (part.from..=part.to).contains(&slot));
        if let Some(place) = part.and_then(|part| found.get_mut(part.shard)) {
            place.get_or_insert(name);
        }
    }
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        // The check value of CRC-16/XMODEM is 0x31C3; the others are what CLUSTER KEYSLOT says.
        assert_eq!(slot("123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("bar"), 5061);
        assert_eq!(slot(""), 0);
    }

    #[test]
    fn there_is_a_name_in_each_shard() {
        let node = |id: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            Value::Array(vec![text("127.0.0.1"), Value::Int(7000), text(id)])
        };
        let range = |from, to, id| Value::Array(vec![Value::Int(from), Value::Int(to), node(id)]);
        let answer = Value::Array(vec![
            range(0, 5000, "a"),
            range(5001, 10_000, "b"),
            range(10_001, 10_100, "c"),
            range(10_101, 16_383, "a"),
            Value::Nil,
        ]);
        let parts = shards(&answer);
        assert_eq!(parts.iter().map(|part| part.shard).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let names = one_in_each(&parts, |number| format!("probe:{number}"));
        let shard = |name: &String| {
            let slot = slot(name);
            parts.iter().find(|part| (part.from..=part.to).contains(&slot)).unwrap().shard
        };
        assert_eq!(names.iter().map(shard).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(one_in_each(&shards(&Value::Nil), |_| String::new()), [""; 0]);
    }
}
