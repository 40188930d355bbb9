//! A health check by WebSocket: what a client would do, from the handshake to the Close.
//!
//! The 101 is judged as that of a client's handshake is. Then one ping goes out, and its pong must
//! come back, which shows that somebody reads frames there and not only heads; what the backend
//! says meanwhile (greetings, pings of its own) is counted off, up to a bound. At last the Close:
//! the backend answers it or ends.
//!
//! Knows nothing of time: who asks sets a limit for all of it. Cancel safe: dropped, the
//! connection ends.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::health::{Answer, CheckError, says_drain};
use crate::ws::handshake;

/// How much a backend may say before it answers.
const MOST_BYTES: u64 = 64 * 1024;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What the ping carries.
const PAYLOAD: &[u8] = b"steadfast";
/// 1000, a normal end.
const NORMAL: [u8; 2] = [0x03, 0xe8];

/// Opens a WebSocket at `path` over a fresh connection, pings and closes it.
///
/// `host` is the backend's address; `head_bytes` bounds the head of its answer.
///
/// # Errors
///
/// Whatever of it fails; silence is none, it lasts.
pub(super) async fn check<S>(
    stream: S,
    path: &str,
    host: &str,
    user_agent: &'static str,
    head_bytes: usize,
) -> Result<Answer, CheckError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request(path, host, user_agent).map_err(CheckError::Path)?;
    let asked = request.headers().clone();
    let mut http = http1::Builder::new();
    http.max_buf_size(head_bytes);
    let (mut sender, connection) =
        http.handshake(TokioIo::new(stream)).await.map_err(CheckError::Broken)?;
    let open = async move {
        let mut response = sender.send_request(request).await.map_err(CheckError::Broken)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (status, drains) = (response.status(), says_drain(response.headers()));
            return Err(CheckError::Status { status, drains });
        }
        handshake::check_response(response.headers(), &asked).map_err(CheckError::Handshake)?;
        let drains = says_drain(response.headers());
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(CheckError::Broken)?;
        Ok((upgraded, drains))
    };
    let mut open = std::pin::pin!(open);
    let (upgraded, drains) = tokio::select! {
        opened = &mut open => opened?,
        // It hands the stream over, or has ended: either way there is an answer.
        _ = connection.with_upgrades() => open.await?,
    };
    let mut stream = TokioIo::new(upgraded);
    talk(&mut stream).await.map_err(CheckError::Talk)?;
    Ok(Answer { drains: Some(drains) })
}

fn request(
    path: &str,
    host: &str,
    user_agent: &'static str,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let key = STANDARD.encode(crate::random::bytes::<16>());
    Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, user_agent)
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(UPGRADE, HeaderValue::from_static("websocket"))
        .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
        .header(SEC_WEBSOCKET_KEY, key)
        .body(Empty::new())
}

/// Pings, waits for the pong, closes, waits for the end.
async fn talk(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut left = MOST_BYTES;
    say(stream, PING, PAYLOAD).await?;
    loop {
        match next_frame(stream, &mut left).await? {
            (PONG, payload) if payload == PAYLOAD => break,
            (CLOSE, _) => return Err(invalid("it closes before its pong")),
            _ => {}
        }
    }
    say(stream, CLOSE, &NORMAL).await?;
    loop {
        match next_frame(stream, &mut left).await {
            Ok((CLOSE, _)) => return Ok(()),
            Ok(_) => {}
            // Some end the stream where others say Close; both have understood.
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Writes a frame; TLS has passed it on only once it is flushed.
async fn say(stream: &mut (impl AsyncWrite + Unpin), opcode: u8, payload: &[u8]) -> io::Result<()> {
    stream.write_all(&frame(opcode, payload)).await?;
    stream.flush().await
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A frame as a client sends it, masked (RFC 6455 section 5.3).
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = crate::random::bytes::<4>();
    let length = u8::try_from(payload.len()).unwrap_or(0);
    debug_assert!(length < 126, "control frames are short");
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [0x80 | opcode, 0x80 | length].into_iter().chain(mask).chain(masked).collect()
}

/// Reads one frame; together they may be no longer than `left`.
async fn next_frame(
    stream: &mut (impl AsyncRead + Unpin),
    left: &mut u64,
) -> io::Result<(u8, Vec<u8>)> {
    let [first, second] = stream.read_u16().await?.to_be_bytes();
    let length = match second {
        length @ ..126 => u64::from(length),
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        _ => return Err(invalid("a server does not mask its frames")),
    };
    let rest = left.checked_sub(2).and_then(|left| left.checked_sub(length));
    *left = rest.ok_or_else(|| invalid("it says too much"))?;
    let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut payload).await?;
    Ok((first & 0x0f, payload))
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// Has a backend answer the handshake properly and then go on as `then` says.
    async fn checked<F: Future<Output = ()>>(
        then: impl FnOnce(DuplexStream) -> F,
    ) -> Result<Answer, CheckError> {
        let (ours, mut theirs) = duplex(1 << 16);
        let serving = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                theirs.read_buf(&mut head).await.unwrap();
            }
            let head = String::from_utf8(head).unwrap();
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
            let accept = handshake::accept_for(key.unwrap().as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            theirs.write_all(answer.as_bytes()).await.unwrap();
            then(theirs).await;
        };
        let checking = check(ours, "/ws", "backend:80", "test", 16 * 1024);
        tokio::join!(checking, serving).0
    }

    /// Reads one frame of a client: its opcode and payload.
    async fn read(stream: &mut DuplexStream) -> (u8, Vec<u8>) {
        let mut start = [0; 6];
        stream.read_exact(&mut start).await.unwrap();
        let mut payload = vec![0; usize::from(start[1] & 0x7f)];
        stream.read_exact(&mut payload).await.unwrap();
        payload.iter_mut().zip(start[2..].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        (start[0] & 0x0f, payload)
    }

    async fn pong(stream: &mut DuplexStream) {
        let (opcode, payload) = read(stream).await;
        assert_eq!(opcode, PING);
        let head = [0x8a, u8::try_from(payload.len()).unwrap()];
        stream.write_all(&[&head[..], &payload].concat()).await.unwrap();
    }

    #[tokio::test]
    async fn greetings_pong_and_close_are_well() {
        let outcome = checked(async |mut stream| {
            let long = [&[0x81, 126, 0x10, 0][..], &[b'x'; 0x1000]].concat();
            stream.write_all(b"\x81\x05hello\x89\x00\x8a\x01?").await.unwrap();
            stream.write_all(&long).await.unwrap();
            pong(&mut stream).await;
            assert_eq!(read(&mut stream).await, (CLOSE, NORMAL.to_vec()));
            stream.write_all(&[0x88, 2, 0x03, 0xe8]).await.unwrap();
        });
        outcome.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_of_the_stream_answers_the_close_too() {
        let outcome = checked(async |mut stream| {
            pong(&mut stream).await;
            read(&mut stream).await;
        });
        outcome.await.unwrap();
    }

    #[tokio::test]
    async fn whatever_comes_instead_of_the_pong_has_failed() {
        for instead in [
            &b""[..],
            b"\x88\x02\x03\xe9",
            b"\x8a\x80abcd",
            b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
        ] {
            let outcome = checked(async |mut stream| {
                stream.write_all(instead).await.unwrap();
            });
            let error = outcome.await.unwrap_err();
            assert!(matches!(error, CheckError::Talk(_)), "{instead:?}: {error}");
        }
    }
}
