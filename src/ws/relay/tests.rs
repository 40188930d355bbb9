//! The core, fed by hand: what it passes, what it adds and swallows between frames, how it ends.

use std::time::Duration;

use super::Direction::{FromBackend, FromClient};
use super::*;

const TEXT_OF_CLIENT: &[u8] = &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
const TEXT_OF_BACKEND: &[u8] = &[0x81, 2, b'h', b'o'];
const CLOSE_OF_CLIENT: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 3, 232];
const CLOSE_OF_BACKEND: &[u8] = &[0x88, 2, 3, 233];
const NOTHING: &[u8] = &[];
const PING_PAYLOAD: [u8; 8] = *b"steadily";

fn seconds(seconds: u64) -> Tick {
    Tick::at(Duration::from_secs(seconds))
}

fn relay() -> Relay {
    relay_with(0, 0)
}

fn relay_with(idle: u32, ping: u32) -> Relay {
    let limits = RelayLimits {
        idle: Ticks::from_secs(idle),
        ping: Ticks::from_secs(ping),
        age: Ticks::default(),
        max_message_bytes: 1000,
        reserved: ReservedBits::None,
    };
    Relay::new(limits, PING_PAYLOAD, seconds(0))
}

#[test]
fn who_is_too_old_is_told_as_1012() {
    let limits = RelayLimits {
        idle: Ticks::from_secs(90),
        ping: Ticks::default(),
        age: Ticks::from_secs(100),
        max_message_bytes: 1000,
        reserved: ReservedBits::None,
    };
    let mut relay = Relay::new(limits, PING_PAYLOAD, seconds(0));
    assert_eq!(relay.next_tick(seconds(0)), Some(seconds(90)));
    carry(&mut relay, FromClient, TEXT_OF_CLIENT, seconds(80));
    assert_eq!(relay.next_tick(seconds(80)), Some(seconds(100)));
    relay.tick(seconds(99));
    assert!(!relay.has_reason());
    relay.tick(seconds(100));
    assert_eq!(relay.reason(), CloseReason::MaxAge);
    assert_eq!(code(&said(&mut relay, FromBackend)), 1012);
}

/// Shows bytes to the core as a driver does, and returns what its sink gets.
fn carry(relay: &mut Relay, direction: Direction, mut bytes: &[u8], now: Tick) -> Vec<u8> {
    let mut written = said(relay, direction);
    while !bytes.is_empty() {
        match relay.step(direction, bytes, false, now) {
            Step::Pass(length) => {
                written.extend(&bytes[..length]);
                bytes = &bytes[length..];
            }
            Step::Swallow(length) => bytes = &bytes[length..],
            Step::Keep => break,
        }
        written.extend(said(relay, direction));
    }
    written
}

fn said(relay: &mut Relay, direction: Direction) -> Vec<u8> {
    relay.insert(direction, [0; 4], "").map_or_else(Vec::new, |frame| frame.as_ref().to_vec())
}

/// The code in a Close frame of ours.
fn code(frame: &[u8]) -> u16 {
    assert_eq!(frame[0], 0x88, "a Close: {frame:02x?}");
    let payload = if frame[1] & 0x80 == 0 { 2 } else { 6 };
    u16::from_be_bytes([frame[payload], frame[payload + 1]])
}

#[test]
fn bytes_pass_untouched_and_are_counted() {
    let mut relay = relay();
    assert_eq!(carry(&mut relay, FromClient, TEXT_OF_CLIENT, seconds(0)), TEXT_OF_CLIENT);
    assert_eq!(carry(&mut relay, FromBackend, TEXT_OF_BACKEND, seconds(0)), TEXT_OF_BACKEND);
    for direction in Direction::ALL {
        assert_eq!(relay.take_passed(direction), Passed { messages: 1, bytes: 2 });
        assert_eq!(relay.take_passed(direction), Passed::default(), "told once");
    }
}

#[test]
fn a_close_passes_each_way_and_the_streams_end() {
    let mut relay = relay();
    assert_eq!(carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(0)), CLOSE_OF_CLIENT);
    assert_eq!(carry(&mut relay, FromBackend, CLOSE_OF_BACKEND, seconds(1)), CLOSE_OF_BACKEND);
    assert!(relay.ends_sink(FromBackend), "the client has heard all");
    assert!(!relay.ends_sink(FromClient), "the backend ends first");
    assert_eq!(relay.ending(true, seconds(1)), None);
    relay.ended(FromBackend, seconds(1));
    assert_eq!(relay.ending(false, seconds(1)), None);
    assert_eq!(relay.ending(true, seconds(1)), Some(Ending::Drop));
    assert_eq!(relay.reason(), CloseReason::ClientClosed(Some(1000)));
}

#[test]
fn nothing_follows_a_close() {
    let mut relay = relay();
    let bytes = [CLOSE_OF_BACKEND, TEXT_OF_BACKEND].concat();
    assert_eq!(carry(&mut relay, FromBackend, &bytes, seconds(0)), CLOSE_OF_BACKEND);
    relay.close(CloseReason::Shutdown, seconds(0));
    assert_eq!(said(&mut relay, FromBackend), NOTHING);
    assert_eq!(code(&said(&mut relay, FromClient)), 1001);
    assert_eq!(relay.reason(), CloseReason::BackendClosed(Some(1001)), "the first cause counts");
}

