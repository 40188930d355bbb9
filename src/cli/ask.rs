//! Asks the admin API of a running proxy, for the commands that need one.
//!
//! Which proxy that is may be said on the command line, in the environment or by the config that
//! the proxy runs by; messages tell which of them it was, since that is what is wrong most often.
//! Each request has a connection of its own, and is answered whole and within [`PATIENCE`].

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::{config_path, variable};
use crate::config::{Secret, Source};

/// How long an answer may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Names the admin API where the command line does not.
const ADMIN_VARIABLE: &str = "STEADFAST_ADMIN";
/// Holds the token where no file does.
const TOKEN_VARIABLE: &str = "STEADFAST_TOKEN";

/// Which proxy to ask.
#[derive(Debug, Args)]
pub(super) struct AdminOptions {
    /// The admin API of the proxy to ask, such as http://127.0.0.1:9900 [default:
    /// $STEADFAST_ADMIN, then `admin` of the config that `run` would take].
    #[arg(long, value_name = "URL")]
    pub(super) admin: Option<Address>,
    /// A file with the token of the admin API [default: what $STEADFAST_TOKEN holds, then
    /// `admin_token` of the config, if that names the proxy].
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl AdminOptions {
    /// The proxy that these options, the environment or the config name.
    pub(super) fn find(&self) -> anyhow::Result<Admin> {
        match self.named()? {
            Some(admin) => Ok(admin),
            None => self.of_config(),
        }
    }

    /// The proxy that these options or the environment name; `None`: they name none.
    pub(super) fn named(&self) -> anyhow::Result<Option<Admin>> {
        let (address, origin) = match (&self.admin, variable(ADMIN_VARIABLE)) {
            (Some(address), _) => (address.clone(), Origin::Option),
            (None, Some(text)) => {
                let address = text.to_string_lossy().parse::<Address>();
                (address.map_err(|error| anyhow!("${ADMIN_VARIABLE}: {error}"))?, Origin::Variable)
            }
            (None, None) => return Ok(None),
        };
        let token = self.token()?;
        Ok(Some(Admin { address, origin, token }))
    }

    fn of_config(&self) -> anyhow::Result<Admin> {
        let path = config_path(None);
        let shown = path.display();
        let name_one = "name a proxy with --admin URL or $STEADFAST_ADMIN";
        let server = Source::new(&path).server();
        let server = server
            .map_err(|error| anyhow!("{name_one}: the config {shown} can't be read: {error}"))?;
        let address = server
            .admin
            .with_context(|| format!("{name_one}: the config {shown} has no valid server.admin"))?;
        if address.port() == 0 {
            return Err(anyhow!(
                "{name_one}: the config {shown} leaves the port of server.admin to chance; the \
                 proxy's log line \"admin API\" tells it"
            ));
        }
        let of_config = server.admin_token.map(|secret| Token { secret, from: shown.to_string() });
        let token = self.token()?.or(of_config);
        Ok(Admin { address: Address::of(address), origin: Origin::Config(path), token })
    }

    fn token(&self) -> anyhow::Result<Option<Token>> {
        let Some(path) = &self.token_file else {
            let variable = variable(TOKEN_VARIABLE).map(|token| Token {
                secret: Secret::new(token.to_string_lossy().into_owned()),
                from: format!("${TOKEN_VARIABLE}"),
            });
            return Ok(variable);
        };
        let token = std::fs::read_to_string(path);
        let token =
            token.with_context(|| format!("can't read the token file {}", path.display()))?;
        let secret = Secret::new(token.trim_end_matches(['\r', '\n']).to_owned());
        Ok(Some(Token { secret, from: path.display().to_string() }))
    }
}

/// The address of an admin API, as a URL without a path or as HOST:PORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    authority: String,
}

impl Address {
    /// Where to ask a proxy that listens there.
    fn of(mut listens: SocketAddr) -> Self {
        match listens.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => listens.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => listens.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Self { authority: listens.to_string() }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url: Uri = url.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let authority = url.authority().filter(|_| url.scheme_str() == Some("http"));
        let Some(authority) = authority.filter(|one| !one.as_str().contains('@')) else {
            return Err(format!(
                "{text:?} does not name an admin API; write one such as http://127.0.0.1:9900"
            ));
        };
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { authority: format!("{}:{port}", authority.host()) })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "http://{}", self.authority)
    }
}

/// Who named the proxy.
#[derive(Clone, Debug)]
enum Origin {
    Option,
    Variable,
    Config(PathBuf),
}

#[derive(Clone, Debug)]
struct Token {
    secret: Secret,
    /// Where it was found, for a person.
    from: String,
}

/// The admin API of a running proxy.
#[derive(Debug)]
pub(super) struct Admin {
    address: Address,
    origin: Origin,
    token: Option<Token>,
}

/// Why there is no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The proxy has understood, and refuses.
    #[error("{admin} says {status}: {detail}")]
    Refused {
        /// Who says so.
        admin: String,
        /// How.
        status: StatusCode,
        /// Why.
        detail: String,
        /// Each thing that is wrong, where there may be several.
        errors: Vec<String>,
    },
    /// Nobody was reached, or nobody who understands.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// What the admin API says of a request that it refuses (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    detail: String,
    #[serde(default)]
    errors: Vec<String>,
}

