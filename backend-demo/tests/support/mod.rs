//! What makes the tests short: a demo in this process, and clients with deadlines.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]
#![expect(clippy::unwrap_used, reason = "a helper of tests, which the lint does not take for one")]

use std::net::SocketAddr;
use std::time::Duration;

use backend_demo::{Demo, Options, Publish};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::response::Parts;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Far more than anything here takes: a test that comes to it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for what should happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("did not happen in time")
}

/// Where a demo is.
#[derive(Clone, Copy)]
pub struct At(pub SocketAddr);

/// A demo that serves in this process.
pub struct Running {
    at: At,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Running {
    pub async fn start(id: &str) -> Self {
        Self::publishing(id, Publish::Own).await
    }

    pub async fn publishing(id: &str, publish: Publish) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let demo = Demo::bind(Options { listen, id: Some(id.into()), publish }).await.unwrap();
        let at = At(demo.address());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(demo.serve(async move { _ = stopped.await }));
        Self { at, stop, serving }
    }

    /// Asks it to stop; the handle ends when it has.
    pub fn stop(self) -> JoinHandle<std::io::Result<()>> {
        self.stop.send(()).unwrap();
        self.serving
    }
}

impl std::ops::Deref for Running {
    type Target = At;

    fn deref(&self) -> &At {
        &self.at
    }
}

impl At {
    pub async fn connect(&self, path: &str) -> Client {
        self.try_connect(path, &[]).await.unwrap()
    }

    pub async fn try_connect(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Client, tungstenite::Error> {
        let mut request = format!("ws://{}{path}", self.0).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(64 << 20))
            .max_frame_size(Some(64 << 20));
        let stream = TcpStream::connect(self.0).await?;
        let handshake = client_async_with_config(request, stream, Some(config));
        let (socket, answer) = soon(handshake).await?;
        Ok(Client(socket, answer.into_parts().0))
    }

    /// Gets a path without an upgrade; the status and the body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.0).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}

/// A WebSocket client, and the head of its 101.
pub struct Client(pub WebSocketStream<TcpStream>, pub Parts);

impl Client {
    pub async fn send(&mut self, message: impl Into<Message>) {
        soon(self.0.send(message.into())).await.unwrap();
    }

    pub async fn next(&mut self) -> Message {
        soon(self.0.next()).await.expect("ended").unwrap()
    }

    pub async fn text(&mut self) -> String {
        self.next().await.into_text().unwrap().to_string()
    }

    pub async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// Closes, and waits until it is out of its rooms.
    pub async fn leave(mut self) {
        soon(self.0.close(None)).await.unwrap();
        while soon(self.0.next()).await.is_some() {}
    }

    /// Reads on until the Close.
    pub async fn close_frame(&mut self) -> CloseFrame {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.expect("a Close with a code");
            }
        }
    }
}
