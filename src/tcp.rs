//! The socket options of every long-lived connection, whichever side it is to.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Sets what every long-lived connection of the proxy needs; `keepalive` is the time for which a peer
/// may not acknowledge anything, neither sent bytes nor probes; zero sets nothing of it.
///
/// Linux ends an idle connection as soon as `keepalive` has passed since the last that was heard and
/// one probe is unanswered. Were the first sent so late, a single packet that is lost would end a
/// connection that is well, and of many that are probed at the same moment some packets are. So
/// probes begin at half the time, and four of them go out before it is over.
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
    let probes = TcpKeepalive::new().with_time(whole(keepalive / 2));
    socket.set_tcp_keepalive(&probes.with_interval(whole(keepalive / 8)))?;
    socket.set_tcp_user_timeout(Some(keepalive))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn several_probes_may_be_lost_before_a_peer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (seconds, probes) in [(5, 3), (9, 4), (30, 4), (60, 4), (9 * 3600, 4)] {
            let keepalive = Duration::from_secs(seconds);
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            prepare(&stream, keepalive).unwrap();
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(keepalive));
            let first = socket.tcp_keepalive_time().unwrap();
            let next = socket.tcp_keepalive_interval().unwrap();
            assert!(first + next * (probes - 1) < keepalive, "{first:?} {next:?} {keepalive:?}");
        }
    }
}
