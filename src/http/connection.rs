//! A client connection, from its socket to the end of its last answer, or to its tunnel.
//!
//! What stands before HTTP comes first: for whom the peer speaks (PROXY protocol), then TLS. Then
//! hyper is given the [`Gate`] before the socket, and each request to [`Context::answer`]. If one of
//! them has become a tunnel, the socket is taken back from hyper, with what was read ahead, and
//! given to the tunnel; else it is closed in order.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing::debug;

use super::gate::{Gate, GateLimits, Turn};
use super::tunnel::Opened;
use super::{Accepted, Context, headers};
use crate::listen::tls::ServerTls;
use crate::listen::{self, IntroductionError, ListenerSettings, ProxyProtocol, Stream};

/// The most header lines that hyper takes unless it is told otherwise.
const HEADERS: usize = 100;

impl Context {
    /// Serves a client connection in a task of its own, to its end.
    pub fn serve(self: &Rc<Self>, stream: TcpStream, accepted: Accepted) {
        let context = Rc::clone(self);
        if awaits_proxy_header(&accepted.listener.settings, accepted.peer.ip()) {
            return self.tasks.spawn(context.introduced(stream, accepted));
        }
        self.tasks.spawn(context.secured(stream, accepted));
    }

    /// Serves a connection behind the TLS handshake, where the listener has one.
    async fn secured(self: Rc<Self>, stream: TcpStream, accepted: Accepted) {
        let secured = match &accepted.listener.tls {
            None => Some(Stream::Tcp(stream)),
            // Boxed: the buffers of a handshake are none of a connection's.
            Some(tls) => Box::pin(self.secure(tls, stream, &accepted)).await,
        };
        if let Some(stream) = secured {
            self.connection(stream, Rc::new(accepted)).await;
        }
    }

    /// Makes the TLS handshake; `None` if that failed.
    async fn secure(
        &self,
        tls: &ServerTls,
        stream: TcpStream,
        accepted: &Accepted,
    ) -> Option<Stream> {
        let limit = accepted.listener.settings.tls_timeout;
        let secured = tokio::select! {
            secured = self.handshakes.accept(tls, stream, limit) => secured,
            () = self.tasks.stopping() => return None,
        };
        secured
            .inspect_err(|refused| {
                if let Some(reason) = refused.label() {
                    self.shared.metrics.refuse("", reason);
                }
                let cause = std::error::Error::source(refused).map(ToString::to_string);
                debug!(peer = %accepted.peer, cause, "{refused}");
            })
            .ok()
    }

    /// Serves a connection whose peer says first for whom it speaks. From then on that is its peer.
    async fn introduced(self: Rc<Self>, mut stream: TcpStream, mut accepted: Accepted) {
        let listener = Arc::clone(&accepted.listener);
        let limit = listener.settings.header_timeout;
        let introduced = tokio::select! {
            introduced = listen::introduced(&mut stream, limit) => introduced,
            () = self.tasks.stopping() => return,
        };
        let metrics = &self.shared.metrics;
        match introduced {
            Ok(client) => accepted.peer = client.unwrap_or(accepted.peer),
            Err(IntroductionError::Nothing) => return,
            Err(error) => {
                metrics.refuse("", "proxy_header");
                return debug!(peer = %accepted.peer, %error, "no PROXY header");
            }
        }
        if let Err(over) = listener.limits.name(&mut accepted.admission, accepted.peer.ip()) {
            return metrics.refuse("", over.label());
        }
        self.secured(stream, accepted).await;
    }

    async fn connection(self: Rc<Self>, stream: Stream, accepted: Rc<Accepted>) {
        let turn = Turn::default();
        let settings = &accepted.listener.settings;
        let limits = GateLimits::from(settings);
        let metrics = Arc::clone(&self.shared.metrics);
        let gate = Gate::new(stream, limits, turn.clone(), metrics);
        let mut http = hyper::server::conn::http1::Builder::new();
        // The gate is the limit; hyper's own must not be lower. It takes 8 KiB at the least.
        http.max_buf_size((settings.head_bytes * 2).max(16 * 1024));
        if settings.headers > HEADERS {
            // With a number of its own hyper fills its tables of headers before each head.
            http.max_headers(settings.headers);
        }
        let stopping = self.tasks.stopping();
        let opened = Opened::default();
        let service =
            service_fn(|request| Box::pin(self.answer(&accepted, &turn, &opened, request)));
        let mut connection = http.serve_connection(TokioIo::new(gate), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(ended),
            () = stopping => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
        };
        let tunnel = opened.take();
        if let Err(error) = ended {
            if let Some(tunnel) = tunnel {
                tunnel.give_up();
            }
            return debug!(peer = %accepted.peer, %error, "a client connection ended early");
        }
        let (mut gate, read_ahead) = {
            let parts = connection.into_parts();
            (parts.io.into_inner(), parts.read_buf)
        };
        match tunnel {
            Some(tunnel) => {
                let (stream, behind) = gate.into_parts();
                // hyper took from the gate what came first.
                tunnel.begin(stream, [&read_ahead[..], &behind].concat());
            }
            // An error: the client is gone already.
            None => drop(gate.shutdown().await),
        }
    }
}

/// Whether a connection of `peer` begins with a PROXY header.
pub fn awaits_proxy_header(settings: &ListenerSettings, peer: IpAddr) -> bool {
    settings.proxy_protocol == ProxyProtocol::Accept && headers::is_trusted(peer, &settings.trusted)
}
