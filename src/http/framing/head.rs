//! The head of a request: where it ends, and what follows it.
//!
//! The search for the end goes byte by byte and remembers where it stopped. On the way it refuses
//! what no later byte can mend: a line feed without its carriage return or the reverse, a control
//! character (so a TLS client on a plain port hears at once), too much of anything. Only a whole
//! head is parsed, once.
//!
//! Of the headers only those are read that frame the message or decide who answers it: several
//! `Host` lines are as good as two requests, for proxies that pick different ones (RFC 9112
//! section 3.2). The rest is left to those who use it.

use super::{Body, HeadLimits, Refusal};

/// So many empty lines before a request are passed over (RFC 9112 section 2.2: at least one): some
/// old clients send one behind a body.
pub const MAX_EMPTY_LINES: usize = 4;

/// hyper takes no longer target.
const MAX_TARGET_BYTES: usize = 65_534;
/// The `http` crate takes no longer name.
const MAX_NAME_BYTES: usize = 32_768;
/// hyper keeps the last few lengths for itself; nobody means one this long.
const MAX_LENGTH: u64 = i64::MAX.unsigned_abs();
/// Heads with fewer lines than this are parsed without an allocation.
const USUAL_LINES: usize = 48;

/// What a head says about the message that it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes of empty lines before the request line.
    pub leading: usize,
    /// All its bytes, `leading` included, up to the first of the body.
    pub len: usize,
    /// What follows it.
    pub body: Body,
    /// It is HTTP/1.1 and has an `Upgrade`: what follows the message may not be HTTP, and must
    /// wait until the answer tells.
    pub upgrade: bool,
    /// It is HTTP/1.1, has a body, and waits for a 100 before sending it (RFC 9110 section
    /// 10.1.1).
    pub expects_continue: bool,
}

/// Looks for the end of one head, as its bytes arrive. One is for one head.
#[derive(Clone, Debug)]
pub struct HeadScanner {
    limits: HeadLimits,
    /// Bytes that were looked at. The next one to look at is the first of the next [`scan`].
    ///
    /// [`scan`]: Self::scan
    scanned: usize,
    /// Where the line begins that is being looked at.
    line_start: usize,
    /// Empty lines before the request line, each two bytes.
    empty_lines: usize,
    /// Whole lines that are not empty: the request line and headers.
    lines: usize,
    after_cr: bool,
}

impl HeadScanner {
    /// Begins before the first byte of a request, or of empty lines before it.
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, scanned: 0, line_start: 0, empty_lines: 0, lines: 0, after_cr: false }
    }

    /// Looks at all bytes since the end of the last message; `None` if the head does not end in
    /// them yet.
    ///
    /// Each call must be given all bytes of the call before and may be given more, also such that
    /// follow the head. A byte that was looked at is not looked at again. After an answer other
    /// than `None` the scanner is used up.
    ///
    /// # Errors
    ///
    /// Every [`Refusal`], as soon as no later byte could avert it.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<RequestHead>, Refusal> {
        let limit = bytes.len().min(self.limits.bytes);
        while self.scanned < limit {
            let byte = bytes[self.scanned];
            self.scanned += 1;
            if self.ends_with(byte)? {
                return self.read(&bytes[..self.scanned]).map(Some);
            }
        }
        if bytes.len() >= self.limits.bytes { Err(Refusal::TooLarge) } else { Ok(None) }
    }

    /// Takes the next byte; true if the head ends with it.
    fn ends_with(&mut self, byte: u8) -> Result<bool, Refusal> {
        match (byte, self.after_cr) {
            (b'\n', true) => {
                self.after_cr = false;
                return self.end_line();
            }
            (_, true) => return Err(Refusal::Bad("carriage return without a line feed")),
            (b'\n', false) => return Err(Refusal::Bad("line feed without a carriage return")),
            (b'\r', false) => self.after_cr = true,
            (b'\t' | b' '..=b'~' | 0x80.., false) => {}
            (_, false) => return Err(Refusal::Bad("control character in the head")),
        }
        Ok(false)
    }

    fn end_line(&mut self) -> Result<bool, Refusal> {
        let empty = self.scanned - self.line_start == 2;
        self.line_start = self.scanned;
        if empty && self.lines > 0 {
            return Ok(true);
        }
        if empty {
            self.empty_lines += 1;
            let few = self.empty_lines <= MAX_EMPTY_LINES;
            return few.then_some(false).ok_or(Refusal::Bad("empty lines before the request"));
        }
        self.lines += 1;
        // The request line is no header.
        let few = self.lines - 1 <= self.limits.headers;
        few.then_some(false).ok_or(Refusal::TooManyHeaders)
    }

    /// Parses a whole head.
    fn read(&self, head: &[u8]) -> Result<RequestHead, Refusal> {
        let mut usual = [httparse::EMPTY_HEADER; USUAL_LINES];
        let mut many = Vec::new();
        let headers = if self.lines <= USUAL_LINES {
            &mut usual[..]
        } else {
            many.resize(self.lines, httparse::EMPTY_HEADER);
            &mut many[..]
        };
        let mut request = httparse::Request::new(headers);
        match request.parse(head) {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Ok(_) => return Err(Refusal::Bad("the head ends in two places")),
            Err(error) => return Err(refusal_of(error, head)),
        }
        let mut read = FramingHeaders::of(&request)?.judge()?;
        read.leading = self.empty_lines * 2;
        read.len = head.len();
        Ok(read)
    }
}

