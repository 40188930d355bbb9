//! The echo server.

use std::io::{self, Write};
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::frame::{self, READ_BYTES};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const LARGEST_HEAD: usize = 16 * 1024;

/// Echoes until the process is killed.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A client that is gone is what ends each of these.
            let _ = connection(stream).await;
        });
    }
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = shake_hands(&mut stream).await?;
    let mut answer = Vec::new();
    loop {
        let (taken, closed) = frame::echo(&bytes, &mut answer);
        bytes.drain(..taken);
        stream.write_all(&answer).await?;
        answer.clear();
        if closed {
            return stream.shutdown().await;
        }
        bytes.reserve(READ_BYTES);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

/// Answers the handshake; what came behind it is returned.
async fn shake_hands(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let head = Head::read(stream).await?;
    let Some(key) = head.field("sec-websocket-key") else {
        // A health check.
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    stream.write_all(switching(key).as_bytes()).await?;
    Ok(head.rest)
}

/// The answer to a handshake with this key.
pub(crate) fn switching(key: &str) -> String {
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// The head of a request.
pub(crate) struct Head {
    text: String,
    /// What came behind it.
    pub(crate) rest: Vec<u8>,
}

impl Head {
    /// Reads one.
    pub(crate) async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(READ_BYTES);
        loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                return Ok(Self { text: String::from_utf8_lossy(&bytes).into_owned(), rest });
            }
            if bytes.len() > LARGEST_HEAD || stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// The value of a field, whose name is given in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}
