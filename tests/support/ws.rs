//! A WebSocket client that writes and reads frames as they are on the wire.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};

use super::http::{self, Answer};
use super::{connect, send};

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What answers to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub rsv: u8,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin: true, rsv: 0, opcode, payload: payload.into() }
    }

    pub fn text(&self) -> String {
        assert_eq!(self.opcode, TEXT, "{self:?}");
        String::from_utf8(self.payload.clone()).unwrap()
    }

    /// The code and reason of a Close.
    pub fn close(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        let code = u16::from_be_bytes([self.payload[0], self.payload[1]]);
        (code, String::from_utf8(self.payload[2..].to_vec()).unwrap())
    }

    pub fn encode(&self, mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode];
        let bit = u8::from(mask.is_some()) << 7;
        match self.payload.len() {
            length @ ..126 => bytes.push(bit | u8::try_from(length).unwrap()),
            length @ 126..65536 => {
                bytes.push(bit | 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        let mask_bytes = mask.unwrap_or_default();
        bytes.extend(mask.iter().flatten());
        let masked = self.payload.iter().zip(mask_bytes.iter().cycle());
        bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

/// A masked frame of a client.
pub fn masked(opcode: u8, payload: impl Into<Vec<u8>>) -> Vec<u8> {
    Frame::new(opcode, payload).encode(Some([7, 77, 177, 27]))
}

/// An unmasked frame of a server.
pub fn unmasked(opcode: u8, payload: impl Into<Vec<u8>>) -> Vec<u8> {
    Frame::new(opcode, payload).encode(None)
}

/// A Close frame's payload.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// The head of a handshake.
pub fn handshake_head(path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

/// One end of an open WebSocket, or of one that was refused.
#[derive(Debug)]
pub struct Ws {
    pub stream: TcpStream,
    pub answer: Answer,
}

/// Asks for a WebSocket and reads the answer, whatever it is.
#[track_caller]
pub fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Ws {
    let stream = connect(address);
    send(&stream, handshake_head(path, headers).as_bytes());
    let answer = http::read_answer(&stream, false);
    Ws { stream, answer }
}

/// Opens a WebSocket.
#[track_caller]
pub fn open(address: SocketAddr, path: &str) -> Ws {
    let ws = ask(address, path, &[]);
    assert_eq!(ws.answer.status, 101, "{}{}", ws.answer.head, ws.answer.text());
    ws
}

impl Ws {
    pub fn send(&self, opcode: u8, payload: impl Into<Vec<u8>>) {
        send(&self.stream, &masked(opcode, payload));
    }

    pub fn send_close(&self, code: u16, reason: &str) {
        self.send(CLOSE, close_payload(code, reason));
    }

    /// The next frame.
    #[track_caller]
    pub fn read(&self) -> Frame {
        read_frame(&self.stream).unwrap_or_else(|error| panic!("no frame: {error}"))
    }

    /// The next frame, or the error that came instead.
    pub fn try_read(&self) -> io::Result<Frame> {
        read_frame(&self.stream)
    }

    #[track_caller]
    pub fn expect_text(&self, text: &str) {
        assert_eq!(self.read().text(), text);
    }

    #[track_caller]
    pub fn expect_close(&self, code: u16) {
        assert_eq!(self.read().close().0, code);
    }

    /// Answers a Close and expects the end of the stream.
    #[track_caller]
    pub fn answer_close(&self, code: u16) {
        self.expect_close(code);
        self.send_close(code, "");
        self.expect_end();
    }

    /// Reads what was queued before it was closed as one that reads too slowly: the same message
    /// again and again. Tells how many came.
    #[track_caller]
    pub fn read_to_slow_close(&self, message: &Frame) -> usize {
        for came in 0.. {
            let frame = self.read();
            if frame.opcode == CLOSE {
                assert_eq!(frame.close().0, 1013);
                self.send_close(1013, "");
                self.expect_end();
                return came;
            }
            assert_eq!(frame, *message);
        }
        unreachable!()
    }

    /// Ends the connection, as a client does.
    #[track_caller]
    pub fn leave(&self) {
        self.send_close(1000, "");
        self.expect_close(1000);
        self.expect_end();
    }

    /// Expects that nothing more comes, but the end.
    #[track_caller]
    pub fn expect_end(&self) {
        let rest = super::read_to_end(&self.stream);
        assert!(rest.is_empty(), "{} more bytes: {rest:02x?}", rest.len());
    }
}

/// A message of three fragments with a ping in it, of a size that fits no read.
pub fn fragmented(number: usize) -> Vec<u8> {
    let piece = vec![u8::try_from(number % 251).unwrap(); 700 + number % 3000];
    let fragment = |opcode, fin| Frame { fin, ..Frame::new(opcode, piece.clone()) };
    let frames = [
        fragment(BINARY, false).encode(None),
        unmasked(PING, "in a message"),
        fragment(0, false).encode(None),
        fragment(0, true).encode(None),
    ];
    frames.concat()
}

/// Reads one frame, unmasked.
pub fn read_frame(mut stream: impl Read) -> io::Result<Frame> {
    let mut start = [0; 2];
    stream.read_exact(&mut start)?;
    let length = match start[1] & 0x7f {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            usize::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            usize::try_from(u64::from_be_bytes(length)).unwrap()
        }
        length => usize::from(length),
    };
    let mut mask = [0; 4];
    if start[1] & 0x80 != 0 {
        stream.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    let (fin, rsv, opcode) = (start[0] & 0x80 != 0, start[0] >> 4 & 7, start[0] & 15);
    Ok(Frame { fin, rsv, opcode, payload })
}