fn refusal_of(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::Version if names_other_version(head) => Refusal::Version,
        httparse::Error::Version => Refusal::Bad("the request line ends without an HTTP version"),
        // httparse calls white space before the colon and at the start of a line a bad name.
        httparse::Error::HeaderName => Refusal::Bad("not a header name, or white space beside it"),
        httparse::Error::HeaderValue => Refusal::Bad("not a header value"),
        httparse::Error::TooManyHeaders => Refusal::TooManyHeaders,
        httparse::Error::Token | httparse::Error::NewLine | httparse::Error::Status => {
            Refusal::Bad("not a request line")
        }
    }
}

/// Whether the request line has three parts, the last a `HTTP/DIGIT.DIGIT` (RFC 9112 section 2.3).
fn names_other_version(head: &[u8]) -> bool {
    let mut lines = head.split(|&byte| byte == b'\r').map(<[u8]>::trim_ascii);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let mut parts = line.split(|&byte| byte == b' ').skip(2);
    let version = parts.next().unwrap_or_default();
    parts.next().is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The headers that say where a message ends and who answers it, collected before they are judged.
#[derive(Default)]
struct FramingHeaders {
    http_11: bool,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    expects_continue: bool,
}

impl FramingHeaders {
    fn of(request: &httparse::Request<'_, '_>) -> Result<Self, Refusal> {
        if request.path.is_some_and(|target| target.len() > MAX_TARGET_BYTES) {
            return Err(Refusal::TargetTooLong);
        }
        if request.method == Some("CONNECT") {
            return Err(Refusal::NotImplemented("CONNECT is for forward proxies"));
        }
        let mut found = Self { http_11: request.version == Some(1), ..Self::default() };
        for header in &*request.headers {
            found.add(header)?;
        }
        Ok(found)
    }

    fn add(&mut self, header: &httparse::Header<'_>) -> Result<(), Refusal> {
        let named = |name| header.name.eq_ignore_ascii_case(name);
        if header.name.len() > MAX_NAME_BYTES {
            return Err(Refusal::TooLarge);
        } else if named("content-length") {
            if self.length.is_some() {
                return Err(Refusal::Bad("several Content-Length"));
            }
            self.length = Some(length_of(header.value)?);
        } else if named("transfer-encoding") {
            if self.chunked {
                return Err(Refusal::Bad("several Transfer-Encoding"));
            }
            self.chunked = true;
            check_coding(header.value)?;
        } else if named("host") {
            self.hosts += 1;
        } else if named("upgrade") {
            self.upgrade = true;
        } else if named("expect") {
            self.expects_continue = header.value.eq_ignore_ascii_case(b"100-continue");
        }
        Ok(())
    }

    fn judge(&self) -> Result<RequestHead, Refusal> {
        match self.hosts {
            0 if self.http_11 => return Err(Refusal::Bad("no Host")),
            0 | 1 => {}
            _ => return Err(Refusal::Bad("several Host")),
        }
        let body = match (self.chunked, self.length) {
            (true, Some(_)) => {
                return Err(Refusal::Bad("Content-Length beside Transfer-Encoding"));
            }
            (true, None) if !self.http_11 => {
                return Err(Refusal::Bad("Transfer-Encoding in HTTP/1.0"));
            }
            (true, None) => Body::Chunked,
            (false, Some(0) | None) => Body::None,
            (false, Some(length)) => Body::Length(length),
        };
        Ok(RequestHead {
            leading: 0,
            len: 0,
            body,
            upgrade: self.upgrade && self.http_11,
            expects_continue: self.expects_continue && self.http_11 && body != Body::None,
        })
    }
}

/// Digits and nothing else (RFC 9110 section 8.6): no sign, no space, no list of equal ones.
fn length_of(value: &[u8]) -> Result<u64, Refusal> {
    let malformed = Refusal::Bad("Content-Length is not a number");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(malformed);
    }
    let digits = std::str::from_utf8(value).map_err(|_| malformed)?;
    let length = digits.parse::<u64>().map_err(|_| Refusal::Bad("Content-Length is too large"))?;
    if length > MAX_LENGTH {
        return Err(Refusal::Bad("Content-Length is too large"));
    }
    Ok(length)
}

/// The one token `chunked`. Other codings below it are a 501 (RFC 9112 section 6.1). Where
/// `chunked` is not the last the length can't be known, which is a 400 (section 6.3).
fn check_coding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).rev();
    let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if !codings.next().is_some_and(chunked) {
        return Err(Refusal::Bad("Transfer-Encoding does not end in chunked"));
    }
    if codings.any(|coding| chunked(coding) || coding.is_empty()) {
        return Err(Refusal::Bad("Transfer-Encoding is malformed"));
    }
    Err(Refusal::NotImplemented("a transfer coding other than chunked"))
}
