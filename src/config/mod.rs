//! The configuration: one TOML file, checked whole, resolved into what the program runs on.
//!
//! The way of a file: `raw` reads it as a tree that knows its places, `resolve` takes the tree
//! apart key by key and builds [`Config`], `typed` and `value` read what stands in it, `unsupported`
//! lists what this version does not act on, and [`Problems`] gathers and shows all that is wrong.
//!
//! [`parse`] is all of it without touching the machine: what a config may ask of that (variables,
//! files with secrets, cores, the host name) is an argument, [`Environment`]. [`load()`] is the
//! shell around it that reads a file here and now.
//!
//! `Config` holds no option that is really required and no text that is really an address; who
//! has one need check nothing again.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use crate::listen::ListenerSettings;
use crate::pool::PoolSettings;
use crate::registry::redis as registry;
use crate::route::RouteSettings;

pub mod diff;
mod load;
mod problems;
mod raw;
mod resolve;
mod typed;
mod unsupported;
mod value;
pub mod watch;

pub use load::{Loaded, Source, load};
pub use problems::{Place, Problem, Problems};

/// The longest config file.
const LONGEST_FILE: usize = 4 * 1024 * 1024;

/// What a config may ask of the machine.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// Gives the value of an environment variable; `None` where it is not set.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Gives the text of a file that holds a secret or a certificate. Paths are joined to the
    /// config's folder.
    pub file: &'a dyn Fn(&Path) -> io::Result<String>,
    /// The host name, for a server without a name.
    pub host_name: &'a str,
    /// How many cores the process may use, for `workers = 0`.
    pub cores: NonZeroUsize,
    /// The time, to tell whether a certificate is valid.
    pub now: SystemTime,
    /// Gives the certificates of the authorities that this machine believes.
    pub authorities: &'a dyn Fn() -> Vec<CertificateDer<'static>>,
}

/// Reads a config from text, and checks all of it.
///
/// `file_name` is what problems name; relative paths in the config start at `folder`. Nothing is
/// read but by `environment`.
///
/// # Errors
///
/// Everything that is wrong with the text: bad TOML, unknown keys, values out of range, options
/// that this version does not act on. At least one problem, in the order of the text.
pub fn parse(
    source: &str,
    file_name: &str,
    folder: &Path,
    environment: &Environment<'_>,
) -> Result<Config, Problems> {
    // Some editors begin a file with a mark of its encoding; it is no part of the first line.
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    if source.len() > LONGEST_FILE {
        return Err(refused(file_name, too_long()));
    }
    let mut problems = Problems::new(file_name, source);
    let tree = raw::read(source, &mut problems);
    let config = tree.map(|tree| resolve::resolve(&tree, folder, environment, &mut problems));
    problems.finish();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems),
    }
}

/// Reads `[server]` alone, as far as it is valid, also where the rest of the file is no TOML.
fn server(source: &str, folder: &Path, environment: &Environment<'_>) -> ServerSettings {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    resolve::server_of(&raw::read_what_can_be(source), folder, environment)
}

fn refused(file_name: &str, message: String) -> Problems {
    let mut problems = Problems::new(file_name, "");
    problems.whole(message);
    problems
}

fn too_long() -> String {
    format!("is longer than {}; divide what it serves", value::show_size(LONGEST_FILE as u64))
}

/// A config that was found valid as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The process.
    pub server: ServerSettings,
    /// Where clients connect; at least one.
    pub listeners: Vec<ListenerSettings>,
    /// Where requests go; no two match with equal right.
    pub routes: Vec<RouteSettings>,
    /// The pools that routes name.
    pub pools: Vec<PoolSettings>,
    /// The registry that it shares with other proxies, if it does.
    pub registry: Option<registry::Settings>,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSettings {
    /// Part of the proxy id; has no dot.
    pub name: String,
    /// Worker threads, at least 1: `workers = 0` is resolved to the cores that the process may use.
    pub workers: usize,
    /// The address of the admin API.
    pub admin: Option<SocketAddr>,
    /// The bearer token that the admin API asks for.
    pub admin_token: Option<Secret>,
    /// After SIGTERM: not ready, but still accepting.
    pub shutdown_delay: Duration,
    /// After that: all is over within this.
    pub shutdown_grace: Duration,
    /// What is logged.
    pub log_level: LogLevel,
    /// How it is written.
    pub log_format: LogFormat,
    /// Where the access log goes.
    pub access_log: AccessLog,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// To standard error.
    Stderr,
    /// To the end of this file.
    File(PathBuf),
}

