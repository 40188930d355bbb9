//! Binds listeners and takes connections from them.
//!
//! One listening socket per listener, shared by all workers: each worker waits on a duplicate of
//! it, and the kernel's one queue outlives any of them. A listener whose settings change is another
//! [`Listener`] on the same socket. Who accepts a connection is chance; a
//! worker that then has more than its share passes it on to the least loaded before anything is
//! read from it, so that live connections stay balanced, also when many end on one worker.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};

use super::tls::ServerTls;
use super::{Limits, ListenerSettings};

/// Connections that the kernel may hold for us; its own `somaxconn` may be lower.
const BACKLOG: i32 = 8192;

/// A listener that is bound, shared by all workers.
#[derive(Debug)]
pub struct Listener {
    /// What the config says of it.
    pub settings: ListenerSettings,
    /// Where it really listens: with the port that it got.
    pub address: SocketAddr,
    /// How it is called in logs and metrics: its name, or its address where it has none.
    pub label: Arc<str>,
    /// Who is connected through it.
    pub limits: Limits,
    /// What TLS is made with; `None`: plain TCP.
    pub tls: Option<ServerTls>,
    /// Shared by all that have followed each other on it. Gone once it is [closed](Self::close):
    /// live connections keep the rest.
    socket: Arc<Mutex<Option<TcpListener>>>,
}

/// A listener can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: can't listen on {address}")]
pub struct ListenError {
    /// Its name or address.
    pub listener: String,
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

impl ListenError {
    /// What keeps the listener of these settings from being opened.
    pub fn new(settings: &ListenerSettings, source: io::Error) -> Self {
        let address = settings.bind;
        let listener = settings.name.clone().unwrap_or_else(|| address.to_string());
        Self { listener, address, source }
    }
}

impl Listener {
    /// Binds the listener's address.
    ///
    /// # Errors
    ///
    /// The address is taken, not this machine's, or not allowed.
    pub fn bind(settings: ListenerSettings) -> io::Result<Self> {
        let certificates = &settings.certificates;
        let tls = (!certificates.is_empty()).then(|| ServerTls::new(certificates));
        let tls = tls.transpose().map_err(io::Error::other)?;
        let socket =
            Socket::new(Domain::for_address(settings.bind), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if settings.bind.is_ipv6() {
            // An address means itself: "[::]" takes IPv4 too only where it is not bound as well.
            socket.set_only_v6(!settings.bind.ip().is_unspecified())?;
        }
        crate::tcp::prepare(&socket, settings.keepalive)?;
        socket.set_nonblocking(true)?;
        socket.bind(&settings.bind.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from(socket);
        let address = socket.local_addr()?;
        let limits = Limits::new(settings.connections, settings.connections_per_ip);
        let socket = Arc::new(Mutex::new(Some(socket)));
        Ok(Self { label: label(&settings, address), settings, address, limits, tls, socket })
    }

    /// A listener with other settings on the same socket. It has taken all that count here.
    ///
    /// # Errors
    ///
    /// TLS that was not there before can't be set up.
    pub fn renewed(&self, settings: ListenerSettings) -> io::Result<Self> {
        let certificates = &settings.certificates;
        let tls = match &self.tls {
            _ if certificates.is_empty() => None,
            Some(tls) => Some(tls.renewed(certificates)),
            None => Some(ServerTls::new(certificates).map_err(io::Error::other)?),
        };
        Ok(Self {
            label: label(&settings, self.address),
            address: self.address,
            limits: self.limits.renewed(settings.connections, settings.connections_per_ip),
            tls,
            socket: Arc::clone(&self.socket),
            settings,
        })
    }

    /// This listener, where all that count at one that was closed count on.
    #[must_use]
    pub fn instead_of(self, closed: &Self) -> Self {
        let ListenerSettings { connections, connections_per_ip, .. } = self.settings;
        Self { limits: closed.limits.renewed(connections, connections_per_ip), ..self }
    }

    /// Has connections that are accepted from now on have the keep-alive of these settings: for one that
    /// was [renewed](Self::renewed), when it takes the place of the other on their socket.
    ///
    /// # Errors
    ///
    /// What the system says to a socket option.
    pub fn prepare(&self) -> io::Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket
            .as_ref()
            .map_or(Ok(()), |socket| crate::tcp::prepare(socket, self.settings.keepalive))
    }

    /// Another handle of the one listening socket, for a worker to wait on. It does not block.
    ///
    /// # Errors
    ///
    /// No descriptor is left, or it is closed.
    pub fn handle(&self) -> io::Result<TcpListener> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().ok_or(io::ErrorKind::NotConnected)?.try_clone()
    }

