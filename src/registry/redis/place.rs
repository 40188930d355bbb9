//! Where a Redis is: what the URLs of the config say.
//!
//! The URLs are read here, and not by the client library: it knows none for Sentinels, and its errors
//! quote what it could not read, of which a part may be a password. Nothing here does.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use redis::{RedisConnectionInfo, RedisResult};

use crate::config::Secret;

/// The port where none is named.
const PORT: u16 = 6379;
/// The port of Sentinels where none is named.
const SENTINEL_PORT: u16 = 26379;
/// The most servers that one config names.
const MOST_SERVERS: usize = 64;

/// Where a Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One server, at this address.
    One(Address, Access),
    /// Whichever server Sentinels say.
    Sentinel {
        /// The Sentinels; at least one.
        sentinels: Vec<Address>,
        /// What they call the master.
        master: String,
        /// How to log in to the master.
        access: Access,
    },
    /// A Redis Cluster, of which these are some members; at least one.
    Cluster(Vec<Address>, Access),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How a server is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Whether by TLS.
    pub tls: bool,
    /// Who logs in; `None`: the user "default".
    pub user: Option<String>,
    /// With what; `None`: nobody logs in.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
}

/// What is wrong with a URL, and what to write; the second half of a sentence, without the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongUrl {
    /// It begins with something else.
    #[error("must begin with redis://, rediss:// or redis+sentinel://")]
    Scheme,
    /// A member of a cluster begins with something else.
    #[error("must hold URLs that begin with redis:// or rediss://")]
    ClusterScheme,
    /// There is no host, or something else in its place.
    #[error("needs a host name or an IP address (IPv6 in brackets) behind the //, or behind the @")]
    Host,
    /// What follows a colon is no port.
    #[error("has no port from 1 to 65535 behind the colon of its host")]
    Port,
    /// There are too many servers.
    #[error("may name 64 servers at most; fewer will do, since each tells of the others")]
    TooMany,
    /// The user or the password can't be read.
    #[error(
        "has a user or a password that is not percent-encoded text; write %25 for %, %40 for @, %2F for /, %3A for : in it"
    )]
    Login,
    /// A user without a password.
    #[error("has a user without a password; write USER:PASSWORD@ before the host, or :PASSWORD@")]
    NoPassword,
    /// What follows the host is no number.
    #[error(
        "may have the number of a database behind its host, and nothing else, as in redis://HOST:6379/0"
    )]
    Database,
    /// The name of the master is missing.
    #[error(
        "needs the name of the master behind the Sentinels, as in redis+sentinel://HOST:26379/mymaster"
    )]
    Master,
    /// Members of a cluster differ in what must be the same.
    #[error("must have the same scheme, user and password in all its URLs")]
    Differ,
    /// Members of a cluster have databases.
    #[error("must name no database other than 0: a Redis Cluster has one")]
    ClusterDatabase,
    /// A list without members.
    #[error("is empty; write one or more members, such as [\"redis://10.0.0.1:6379\"]")]
    NoMember,
}

impl Place {
    /// Reads the URL of a server, or of Sentinels.
    ///
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, the same with `rediss` for TLS, or
    /// `redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]..]/MASTER[/DB]`.
    ///
    /// # Errors
    ///
    /// Tells what is wrong with the URL, without showing it.
    pub fn at(url: &str) -> Result<Self, WrongUrl> {
        if let Some(rest) = url.strip_prefix("redis+sentinel://") {
            return sentinel(rest);
        }
        let (address, access) = server(url).ok_or(WrongUrl::Scheme)??;
        Ok(Self::One(address, access))
    }

