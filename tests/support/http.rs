//! A plain HTTP client over a raw socket.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};

use super::{connect, send};

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{}:", name.to_ascii_lowercase());
        let line = self.head.lines().find(|line| line.to_ascii_lowercase().starts_with(&prefix))?;
        Some(line[prefix.len()..].trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GETs a path on a connection of its own.
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, &[], b"")
}

/// Sends a request on a connection of its own, with a `Host` and `Connection: close`.
#[track_caller]
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let stream = connect(address);
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    send(&stream, head.as_bytes());
    send(&stream, body);
    read_answer(&stream, method == "HEAD")
}

/// Reads a head: up to and with its empty line. Not a byte more.
#[track_caller]
pub fn read_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            ended => panic!("{ended:?} in a head: {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).unwrap()
}

/// The status in a head.
pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Reads one answer; interim ones are skipped.
#[track_caller]
pub fn read_answer(stream: &TcpStream, of_head: bool) -> Answer {
    loop {
        let head = read_head(stream);
        let status = status(&head);
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        let mut answer = Answer { status, head, body: Vec::new() };
        if !of_head && ![101, 204, 304].contains(&status) {
            answer.body = read_body(stream, &answer);
        }
        return answer;
    }
}

fn read_body(mut stream: &TcpStream, answer: &Answer) -> Vec<u8> {
    if answer.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        return read_chunks(stream);
    }
    match answer.header("content-length") {
        Some(length) => {
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            body
        }
        None => super::read_to_end(stream),
    }
}

fn read_chunks(stream: &TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let chunk = read_chunk(stream);
        if chunk.is_empty() {
            read_trailers(stream);
            return body;
        }
        body.extend(chunk);
    }
}

/// One chunk as it goes over the wire.
pub fn chunk(payload: &str) -> Vec<u8> {
    format!("{:x}\r\n{payload}\r\n", payload.len()).into_bytes()
}

/// Reads one chunk; empty: the last, behind which come the trailers.
#[track_caller]
pub fn read_chunk(mut stream: &TcpStream) -> Vec<u8> {
    let size = usize::from_str_radix(&read_line(stream), 16).unwrap();
    let mut chunk = vec![0; size];
    stream.read_exact(&mut chunk).unwrap();
    if size > 0 {
        assert_eq!(read_line(stream), "");
    }
    chunk
}

/// Reads trailers and the empty line that ends a message.
pub fn read_trailers(stream: &TcpStream) -> Vec<String> {
    std::iter::repeat_with(|| read_line(stream)).take_while(|line| !line.is_empty()).collect()
}

/// Reads exactly so many bytes, as text.
#[track_caller]
pub fn read_text(mut stream: &TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The value of a header in a head; of several the first.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    headers(head, name).first().copied()
}

/// The values of all header lines of that name.
pub fn headers<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let named = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.trim()).collect()
}

/// Reads a line, without its end.
pub fn read_line(mut stream: &TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}