    /// Lets go of the socket. The last of its handles to be dropped closes it; who connects then
    /// is refused.
    pub fn close(&self) {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// How a listener is called.
fn label(settings: &ListenerSettings, address: SocketAddr) -> Arc<str> {
    settings.name.clone().unwrap_or_else(|| address.to_string()).into()
}

/// The address of a peer: one that is IPv4 within IPv6 counts as IPv4.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The live client connections of each worker, by its index.
#[derive(Debug)]
pub struct Loads(Box<[AtomicUsize]>);

impl Loads {
    /// No connections on any of so many workers.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicUsize::new(0)).collect())
    }

    /// Which worker a connection that `accepter` has taken belongs to.
    ///
    /// Itself, unless it has more than the least loaded by over a part in 32: with few connections
    /// the balance is exact, with many a difference that does not matter saves the way.
    pub fn choose(&self, accepter: usize) -> usize {
        let mine = self.of(accepter);
        let (least, load) = self.least();
        if mine > load + load / 32 { least } else { accepter }
    }

    /// Counts a connection of a worker until the guard is dropped.
    pub fn hold(self: &Arc<Self>, worker: usize) -> Load {
        self.0[worker].fetch_add(1, Ordering::Relaxed);
        Load { loads: Arc::clone(self), worker }
    }

    /// The connections of a worker.
    pub fn of(&self, worker: usize) -> usize {
        self.0[worker].load(Ordering::Relaxed)
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// The least loaded worker and its load.
    pub fn least(&self) -> (usize, usize) {
        let loads = (0..self.workers()).map(|worker| (self.of(worker), worker));
        loads.min().map_or((0, 0), |(load, worker)| (worker, load))
    }

    /// The load of the most loaded worker.
    pub fn most(&self) -> usize {
        (0..self.workers()).map(|worker| self.of(worker)).max().unwrap_or(0)
    }
}

/// A client connection that counts on its worker; dropping it takes it off.
#[derive(Debug)]
pub struct Load {
    loads: Arc<Loads>,
    worker: usize,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loads.0[self.worker].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;

    use super::super::ProxyProtocol;
    use super::*;

    fn settings(bind: &str, keepalive: Duration) -> ListenerSettings {
        let (soon, bind) = (Duration::from_secs(10), bind.parse().unwrap());
        ListenerSettings {
            name: None,
            bind,
            proxy_protocol: ProxyProtocol::Off,
            certificates: Vec::new(),
            tls_timeout: soon,
            trusted: Vec::new(),
            header_timeout: soon,
            idle_timeout: soon,
            head_bytes: 1024,
            headers: 10,
            connections: 0,
            connections_per_ip: 0,
            keepalive,
        }
    }

    #[tokio::test]
    async fn who_is_accepted_has_the_options_of_the_listener() {
        let keepalive = Duration::from_secs(42);
        for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            for keepalive in [keepalive, Duration::ZERO] {
                let listener = Listener::bind(settings(bind, keepalive)).unwrap();
                let mut address = listener.address;
                if address.ip().is_unspecified() {
                    address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
                }
                let handle = tokio::net::TcpListener::from_std(listener.handle().unwrap());
                let handle = handle.unwrap();
                let _client = std::net::TcpStream::connect(address).unwrap();
                let (stream, _) = handle.accept().await.unwrap();
                let socket = SockRef::from(&stream);
                assert!(socket.tcp_nodelay().unwrap(), "{bind}");
                assert_eq!(socket.keepalive().unwrap(), !keepalive.is_zero(), "{bind}");
                if !keepalive.is_zero() {
                    assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive / 2, "{bind}");
                    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(keepalive), "{bind}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_renewed_listener_has_its_own_keep_alive_once_it_takes_over() {
        let of = |seconds| settings("127.0.0.1:0", Duration::from_secs(seconds));
        let listener = Listener::bind(of(42)).unwrap();
        let renewed = listener.renewed(of(50)).unwrap();
        let handle = tokio::net::TcpListener::from_std(listener.handle().unwrap()).unwrap();
        let keepalive = async || {
            let _client = std::net::TcpStream::connect(listener.address).unwrap();
            let (stream, _) = handle.accept().await.unwrap();
            SockRef::from(&stream).tcp_user_timeout().unwrap().unwrap().as_secs()
        };
        assert_eq!(keepalive().await, 42);
        renewed.prepare().unwrap();
        assert_eq!(keepalive().await, 50);
    }

    #[test]
    fn few_connections_are_spread_exactly() {
        let loads = Arc::new(Loads::new(3));
        let held: Vec<Load> = (0..30).map(|_| loads.hold(loads.choose(0))).collect();
        assert_eq!([loads.of(0), loads.of(1), loads.of(2)], [10, 10, 10]);
        drop(held);
        assert_eq!(loads.most(), 0);
    }

    #[test]
    fn a_small_difference_among_many_is_left() {
        let loads = Arc::new(Loads::new(2));
        let _many: Vec<Load> = (0..1000).map(|_| loads.hold(1)).collect();
        let _more: Vec<Load> = (0..1030).map(|_| loads.hold(0)).collect();
        assert_eq!(loads.choose(0), 0);
        let _most: Vec<Load> = (0..2).map(|_| loads.hold(0)).collect();
        assert_eq!(loads.choose(0), 1);
    }
}
