//! The benchmark works, and measures what it says: a bench that nobody runs for a while is found
//! broken by whoever needs it.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{DEADLINE, binary, root};

/// The rows of a table in Markdown by their first cell, from the one that begins with `head` on.
fn table(text: &str, head: &str) -> BTreeMap<String, Vec<String>> {
    let lines = text.lines().skip_while(|line| !line.starts_with(head));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2).map(|row| {
        let row = row.strip_prefix('|').unwrap().strip_suffix('|').unwrap();
        let mut cells = row.split('|').map(|cell| cell.trim().to_owned());
        (cells.next().unwrap(), cells.collect())
    });
    rows.collect()
}

/// Runs `scripts/bench` briefly, with what was built for the tests; gives what it prints.
fn bench(arguments: &[&str]) -> String {
    let run = Command::new(root().join("scripts/bench"))
        .args(["--quick", "--no-build", "--markdown"])
        .args(arguments)
        .arg("--binaries")
        .arg(binary("load").parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    said
}

#[test]
fn the_script_measures_every_figure_that_the_guide_shows() {
    // Without HAProxy and nginx, which are not installed for a test.
    let said = bench(&["--seconds", "0.1", "--against", "none"]);
    let measured = table(&said, "| median of 1 round |");
    for (figure, cells) in &measured {
        assert!(!cells[1].is_empty(), "no {figure} of the proxy: {said}");
    }
    let guide = std::fs::read_to_string(root().join("docs/performance.md")).unwrap();
    let shown = table(&guide, "| median of ");
    let names = |table: &BTreeMap<String, Vec<String>>| table.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&shown), names(&measured), "paste what scripts/bench --markdown prints");
}

#[test]
fn a_fleet_is_measured_beside_socket_io() {
    let said = bench(&["--only", "registration", "--only", "fan-out"]);
    let measured = table(&said, "| median of 1 round | Steadfast | Socket.IO |");
    assert!(measured.len() > 12, "{said}");
    for (figure, cells) in &measured {
        let of_members = figure.contains("member");
        assert!(!cells[0].is_empty() && cells[1].is_empty() != of_members, "{figure}: {said}");
    }
    let guide = std::fs::read_to_string(root().join("docs/performance.md")).unwrap();
    let shown = table(&guide, "| median of 3 rounds | Steadfast | Socket.IO |");
    // A quick run has a smaller crowd.
    let names = |table: &BTreeMap<String, Vec<String>>| {
        let names = table.keys().map(|name| name.replace("10,000", "1,000"));
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&shown), names(&measured), "paste what scripts/bench --markdown prints");
}

#[test]
fn what_waits_behind_a_slow_message_counts_as_late_too() {
    const STALL: Duration = Duration::from_millis(600);
    const MESSAGE_BYTES: usize = 70;
    const ECHO_BYTES: usize = 66;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A server that is stuck at the first message and quick ever after.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut bytes = [0; 4096];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut bytes).unwrap();
            head.extend_from_slice(&bytes[..read]);
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
        let (mut received, mut echoed) = (0, 0);
        loop {
            let read = stream.read(&mut bytes).unwrap();
            if read == 0 {
                return;
            }
            if received == 0 {
                std::thread::sleep(STALL);
            }
            received += read;
            let echoes = received / MESSAGE_BYTES - echoed;
            stream.write_all(&vec![0; echoes * ECHO_BYTES]).unwrap();
            echoed += echoes;
        }
    });
    let run = Command::new(binary("load"))
        .args(["rate", "--connections", "1", "--rate", "100", "--seconds", "0.6"])
        .args(["--to", &address.to_string()])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    server.join().unwrap();
    let result: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(result["round_trips"], 60, "{result}");
    // The messages were due while the server was stuck, spread evenly over that time.
    let p50 = result["p50_us"].as_f64().unwrap();
    assert!(p50 > 200_000.0, "{result}");
}
