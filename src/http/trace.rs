//! What becomes known of a request, for its metrics and its line in the access log.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::HOST;
use http::uri::Authority;
use http::{Request, StatusCode};
use hyper::body::Incoming;

use super::head::RequestHead;
use super::{Accepted, Route, Shared, headers};
use crate::observe::access_log::{Asked, RequestRecord};
use crate::observe::labels::RequestLabels;
use crate::observe::metrics::Metrics;
use crate::pool::Backend;
use crate::route::key::{KeyFound, KeySource};
use crate::ws::handshake;

/// The longest name that DNS has, with a port.
const LONGEST_HOST: usize = 253 + 6;

/// What is known of a request so far, for its metrics and its line in the access log. One that is
/// dropped before its answer is one whose client went away.
#[derive(Debug)]
pub(super) struct Trace<'a> {
    pub(super) metrics: &'a Metrics,
    /// Its route; `None` where none has matched.
    pub(super) route: Option<Arc<Route>>,
    record: Option<Box<RequestRecord>>,
    answered: bool,
}

impl<'a> Trace<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        accepted: &Accepted,
        request: &Request<Incoming>,
    ) -> Self {
        let log = &shared.access_log;
        let record = log.is_on().then(|| {
            let (peer, listener) = (accepted.peer.ip(), &accepted.listener.label);
            let mut record = RequestRecord::new(log, peer, listener, request.method());
            record.asked = asked(request);
            record.websocket = handshake::is_handshake(request.headers());
            Box::new(record)
        });
        Self { metrics: &shared.metrics, route: None, record, answered: false }
    }

    /// The name of its route; empty where none has matched.
    pub(super) fn route(&self) -> &str {
        self.route.as_ref().map_or("", |route| &route.names.route)
    }

    pub(super) fn note_head(&mut self, client: IpAddr, head: &RequestHead) {
        if let Some(record) = &mut self.record {
            record.client = client;
            record.asked.request_id = head.request_id();
        }
    }

    /// Notes the key, unless it came from where credentials come from.
    pub(super) fn note_key(&mut self, found: Option<&KeyFound<'_>>) {
        let (Some(record), Some(found)) = (&mut self.record, found) else { return };
        let may_be_secret = matches!(found.source, KeySource::Cookie(_) | KeySource::Header(_));
        record.key = (!may_be_secret).then(|| found.key.as_str().into());
    }

    pub(super) fn note_backend(&mut self, backend: &Backend) {
        if let Some(record) = &mut self.record {
            record.backend = Some(backend.id().to_owned());
        }
    }

    /// The record of a request that is to become a WebSocket, for whoever knows when it has. Until
    /// then it is one whose client went away.
    pub(super) fn take_record(&mut self) -> Option<Box<RequestRecord>> {
        let mut record = self.record.take()?;
        self.name_route(&mut record);
        record.refused = Some("client_gone");
        Some(record)
    }

    fn name_route(&self, record: &mut RequestRecord) {
        if let Some(route) = &self.route {
            record.route = Arc::clone(&route.names.route);
        }
    }

    /// Notes the answer, and gives the record to whoever knows when that is over.
    pub(super) fn answer(
        &mut self,
        status: StatusCode,
        refused: Option<&'static str>,
    ) -> Option<Box<RequestRecord>> {
        self.answered = true;
        let code = status.as_u16();
        match &self.route {
            Some(route) if status == StatusCode::SWITCHING_PROTOCOLS => {
                route.handshakes.switched.inc();
            }
            _ => {
                let labels = RequestLabels { route: self.route().to_owned(), code };
                self.metrics.requests.of(labels).inc();
            }
        }
        let mut record = self.record.take()?;
        self.name_route(&mut record);
        record.status = Some(code);
        record.refused = refused;
        Some(record)
    }
}

impl Drop for Trace<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.refuse(self.route(), "client_gone");
            // It is written down with this.
            drop(self.take_record());
        }
    }
}

/// What the access log may tell of what a request asks for.
fn asked(request: &Request<Incoming>) -> Asked {
    let (uri, headers) = (request.uri(), request.headers());
    let named = || headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or_else(named);
    // What stands before an `@` is no part of a host, and may be a password.
    let host = host.and_then(|host| host.rsplit('@').next()).filter(|host| is_host(host));
    let request_id = headers::request_id(headers).and_then(|id| id.to_str().ok());
    Asked {
        host: host.map(str::to_owned),
        path: uri.path().to_owned(),
        request_id: request_id.map(str::to_owned),
        trace_id: headers::trace_id(headers).map(str::to_owned),
    }
}

/// Whether a host is a name or an address, with or without a port; not whether it exists.
fn is_host(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    host.len() <= LONGEST_HOST && host.bytes().all(fits)
}
