//! Where frames and messages begin and end in one direction of a WebSocket (RFC 6455 section 5).
//!
//! A [`FrameTracker`] is fed the bytes of one peer and says how many of them may go on as they
//! are. It reads the 2 to 14 bytes of each header and counts the payload off; it never unmasks,
//! copies or keeps a byte. Control frames, which have at most 125 bytes of payload, are the one
//! thing that it hands out whole, since its caller may want to read a Close or swallow a pong.
//!
//! Bytes that it can't yet judge (a header cut short, a control frame cut short) stay with the
//! caller, who brings them again in front of the next ones: at most [`CARRY_BYTES`]. So the end
//! state depends on the bytes alone, however the network cut them.
//!
//! It checks all that a header can break: reserved bits and opcodes, masking by the right side,
//! minimal lengths, whole control frames, fragments in order, and the size of a message. It does
//! not check what only the payload can tell: UTF-8 and close codes are the peers' affair.

use thiserror::Error;

/// The longest header: 2 bytes, 8 of length, 4 of mask (RFC 6455 section 5.2).
pub const HEADER_BYTES: usize = 14;
/// The largest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES: usize = 125;
/// The most bytes that a tracker may ask to see again: a control frame is 2 bytes, 4 of mask and
/// its payload, cut one byte before its end.
pub const CARRY_BYTES: usize = 2 + 4 + CONTROL_PAYLOAD_BYTES - 1;

/// Who writes the frames that a tracker reads. Clients must mask theirs, servers must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The client: every frame is masked.
    Client,
    /// The backend: no frame is masked.
    Backend,
}

/// Which reserved bits the negotiated extensions allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReservedBits {
    /// No extension: none.
    #[default]
    None,
    /// permessage-deflate alone: RSV1 on the first frame of a message (RFC 7692 section 6).
    Deflate,
    /// An extension that is not known here: any, on any frame.
    Any,
}

/// The kinds of control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// Opcode 8.
    Close,
    /// Opcode 9.
    Ping,
    /// Opcode 10.
    Pong,
}

/// A whole control frame at the beginning of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFrame {
    /// What it is.
    pub kind: ControlKind,
    /// Bytes of its header, the mask included.
    pub header_bytes: usize,
    /// Bytes of its payload.
    pub payload_bytes: usize,
    mask: [u8; 4],
}

impl ControlFrame {
    /// The length of the whole frame, in bytes.
    pub fn frame_bytes(&self) -> usize {
        self.header_bytes + self.payload_bytes
    }

    /// Its payload, unmasked into `buffer`. `frame` begins where the frame does.
    pub fn payload<'b>(
        &self,
        frame: &[u8],
        buffer: &'b mut [u8; CONTROL_PAYLOAD_BYTES],
    ) -> &'b [u8] {
        let masked = &frame[self.header_bytes..self.frame_bytes()];
        for ((to, from), mask) in buffer.iter_mut().zip(masked).zip(self.mask.iter().cycle()) {
            *to = from ^ mask;
        }
        &buffer[..self.payload_bytes]
    }
}

/// Where the caller would like to be stopped, so as to put a frame of its own there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAt {
    /// Nowhere.
    Nowhere,
    /// Between two frames: a control frame may go there (RFC 6455 section 5.4).
    FrameBoundary,
    /// Between two messages: a data frame may go there.
    MessageBoundary,
}

/// What a tracker says of the bytes it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// So many bytes, at least one, are data frames or parts of them: they may go on. A wished
    /// stop, a control frame, an end of what can be judged or a violation comes after them.
    Data(usize),
    /// A whole control frame stands here. It is counted as read.
    Control(ControlFrame),
    /// The rest can't be judged before more has come.
    NeedMore,
}

