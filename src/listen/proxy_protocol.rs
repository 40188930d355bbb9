//! The PROXY protocol header by which a balancer in front tells who its client is.
//!
//! Versions 1 and 2 of the specification by Willy Tarreau (HAProxy, "The PROXY protocol"),
//! sections 2.1 and 2.2. The header comes first on a connection, before TLS, and its end must be
//! found without reading a byte of what follows. So this says how many bytes to read next, and
//! its caller reads just these: a dozen to tell the version, then one at a time to the end of the
//! line of version 1, or the length that version 2 announces.
//!
//! A header is from a trusted peer, or the connection is refused before this is asked. Still it is
//! bounded: 107 bytes of version 1, [`LONGEST`] of version 2, whose extensions (TLVs) are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read, in bytes; version 2 could announce 65,551.
pub const LONGEST: usize = 2048;

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included.
const LONGEST_LINE: usize = 107;

/// What is known after some bytes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many more bytes belong to the header for certain, at least one: read them.
    Need(usize),
    /// The header is whole. Who the client is; `None`: the peer speaks for itself, as it does
    /// for its own health checks.
    Done(Option<SocketAddr>),
}

/// What is not a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header: {0}")]
pub struct BadHeader(&'static str);

/// Looks at all bytes read so far, the first time none.
///
/// # Errors
///
/// They are no beginning of a header, or of one that is too long.
pub fn look(bytes: &[u8]) -> Result<Progress, BadHeader> {
    if bytes.len() < SIGNATURE.len() {
        return Ok(Progress::Need(SIGNATURE.len() - bytes.len()));
    }
    if bytes.starts_with(SIGNATURE) { binary(bytes) } else { line(bytes) }
}

/// Version 1 (section 2.1): a line of text.
fn line(bytes: &[u8]) -> Result<Progress, BadHeader> {
    if !bytes.starts_with(b"PROXY ") {
        return Err(BadHeader("it does not begin like one"));
    }
    let Some(text) = bytes.strip_suffix(b"\r\n") else {
        return match bytes.len() {
            ..LONGEST_LINE => Ok(Progress::Need(1)),
            _ => Err(BadHeader("its line does not end")),
        };
    };
    let text = std::str::from_utf8(text).map_err(|_| BadHeader("its line is no text"))?;
    let mut words = text.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(Progress::Done(None));
    }
    let mut next = || words.next().ok_or(BadHeader("a part is missing"));
    let (source, _destination) = (next()?, next()?);
    let (port, _destination_port) = (next()?, next()?);
    let address: IpAddr = source.parse().map_err(|_| BadHeader("its address is none"))?;
    let fits = match family {
        "TCP4" => address.is_ipv4(),
        "TCP6" => address.is_ipv6(),
        _ => false,
    };
    let port: u16 = port.parse().map_err(|_| BadHeader("its port is none"))?;
    if !fits || words.next().is_some() {
        return Err(BadHeader("its parts do not fit"));
    }
    Ok(Progress::Done(Some(SocketAddr::new(address.to_canonical(), port))))
}

/// Version 2 (section 2.2): four bytes behind the signature, then as many as they say.
fn binary(bytes: &[u8]) -> Result<Progress, BadHeader> {
    const FIXED: usize = SIGNATURE.len() + 4;
    if bytes.len() < FIXED {
        return Ok(Progress::Need(FIXED - bytes.len()));
    }
    let (command, family) = (bytes[12], bytes[13]);
    let length = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if command >> 4 != 2 || command & 15 > 1 {
        return Err(BadHeader("its version or command is not known"));
    }
    if length > LONGEST {
        return Err(BadHeader("it is too long"));
    }
    if bytes.len() < length {
        return Ok(Progress::Need(length - bytes.len()));
    }
    let addresses = &bytes[FIXED..];
    let source = match (command & 15, family) {
        // LOCAL: the peer's own connection, whatever the addresses say.
        (0, _) => None,
        (_, 0x11) => Some(source_of::<4, 8>(addresses)?),
        (_, 0x21) => Some(source_of::<16, 32>(addresses)?),
        // Unix sockets, datagrams, unspecified: a client without an address (section 2.2).
        _ => None,
    };
    Ok(Progress::Done(source))
}

