//! What a message to many costs at the least: each connection is sent the frame, one after the other, and
//! nothing else is done with it.
//!
//! No room, no registry, no relay, no queue, one thread: whatever serves a fan-out with one write for
//! each member can't be cheaper than this on the same machine.

use std::io::{self, Write};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::echo::{Head, switching};
use crate::frame;

/// Whatever shakes hands is a member, and each line of a POST goes to all of them, until the process is
/// killed.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let mut members = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let head = Head::read(&mut stream).await?;
        match head.field("sec-websocket-key") {
            Some(key) => {
                stream.write_all(switching(key).as_bytes()).await?;
                members.push(stream);
            }
            None => publish(stream, &head, &mut members).await?,
        }
    }
}

async fn publish(
    mut stream: TcpStream,
    head: &Head,
    members: &mut [TcpStream],
) -> anyhow::Result<()> {
    let mut body = head.rest.clone();
    let length = head.field("content-length").unwrap_or("0").parse()?;
    while body.len() < length {
        anyhow::ensure!(stream.read_buf(&mut body).await? > 0, "a POST ends in its body");
    }
    for line in String::from_utf8_lossy(&body).lines() {
        let frame = frame::unmasked(line);
        for member in &mut *members {
            member.write_all(&frame).await?;
        }
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
    Ok(())
}