/// The least severe event that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For the operator, now.
    Error,
    /// For the operator, later.
    Warn,
    /// Lifecycle.
    Info,
    /// One connection.
    Debug,
    /// Everything.
    Trace,
}

/// How log events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// A secret from the config; neither `Debug` nor an error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself, for a comparison or a handshake, never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pool::{BackendAddress, CheckKind};
    use crate::route::{HostPattern, KeySource, PathPattern};

    const MINIMAL: &str = r#"
        [[listener]]
        bind = "0.0.0.0:8080"
        [[route]]
        path = "/ws/*"
        pool = "rooms"
        [pool.rooms]
        backends = [{ id = "a", address = "127.0.0.1:9001" }]
    "#;

    fn on_a_small_machine(source: &str) -> Result<Config, Problems> {
        let environment = Environment {
            variable: &|name| (name == "TOKEN").then(|| "hush".to_owned()),
            file: &|path| match path.to_str() {
                Some("/etc/steadfast/token") => Ok("hush\r\n".to_owned()),
                Some("/etc/steadfast/lines") => Ok("hush\n\n".to_owned()),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
            host_name: "edge1.example.com",
            cores: NonZeroUsize::new(3).unwrap(),
            now: std::time::UNIX_EPOCH,
            authorities: &Vec::new,
        };
        parse(source, "config.toml", Path::new("/etc/steadfast"), &environment)
    }

    #[test]
    fn what_is_valid_of_the_server_is_read_from_a_broken_file_too() {
        let environment = Environment {
            variable: &|_| None,
            file: &|_| Err(io::ErrorKind::NotFound.into()),
            host_name: "edge1",
            cores: NonZeroUsize::MIN,
            now: std::time::UNIX_EPOCH,
            authorities: &Vec::new,
        };
        let admin = |source: &str| {
            let server = super::server(source, Path::new("/"), &environment);
            Some((server.admin?.port(), server.admin_token))
        };
        let hush = Some(Secret::new("hush".to_owned()));
        let server = "[server]\nadmin = \"127.0.0.1:9900\"\nadmin_token = \"hush\"\n";
        assert_eq!(admin(server), Some((9900, hush.clone())));
        for broken in ["[[route]]\npath = 7\n", "[[route]\npath = \"/", "x = \"\n\ny"] {
            let source = format!("{server}{broken}");
            assert_eq!(admin(&source), Some((9900, hush.clone())), "{broken}");
        }
        let unset = server.replace("hush", "${NO_SUCH}");
        assert_eq!(admin(&unset).unwrap().0, 9900, "the token alone is unknown");
        assert_eq!(admin("[server]\nadmin = 7"), None);
        assert_eq!(admin(""), None);
    }

    fn server(options: &str) -> Result<ServerSettings, String> {
        on_a_small_machine(&format!("[server]\n{options}\n{MINIMAL}"))
            .map(|config| config.server)
            .map_err(|problems| problems.to_string())
    }

    fn told(source: &str) -> String {
        on_a_small_machine(source).unwrap_err().to_string()
    }

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let config = on_a_small_machine(MINIMAL).unwrap();
        assert_eq!(config.server.name, "edge1-example-com");
        assert_eq!(config.server.workers, 3);
        assert_eq!(config.server.admin, None);
        assert_eq!(config.server.shutdown_grace, Duration::from_secs(25));
        assert_eq!(config.server.access_log, AccessLog::Off);
        let listener = &config.listeners[0];
        assert_eq!((listener.head_bytes, listener.headers), (32 * 1024, 100));
        assert_eq!(listener.idle_timeout, Duration::from_secs(75));
        let route = &config.routes[0];
        assert_eq!((route.name.as_str(), &route.listener), ("/ws/*", &None));
        assert_eq!((&route.host, route.key.len()), (&HostPattern::Any, 0));
        assert_eq!(route.path, PathPattern::Prefix("/ws/".to_owned()));
        assert_eq!(route.relay.ping_interval, Duration::from_secs(45));
        assert_eq!(route.relay.max_message, 16 * 1024 * 1024);
        let pool = &config.pools[0];
        assert_eq!(pool.backends[0].weight.get(), 1);
        assert_eq!(pool.health.kind, CheckKind::Tcp);
        assert_eq!(pool.health.lost_after, Duration::from_secs(30));
    }

    #[test]
    fn a_checked_path_has_a_default_of_its_own() {
        let source = format!("{MINIMAL}\nhealth.kind = \"http\"");
        let config = on_a_small_machine(&source).unwrap();
        assert_eq!(config.pools[0].health.kind, CheckKind::Http { path: "/health".to_owned() });
    }

    #[test]
    fn pools_come_in_the_order_of_the_file() {
        let more = "[pool.zoo]\nbackends = [{ id = \"a\", address = \"Zoo:1\" }]\n[pool.ape]\nbackends = [{ id = \"a\", address = \"[::1]:1\" }]";
        let config = on_a_small_machine(&format!("{MINIMAL}{more}")).unwrap();
        let names: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
        assert_eq!(names, ["rooms", "zoo", "ape"]);
        let address = &config.pools[1].backends[0].address;
        assert_eq!(*address, BackendAddress::Name("zoo".to_owned(), 1));
    }

    #[test]
    fn a_key_is_one_source_or_a_list() {
        let route = |key: &str| {
            let with_key = format!("pool = \"rooms\"\nkey = {key}");
            let source = MINIMAL.replace("pool = \"rooms\"", &with_key);
            on_a_small_machine(&source).map(|config| config.routes[0].key.clone())
        };
        assert_eq!(route("\"path:2\"").unwrap(), [KeySource::Path(2)]);
        let both = [KeySource::Query("room".to_owned()), KeySource::ClientIp];
        assert_eq!(route("[\"query:room\", \"client_ip\"]").unwrap(), both);
    }

    #[test]
    fn a_token_comes_from_the_file_itself_a_variable_or_another_file() {
        let token = |option: &str| server(option).map(|server| server.admin_token);
        let hush = Ok(Some(Secret::new("hush".to_owned())));
        assert_eq!(token("admin_token = \"hush\""), hush);
        assert_eq!(token("admin_token = \"${TOKEN}\""), hush);
        assert_eq!(token("admin_token = \"file:token\""), hush);
        assert_eq!(token("admin_token = \"file:/etc/steadfast/token\""), hush);
        // Only one newline is an editor's.
        assert!(token("admin_token = \"file:lines\"").is_err());
        assert!(token("admin_token = \"\"").is_err());
    }

    #[test]
    fn an_admin_address_that_others_reach_needs_a_token() {
        for local in ["127.0.0.1:9900", "[::1]:9900", "127.9.9.9:0", "[::ffff:127.0.0.1]:1"] {
            assert!(server(&format!("admin = {local:?}")).is_ok(), "{local}");
        }
        for open in ["0.0.0.0:9900", "[::]:9900", "10.0.0.1:9900"] {
            assert!(server(&format!("admin = {open:?}")).unwrap_err().contains("set admin_token"));
            assert!(server(&format!("admin = {open:?}\nadmin_token = \"hush\"")).is_ok());
        }
    }

    #[test]
    fn paths_start_at_the_folder_of_the_file() {
        let log = |path: &str| server(&format!("access_log = {path:?}")).unwrap().access_log;
        assert_eq!(log("a.log"), AccessLog::File("/etc/steadfast/a.log".into()));
        assert_eq!(log("/var/log/a.log"), AccessLog::File("/var/log/a.log".into()));
        assert_eq!(log("stderr"), AccessLog::Stderr);
    }

    #[test]
    fn a_server_name_is_brought_into_form() {
        assert_eq!(server("name = \"a.b c\"").unwrap().name, "a-b-c");
        assert!(server("name = \"\"").is_err());
    }

    #[test]
    fn a_ring_is_full_at_1024_units_of_weight() {
        let weighing = |weight: u32| {
            let source = MINIMAL.replace("9001\"", &format!("9001\", weight = {weight}"));
            on_a_small_machine(&source)
        };
        assert!(weighing(1024).is_ok());
        assert!(weighing(1025).unwrap_err().to_string().contains("divide all weights"));
        assert!(weighing(u32::MAX).is_err());
    }

    #[test]
    fn listeners_on_free_ports_are_not_the_same() {
        let free = "[[listener]]\nbind = \"127.0.0.1:0\"\n";
        assert_eq!(
            on_a_small_machine(&format!("{free}{free}{MINIMAL}")).unwrap().listeners.len(),
            3
        );
    }

    #[test]
    fn what_only_a_broken_table_has_is_known_by_name() {
        let told = told(&MINIMAL.replace("127.0.0.1:9001", "nowhere"));
        assert_eq!(told.matches("config.toml:").count(), 1, "{told}");
    }

    #[test]
    fn a_mark_of_the_encoding_is_no_part_of_the_first_line() {
        assert!(on_a_small_machine(&format!("\u{feff}{MINIMAL}")).is_ok());
        assert!(told("\u{feff}x = 1").contains("config.toml:1:1: x is no known key"));
    }

    #[test]
    fn a_file_that_is_wrong_everywhere_is_told_about_in_bounded_time() {
        for piece in
            ["token=x ", "token = '''", "a\n", "a={", "\"", "://", "[[route]]\n", "a.", "[a]\n"]
        {
            let source = piece.repeat(300_000 / piece.len());
            assert!(told(&source).len() < 200_000, "{piece}");
        }
        let pools: String =
            (0..2000).map(|n| format!("[[route]]\npath='/'\npool='p{n}'\n")).collect();
        assert!(told(&pools).len() < 200_000);
    }

    /// Pieces of configs, in any order: deeper than arbitrary text gets.
    fn pieces() -> impl Strategy<Value = String> {
        let words = [
            "[server]\n",
            "[[listener]]\n",
            "[[route]]\n",
            "[pool.a]\n",
            "[pool.a.health]\n",
            "bind",
            "path",
            "pool",
            "backends",
            "admin_token",
            "timeouts",
            "limits",
            "key",
            " = ",
            "\"/*\"",
            "\"a\"",
            "\"0.0.0.0:1\"",
            "\"${A}\"",
            "1",
            "-1",
            "true",
            "1.5",
            "[",
            "]",
            "{",
            "}",
            ",",
            ".",
            "\n",
            "\"",
            "'''",
            "#",
            "\u{e4}",
            "\t",
            "\r\n",
            "\"5s\"",
            "1979-05-27",
        ];
        prop::collection::vec(prop::sample::select(words.to_vec()), 0..60)
            .prop_map(|chosen| chosen.concat())
    }

    proptest! {
        #[test]
        fn any_text_is_a_config_or_has_problems(text in "(?s).{0,200}") {
            if let Err(problems) = on_a_small_machine(&text) {
                prop_assert!(!problems.to_string().is_empty());
            }
        }

        #[test]
        fn any_pieces_of_configs_are_a_config_or_have_problems(text in pieces()) {
            if let Err(problems) = on_a_small_machine(&text) {
                prop_assert_eq!(problems.iter().count(), problems.len());
                prop_assert!(problems.iter().is_sorted_by_key(|problem| problem.place));
                prop_assert!(!problems.to_string().is_empty());
            }
        }

        #[test]
        fn a_token_is_never_shown(before in pieces(), after in pieces()) {
            let source = format!("{before}\nadmin_token = \"x7hush7x\" {after}");
            if let Err(problems) = on_a_small_machine(&source) {
                prop_assert!(!problems.to_string().contains("x7hush7x"));
            }
        }
    }
}
