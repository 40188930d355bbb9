//! The admin API of one proxy, over a connection that is kept.
//!
//! Orders go one after the other, each after the answer to the one before. A proxy may close a
//! connection that idles: an order that did not get out on it goes out again on a new one, any
//! other does not, since it may have been obeyed.

use std::str::FromStr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::message::{Answered, Order};
use super::{ANSWER_WITHIN, CONNECT_WITHIN, PROXY, PublishError};

/// The longest answer: a list of 1,000 connections has half a megabyte.
const ANSWER_BYTES: usize = 4 << 20;

type Cause = Box<dyn std::error::Error + Send + Sync>;
type Sender = SendRequest<Full<Bytes>>;

/// A proxy whose admin API may be asked.
#[derive(Debug, Clone)]
pub(super) struct Api(Arc<Settings>);

#[derive(Debug)]
struct Settings {
    /// HOST:PORT.
    authority: String,
    /// `Bearer ...`, marked as sensitive.
    authorization: Option<HeaderValue>,
}

/// Why this can't be an admin API.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("{url:?} names no admin API; write one such as http://127.0.0.1:9900")]
    Url { url: String },
    #[error("the token of the admin API is not visible ASCII")]
    Token,
}

impl Api {
    pub(super) fn new(url: &str, token: Option<&str>) -> Result<Self, ApiError> {
        let authority = authority(url).ok_or_else(|| ApiError::Url { url: url.to_owned() })?;
        let authorization = token.map(|token| {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| ApiError::Token)?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Self(Arc::new(Settings { authority, authorization: authorization.transpose()? })))
    }

    pub(super) async fn connect(&self) -> Result<Link, Cause> {
        let sender = timeout(CONNECT_WITHIN, self.open()).await.map_err(|_| "no answer")??;
        Ok(Link { api: self.clone(), sender })
    }

    async fn open(&self) -> Result<Sender, Cause> {
        let stream = TcpStream::connect(&self.0.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its sender, or when the proxy closes; the sender tells how.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, order: &Order) -> Result<Request<Full<Bytes>>, Cause> {
        let asked = order.request();
        let mut request = Request::builder().method(asked.method).uri(asked.path);
        request = request.header(HOST, &self.0.authority);
        if !asked.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.0.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        Ok(request.body(Full::new(asked.body))?)
    }
}

/// HOST:PORT of a URL without a path, or of HOST:PORT itself. A word alone is neither.
fn authority(url: &str) -> Option<String> {
    let default_port = url.contains("://").then_some(80);
    let url = if default_port.is_some() { url.to_owned() } else { format!("http://{url}") };
    let url = Uri::from_str(&url).ok().filter(|url| url.scheme_str() == Some("http"))?;
    if url.path() != "/" || url.query().is_some() {
        return None;
    }
    let authority = url.authority().filter(|one| !one.as_str().contains('@'))?;
    let port = authority.port_u16().or(default_port)?;
    Some(format!("{}:{port}", authority.host()))
}

/// An open connection.
pub(super) struct Link {
    api: Api,
    sender: Sender,
}

impl Link {
    /// Carries out one order; an error is the end of the connection.
    pub(super) async fn carry_out(
        &mut self,
        order: &Order,
    ) -> Result<Result<Answered, PublishError>, Cause> {
        let (status, body) =
            timeout(ANSWER_WITHIN, self.ask(order)).await.map_err(|_| "no answer in time")??;
        let answer = order.answer(status, &body);
        Ok(answer.map_err(|detail| PublishError::Refused { place: PROXY, detail }))
    }

    async fn ask(&mut self, order: &Order) -> Result<(StatusCode, Bytes), Cause> {
        let request = self.api.request(order)?;
        let answer = if self.sender.ready().await.is_ok() {
            match self.sender.try_send_request(request).await {
                Ok(answer) => answer,
                Err(mut error) => match error.take_message() {
                    Some(request) => self.ask_anew(request).await?,
                    None => return Err(error.into_error().into()),
                },
            }
        } else {
            self.ask_anew(request).await?
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await?;
        Ok((status, body.to_bytes()))
    }

    /// On a new connection.
    async fn ask_anew(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<axum::http::Response<hyper::body::Incoming>, Cause> {
        self.sender = self.api.connect().await?.sender;
        Ok(self.sender.send_request(request).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_api_is_named_by_url_or_address() {
        for (url, wanted) in [
            ("http://127.0.0.1:9900", Some("127.0.0.1:9900")),
            ("http://localhost:9900/", Some("localhost:9900")),
            ("[::1]:9900", Some("[::1]:9900")),
            ("http://edge1", Some("edge1:80")),
            ("https://127.0.0.1:9900", None),
            ("http://me@edge1:1", None),
            ("http://edge1:9900/v1", None),
            ("edge1", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(authority(url).as_deref(), wanted, "{url:?}");
        }
        assert!(Api::new("edge1", Some("a\nb")).is_err());
    }
}
