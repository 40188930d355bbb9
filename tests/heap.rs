//! What the proxy takes of the heap: for a connection that idles, and for a message that passes.
//!
//! A proxy runs in this process, whose allocator counts; clients and backend are processes of
//! their own. What idle connections take is a difference between few of them and many, so what a
//! proxy takes at its start is no part of it. It is counted once it holds still. The kernel's
//! buffers and what the allocator adds to each block are not counted.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in tests a panic is the report")]

mod support;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::in_process::InProcess;
use support::limits::Limits;
use support::ws::{TEXT, masked, open};
use support::{Process, binary, config, eventually};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FEW: usize = 200;
const MANY: usize = 1000;

/// One test, since the counts are of the whole process.
#[test]
fn an_idle_connection_takes_little_and_a_message_nothing() {
    steadfast::descriptors::raise_limit();
    let (_backend, address) = echo_server();
    let proxy = InProcess::start(&config(&[("a", address)], &[("server", "workers = 1")]));
    let proxy = proxy.server().listeners()[0];
    let mut limits = Limits::read();

    // What grows once and stays has grown after the first.
    drop(idle_clients(proxy, FEW));
    let _few = idle_clients(proxy, FEW);
    let few = settled();
    let _many = idle_clients(proxy, MANY - FEW);
    let many = settled();
    let hundred = |more: usize, less: usize| ((more - less) * 100 / (MANY - FEW)) as u64;
    println!();
    println!(
        "{}",
        limits.hold("bytes_per_100_connections", hundred(many.bytes, few.bytes), "bytes")
    );
    println!(
        "{}",
        limits.hold("blocks_per_100_connections", hundred(many.blocks, few.blocks), "blocks")
    );

    let taken = blocks_for_messages(proxy) as u64;
    println!("{}", limits.hold("blocks_per_20000_messages", taken, "blocks"));
    limits.settle().unwrap_or_else(|exceeded| panic!("{exceeded}"));
}

/// What is taken of the heap at a moment.
#[derive(Clone, Copy, PartialEq)]
struct Held {
    bytes: usize,
    blocks: usize,
}

fn held() -> Held {
    let stats = HEAP.stats();
    Held {
        bytes: stats.bytes_allocated - stats.bytes_deallocated,
        blocks: stats.allocations - stats.deallocations,
    }
}

/// What is held once that has been the same for ten looks, a tenth of a second.
fn settled() -> Held {
    let (mut last, mut looks) = (held(), 0);
    eventually("the heap holds still", || {
        let now = held();
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        (looks == 10).then_some(now)
    })
}

/// Blocks taken, or made larger, while messages and their echoes pass over one connection: 10,000
/// messages that wait for their echoes, and 10,000 that come a hundred in a read.
fn blocks_for_messages(proxy: SocketAddr) -> usize {
    const PAYLOAD: [u8; 64] = [b'x'; 64];
    let message = masked(TEXT, PAYLOAD);
    let hundred = message.repeat(100);
    let client = open(proxy, "/?room=busy");
    let mut echo = vec![0; 100 * (2 + PAYLOAD.len())];
    let mut round_trip = |sent: &[u8], messages: usize| {
        (&client.stream).write_all(sent).unwrap();
        (&client.stream).read_exact(&mut echo[..messages * (2 + PAYLOAD.len())]).unwrap();
    };
    round_trip(&message, 1);
    round_trip(&hundred, 100);
    settled();
    let taken = || HEAP.stats().allocations + HEAP.stats().reallocations;
    let before = taken();
    (0..10_000).for_each(|_| round_trip(&message, 1));
    (0..100).for_each(|_| round_trip(&hundred, 100));
    taken() - before
}

fn echo_server() -> (Process, SocketAddr) {
    let mut command = Command::new(binary("load"));
    let mut process = Process::start("echo", command.args(["echo", "--listen", "127.0.0.1:0"]));
    let address = process.wait_for("its address", |line| line.parse().ok());
    (process, address)
}

/// Clients that have had one message echoed and idle since, each with a key of its own.
fn idle_clients(proxy: SocketAddr, count: usize) -> Process {
    let mut command = Command::new(binary("load"));
    command.args(["idle", "--to", &proxy.to_string(), "--connections", &count.to_string()]);
    let mut process = Process::start_listening("idle clients", &mut command);
    process.wait_for("all open", |line| line.contains("connections").then_some(()));
    process
}
