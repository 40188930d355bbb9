//! The socket options of every long-lived connection, whichever side it is to.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Sets what every long-lived connection of the proxy needs; `keepalive` is the idle time before
/// keep-alive probes and the time that sent bytes may stay unacknowledged; zero sets neither.
///
/// On a listening socket it is set for all connections that are accepted from it: Linux has them
/// inherit these options.
///
/// # Errors
///
/// What the system says to a socket option.
pub(crate) fn prepare(socket: &impl AsFd, keepalive: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    if keepalive.is_zero() {
        return Ok(());
    }
    // Linux counts these in whole seconds, and takes 0 for an error.
    let whole = |duration: Duration| duration.max(Duration::from_secs(1));
    let probes = TcpKeepalive::new().with_time(whole(keepalive));
    socket.set_tcp_keepalive(&probes.with_interval(whole(keepalive / 3)))?;
    socket.set_tcp_user_timeout(Some(keepalive))
}