impl Admin {
    /// Another proxy of the same fleet, at the address that the registry has of its admin API; by the
    /// same token.
    pub(super) fn of_peer(&self, address: &str) -> anyhow::Result<Self> {
        let address = address.parse::<Address>().map_err(anyhow::Error::msg)?;
        Ok(Self { address, origin: Origin::Option, token: self.token.clone() })
    }

    /// GETs a path with its query, and reads the answer as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.read(&self.get_bytes(path).await?)
    }

    /// GETs a path, whatever the answer is written in.
    pub(super) async fn get_bytes(&self, path: &str) -> Result<Bytes, AskError> {
        self.ask(Method::GET, path, None, Bytes::new()).await
    }

    /// POSTs a body to a path, and reads the answer as JSON.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<T, AskError> {
        self.read(&self.ask(Method::POST, path, None, body).await?)
    }

    /// POSTs a body of a type to a path, and reads the answer as JSON.
    pub(super) async fn post_as<T: DeserializeOwned>(
        &self,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<T, AskError> {
        self.read(&self.ask(Method::POST, path, Some(content_type), body).await?)
    }

    /// DELETEs a path with its query.
    pub(super) async fn delete(&self, path: &str) -> Result<(), AskError> {
        self.ask(Method::DELETE, path, None, Bytes::new()).await.map(drop)
    }

    fn read<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, AskError> {
        let read = serde_json::from_slice(answer);
        let unknown = || {
            format!("{self} answers with something else; is it another version, or no admin API?")
        };
        Ok(read.with_context(unknown)?)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Bytes,
    ) -> Result<Bytes, AskError> {
        let answer = self.answer(method, path, content_type, body);
        let answered = tokio::time::timeout(PATIENCE, answer).await;
        let late = || format!("{self} does not answer within {PATIENCE:?}{}", self.told_by());
        let (status, body) = answered.with_context(late)??;
        if status.is_success() {
            return Ok(body);
        }
        let problem = serde_json::from_slice::<Problem>(&body);
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.token_refused().into());
        }
        let Ok(Problem { detail, errors }) = problem else {
            return Err(anyhow!(
                "{self} answers {status}, and not as an admin API does{}; the address must be that \
                 of `admin` in [server], not of a listener",
                self.told_by()
            )
            .into());
        };
        Err(AskError::Refused { admin: self.to_string(), status, detail, errors })
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let authority = &self.address.authority;
        let stream = TcpStream::connect(authority).await.map_err(|error| {
            anyhow!(
                "can't reach {self}{}: {error}; is the proxy running, with admin = {authority:?} \
                 in [server] of its config?",
                self.told_by()
            )
        })?;
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(HOST, authority).header(CONNECTION, "close");
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if let Some(Token { secret, from }) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", secret.expose()));
            let mut value =
                value.map_err(|_| anyhow!("the token from {from} is not visible ASCII"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body)).context("this can't be asked for")?;
        let answered = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let answered = async move {
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
                Ok((status, body.map_err(anyhow::Error::from_boxed)?.to_bytes()))
            };
            tokio::join!(answered, connection).0
        };
        let unread = |error: anyhow::Error| {
            anyhow!(
                "{self} does not answer as an admin API does{}: {error:#}; the address must be \
                 that of `admin` in [server], not of a listener",
                self.told_by()
            )
        };
        answered.await.map_err(unread)
    }

    fn token_refused(&self) -> anyhow::Error {
        match &self.token {
            None => anyhow!(
                "{self} asks for a token: put admin_token of its config into $STEADFAST_TOKEN, or \
                 into a file for --token-file"
            ),
            Some(Token { from, .. }) => anyhow!(
                "{self} refuses the token from {from}: put admin_token of its config into \
                 $STEADFAST_TOKEN, or into a file for --token-file"
            ),
        }
    }

    /// Who named the address, to put behind it.
    fn told_by(&self) -> String {
        match &self.origin {
            Origin::Option => String::new(),
            Origin::Variable => format!(" (from ${ADMIN_VARIABLE})"),
            Origin::Config(path) => format!(" (from {})", path.display()),
        }
    }
}

impl std::fmt::Display for Admin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "the admin API at {}", self.address)
    }
}

/// A text as one part of a path, or one value of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Runs a command that waits for answers.
pub(super) fn wait_for<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // A look-up of a name may still be running; nobody waits for it.
    runtime.shutdown_background();
    done
}

/// The proxy at an address that the command line names.
pub(super) fn at(address: &Address, token_file: Option<&Path>) -> anyhow::Result<Admin> {
    let options =
        AdminOptions { admin: Some(address.clone()), token_file: token_file.map(Path::to_owned) };
    options.find()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_api_is_named_by_url_or_address() {
        for (admin, host) in [
            ("http://127.0.0.1:9900", "127.0.0.1:9900"),
            ("http://localhost:9900/", "localhost:9900"),
            ("[::1]:9900", "[::1]:9900"),
            ("http://edge1", "edge1:80"),
        ] {
            assert_eq!(admin.parse::<Address>().unwrap().authority, host);
        }
        for admin in ["https://127.0.0.1:9900", "", "ws://h:1", "a b", "http://me@h:1"] {
            assert!(admin.parse::<Address>().is_err(), "{admin}");
        }
    }

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        for (listens, asked) in [
            ("0.0.0.0:9900", "127.0.0.1:9900"),
            ("[::]:9900", "[::1]:9900"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(Address::of(listens.parse().unwrap()).authority, asked);
        }
    }
}
