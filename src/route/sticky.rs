//! The cookie that gives a key to clients that bring none.
//!
//! It is the last of its route's key sources, so that who has it is known by it. Who has nothing
//! gets one minted, and is treated from the first request on as if it had come with it. The value is
//! random and is the key: it names no backend, so any proxy of the fleet can place it, a change of
//! the fleet makes no cookie stale, and nobody learns from it what stands behind the proxy.
//!
//! Its attributes are those of RFC 6265bis (draft 20) section 4.1; the config has checked that no
//! text in it could end an attribute early. Randomness is the caller's.

use std::fmt::Write as _;
use std::time::Duration;

use http::HeaderValue;

use super::key::Key;

/// What the config says of a route's cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name, a token.
    pub name: String,
    /// The domain that it is for, with all below it; `None`: only the host that set it.
    pub domain: Option<String>,
    /// The paths that it is for.
    pub path: String,
    /// Whether requests that other sites cause carry it.
    pub same_site: SameSite,
    /// Whether it is kept to TLS.
    pub secure: Secure,
    /// Whether scripts are kept from it.
    pub http_only: bool,
    /// How long a client keeps it; zero: as long as its session.
    pub max_age: Duration,
}

/// The `SameSite` attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// No request that another site causes carries it.
    Strict,
    /// Of those, only a link that is followed.
    Lax,
    /// All do; browsers want it to be `Secure` then.
    None,
}

/// When the cookie has the `Secure` attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secure {
    /// Where the client came by TLS.
    Auto,
    /// Always: TLS ends in front of a proxy that is not told so.
    Always,
    /// Never.
    Never,
}

impl StickyCookie {
    /// The `Set-Cookie` that gives a client its key.
    ///
    /// `https` says whether the client came by TLS, to us or to a trusted proxy in front. `None`
    /// only where an attribute could not stand in a header, which a valid config rules out.
    pub fn set(&self, key: &Key, https: bool) -> Option<HeaderValue> {
        let mut text = format!("{}={}; Path={}", self.name, key.percent_encoded(), self.path);
        if let Some(domain) = &self.domain {
            text.push_str("; Domain=");
            text.push_str(domain);
        }
        if !self.max_age.is_zero() {
            // Writing to a text does not fail.
            let _ = write!(text, "; Max-Age={}", self.max_age.as_secs().max(1));
        }
        let secure = match self.secure {
            Secure::Auto => https,
            Secure::Always => true,
            Secure::Never => false,
        };
        if secure {
            text.push_str("; Secure");
        }
        if self.http_only {
            text.push_str("; HttpOnly");
        }
        text.push_str(match self.same_site {
            SameSite::Strict => "; SameSite=Strict",
            SameSite::Lax => "; SameSite=Lax",
            SameSite::None => "; SameSite=None",
        });
        HeaderValue::from_str(&text).ok()
    }
}

/// A key of 128 bits that the caller took at random: 32 hexadecimal digits.
pub fn mint(random: [u8; 16]) -> Key {
    Key::of_number(u128::from_be_bytes(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie() -> StickyCookie {
        StickyCookie {
            name: "steadfast".to_owned(),
            domain: None,
            path: "/".to_owned(),
            same_site: SameSite::Lax,
            secure: Secure::Auto,
            http_only: true,
            max_age: Duration::ZERO,
        }
    }

    fn set(cookie: &StickyCookie, https: bool) -> String {
        let key = mint([0xab; 16]);
        cookie.set(&key, https).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn a_minted_key_has_all_of_its_128_bits() {
        assert_eq!(mint([0; 16]).as_str(), "0".repeat(32));
        assert_eq!(mint([0xff; 16]).as_str(), "f".repeat(32));
    }

    #[test]
    fn by_default_it_lasts_a_session_and_no_script_sees_it() {
        let value = "ab".repeat(16);
        let plain = format!("steadfast={value}; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(set(&cookie(), false), plain);
        let secure = format!("steadfast={value}; Path=/; Secure; HttpOnly; SameSite=Lax");
        assert_eq!(set(&cookie(), true), secure);
    }

    #[test]
    fn each_attribute_is_as_it_was_asked_for() {
        let all = StickyCookie {
            name: "__Secure-s".to_owned(),
            domain: Some("example.com".to_owned()),
            path: "/chat".to_owned(),
            same_site: SameSite::None,
            secure: Secure::Always,
            http_only: false,
            max_age: Duration::from_secs(3600),
        };
        let attributes = "; Path=/chat; Domain=example.com; Max-Age=3600; Secure; SameSite=None";
        assert!(set(&all, false).ends_with(attributes), "{}", set(&all, false));
        let never = StickyCookie { secure: Secure::Never, same_site: SameSite::Strict, ..cookie() };
        assert!(set(&never, true).ends_with("; Path=/; HttpOnly; SameSite=Strict"));
    }
}
