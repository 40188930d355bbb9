//! Asks the admin API of a running proxy, for the commands that need one.
//!
//! One request on a connection of its own, answered whole and within [`PATIENCE`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

/// How long an answer may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// What the admin API says of a request that it refuses (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

/// The token to show: that of the file, else of the environment, if there is any.
pub(super) fn token(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(path) = file else {
        return Ok(std::env::var("STEADFAST_TOKEN").ok().filter(|token| !token.is_empty()));
    };
    let token = std::fs::read_to_string(path);
    let token = token.with_context(|| format!("can't read the token file {}", path.display()))?;
    Ok(Some(token.trim_end_matches(['\r', '\n']).to_owned()))
}

/// GETs a path with its query from the admin API at `admin`, a URL or HOST:PORT.
pub(super) fn get(admin: &str, path: &str, token: Option<&str>) -> anyhow::Result<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, asked(admin, path, token)).await });
    // A look-up of a name may still be running; nobody waits for it.
    runtime.shutdown_background();
    answer.with_context(|| format!("{admin} does not answer within {PATIENCE:?}"))?
}

async fn asked(admin: &str, path: &str, token: Option<&str>) -> anyhow::Result<Bytes> {
    let authority = authority(admin)?;
    let stream = TcpStream::connect(&authority).await;
    let stream = stream.with_context(|| format!("can't connect to the admin API at {admin}"))?;
    let mut request = Request::get(path).header(HOST, &authority).header(CONNECTION, "close");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).context("the token is not visible ASCII")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(anyhow::Error::from_boxed)?.to_bytes()))
    };
    let (answered, _) = tokio::join!(answered, connection);
    let (status, body) =
        answered.map_err(|error: anyhow::Error| error.context(format!("no answer of {admin}")))?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => bail!("{admin} says {status}: {}", problem.detail),
        Err(_) => bail!("{admin} says {status}; is it the admin API?"),
    }
}

/// HOST:PORT of what names the admin API.
fn authority(admin: &str) -> anyhow::Result<String> {
    let url = if admin.contains("://") { admin.to_owned() } else { format!("http://{admin}") };
    let url: Uri = url.parse().with_context(|| format!("{admin} is no URL"))?;
    let authority = url.authority().filter(|_| url.scheme_str() == Some("http"));
    let authority = authority.with_context(|| {
        format!("{admin} does not name an admin API; write one such as http://127.0.0.1:9900")
    })?;
    let port = authority.port_u16().unwrap_or(80);
    Ok(format!("{}:{port}", authority.host()))
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
            assert_eq!(authority(admin).unwrap(), host);
        }
        for admin in ["https://127.0.0.1:9900", "", "ws://h:1", "a b"] {
            assert!(authority(admin).is_err(), "{admin}");
        }
    }
}
