//! A backend in this process that says its id, and whose health and door a test can shut.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use steadfast::pool::ring::Ring;

use super::http::read_head;
use super::scripted::switching;
use super::ws::{self, CLOSE, TEXT, Ws, read_frame, unmasked};
use super::{DEADLINE, Proxy};

/// Opens Engine.IO sessions, as far as a proxy can see: the id of each begins with its own and a dash.
///
/// Answers `/health` with 200 or 503, opens every WebSocket, greets with its id and echoes, and
/// answers anything else with its id.
pub struct Named {
    pub id: &'static str,
    pub address: SocketAddr,
    state: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    id: &'static str,
    healthy: AtomicBool,
    open: AtomicBool,
    delay_millis: AtomicU64,
    handshakes: AtomicUsize,
    checks: AtomicUsize,
    sessions: AtomicUsize,
    /// The WebSockets that are open, with their rooms as their handshakes name them.
    open_now: Mutex<Vec<(String, TcpStream)>>,
}

impl Named {
    pub fn start(id: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Shared {
            id,
            healthy: AtomicBool::new(true),
            open: AtomicBool::new(true),
            delay_millis: AtomicU64::new(0),
            handshakes: AtomicUsize::new(0),
            checks: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            open_now: Mutex::default(),
        });
        let accepting = Mutex::new(Some(accept(listener, Arc::clone(&state))));
        Self { id, address, state, accepting }
    }

    /// What it answers to `/health`.
    pub fn set_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, Ordering::SeqCst);
    }

    /// How long a handshake waits for its answer.
    pub fn set_delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap();
        self.state.delay_millis.store(millis, Ordering::SeqCst);
    }

    /// Refuses new connections from now on; those that are open live.
    pub fn shut_door(&self) {
        let Some(accepting) = self.accepting.lock().unwrap().take() else { return };
        self.state.open.store(false, Ordering::SeqCst);
        // Wakes it from its accept.
        drop(TcpStream::connect(self.address));
        accepting.join().unwrap();
    }

    /// Dies: refuses new connections, and all that are open end.
    pub fn die(&self) {
        self.shut_door();
        for (_, stream) in &*self.state.open_now.lock().unwrap() {
            // The client may have been quicker.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The rooms that have a WebSocket here, once for each.
    pub fn rooms(&self) -> Vec<String> {
        self.state.open_now.lock().unwrap().iter().map(|(room, _)| room.clone()).collect()
    }

    /// Accepts again, at the same address.
    pub fn open_door(&self) {
        let mut accepting = self.accepting.lock().unwrap();
        if accepting.is_none() {
            self.state.open.store(true, Ordering::SeqCst);
            let listener = TcpListener::bind(self.address).unwrap();
            *accepting = Some(accept(listener, Arc::clone(&self.state)));
        }
    }

    /// How many handshakes it has had.
    pub fn handshakes(&self) -> usize {
        self.state.handshakes.load(Ordering::SeqCst)
    }

    /// How many health checks it has had.
    pub fn checks(&self) -> usize {
        self.state.checks.load(Ordering::SeqCst)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.shut_door();
    }
}

/// `(id, address)` of each, for [`config`](super::config).
pub fn addresses(backends: &[Named]) -> Vec<(&str, SocketAddr)> {
    backends.iter().map(|backend| (backend.id, backend.address)).collect()
}

fn accept(listener: TcpListener, state: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if !state.open.load(Ordering::SeqCst) {
                // A process that another test is just starting may share the socket for a moment.
                socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
                return;
            }
            let Ok(stream) = stream else { continue };
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(&stream, &state));
        }
    })
}

fn serve(stream: &TcpStream, state: &Shared) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    // A connection that ends before its head was only to see whether it could be opened.
    if stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
        let head = read_head(stream).to_ascii_lowercase();
        if head.contains("upgrade: websocket") {
            state.handshakes.fetch_add(1, Ordering::SeqCst);
            echo(stream, state, &head);
        } else {
            answer(stream, state, &head);
        }
    }
}

fn answer(mut stream: &TcpStream, state: &Shared, head: &str) {
    use std::io::Write;
    let is_check = head.starts_with("get /health");
    state.checks.fetch_add(usize::from(is_check), Ordering::SeqCst);
    let well = !is_check || state.healthy.load(Ordering::SeqCst);
    let status = if well { "200 OK" } else { "503 Service Unavailable" };
    let body = greeting(state, head);
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nSet-Cookie: own=1\r\nConnection: close\r\n\r\n{body}"
    );
    // Who asked may have gone.
    let _ = stream.write_all(answer.as_bytes());
}

/// Its id, or where a session is asked for, the packet that opens one.
fn greeting(state: &Shared, head: &str) -> String {
    let target = head.lines().next().unwrap_or_default();
    if !target.contains("eio=4") || target.contains("sid=") {
        return state.id.to_owned();
    }
    let number = state.sessions.fetch_add(1, Ordering::SeqCst);
    let id = state.id;
    format!(
        r#"0{{"sid":"{id}-{number}","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000}}"#
    )
}

fn echo(mut stream: &TcpStream, state: &Shared, head: &str) {
    use std::io::Write;
    std::thread::sleep(Duration::from_millis(state.delay_millis.load(Ordering::SeqCst)));
    if !state.open.load(Ordering::SeqCst) {
        return;
    }
    let greeting = [switching("").as_bytes(), &unmasked(TEXT, greeting(state, head))].concat();
    if stream.write_all(&greeting).is_err() {
        return;
    }
    let room = head.split_once("room=").map_or("", |(_, rest)| rest);
    let room = room.split([' ', '&']).next().unwrap_or_default().to_owned();
    let port = stream.peer_addr().map_or(0, |peer| peer.port());
    state.open_now.lock().unwrap().push((room, stream.try_clone().unwrap()));
    while let Ok(frame) = read_frame(stream) {
        let is_close = frame.opcode == CLOSE;
        if stream.write_all(&frame.encode(None)).is_err() || is_close {
            break;
        }
    }
    let is_other = |stream: &TcpStream| stream.peer_addr().is_ok_and(|peer| peer.port() != port);
    state.open_now.lock().unwrap().retain(|(_, stream)| is_other(stream));
}

/// A connection, and the backend that greeted it.
#[track_caller]
pub fn join(proxy: &Proxy, room: &str) -> (Ws, String) {
    let client = ws::open(proxy.address, &format!("/?room={room}"));
    let greeting = client.read().text();
    (client, greeting)
}

/// So many rooms whose home is `home`, on the ring of these backends.
pub fn rooms_of<'a>(ids: &'a [&str], home: &'a str) -> impl Iterator<Item = String> + 'a {
    let ring = Ring::new(ids.iter().map(|id| (*id, NonZeroU32::MIN)));
    let rooms = (0..).map(|number| format!("room-{number}"));
    rooms.filter(move |room| ids[ring.owner(room.as_bytes()).unwrap()] == home)
}
