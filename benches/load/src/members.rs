//! Members of a room, and a message to all of them: how long it takes to each.
//!
//! Each message carries the time at which it was published, and each member tells how long ago that
//! was when it has read it: publisher and members are this one program, so they have one clock.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{a_line_or_the_end, micros, report};
use crate::frame;
use crate::target::handshake;

/// How many handshakes are under way while connections are opened.
const OPENING: usize = 32;
/// How long a message may take to all members.
const DEADLINE: Duration = Duration::from_secs(30);
/// What stands before the time in a message.
const MARK: &[u8] = b"t=";

/// Who the members are, and how they are spoken to.
#[derive(Debug, Args)]
pub(crate) struct Members {
    /// Where they connect, in turn.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// The path of their handshakes, with what makes them members.
    #[arg(long)]
    path: String,
    /// A text message that each says first.
    #[arg(long)]
    greeting: Option<String>,
    /// How many they are.
    #[arg(long)]
    count: usize,
    /// How many messages they get.
    #[arg(long)]
    messages: usize,
    /// How many of them are published at once; the next when all have those.
    #[arg(long, default_value = "1")]
    at_once: usize,
    /// Publish in this Redis, to --channel; the message is JSON with `text`.
    #[arg(long, requires = "channel")]
    redis: Option<SocketAddr>,
    /// Where to publish in Redis.
    #[arg(long)]
    channel: Option<String>,
    /// Publish by a POST to this address, each message a line of its body.
    #[arg(long, conflicts_with = "redis")]
    post: Option<SocketAddr>,
}

/// Opens all, says so in a line, and after a line on standard input publishes messages, the next when
/// all have those before. Holds the connections until another line.
pub(crate) async fn measure(members: &Members) -> anyhow::Result<()> {
    let (heard, mut hearing) = mpsc::channel(1024);
    let began = Instant::now();
    let mut listening = JoinSet::new();
    let mut opening = JoinSet::new();
    let (mut number, mut open) = (0, 0);
    while open < members.count {
        while number < members.count && opening.len() < OPENING {
            let to = members.to[number % members.to.len()];
            let (path, greeting) = (members.path.clone(), members.greeting.clone());
            opening.spawn(async move { join(to, &path, greeting.as_deref()).await });
            number += 1;
        }
        let joined = opening.join_next().await.context("nothing is being opened")?;
        let (stream, unread) = joined??;
        listening.spawn(listen(stream, unread, began, heard.clone()));
        open += 1;
    }
    let took = began.elapsed().as_secs_f64();
    report(&json!({ "members": members.count, "seconds": took }))?;
    a_line_or_the_end().await?;
    let mut publisher = Publisher::connect(members).await?;
    let (mut each, mut last) = (Vec::new(), Vec::new());
    let numbers: Vec<usize> = (0..members.messages).collect();
    for numbers in numbers.chunks(members.at_once) {
        let text = |number| format!("t={} number={number}", began.elapsed().as_nanos());
        publisher.publish(&numbers.iter().map(text).collect::<Vec<_>>()).await?;
        let all = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..members.count * numbers.len() {
                let took = hearing.recv().await.context("a member has ended")?;
                slowest = slowest.max(took);
                each.push(took);
            }
            anyhow::Ok(slowest)
        };
        let slowest = tokio::time::timeout(DEADLINE, all).await.context("not all have it")??;
        last.push(slowest);
    }
    ensure!(!each.is_empty(), "no message was sent");
    report(&json!({
        "deliveries": each.len(),
        "p50_us": micros(&mut each, 50),
        "p99_us": micros(&mut each, 99),
        "last_p50_us": micros(&mut last, 50),
    }))?;
    a_line_or_the_end().await?;
    Ok(())
}

async fn join(
    to: SocketAddr,
    path: &str,
    greeting: Option<&str>,
) -> anyhow::Result<(TcpStream, Vec<u8>)> {
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    let (mut stream, rest) = handshake(tcp, path).await?;
    if let Some(greeting) = greeting {
        stream.write_all(&frame::text(greeting)).await?;
    }
    Ok((stream, rest))
}

/// Tells of each message that carries a time how long ago that was.
async fn listen(
    mut stream: TcpStream,
    mut unread: Vec<u8>,
    began: Instant,
    heard: mpsc::Sender<Duration>,
) {
    while stream.read_buf(&mut unread).await.is_ok_and(|read| read > 0) {
        let now = began.elapsed();
        while let Some(length) = frame::whole(&unread) {
            let sent = time_in(&unread[..length]);
            unread.drain(..length);
            if let Some(sent) = sent
                && heard.send(now.saturating_sub(sent)).await.is_err()
            {
                return;
            }
        }
    }
}

fn time_in(frame: &[u8]) -> Option<Duration> {
    let at = frame.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = frame[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let nanos = std::str::from_utf8(&frame[at..at + digits]).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// Who publishes.
enum Publisher {
    Redis(TcpStream, String),
    Post(SocketAddr),
}

impl Publisher {
    async fn connect(members: &Members) -> anyhow::Result<Self> {
        match (members.redis, &members.channel, members.post) {
            (Some(redis), Some(channel), _) => {
                let stream = TcpStream::connect(redis).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Redis(stream, channel.clone()))
            }
            (_, _, Some(address)) => Ok(Self::Post(address)),
            _ => bail!("name --redis and --channel, or --post"),
        }
    }

    async fn publish(&mut self, texts: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Redis(stream, channel) => {
                let commands: String = texts.iter().map(|text| command(channel, text)).collect();
                stream.write_all(commands.as_bytes()).await?;
                let mut answers = Vec::new();
                while answers.iter().filter(|byte| **byte == b'\n').count() < texts.len() {
                    ensure!(stream.read_buf(&mut answers).await? > 0, "Redis has hung up");
                }
                let answers = String::from_utf8(answers)?;
                let reached = answers.lines().all(|one| one.starts_with(':') && one != ":0");
                ensure!(reached, "Redis says {answers}: has nobody subscribed?");
                Ok(())
            }
            Self::Post(address) => {
                let text = texts.join("\n");
                let mut stream = TcpStream::connect(*address).await?;
                let request = format!(
                    "POST / HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n{text}",
                    text.len()
                );
                stream.write_all(request.as_bytes()).await?;
                let mut answer = Vec::new();
                match stream.read_to_end(&mut answer).await {
                    Err(error) if error.kind() != io::ErrorKind::ConnectionReset => bail!(error),
                    _ => {}
                }
                ensure!(answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
                Ok(())
            }
        }
    }
}

/// What has Redis publish a text as a message to clients.
fn command(channel: &str, text: &str) -> String {
    let message = json!({ "text": text }).to_string();
    let parts = ["PUBLISH", channel, &message].map(|part| format!("${}\r\n{part}\r\n", part.len()));
    format!("*3\r\n{}", parts.concat())
}