/// Why a peer's frames break the protocol.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// RFC 6455 section 5.2: a bit that no negotiated extension defines.
    #[error("a reserved bit that was not negotiated is set")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15.
    #[error("reserved opcode {0}")]
    ReservedOpcode(u8),
    /// RFC 6455 section 5.1.
    #[error("a frame of the client is not masked")]
    Unmasked,
    /// RFC 6455 section 5.1.
    #[error("a frame of the backend is masked")]
    Masked,
    /// RFC 6455 section 5.5.
    #[error("a control frame is longer than 125 bytes")]
    LongControl,
    /// RFC 6455 section 5.5.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// RFC 6455 section 5.4.
    #[error("a continuation frame continues nothing")]
    StrayContinuation,
    /// RFC 6455 section 5.4.
    #[error("a new message begins inside another")]
    NewMessageInside,
    /// RFC 6455 section 5.2.
    #[error("a length is not in its shortest form")]
    LengthNotMinimal,
    /// RFC 6455 section 5.2: the most significant bit must be 0.
    #[error("a length is over 2^63")]
    LengthOverflow,
    /// The message, with this frame, would exceed the limit.
    #[error("a message is larger than its route allows")]
    MessageTooBig,
}

/// Follows frame and message boundaries in one direction of a WebSocket.
#[derive(Clone, Debug)]
pub struct FrameTracker {
    sender: Sender,
    reserved: ReservedBits,
    max_message_bytes: u64,
    /// Bytes of the current data frame's payload that have not come yet.
    payload_left: u64,
    /// Payload bytes that the open message has so far; 0 between messages.
    message_bytes: u64,
    /// A message has begun that has not ended.
    in_message: bool,
    /// The current data frame is the last of its message.
    last_fragment: bool,
    /// [`Passed::messages`] that were not taken yet.
    messages: u32,
    /// [`Passed::bytes`] that were not taken yet.
    payload_bytes: u64,
}

/// Data messages that have ended, and payload bytes of data frames as they are on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Messages. What is taken once per turn stays far below the 8 GiB of a count too large.
    pub messages: u32,
    /// Payload bytes.
    pub bytes: u64,
}

/// A header as it stands on the wire.
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) reserved: u8,
    pub(super) opcode: u8,
    pub(super) payload_bytes: u64,
    pub(super) header_bytes: usize,
    mask: [u8; 4],
}

const OPCODE_CONTINUATION: u8 = 0;
const OPCODE_TEXT: u8 = 1;
const OPCODE_BINARY: u8 = 2;
const RSV1: u8 = 0b100;

impl FrameTracker {
    /// A tracker of a WebSocket that has just been opened.
    ///
    /// `max_message_bytes` limits the payload of one message, as it is on the wire.
    pub fn new(sender: Sender, reserved: ReservedBits, max_message_bytes: u64) -> Self {
        Self {
            sender,
            reserved,
            max_message_bytes,
            payload_left: 0,
            message_bytes: 0,
            in_message: false,
            last_fragment: false,
            messages: 0,
            payload_bytes: 0,
        }
    }

    /// Reads on in `bytes`, which begin with what the last [`Scan::NeedMore`] left.
    ///
    /// Cost: a few nanoseconds per frame; nothing per payload byte.
    ///
    /// # Errors
    ///
    /// The header at the very beginning of `bytes` breaks the protocol; what stood before it was
    /// told by an earlier [`Scan::Data`]. The tracker can't go on after that.
    pub fn scan(&mut self, bytes: &[u8], stop: StopAt) -> Result<Scan, FrameError> {
        let mut at = 0;
        loop {
            at += self.take_payload(bytes.len() - at);
            if at == bytes.len() || (at > 0 && self.stops_here(stop)) {
                return Ok(Self::data_or_need(at));
            }
            let header = match self.header(&bytes[at..]) {
                Ok(Some(header)) => header,
                // Tell of the good bytes first; the violation is found again by the next call.
                Err(error) if at == 0 => return Err(error),
                Ok(None) | Err(_) => return Ok(Self::data_or_need(at)),
            };
            if let Some(kind) = control_kind(header.opcode) {
                if at > 0 {
                    return Ok(Scan::Data(at));
                }
                return Ok(whole_control(kind, &header, bytes.len()));
            }
            at += header.header_bytes;
            self.begin_frame(&header);
        }
    }

    fn data_or_need(at: usize) -> Scan {
        if at == 0 { Scan::NeedMore } else { Scan::Data(at) }
    }

