//! A service manager as a process sees it: the socket that it tells how it is.

use std::fmt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use super::DEADLINE;

pub struct Manager {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` is.
    pub name: String,
}

/// One message: its lines.
#[derive(Debug)]
pub struct Told(Vec<String>);

impl Manager {
    pub fn at_path(path: &Path) -> Self {
        let name = path.to_str().unwrap().to_owned();
        Self::on(UnixDatagram::bind(path).unwrap(), name)
    }

    pub fn at_abstract_name(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self::on(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn on(socket: UnixDatagram, name: String) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, name }
    }

    /// Leaves no room for another message: who tells one has to wait until this has read.
    pub fn fill(&self) {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        let address = self.socket.local_addr().unwrap();
        while sender.send_to_addr(b"X=1", &address).is_ok() {}
    }

    /// Waits for the next message.
    #[track_caller]
    pub fn hear(&self) -> Told {
        let mut message = [0; 8192];
        let read = self.socket.recv(&mut message).expect("the manager is told something");
        let text = std::str::from_utf8(&message[..read]).unwrap();
        Told(text.lines().map(str::to_owned).collect())
    }

    /// Waits for the next message that is no sign of life, and sees that it says this.
    #[track_caller]
    pub fn expect(&self, state: &str) -> Told {
        loop {
            let told = self.hear();
            if !told.says("WATCHDOG=1") {
                assert!(told.says(state), "not {state}: {told}");
                return told;
            }
        }
    }

    /// Whether nothing is told for so long.
    pub fn hears_nothing(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let nothing = self.socket.recv(&mut [0; 8192]).is_err();
        self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        nothing
    }
}

impl Told {
    pub fn says(&self, line: &str) -> bool {
        self.0.iter().any(|told| told == line)
    }

    /// What stands behind `NAME=`.
    #[track_caller]
    pub fn value(&self, name: &str) -> &str {
        let mut values =
            self.0.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values.next().unwrap_or_else(|| panic!("no {name} in {self}"))
    }
}

impl fmt::Display for Told {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0.join(" | "))
    }
}
