//! Lets hyper read what the scanners took, from memory: it must see the same messages.
//!
//! hyper may refuse a message that passed here, as it does some targets; what it must not do is to
//! find another number of messages in the same bytes, or a body that ends elsewhere.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt, Empty};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::*;

/// A client that has sent all its bytes and closed its side.
struct Sent(io::Cursor<Vec<u8>>);

impl Read for Sent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = vec![0; into.remaining().min(64)];
        let read = io::Read::read(&mut self.0, &mut piece)?;
        into.put_slice(&piece[..read]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Sent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What hyper made of a stream: of each request whether its body came to its end.
fn served(stream: &[u8]) -> Vec<bool> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let seen = seen.clone();
        async move {
            let whole = request.into_body().collect().await.is_ok();
            seen.borrow_mut().push(whole);
            Ok::<_, Infallible>(http::Response::new(Empty::<&[u8]>::new()))
        }
    });
    let sent = Sent(io::Cursor::new(stream.to_vec()));
    let mut connection =
        pin!(http1::Builder::new().half_close(true).serve_connection(sent, service));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if connection.as_mut().poll(&mut context).is_ready() {
            return seen.take();
        }
    }
    panic!("hyper does not finish");
}

#[test]
fn hyper_reads_a_pipeline() {
    let stream = b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\n\
        Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nb: c\r\n\r\nGET /3 HTTP/1.1\r\n\r\n";
    assert_eq!(served(stream), [true, true, true]);
    assert_eq!(served(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na"), [false]);
    assert_eq!(served(b"nonsense\r\n\r\n"), [false; 0]);
}

proptest! {
    #[test]
    fn hyper_ends_each_message_where_the_scanners_do(stream in stream()) {
        let found = split(&stream, &[stream.len()]);
        let mut rest = &stream[..];
        let mut taken = true;
        for message in &found.messages {
            let (bytes, after) = rest.split_at(message.head + message.body);
            let seen = served(bytes);
            prop_assert!(seen == [true] || seen.is_empty(), "{seen:?}");
            taken &= !seen.is_empty();
            rest = after;
        }
        // All at once, hyper must not see more, and sees as many if it took each of them.
        let all = served(&stream[..stream.len() - rest.len()]);
        prop_assert!(all.iter().all(|&whole| whole));
        prop_assert!(all.len() <= found.messages.len());
        prop_assert!(!taken || all.len() == found.messages.len());
    }
}