    fn stops_here(&self, stop: StopAt) -> bool {
        match stop {
            StopAt::Nowhere => false,
            StopAt::FrameBoundary => self.between_frames(),
            StopAt::MessageBoundary => self.between_messages(),
        }
    }

    /// Counts off payload of the current frame, at most `available` bytes.
    fn take_payload(&mut self, available: usize) -> usize {
        if self.payload_left == 0 {
            return 0;
        }
        let taken =
            usize::try_from(self.payload_left).map_or(available, |left| left.min(available));
        self.payload_left -= taken as u64;
        self.payload_bytes += taken as u64;
        if self.payload_left == 0 {
            self.end_frame();
        }
        taken
    }

    fn begin_frame(&mut self, header: &Header) {
        self.payload_left = header.payload_bytes;
        self.last_fragment = header.fin;
        self.message_bytes += header.payload_bytes;
        self.in_message = true;
        if header.payload_bytes == 0 {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        if self.last_fragment {
            self.message_bytes = 0;
            self.in_message = false;
            self.messages += 1;
        }
    }

    /// The header at the beginning of `bytes`, checked; `None` if it is cut short.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        let Some(header) = parse_header(bytes)? else { return Ok(None) };
        self.check(&header, bytes[1] & 0x80 != 0)?;
        Ok(Some(header))
    }

    fn check(&self, header: &Header, masked: bool) -> Result<(), FrameError> {
        match (self.sender, masked) {
            (Sender::Client, false) => return Err(FrameError::Unmasked),
            (Sender::Backend, true) => return Err(FrameError::Masked),
            (Sender::Client, true) | (Sender::Backend, false) => {}
        }
        if !self.reserved_bits_fit(header) {
            return Err(FrameError::ReservedBits);
        }
        if control_kind(header.opcode).is_some() {
            if !header.fin {
                return Err(FrameError::FragmentedControl);
            }
            if header.payload_bytes > CONTROL_PAYLOAD_BYTES as u64 {
                return Err(FrameError::LongControl);
            }
            return Ok(());
        }
        self.check_data(header)
    }

    fn check_data(&self, header: &Header) -> Result<(), FrameError> {
        match (header.opcode, self.in_message) {
            (OPCODE_CONTINUATION, false) => return Err(FrameError::StrayContinuation),
            (OPCODE_TEXT | OPCODE_BINARY, true) => return Err(FrameError::NewMessageInside),
            (OPCODE_CONTINUATION..=OPCODE_BINARY, _) => {}
            (opcode, _) => return Err(FrameError::ReservedOpcode(opcode)),
        }
        let message = self.message_bytes.saturating_add(header.payload_bytes);
        if message > self.max_message_bytes {
            return Err(FrameError::MessageTooBig);
        }
        Ok(())
    }

    fn reserved_bits_fit(&self, header: &Header) -> bool {
        match self.reserved {
            _ if header.reserved == 0 => true,
            ReservedBits::None => false,
            ReservedBits::Deflate => {
                header.reserved == RSV1 && matches!(header.opcode, OPCODE_TEXT | OPCODE_BINARY)
            }
            ReservedBits::Any => true,
        }
    }

    /// A control frame of somebody else may go here, also inside a fragmented message.
    pub fn between_frames(&self) -> bool {
        self.payload_left == 0
    }

    /// A data frame of somebody else may go only here.
    pub fn between_messages(&self) -> bool {
        self.between_frames() && !self.in_message
    }

    /// What has passed since the last call of this: once per turn of a relay, so that totals are
    /// kept in one place.
    pub fn take_passed(&mut self) -> Passed {
        Passed {
            messages: std::mem::take(&mut self.messages),
            bytes: std::mem::take(&mut self.payload_bytes),
        }
    }
}

fn control_kind(opcode: u8) -> Option<ControlKind> {
    match opcode {
        8 => Some(ControlKind::Close),
        9 => Some(ControlKind::Ping),
        10 => Some(ControlKind::Pong),
        _ => None,
    }
}

/// The control frame of `header`, if all of it is among the `available` bytes.
fn whole_control(kind: ControlKind, header: &Header, available: usize) -> Scan {
    // Checked before: at most 125.
    let payload_bytes = usize::try_from(header.payload_bytes).unwrap_or(CONTROL_PAYLOAD_BYTES);
    let frame =
        ControlFrame { kind, header_bytes: header.header_bytes, payload_bytes, mask: header.mask };
    if available < frame.frame_bytes() { Scan::NeedMore } else { Scan::Control(frame) }
}

