//! A backend that does just what a test says, with bytes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use socket2::{Domain, Socket, Type};

use super::http::read_head;
use super::ws::ACCEPT;
use super::{DEADLINE, send};

/// A listening socket whose connections go to a script, each on a thread of its own.
pub struct Scripted {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Scripted {
    /// Has `script` serve every connection.
    pub fn start(script: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                stream.set_write_timeout(Some(DEADLINE)).unwrap();
                stream.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(stream));
            }
        });
        Self { address, accepted }
    }

    /// How many connections it has had.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// One that reads a head, answers with `answer` and ends.
    pub fn answering(answer: &'static str) -> Self {
        Self::start(move |stream| {
            read_head(&stream);
            send(&stream, answer.as_bytes());
        })
    }

    /// One that hands every connection over as it comes, with nothing read.
    pub fn accepting() -> (Self, Accepted) {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        let backend = Self::start(move |stream| drop(sender.lock().unwrap().send(stream)));
        (backend, Accepted(receiver))
    }

    /// One that opens WebSockets and hands each over, with the head of its handshake.
    pub fn opening() -> (Self, Handed) {
        Self::opening_with("")
    }

    /// The same, with more lines for the 101, each with its end.
    pub fn opening_with(lines: &'static str) -> (Self, Handed) {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        let backend = Self::start(move |stream| {
            let head = read_head(&stream);
            send(&stream, switching(lines).as_bytes());
            let _ = sender.lock().unwrap().send((stream, head));
        });
        (backend, Handed(receiver))
    }
}

/// A valid 101 for [`KEY`](super::ws::KEY).
pub fn switching(lines: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{lines}\r\n"
    )
}

/// The backend's ends of WebSockets, in the order in which they were opened.
pub struct Handed(Receiver<(TcpStream, String)>);

impl Handed {
    /// The next one, and the head of its handshake.
    #[track_caller]
    pub fn next(&self) -> (TcpStream, String) {
        self.0.recv_timeout(DEADLINE).expect("no WebSocket was opened")
    }
}

/// Connections to a backend, in the order in which they came.
pub struct Accepted(Receiver<TcpStream>);

impl Accepted {
    /// The next one.
    #[track_caller]
    pub fn next(&self) -> TcpStream {
        self.0.recv_timeout(DEADLINE).expect("no connection came")
    }

    /// The next one, and the head of its first request.
    #[track_caller]
    pub fn next_request(&self) -> (TcpStream, String) {
        let stream = self.next();
        let head = read_head(&stream);
        (stream, head)
    }
}

/// An address that refuses connections: its port is taken, but nobody listens there.
pub struct Refusing {
    pub address: SocketAddr,
    _socket: Socket,
}

impl Refusing {
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { address, _socket: socket }
    }
}
