//! Frames of at most 125 bytes, which is all that the load sends (RFC 6455 section 5.2).

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
