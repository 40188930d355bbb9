//! The clients.

use std::io::{self, Write};
use std::net;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::frame::{self, ECHO_BYTES, READ_BYTES};
use crate::target::{Stream, Target};

/// How many handshakes are under way while connections are opened.
const OPENING: usize = 32;

/// From the last handshake to the first message at a fixed rate, for all tasks to be waiting.
const BEFORE_THE_FIRST: Duration = Duration::from_millis(50);

async fn open_all(target: &Target, connections: usize) -> anyhow::Result<Vec<Stream>> {
    let mut streams = Vec::with_capacity(connections);
    let mut opening = JoinSet::new();
    let mut number = 0;
    while streams.len() < connections {
        while number < connections && opening.len() < OPENING {
            let target = target.clone();
            opening.spawn(async move { target.open(number).await });
            number += 1;
        }
        let opened = opening.join_next().await.context("nothing is being opened")?;
        streams.push(opened??);
    }
    Ok(streams)
}

/// One round trip for each, so that nothing is made at the first message only.
async fn open_all_and_use_each(target: &Target, connections: usize) -> anyhow::Result<Vec<Stream>> {
    let mut streams = open_all(target, connections).await?;
    for stream in &mut streams {
        round_trip(stream).await?;
    }
    Ok(streams)
}

async fn round_trip(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(&frame::message()).await?;
    stream.flush().await?;
    read_echoes(stream, &mut 0).await?;
    Ok(())
}

/// Reads until at least one whole echo is there, and tells how many are; `bytes` is what there is
/// of the next.
async fn read_echoes(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut usize,
) -> io::Result<usize> {
    let mut scratch = [0; READ_BYTES];
    while *bytes < ECHO_BYTES {
        match stream.read(&mut scratch).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => *bytes += read,
        }
    }
    let echoes = *bytes / ECHO_BYTES;
    *bytes %= ECHO_BYTES;
    Ok(echoes)
}

/// As many round trips as go through: a closed loop, in which a slow proxy gets less to do. It
/// tells how much goes through, and nothing of how long anything takes.
///
/// Waits for a line on standard input before it begins, and for its end before it closes the
/// connections: who looks at the proxy's processor time then sees that of messages alone.
pub(crate) async fn saturate(
    target: &Target,
    connections: usize,
    time: Duration,
) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    let streams = open_all_and_use_each(target, connections).await?;
    report(&json!({ "connections": connections }))?;
    a_line_or_the_end().await?;
    let began = Instant::now();
    for mut stream in streams {
        running.spawn(async move {
            let mut round_trips = 0u64;
            while began.elapsed() < time {
                round_trip(&mut stream).await?;
                round_trips += 1;
            }
            io::Result::Ok((round_trips, stream))
        });
    }
    let mut round_trips = 0;
    let mut held = Vec::with_capacity(connections);
    while let Some(ended) = running.join_next().await {
        let (made, stream) = ended??;
        round_trips += made;
        held.push(stream);
    }
    report(&json!({ "round_trips": round_trips, "seconds": began.elapsed().as_secs_f64() }))?;
    a_line_or_the_end().await?;
    Ok(())
}

/// When each message is to be sent, evenly spread over time; the connections take turns.
#[derive(Clone, Copy)]
struct Schedule {
    first: Instant,
    pause: Duration,
    messages: usize,
}

impl Schedule {
    fn due(&self, number: usize) -> Instant {
        self.first + self.pause.mul_f64(number as f64)
    }
}

