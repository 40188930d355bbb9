//! The clients.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::frame::{self, ECHO_BYTES};

/// How many handshakes are under way while connections are opened.
const OPENING: usize = 32;

/// Opens a connection; each has a key of its own.
async fn open(to: SocketAddr, number: usize) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let head = format!(
        "GET /?room={number} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the handshake was cut");
    }
    ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

async fn open_all(to: SocketAddr, connections: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(connections);
    let mut opening = JoinSet::new();
    let mut number = 0;
    while streams.len() < connections {
        while number < connections && opening.len() < OPENING {
            opening.spawn(open(to, number));
            number += 1;
        }
        let opened = opening.join_next().await.context("nothing is being opened")?;
        streams.push(opened??);
    }
    Ok(streams)
}

async fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&frame::message()).await?;
    let mut echo = [0; ECHO_BYTES];
    stream.read_exact(&mut echo).await?;
    Ok(())
}

/// As many round trips as go through.
pub(crate) async fn saturate(
    to: SocketAddr,
    connections: usize,
    time: Duration,
) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    let streams = open_all(to, connections).await?;
    let began = Instant::now();
    for mut stream in streams {
        running.spawn(async move {
            let mut round_trips = 0u64;
            while began.elapsed() < time {
                round_trip(&mut stream).await?;
                round_trips += 1;
            }
            io::Result::Ok(round_trips)
        });
    }
    let mut round_trips = 0;
    while let Some(ended) = running.join_next().await {
        round_trips += ended??;
    }
    report(&json!({ "round_trips": round_trips, "seconds": began.elapsed().as_secs_f64() }))
}

/// Round trips at a fixed rate, evenly spread over time and over the connections.
pub(crate) async fn at_rate(
    to: SocketAddr,
    connections: usize,
    rate: f64,
    time: Duration,
) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    let streams = open_all(to, connections).await?;
    let began = Instant::now();
    let pause = Duration::from_secs_f64(connections as f64 / rate);
    for (number, mut stream) in streams.into_iter().enumerate() {
        running.spawn(async move {
            let mut took = Vec::new();
            let mut next = began + pause.mul_f64(number as f64 / connections as f64);
            while next < began + time {
                tokio::time::sleep_until(next.into()).await;
                let sent = Instant::now();
                round_trip(&mut stream).await?;
                took.push(sent.elapsed());
                next += pause;
            }
            io::Result::Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(ended) = running.join_next().await {
        took.extend(ended??);
    }
    took.sort_unstable();
    ensure!(!took.is_empty(), "no message went through");
    let micros = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e6;
    report(&json!({ "round_trips": took.len(), "p50_us": micros(50), "p99_us": micros(99) }))
}

/// Holds connections until standard input ends.
pub(crate) async fn idle(to: SocketAddr, connections: usize) -> anyhow::Result<()> {
    let mut streams = open_all(to, connections).await?;
    for stream in &mut streams {
        round_trip(stream).await?;
    }
    report(&json!({ "connections": streams.len() }))?;
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Opens connections and closes them properly.
pub(crate) async fn upgrades(to: SocketAddr, count: usize, at_a_time: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..at_a_time {
        let next = Arc::clone(&next);
        running.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let mut stream = open(to, number).await?;
                stream.write_all(&frame::CLOSE).await?;
                stream.read_to_end(&mut Vec::new()).await?;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    report(&json!({ "upgrades": count, "seconds": began.elapsed().as_secs_f64() }))
}

fn report(result: &serde_json::Value) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{result}")?;
    Ok(stdout.flush()?)
}