#[test]
fn an_unanswered_close_is_cut_after_five_seconds() {
    let mut relay = relay();
    carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(10));
    assert_eq!(relay.ending(true, seconds(14)), None);
    assert_eq!(relay.next_tick(seconds(10)), Some(seconds(15)));
    assert_eq!(relay.ending(true, seconds(15)), Some(Ending::Cut));
}

#[test]
fn our_close_waits_for_the_end_of_the_frame_on_each_side() {
    let mut relay = relay();
    let (begin, end) = TEXT_OF_CLIENT.split_at(7);
    carry(&mut relay, FromClient, begin, seconds(0));
    relay.close(CloseReason::Shutdown, seconds(0));
    assert_eq!(code(&said(&mut relay, FromBackend)), 1001);
    assert_eq!(said(&mut relay, FromClient), NOTHING, "not inside a frame");
    let written = carry(&mut relay, FromClient, &[end, TEXT_OF_CLIENT].concat(), seconds(0));
    assert_eq!(written[..1], *end);
    assert_eq!(code(&written[1..]), 1001);
}

#[test]
fn answers_to_our_close_are_swallowed_and_end_the_streams() {
    let mut relay = relay();
    relay.close(CloseReason::Shutdown, seconds(0));
    said(&mut relay, FromClient);
    said(&mut relay, FromBackend);
    assert!(!relay.ends_sink(FromBackend));
    assert_eq!(carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(0)), NOTHING);
    assert!(relay.ends_sink(FromBackend), "the client has answered: its stream may end");
    assert!(!relay.ends_sink(FromClient));
    assert_eq!(carry(&mut relay, FromBackend, CLOSE_OF_BACKEND, seconds(0)), NOTHING);
    assert_eq!(relay.ending(true, seconds(0)), None, "the backend ends first");
    assert_eq!(relay.ending(true, seconds(5)), Some(Ending::Drop), "all was said");
    assert_eq!(relay.reason(), CloseReason::Shutdown);
}

#[test]
fn a_backend_that_vanishes_between_frames_is_told_as_1014() {
    let mut relay = relay();
    carry(&mut relay, FromBackend, TEXT_OF_BACKEND, seconds(0));
    relay.ended(FromBackend, seconds(0));
    assert!(!relay.ends_sink(FromBackend), "the Close goes first");
    assert_eq!(code(&said(&mut relay, FromBackend)), 1014);
    assert_eq!(said(&mut relay, FromClient), NOTHING, "there is nobody");
    assert_eq!(carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(0)), NOTHING);
    assert!(relay.ends_sink(FromBackend));
    assert_eq!(relay.ending(true, seconds(0)), Some(Ending::Drop));
    assert_eq!(relay.reason(), CloseReason::BackendLost);
}

#[test]
fn a_backend_that_vanishes_within_a_frame_cuts_its_client() {
    let mut relay = relay();
    carry(&mut relay, FromBackend, &TEXT_OF_BACKEND[..3], seconds(0));
    relay.ended(FromBackend, seconds(0));
    assert_eq!(said(&mut relay, FromBackend), NOTHING, "no Close inside a frame");
    assert_eq!(relay.ending(false, seconds(0)), None, "what it said is delivered");
    assert_eq!(relay.ending(true, seconds(0)), Some(Ending::Cut));
    assert_eq!(relay.reason(), CloseReason::BackendLost);
}

#[test]
fn a_backend_that_ends_after_its_client_is_not_lost() {
    let mut relay = relay();
    relay.ended(FromClient, seconds(0));
    assert!(relay.ends_sink(FromClient), "passed on at once");
    assert_eq!(relay.next_tick(seconds(0)), None, "the backend may go on speaking");
    assert_eq!(carry(&mut relay, FromBackend, TEXT_OF_BACKEND, seconds(99)), TEXT_OF_BACKEND);
    relay.ended(FromBackend, seconds(99));
    assert_eq!(said(&mut relay, FromBackend), NOTHING);
    assert!(relay.ends_sink(FromBackend));
    assert_eq!(relay.ending(true, seconds(99)), Some(Ending::Drop));
    assert_eq!(relay.reason(), CloseReason::ClientEnded);
}

#[test]
fn a_violation_is_told_to_both_sides_and_goes_no_further() {
    let mut relay = relay();
    let bytes = [TEXT_OF_CLIENT, &[0x83, 0x80, 0, 0, 0, 0], TEXT_OF_CLIENT].concat();
    let written = carry(&mut relay, FromClient, &bytes, seconds(0));
    assert_eq!(written[..TEXT_OF_CLIENT.len()], *TEXT_OF_CLIENT);
    assert_eq!(code(&written[TEXT_OF_CLIENT.len()..]), 1002);
    assert_eq!(code(&said(&mut relay, FromBackend)), 1002);
    assert!(relay.ends_sink(FromBackend), "its answer could not be found");
    assert_eq!(relay.reason().label(), "client_violation");
}

