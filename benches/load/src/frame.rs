//! Frames (RFC 6455 section 5.2): those that the load sends have at most 125 bytes.

/// The payload of every message.
pub(crate) const PAYLOAD_BYTES: usize = 64;
/// A message of the echo server: two bytes, then the payload.
pub(crate) const ECHO_BYTES: usize = 2 + PAYLOAD_BYTES;
/// A message of a client: four more of mask.
pub(crate) const MESSAGE_BYTES: usize = 6 + PAYLOAD_BYTES;
/// Room to read into: more than ever comes at once. A read that fills its buffer would be followed
/// by another that finds nothing, and this side would cost more than what it measures.
pub(crate) const READ_BYTES: usize = 512;
/// A client's Close without a code.
pub(crate) const CLOSE: [u8; 6] = [0x88, 0x80, 0, 0, 0, 0];
/// The echo server's answer to it.
pub(crate) const CLOSE_ECHO: [u8; 2] = [0x88, 0];

/// A client's binary message. The mask is zero: nobody here looks at the payload.
pub(crate) fn message() -> [u8; MESSAGE_BYTES] {
    let mut message = [b'x'; MESSAGE_BYTES];
    message[..6].copy_from_slice(&[0x82, 0x80 | 64, 0, 0, 0, 0]);
    message
}

/// A client's text message of at most 125 bytes; what is longer is cut.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut frame = unmasked(text);
    frame[1] |= 0x80;
    frame.splice(2..2, [0; 4]);
    frame
}

/// A server's text message of at most 125 bytes; what is longer is cut.
pub(crate) fn unmasked(text: &str) -> Vec<u8> {
    let payload = &text.as_bytes()[..text.len().min(125)];
    let mut frame = vec![0x81, u8::try_from(payload.len()).unwrap_or(125)];
    frame.extend(payload);
    frame
}

/// How long the unmasked frame at the beginning of `bytes` is; `None`: it is not all there. Of one
/// that has more than 64 KiB it never is.
pub(crate) fn whole(bytes: &[u8]) -> Option<usize> {
    let (header, payload) = match *bytes {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, length @ ..126, ..] => (2, usize::from(length)),
        _ => return None,
    };
    let length = header + payload;
    (bytes.len() >= length).then_some(length)
}

/// Turns the whole masked frames at the beginning of `bytes` into unmasked ones, appended to
/// `echo`; tells how many bytes they took, and whether one of them was a Close.
pub(crate) fn echo(bytes: &[u8], echo: &mut Vec<u8>) -> (usize, bool) {
    let mut taken = 0;
    loop {
        let rest = &bytes[taken..];
        let [first, second, ..] = *rest else { return (taken, false) };
        let length = usize::from(second & 0x7f);
        let Some(frame) = rest.get(..6 + length) else { return (taken, false) };
        let (mask, payload) = frame[2..].split_at(4);
        echo.extend([first, second & 0x7f]);
        echo.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        taken += frame.len();
        if first & 15 == 8 {
            return (taken, true);
        }
    }
}