/// The header at the beginning of `bytes`; `None` if it is cut short (RFC 6455 section 5.2).
pub(super) fn parse_header(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (payload_bytes, length_bytes) = match second & 0x7f {
        126 => {
            let Some(length) = rest.first_chunk::<2>() else { return Ok(None) };
            let length = u64::from(u16::from_be_bytes(*length));
            if length < 126 {
                return Err(FrameError::LengthNotMinimal);
            }
            (length, 2)
        }
        127 => {
            let Some(length) = rest.first_chunk::<8>() else { return Ok(None) };
            (long_length(u64::from_be_bytes(*length))?, 8)
        }
        length => (u64::from(length), 0),
    };
    let mask = if second & 0x80 == 0 {
        None
    } else {
        let Some(mask) = rest[length_bytes..].first_chunk::<4>() else { return Ok(None) };
        Some(*mask)
    };
    Ok(Some(Header {
        fin: first & 0x80 != 0,
        reserved: (first >> 4) & 0b111,
        opcode: first & 0x0f,
        payload_bytes,
        header_bytes: 2 + length_bytes + if mask.is_some() { 4 } else { 0 },
        mask: mask.unwrap_or_default(),
    }))
}

fn long_length(length: u64) -> Result<u64, FrameError> {
    if length >> 63 != 0 {
        return Err(FrameError::LengthOverflow);
    }
    if length <= u64::from(u16::MAX) {
        return Err(FrameError::LengthNotMinimal);
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a sender that keeps to the rules, or does not, would write it.
    #[derive(Clone, Debug)]
    struct Frame {
        fin: bool,
        opcode: u8,
        payload: Vec<u8>,
    }

    fn encode(frame: &Frame, masked: bool) -> Vec<u8> {
        let mut bytes = vec![if frame.fin { 0x80 } else { 0 } | frame.opcode];
        let mask_bit = if masked { 0x80 } else { 0 };
        let length = frame.payload.len();
        if length < 126 {
            bytes.push(mask_bit | u8::try_from(length).unwrap());
        } else if let Ok(length) = u16::try_from(length) {
            bytes.push(mask_bit | 126);
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.push(mask_bit | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
        if masked {
            let mask = [1, 2, 3, 4];
            bytes.extend(mask);
            bytes.extend(
                frame.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask),
            );
        } else {
            bytes.extend(&frame.payload);
        }
        bytes
    }

    /// What came out of a tracker for a whole stream.
    #[derive(Debug, Default, PartialEq)]
    struct Seen {
        data: Vec<u8>,
        controls: Vec<(ControlKind, Vec<u8>)>,
        messages: u64,
        payload_bytes: u64,
        between_messages: bool,
        error: Option<FrameError>,
    }

    /// Feeds `chunks` as a driver would: what the tracker can't judge comes again in front.
    fn feed(tracker: &mut FrameTracker, chunks: &[&[u8]]) -> Seen {
        let mut seen = Seen::default();
        let mut kept: Vec<u8> = Vec::new();
        'chunks: for chunk in chunks {
            let bytes = [kept.as_slice(), chunk].concat();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                match tracker.scan(rest, StopAt::Nowhere) {
                    Ok(Scan::Data(length)) => {
                        assert!(length > 0);
                        seen.data.extend(&rest[..length]);
                        rest = &rest[length..];
                    }
                    Ok(Scan::Control(frame)) => {
                        let mut buffer = [0; CONTROL_PAYLOAD_BYTES];
                        let payload = frame.payload(rest, &mut buffer).to_vec();
                        seen.controls.push((frame.kind, payload));
                        rest = &rest[frame.frame_bytes()..];
                    }
                    Ok(Scan::NeedMore) => break,
                    Err(error) => {
                        seen.error = Some(error);
                        kept = rest.to_vec();
                        break 'chunks;
                    }
                }
            }
            kept = rest.to_vec();
            assert!(kept.len() <= CARRY_BYTES, "{} bytes kept", kept.len());
        }
        let passed = tracker.take_passed();
        (seen.messages, seen.payload_bytes) = (passed.messages.into(), passed.bytes);
        seen.between_messages = tracker.between_messages() && kept.is_empty();
        seen
    }

    fn tracker(sender: Sender) -> FrameTracker {
        FrameTracker::new(sender, ReservedBits::None, u64::MAX)
    }

    /// Any sequence of whole messages, in fragments, with control frames between these.
    fn messages() -> impl Strategy<Value = Vec<Frame>> {
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..8),
            prop::collection::vec(any::<u8>(), 124..130),
        ];
        let control = (8u8..=10, prop::collection::vec(any::<u8>(), 0..=125))
            .prop_map(|(opcode, payload)| Frame { fin: true, opcode, payload });
        let fragment = (payload, prop::option::of(control));
        let message =
            (1u8..=2, prop::collection::vec(fragment, 1..4)).prop_map(|(opcode, fragments)| {
                let count = fragments.len();
                let mut frames = Vec::new();
                for (index, (payload, control)) in fragments.into_iter().enumerate() {
                    let opcode = if index == 0 { opcode } else { 0 };
                    frames.push(Frame { fin: index + 1 == count, opcode, payload });
                    frames.extend(control);
                }
                frames
            });
        prop::collection::vec(message, 0..4).prop_map(|messages| messages.concat())
    }

    proptest! {
        /// The frames that were written are the independent reading: what a tracker tells of
        /// their bytes must agree with them, whatever the cuts.
        #[test]
        fn agrees_with_the_frames_that_were_written(
            frames in messages(),
            masked in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode(frame, masked)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                chunks.push(&bytes[from..cut]);
                from = cut;
            }
            let sender = if masked { Sender::Client } else { Sender::Backend };
            let seen = feed(&mut tracker(sender), &chunks);
            let data: Vec<&Frame> = frames.iter().filter(|frame| frame.opcode < 8).collect();
            prop_assert_eq!(seen.error, None);
            prop_assert_eq!(&seen.data, &data.iter().flat_map(|frame| encode(frame, masked)).collect::<Vec<u8>>());
            prop_assert_eq!(seen.messages, data.iter().filter(|frame| frame.fin).count() as u64);
            prop_assert_eq!(seen.payload_bytes, data.iter().map(|frame| frame.payload.len() as u64).sum::<u64>());
            prop_assert!(seen.between_messages);
            let controls: Vec<Vec<u8>> = frames.iter().filter(|frame| frame.opcode >= 8).map(|frame| frame.payload.clone()).collect();
            prop_assert_eq!(seen.controls.into_iter().map(|(_, payload)| payload).collect::<Vec<_>>(), controls);
        }

        #[test]
        fn any_bytes_end_alike_however_they_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len() + 1);
            let whole = feed(&mut tracker(Sender::Backend), &[&bytes]);
            let parts = feed(&mut tracker(Sender::Backend), &[&bytes[..cut], &bytes[cut..]]);
            prop_assert_eq!(whole, parts);
        }
    }

    fn fragments() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (fin, opcode, payload) in [
            (false, 1, vec![7; 130]),
            (true, 9, vec![8; 125]),
            (false, 0, vec![]),
            (true, 0, vec![9; 70_000]),
            (true, 8, vec![3, 232]),
        ] {
            bytes.extend(encode(&Frame { fin, opcode, payload }, true));
        }
        bytes
    }

    #[test]
    fn every_cut_of_the_same_bytes_ends_in_the_same_state() {
        let bytes = fragments();
        let whole = feed(&mut tracker(Sender::Client), &[&bytes]);
        assert_eq!(whole.messages, 1);
        assert!(whole.between_messages);
        let near_headers = (0..600).chain(bytes.len() - 300..=bytes.len());
        for cut in near_headers {
            let parts = feed(&mut tracker(Sender::Client), &[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(parts, whole, "cut at {cut}");
        }
        let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(feed(&mut tracker(Sender::Client), &bytewise), whole);
    }

    fn error_of(sender: Sender, reserved: ReservedBits, bytes: &[u8]) -> Option<FrameError> {
        feed(&mut FrameTracker::new(sender, reserved, 1000), &[bytes]).error
    }

    #[test]
    fn each_violation_of_a_header_is_found() {
        use Sender::{Backend, Client};
        let none = ReservedBits::None;
        let long = |first: u64| [&[0x82, 127][..], &first.to_be_bytes()].concat();
        let cases: Vec<(Sender, Vec<u8>, FrameError)> = vec![
            (Client, vec![0x81, 0], FrameError::Unmasked),
            (Backend, vec![0x81, 0x80, 0, 0, 0, 0], FrameError::Masked),
            (Backend, vec![0xc1, 0], FrameError::ReservedBits),
            (Backend, vec![0xa1, 0], FrameError::ReservedBits),
            (Backend, vec![0x91, 0], FrameError::ReservedBits),
            (Backend, vec![0x83, 0], FrameError::ReservedOpcode(3)),
            (Backend, vec![0x8b, 0], FrameError::ReservedOpcode(11)),
            (Backend, vec![0x89, 126, 0, 126], FrameError::LongControl),
            (Backend, vec![0x09, 0], FrameError::FragmentedControl),
            (Backend, vec![0x80, 0], FrameError::StrayContinuation),
            (Backend, vec![0x01, 0, 0x81, 0], FrameError::NewMessageInside),
            (Backend, vec![0x82, 126, 0, 125], FrameError::LengthNotMinimal),
            (Backend, long(65_535), FrameError::LengthNotMinimal),
            (Backend, long(1 << 63), FrameError::LengthOverflow),
            (Backend, long((1 << 63) - 1), FrameError::MessageTooBig),
            (Backend, vec![0x82, 126, 3, 233], FrameError::MessageTooBig),
        ];
        for (sender, bytes, error) in cases {
            assert_eq!(error_of(sender, none, &bytes), Some(error), "{bytes:02x?}");
        }
    }

    #[test]
    fn fragments_count_together_towards_the_largest_message() {
        let mut bytes = encode(&Frame { fin: false, opcode: 2, payload: vec![0; 600] }, false);
        bytes.extend(encode(&Frame { fin: true, opcode: 0, payload: vec![0; 401] }, false));
        let error = FrameError::MessageTooBig;
        assert_eq!(error_of(Sender::Backend, ReservedBits::None, &bytes), Some(error));
        let exact = encode(&Frame { fin: true, opcode: 2, payload: vec![0; 1000] }, false);
        assert_eq!(error_of(Sender::Backend, ReservedBits::None, &exact), None);
    }

    #[test]
    fn deflate_allows_its_bit_on_the_first_frame_of_a_message_only() {
        let deflate = ReservedBits::Deflate;
        assert_eq!(error_of(Sender::Backend, deflate, &[0x41, 0, 0x80, 0]), None);
        for bytes in [vec![0x41, 0, 0xc0, 0], vec![0xc9, 0], vec![0xe1, 0]] {
            let error = error_of(Sender::Backend, deflate, &bytes);
            assert_eq!(error, Some(FrameError::ReservedBits), "{bytes:02x?}");
        }
        assert_eq!(
            error_of(Sender::Backend, ReservedBits::Any, &[0xf9, 0, 0x71, 0, 0xf0, 0]),
            None
        );
    }

    #[test]
    fn stops_where_a_frame_of_ours_may_go() {
        let mut bytes = encode(&Frame { fin: false, opcode: 1, payload: vec![1; 5] }, false);
        let fragment = bytes.len();
        bytes.extend(encode(&Frame { fin: true, opcode: 0, payload: vec![2; 6] }, false));
        let message = bytes.len();
        bytes.extend(encode(&Frame { fin: true, opcode: 1, payload: vec![3; 7] }, false));
        for (stop, at) in [
            (StopAt::FrameBoundary, fragment),
            (StopAt::MessageBoundary, message),
            (StopAt::Nowhere, bytes.len()),
        ] {
            let scan = tracker(Sender::Backend).scan(&bytes, stop);
            assert_eq!(scan, Ok(Scan::Data(at)), "{stop:?}");
        }
    }
}