    /// Reads the URLs of some members of a Redis Cluster.
    ///
    /// # Errors
    ///
    /// Tells what is wrong with them, without showing any.
    pub fn cluster<'u>(urls: impl IntoIterator<Item = &'u str>) -> Result<Self, WrongUrl> {
        let mut members = Vec::new();
        let mut common: Option<Access> = None;
        for url in urls {
            let (address, access) = server(url).ok_or(WrongUrl::ClusterScheme)??;
            if access.database != 0 {
                return Err(WrongUrl::ClusterDatabase);
            }
            if *common.get_or_insert_with(|| access.clone()) != access {
                return Err(WrongUrl::Differ);
            }
            members.push(address);
        }
        let access = common.ok_or(WrongUrl::NoMember)?;
        if members.len() > MOST_SERVERS {
            return Err(WrongUrl::TooMany);
        }
        Ok(Self::Cluster(members, access))
    }
}

/// `None`: it is no URL of a server.
fn server(url: &str) -> Option<Result<(Address, Access), WrongUrl>> {
    let (rest, tls) = match (url.strip_prefix("redis://"), url.strip_prefix("rediss://")) {
        (Some(rest), _) => (rest, false),
        (_, Some(rest)) => (rest, true),
        _ => return None,
    };
    let read = || {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = split_login(authority);
        let address = address(host, PORT)?;
        let database = database(path)?;
        let (user, password) = user_and_password(login)?;
        Ok((address, Access { tls, user, password, database }))
    };
    Some(read())
}

fn sentinel(rest: &str) -> Result<Place, WrongUrl> {
    let (authority, path) = rest.split_once('/').ok_or(WrongUrl::Master)?;
    let (login, hosts) = split_login(authority);
    let hosts = hosts.split(',').map(|host| address(host, SENTINEL_PORT));
    let sentinels = hosts.collect::<Result<Vec<_>, _>>()?;
    if sentinels.len() > MOST_SERVERS {
        return Err(WrongUrl::TooMany);
    }
    let (master, path) = path.split_once('/').unwrap_or((path, ""));
    let master = decoded(master).map_err(|_| WrongUrl::Master)?;
    if master.is_empty() {
        return Err(WrongUrl::Master);
    }
    let database = database(path)?;
    let (user, password) = user_and_password(login)?;
    let access = Access { tls: false, user, password, database };
    Ok(Place::Sentinel { sentinels, master: master.into_owned(), access })
}

/// What stands before the last `@`, and behind it.
fn split_login(authority: &str) -> (Option<&str>, &str) {
    match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    }
}

fn user_and_password(login: Option<&str>) -> Result<(Option<String>, Option<Secret>), WrongUrl> {
    let Some(login) = login else { return Ok((None, None)) };
    let (user, password) = login.split_once(':').ok_or(WrongUrl::NoPassword)?;
    let (user, password) = (decoded(user)?, decoded(password)?);
    if password.is_empty() {
        return Err(WrongUrl::NoPassword);
    }
    let user = (!user.is_empty()).then(|| user.into_owned());
    Ok((user, Some(Secret::new(password.into_owned()))))
}

fn decoded(text: &str) -> Result<Cow<'_, str>, WrongUrl> {
    let is_encoded = |behind: &str| {
        behind.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(is_encoded) {
        return Err(WrongUrl::Login);
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| WrongUrl::Login)?;
    if decoded.contains(char::is_control) { Err(WrongUrl::Login) } else { Ok(decoded) }
}

fn address(text: &str, default: u16) -> Result<Address, WrongUrl> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(WrongUrl::Host)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| WrongUrl::Host)?;
            let port = if rest.is_empty() { None } else { rest.strip_prefix(':') };
            (host, if rest.is_empty() { None } else { Some(port.ok_or(WrongUrl::Host)?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let of_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || host.len() > 255 || !host.bytes().all(of_host) {
        return Err(WrongUrl::Host);
    }
    let port = match port {
        None => default,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port != 0).ok_or(WrongUrl::Port)?
        }
        Some(_) => return Err(WrongUrl::Port),
    };
    Ok(Address { host: host.to_owned(), port })
}