/// The source of an address block: two addresses of `SIZE` bytes, then two ports, of which the
/// source's is at `PORT`.
fn source_of<const SIZE: usize, const PORT: usize>(block: &[u8]) -> Result<SocketAddr, BadHeader>
where
    IpBytes<SIZE>: Into<IpAddr>,
{
    let short = BadHeader("its addresses are cut short");
    let address = *block.first_chunk::<SIZE>().ok_or(short)?;
    let ports = block.get(PORT..PORT + 4).ok_or(short)?;
    let address: IpAddr = IpBytes(address).into();
    Ok(SocketAddr::new(address.to_canonical(), u16::from_be_bytes([ports[0], ports[1]])))
}

struct IpBytes<const SIZE: usize>([u8; SIZE]);

impl From<IpBytes<4>> for IpAddr {
    fn from(bytes: IpBytes<4>) -> Self {
        Ipv4Addr::from(bytes.0).into()
    }
}

impl From<IpBytes<16>> for IpAddr {
    fn from(bytes: IpBytes<16>) -> Self {
        Ipv6Addr::from(bytes.0).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads as a caller does: just what is asked for. Tells who the client is and what is left.
    fn read(mut stream: &[u8]) -> Result<(Option<SocketAddr>, Vec<u8>), BadHeader> {
        let mut header = Vec::new();
        loop {
            match look(&header)? {
                Progress::Done(client) => return Ok((client, stream.to_vec())),
                Progress::Need(count) => {
                    assert!(count > 0 && header.len() + count <= LONGEST);
                    let Some((next, rest)) = stream.split_at_checked(count) else {
                        return Err(BadHeader("the stream has ended"));
                    };
                    header.extend_from_slice(next);
                    stream = rest;
                }
            }
        }
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, block].concat()
    }

    #[test]
    fn each_form_of_version_1_is_read_to_its_end_and_no_further() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 4242 443", Some("192.0.2.7:4242")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 4242 443", Some("[2001:db8::7]:4242")),
            ("PROXY UNKNOWN", None),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535", None),
        ] {
            let stream = format!("{line}\r\nGET / HTTP/1.1\r\n");
            let client = client.map(|client| client.parse().unwrap());
            assert_eq!(read(stream.as_bytes()), Ok((client, b"GET / HTTP/1.1\r\n".to_vec())));
        }
    }

    #[test]
    fn each_family_of_version_2_is_read_with_its_extensions_skipped() {
        let v4 = [&[192, 0, 2, 7, 198, 51, 100, 1, 16, 146, 1, 187][..], b"\x03\0\x01x"].concat();
        let mut v6 = vec![0; 36];
        (v6[0], v6[1], v6[15], v6[32], v6[33]) = (0x20, 1, 7, 16, 146);
        for (header, client) in [
            (version_2(1, 0x11, &v4), Some("192.0.2.7:4242")),
            (version_2(1, 0x21, &v6), Some("[2001::7]:4242")),
            (version_2(0, 0x11, &v4), None),
            (version_2(1, 0x00, &[]), None),
            (version_2(1, 0x31, &[0; 216]), None),
        ] {
            let client = client.map(|client| client.parse().unwrap());
            let stream = [&header[..], b"rest"].concat();
            assert_eq!(read(&stream), Ok((client, b"rest".to_vec())), "{header:02x?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_within_its_bounds() {
        let endless = format!("PROXY TCP4 {}", "1".repeat(200));
        let mut announced = version_2(1, 0x11, &[0; 12]);
        (announced[14], announced[15]) = (0xff, 0xff);
        for stream in [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            endless.into_bytes(),
            b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(),
            version_2(1, 0x11, &[1, 2, 3]),
            version_2(2, 0x11, &[0; 12]),
            announced,
        ] {
            assert!(read(&stream).is_err(), "{:?}", String::from_utf8_lossy(&stream));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[&SIGNATURE[..], &bytes].concat());
            let _ = read(&[b"PROXY ", &bytes[..]].concat());
        }

        #[test]
        fn any_address_comes_through(address: IpAddr, port: u16) {
            let client = SocketAddr::new(address.to_canonical(), port);
            let family = if address.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {address} {address} {port} 1\r\n");
            prop_assert_eq!(read(line.as_bytes()), Ok((Some(client), vec![])));
            let (family, octets) = match address {
                IpAddr::V4(address) => (0x11, address.octets().to_vec()),
                IpAddr::V6(address) => (0x21, address.octets().to_vec()),
            };
            let block = [&octets[..], &octets, &port.to_be_bytes(), &[0, 1]].concat();
            prop_assert_eq!(read(&version_2(1, family, &block)), Ok((Some(client), vec![])));
        }
    }
}