#[test]
fn a_message_over_the_limit_is_told_as_1009() {
    let mut relay = relay();
    assert_eq!(code(&carry(&mut relay, FromBackend, &[0x82, 126, 4, 0], seconds(0))), 1009);
    assert_eq!(code(&said(&mut relay, FromClient)), 1009);
    assert_eq!(relay.reason().label(), "message_too_big");
}

#[test]
fn a_reset_of_the_client_resets_the_backend_unless_all_was_said() {
    let mut first = relay();
    first.client_reset();
    assert!(!first.ends_sink(FromClient), "no end of stream before the reset");
    assert_eq!(first.ending(false, seconds(0)), Some(Ending::Reset));
    let mut second = relay();
    carry(&mut second, FromClient, CLOSE_OF_CLIENT, seconds(0));
    carry(&mut second, FromBackend, CLOSE_OF_BACKEND, seconds(0));
    second.client_reset();
    assert_eq!(second.ending(false, seconds(0)), Some(Ending::Drop));
}

#[test]
fn a_silent_client_is_pinged_and_its_pong_swallowed() {
    let mut relay = relay_with(0, 10);
    assert_eq!(relay.next_tick(seconds(0)), Some(seconds(10)));
    relay.tick(seconds(10));
    let ping = said(&mut relay, FromBackend);
    assert_eq!(ping, [&[0x89, 8], &PING_PAYLOAD[..]].concat());
    assert_eq!(relay.next_tick(seconds(10)), Some(seconds(30)));
    let pong = [&[0x8a, 0x88, 0, 0, 0, 0], &PING_PAYLOAD[..]].concat();
    assert_eq!(carry(&mut relay, FromClient, &pong, seconds(11)), NOTHING);
    let other = [&[0x8a, 0x88, 0, 0, 0, 0], &b"likewise"[..]].concat();
    assert_eq!(carry(&mut relay, FromClient, &other, seconds(11)), other);
    relay.tick(seconds(30));
    assert!(!relay.has_reason(), "it lives");
}

#[test]
fn a_client_silent_for_three_intervals_is_dead() {
    let mut relay = relay_with(0, 10);
    relay.tick(seconds(10));
    said(&mut relay, FromBackend);
    relay.tick(seconds(29));
    assert!(!relay.has_reason());
    relay.tick(seconds(30));
    assert_eq!(relay.reason(), CloseReason::PingTimeout);
    assert_eq!(code(&said(&mut relay, FromBackend)), 1001);
}

#[test]
fn no_ping_of_ours_while_the_backend_waits_for_a_pong() {
    let mut relay = relay_with(0, 10);
    carry(&mut relay, FromBackend, &[0x89, 0], seconds(0));
    relay.tick(seconds(10));
    assert_eq!(said(&mut relay, FromBackend), NOTHING);
    let pong = [0x8a, 0x80, 0, 0, 0, 0];
    assert_eq!(carry(&mut relay, FromClient, &pong, seconds(12)), pong);
    relay.tick(seconds(22));
    assert_ne!(said(&mut relay, FromBackend), NOTHING);
}

#[test]
fn a_ping_waits_for_the_end_of_the_frame() {
    let mut relay = relay_with(0, 10);
    carry(&mut relay, FromBackend, &TEXT_OF_BACKEND[..3], seconds(0));
    relay.tick(seconds(10));
    assert_eq!(said(&mut relay, FromBackend), NOTHING);
    let bytes = [&TEXT_OF_BACKEND[3..], TEXT_OF_BACKEND].concat();
    let written = carry(&mut relay, FromBackend, &bytes, seconds(10));
    assert_eq!(written[..3], [TEXT_OF_BACKEND[3], 0x89, 8], "between the two frames");
}

#[test]
fn idle_counts_frames_of_both_but_no_pong_to_our_ping() {
    let mut relay = relay_with(15, 10);
    relay.tick(seconds(10));
    said(&mut relay, FromBackend);
    let pong = [&[0x8a, 0x88, 0, 0, 0, 0], &PING_PAYLOAD[..]].concat();
    carry(&mut relay, FromClient, &pong, seconds(11));
    relay.tick(seconds(14));
    assert!(!relay.has_reason());
    relay.tick(seconds(15));
    assert_eq!(relay.reason(), CloseReason::IdleTimeout);
}

#[test]
fn messages_of_others_go_between_messages_only() {
    let mut relay = relay();
    assert!(relay.takes_message());
    let fragment = [0x01, 1, b'a'];
    carry(&mut relay, FromBackend, &fragment, seconds(0));
    assert!(!relay.takes_message(), "inside a fragmented message");
    let rest = [0x80, 1, b'b', 0x81, 1, b'c'];
    assert_eq!(relay.step(FromBackend, &rest, true, seconds(0)), Step::Pass(3));
    assert!(relay.takes_message());
    relay.close(CloseReason::Shutdown, seconds(0));
    assert!(!relay.takes_message());
}