fn database(path: &str) -> Result<u32, WrongUrl> {
    if path.is_empty() {
        return Ok(0);
    }
    let digits = path.bytes().all(|byte| byte.is_ascii_digit());
    path.parse().ok().filter(|number| digits && *number < 1 << 16).ok_or(WrongUrl::Database)
}

impl Access {
    /// How to reach the server at `address`, for the client library.
    pub(super) fn to(&self, address: &Address) -> RedisResult<ConnectionInfo> {
        let Address { host, port } = address.clone();
        let at = if self.tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut login = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(i64::from(self.database))
            .set_skip_set_lib_name();
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password.expose());
        }
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(at.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(formatter, "[{host}]:{port}")
        } else {
            write!(formatter, "{host}:{port}")
        }
    }
}

/// Where it is, for a line of the log: without login.
impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, addresses) = match self {
            Self::One(address, access) => {
                (if access.tls { "rediss" } else { "redis" }, std::slice::from_ref(address))
            }
            Self::Sentinel { sentinels, .. } => ("redis+sentinel", &sentinels[..]),
            Self::Cluster(members, access) => {
                (if access.tls { "rediss" } else { "redis" }, &members[..])
            }
        };
        write!(formatter, "{scheme}://")?;
        for (index, address) in addresses.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{address}")?;
        }
        match self {
            Self::Sentinel { master, .. } => write!(formatter, "/{master}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address_of(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    fn secret(text: &str) -> Option<Secret> {
        Some(Secret::new(text.to_owned()))
    }

    #[test]
    fn one_server_has_an_address_a_login_and_a_database() {
        let plain = Place::One(address_of("127.0.0.1", 6379), Access::default());
        for url in ["redis://127.0.0.1", "redis://127.0.0.1:6379", "redis://127.0.0.1:6379/0"] {
            assert_eq!(Place::at(url).as_ref(), Ok(&plain), "{url}");
        }
        let access = Access {
            tls: true,
            user: Some("edge".to_owned()),
            password: secret("p@ss/:1"),
            database: 3,
        };
        let whole = Place::One(address_of("::1", 7000), access);
        assert_eq!(Place::at("rediss://edge:p%40ss%2F:1@[::1]:7000/3"), Ok(whole));
        let default_user = Access { password: secret("hush"), ..Access::default() };
        let by_password = Place::One(address_of("redis.internal", 6379), default_user);
        assert_eq!(Place::at("redis://:hush@redis.internal/"), Ok(by_password));
    }

    #[test]
    fn sentinels_are_many_and_have_a_master() {
        let place = Place::at("redis+sentinel://u:hush@10.0.0.1:26379,[::1],b:5/my%20master/2");
        let access = Access {
            user: Some("u".to_owned()),
            password: secret("hush"),
            database: 2,
            tls: false,
        };
        let sentinels =
            vec![address_of("10.0.0.1", 26379), address_of("::1", 26379), address_of("b", 5)];
        assert_eq!(
            place,
            Ok(Place::Sentinel { sentinels, master: "my master".to_owned(), access })
        );
    }

    #[test]
    fn a_cluster_has_members_that_are_spoken_to_alike() {
        let members = vec![address_of("a", 7001), address_of("b", 6379)];
        let place = Place::cluster(["redis://a:7001", "redis://b"]);
        assert_eq!(place, Ok(Place::Cluster(members, Access::default())));
        for (urls, wrong) in [
            (&[][..], WrongUrl::NoMember),
            (&["redis://a", "rediss://b"], WrongUrl::Differ),
            (&["redis://a", "redis://:hush@b"], WrongUrl::Differ),
            (&["redis://a/1"], WrongUrl::ClusterDatabase),
            (&["redis+sentinel://a/m"], WrongUrl::ClusterScheme),
            (&["a:6379"], WrongUrl::ClusterScheme),
        ] {
            assert_eq!(Place::cluster(urls.iter().copied()), Err(wrong), "{urls:?}");
        }
        assert_eq!(Place::cluster(["redis://a"; 65]), Err(WrongUrl::TooMany));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (url, wrong) in [
            ("", WrongUrl::Scheme),
            ("127.0.0.1:6379", WrongUrl::Scheme),
            ("http://a", WrongUrl::Scheme),
            ("redis+unix:///run/redis", WrongUrl::Scheme),
            ("redis://", WrongUrl::Host),
            ("redis:///0", WrongUrl::Host),
            ("redis://:hush@", WrongUrl::Host),
            ("redis://::1", WrongUrl::Host),
            ("redis://[::1", WrongUrl::Host),
            ("redis://[::1]6379", WrongUrl::Host),
            ("redis://[a]", WrongUrl::Host),
            ("redis://a b", WrongUrl::Host),
            ("redis://a,b", WrongUrl::Host),
            ("redis://a:0", WrongUrl::Port),
            ("redis://a:", WrongUrl::Port),
            ("redis://a:+1", WrongUrl::Port),
            ("redis://a:65536", WrongUrl::Port),
            ("redis://a/b", WrongUrl::Database),
            ("redis://a/-1", WrongUrl::Database),
            ("redis://a/0/0", WrongUrl::Database),
            ("redis://a/0?protocol=resp3", WrongUrl::Database),
            ("redis://a/99999", WrongUrl::Database),
            ("redis://hush@a", WrongUrl::NoPassword),
            ("redis://user:@a", WrongUrl::NoPassword),
            ("redis://u:%ff@a", WrongUrl::Login),
            ("redis://u:%0d%0a@a", WrongUrl::Login),
            ("redis://u:p%ss@a", WrongUrl::Login),
            ("redis://u%4:p@a", WrongUrl::Login),
            ("redis://u:p%@a", WrongUrl::Login),
            ("redis://u:p%%40@a", WrongUrl::Login),
            ("redis+sentinel://:p%zz@a/m", WrongUrl::Login),
            ("redis+sentinel://a/m%zz", WrongUrl::Master),
            ("redis+sentinel://a", WrongUrl::Master),
            ("redis+sentinel://a/", WrongUrl::Master),
            ("redis+sentinel://a,/m", WrongUrl::Host),
            ("redis+sentinel://a/m/x", WrongUrl::Database),
        ] {
            assert_eq!(Place::at(url), Err(wrong), "{url}");
        }
    }

    #[test]
    fn a_login_is_never_shown() {
        for url in ["redis://us:hush@a:1/2", "redis+sentinel://us:hush@a,b/m"] {
            let place = Place::at(url).unwrap();
            assert!(!format!("{place:?} {place}").contains("hush"), "{place:?} {place}");
        }
        let place = Place::at("redis+sentinel://us:hush@a,[::1]:5/m/1").unwrap();
        assert_eq!(place.to_string(), "redis+sentinel://a:26379,[::1]:5/m");
    }

    proptest! {
        #[test]
        fn any_text_is_a_place_or_wrong(text in ".*", pieces in "[a-z0-9:/@%,\\[\\]]{0,40}") {
            let _ = (Place::at(&text), Place::cluster([text.as_str()]));
            for scheme in ["redis://", "rediss://", "redis+sentinel://"] {
                if let Ok(place) = Place::at(&format!("{scheme}{pieces}")) {
                    prop_assert!(place.to_string().starts_with(scheme));
                }
            }
        }

        #[test]
        fn a_login_is_read_as_it_was_written(user in "[a-z]{1,9}", password in "\\PC{1,20}") {
            let encoded = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
            let Ok(Place::One(_, access)) = Place::at(&format!("redis://{user}:{encoded}@a")) else {
                return Err(TestCaseError::fail(password));
            };
            prop_assert_eq!(access.user, Some(user));
            prop_assert_eq!(access.password, secret(&password));
        }
    }
}