/// Round trips at a fixed rate: an open loop. A message is sent when it is due, whether or not the
/// echoes of those before are back, and its time counts from when it was due: who is slow gets no
/// rest, and what waits behind a slow message is late as well.
pub(crate) async fn at_rate(
    target: &Target,
    connections: usize,
    rate: f64,
    time: Duration,
) -> anyhow::Result<()> {
    let mut writers = Vec::with_capacity(connections);
    let mut readers = Vec::with_capacity(connections);
    for number in 0..connections {
        let stream = target.open_plain(number).await?.into_std()?;
        writers.push(stream.try_clone()?);
        readers.push(TcpStream::from_std(stream)?);
    }
    let pause = Duration::from_secs_f64(1.0 / rate);
    let messages = usize::try_from(time.as_nanos() / pause.as_nanos().max(1))?;
    let schedule = Schedule { first: Instant::now() + BEFORE_THE_FIRST, pause, messages };
    let sending = tokio::task::spawn_blocking(move || send(&writers, schedule));
    let mut running = JoinSet::new();
    for (first, mut stream) in readers.into_iter().enumerate() {
        running.spawn(async move {
            let mut took = Vec::new();
            let mut due = (first..messages).step_by(connections);
            let mut bytes = 0;
            while due.len() > 0 {
                let echoes = read_echoes(&mut stream, &mut bytes).await?;
                took.extend(due.by_ref().take(echoes).map(|number| schedule.due(number).elapsed()));
            }
            io::Result::Ok(took)
        });
    }
    let late = sending.await?.context("sending on time")?;
    let mut took = Vec::new();
    while let Some(ended) = running.join_next().await {
        took.extend(ended??);
    }
    ensure!(!took.is_empty(), "no message went through");
    report(&json!({
        "round_trips": took.len(),
        "p50_us": micros(&mut took, 50),
        "p99_us": micros(&mut took, 99),
        "sent_late_p50_us": micros(&mut late.clone(), 50),
        "sent_late_p99_us": micros(&mut late.clone(), 99),
    }))
}

/// Sends what is due, from a thread of its own: the runtime's timers have steps of a millisecond.
/// Tells how late each message left, which is this program's own part in its latency.
fn send(writers: &[net::TcpStream], schedule: Schedule) -> io::Result<Vec<Duration>> {
    let message = frame::message();
    let mut late = Vec::with_capacity(schedule.messages);
    for number in 0..schedule.messages {
        let due = schedule.due(number);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        late.push(due.elapsed());
        // The sockets don't block: it fails if the proxy takes no more, which is a result too.
        (&writers[number % writers.len()]).write_all(&message)?;
    }
    Ok(late)
}

pub(crate) fn micros(times: &mut [Duration], part: usize) -> f64 {
    let at = times.len() * part / 100;
    times.select_nth_unstable(at).1.as_secs_f64() * 1e6
}

/// Holds connections until standard input ends.
pub(crate) async fn idle(target: &Target, connections: usize) -> anyhow::Result<()> {
    let _held = open_all_and_use_each(target, connections).await?;
    report(&json!({ "connections": connections }))?;
    a_line_or_the_end().await?;
    Ok(())
}

/// Opens connections and closes them properly.
pub(crate) async fn upgrades(
    target: &Target,
    count: usize,
    at_a_time: usize,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..at_a_time {
        let (next, target) = (Arc::clone(&next), target.clone());
        running.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                close(target.open(number).await?).await?;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    report(&json!({
        "upgrades": count,
        "seconds": began.elapsed().as_secs_f64(),
        "tickets": target.tickets(),
    }))
}

/// Says Close and waits for that of the other end, and for its end.
async fn close(mut stream: Stream) -> anyhow::Result<()> {
    stream.write_all(&frame::CLOSE).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer).await {
        // Not every proxy ends TLS with an alert of its own.
        ensure!(error.kind() == io::ErrorKind::UnexpectedEof, error);
    }
    ensure!(answer == frame::CLOSE_ECHO, "no Close came back: {answer:?}");
    Ok(())
}

/// Of standard input.
pub(crate) async fn a_line_or_the_end() -> io::Result<()> {
    tokio::io::stdin().read(&mut [0; 64]).await.map(drop)
}

pub(crate) fn report(result: &serde_json::Value) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{result}")?;
    Ok(stdout.flush()?)
}
