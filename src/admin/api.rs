//! The requests of the admin API and their answers.

use std::sync::{Arc, PoisonError};

use axum::extract::rejection::StringRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tracing::warn;

use super::guard::Guard;
use super::path::{self, Named};
use super::problem::Problem;
use super::{connections, messages, route};
use crate::fleet::{Fleet, OrderError};
use crate::observe::access_log::unix_millis;
use crate::observe::metrics::PageFormat;
use crate::pool::drain::Drain;
use crate::pool::{Backend, DrainCause, Pool};
use crate::server::plan::Planned;
use crate::server::reload::ReloadError;

/// Describes the whole API. Written by hand: what a program should know of it is more than types say.
const DESCRIPTION: &str = include_str!("openapi.json");
/// The longest config that a plan is made of: as long as a file may be.
const CONFIG_BYTES: usize = 4 * 1024 * 1024;

/// The whole API, behind its guard.
pub(super) fn router(fleet: Arc<Fleet>, guard: Arc<Guard>) -> Router {
    let with_token = Router::new()
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(description))
        .route("/v1/pools", get(pools))
        .route("/v1/pools/{pool}/backends/{id}/drain", post(drain))
        .route("/v1/pools/{pool}/backends/{id}/undrain", post(undrain))
        .route("/v1/route", get(route::route))
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/plan", post(plan).layer(DefaultBodyLimit::max(CONFIG_BYTES)))
        .merge(connections::routes())
        .merge(messages::routes(fleet.max_message()))
        .layer(middleware::from_fn(names_text))
        .layer(middleware::from_fn_with_state(Arc::clone(&guard), authorize));
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(with_token)
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing here") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path")
        })
        .layer(middleware::from_fn_with_state(guard, admit))
        .with_state(fleet)
}

async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.admits(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn authorize(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.authorizes(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => ([(WWW_AUTHENTICATE, "Bearer")], problem).into_response(),
    }
}

async fn names_text(request: Request, next: Next) -> Response {
    match path::is_text(request.uri()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn ready(State(fleet): State<Arc<Fleet>>) -> (StatusCode, &'static str) {
    if fleet.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(State(fleet): State<Arc<Fleet>>, headers: HeaderMap) -> Response {
    let format = metrics_format(&headers);
    match fleet.shared.metrics.page(format) {
        Ok(page) => {
            let headers = [(CONTENT_TYPE, format.content_type()), (VARY, "accept")];
            (headers, page).into_response()
        }
        Err(error) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

/// OpenMetrics for whoever names it, as Prometheus does; else the older format, which every other
/// scraper reads and a browser shows.
fn metrics_format(headers: &HeaderMap) -> PageFormat {
    let names_it = crate::fields::list(headers, &ACCEPT).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight.is_some_and(|weight| weight <= 0.0)
        };
        name.eq_ignore_ascii_case("application/openmetrics-text") && !parts.any(refused)
    });
    if names_it { PageFormat::OpenMetrics } else { PageFormat::Text }
}

async fn description() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DESCRIPTION)
}

#[derive(Serialize)]
struct Pools {
    pools: Vec<PoolView>,
}

#[derive(Serialize)]
struct PoolView {
    name: String,
    balance: &'static str,
    /// Too few backends are in service: health is ignored.
    panicking: bool,
    /// The fingerprint of its backends; only with a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring: Option<String>,
    /// Other proxies of which that is another, by id; only with a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    rings_differ: Option<Vec<String>>,
    backends: Vec<BackendView>,
}

#[derive(Serialize)]
struct BackendView {
    id: String,
    address: String,
    weight: u32,
    state: &'static str,
    /// Live WebSocket connections.
    connections: usize,
    /// Keys that are placed here.
    keys: usize,
    /// Plain requests and handshakes under way.
    in_flight: usize,
    /// From 0 to 1.
    ring_share: f64,
    /// Null: it is not drained.
    drain: Option<DrainView>,
}

#[derive(Serialize)]
struct DrainView {
    /// For what.
    by: Vec<&'static str>,
    /// Times are in Unix milliseconds.
    since: u64,
    /// Keys, sessions and connections of their own that this proxy had there.
    total: usize,
    /// Of those, the ones whose turn has not come.
    left: usize,
    /// When the last one's turn comes.
    until: u64,
}

impl From<Drain> for DrainView {
    fn from(drain: Drain) -> Self {
        Self {
            by: drain.causes().map(DrainCause::as_str).collect(),
            since: unix_millis(drain.since),
            total: drain.progress.total(),
            left: drain.progress.left(),
            until: drain.progress.until(),
        }
    }
}

async fn pools(State(fleet): State<Arc<Fleet>>) -> Json<Pools> {
    let snapshot = fleet.shared.snapshot.load();
    Json(Pools { pools: snapshot.pools_with_gone().map(|pool| pool_view(&fleet, pool)).collect() })
}

fn pool_view(fleet: &Fleet, pool: &Pool) -> PoolView {
    let rings_differ = fleet.rings_differ(pool);
    // Those that left the config are shown as long as something of them is there.
    let backends = pool.backends().iter().cloned().chain(pool.departed());
    let backends = backends.map(|backend| backend_view(pool, &backend));
    PoolView {
        name: pool.name().to_owned(),
        balance: pool.settings().balance.as_str(),
        panicking: pool.is_panicking(),
        ring: rings_differ.is_some().then(|| pool.fingerprint()),
        rings_differ,
        backends: backends.collect(),
    }
}

fn backend_view(pool: &Pool, backend: &Arc<Backend>) -> BackendView {
    let settings = backend.settings();
    let index = pool.backends().iter().position(|one| Arc::ptr_eq(one, backend));
    BackendView {
        id: backend.id().to_owned(),
        address: settings.address.to_string(),
        weight: settings.weight.get(),
        state: backend.condition(),
        connections: backend.connections(),
        keys: backend.keys(),
        in_flight: backend.requests(),
        ring_share: index.map_or(0.0, |index| pool.ring().share(index)),
        drain: backend.drain().map(DrainView::from),
    }
}

/// Takes a backend out of service: nothing new goes there, and what is there is closed in turn.
async fn drain(
    State(fleet): State<Arc<Fleet>>,
    Named(names): Named<(String, String)>,
) -> Result<(StatusCode, Json<BackendView>), Problem> {
    let act = |pool: &Pool, backend: &Arc<Backend>| pool.drain(backend, DrainCause::Api);
    of_backend(&fleet, &names, true, act).await
}

/// Takes that back. Where there are other causes the backend is drained all the same, as the
/// answer tells.
async fn undrain(
    State(fleet): State<Arc<Fleet>>,
    Named(names): Named<(String, String)>,
) -> Result<(StatusCode, Json<BackendView>), Problem> {
    let act = |pool: &Pool, backend: &Arc<Backend>| pool.undrain(backend, DrainCause::Api);
    of_backend(&fleet, &names, false, act).await
}

/// Has it done here, and by all other proxies: 202 if they will hear of it only once the registry is
/// there again.
async fn of_backend(
    fleet: &Fleet,
    names: &(String, String),
    wanted: bool,
    act: impl FnOnce(&Pool, &Arc<Backend>),
) -> Result<(StatusCode, Json<BackendView>), Problem> {
    let (pool, backend) = find_backend(fleet, names)?;
    act(&pool, &backend);
    let mut status = StatusCode::OK;
    if let Some(others) = fleet.shared.registry.others()
        && let Err(error) = others.drain(pool.name(), backend.id(), wanted).await
    {
        let (pool, backend) = (pool.name(), backend.id());
        warn!(pool, backend, wanted, %error, "a drain is not known to other proxies yet");
        status = StatusCode::ACCEPTED;
    }
    Ok((status, Json(backend_view(&pool, &backend))))
}

fn find_backend(
    fleet: &Fleet,
    (pool, id): &(String, String),
) -> Result<(Arc<Pool>, Arc<Backend>), Problem> {
    let snapshot = fleet.shared.snapshot.load();
    let missing = |what: &str| Problem::new(StatusCode::NOT_FOUND, format!("there is no {what}"));
    let found = snapshot.pools_with_gone().find(|one| one.name() == pool);
    let pool = found.ok_or_else(|| missing("pool of this name"))?;
    let departed = || pool.departed().into_iter().find(|one| one.id() == id);
    let backend = pool.backend(id).cloned().or_else(departed);
    let backend = backend.ok_or_else(|| missing("backend of this id in this pool"))?;
    Ok((Arc::clone(pool), backend))
}

/// What the proxy is and how it does.
#[derive(Serialize)]
struct Status {
    proxy: String,
    name: String,
    version: &'static str,
    /// In Unix milliseconds.
    started: u64,
    ready: bool,
    workers: usize,
    /// Live WebSockets.
    connections: usize,
    /// Whether the registry is this process (`own`), or a shared one that is `up` or `away`.
    registry: &'static str,
    listeners: Vec<ListenerView>,
    routes: Vec<RouteView>,
    /// How the last reload of the config went; null: there was none.
    last_reload: Option<ReloadView>,
}

#[derive(Serialize)]
struct ListenerView {
    /// Its name, or its address where it has none.
    name: String,
    address: String,
    tls: bool,
    /// Open client connections.
    clients: usize,
}

#[derive(Serialize)]
struct RouteView {
    name: String,
    pool: String,
    /// Live WebSockets.
    connections: usize,
}

#[derive(Serialize)]
struct ReloadView {
    /// In Unix milliseconds.
    at: u64,
    /// What was wrong; null: it took effect.
    error: Option<String>,
}

async fn status(State(fleet): State<Arc<Fleet>>) -> Json<Status> {
    let snapshot = fleet.shared.snapshot.load();
    let listeners = fleet.listeners.load();
    let listeners = listeners.iter().map(|listener| ListenerView {
        name: listener.label.to_string(),
        address: listener.address.to_string(),
        tls: listener.tls.is_some(),
        clients: listener.limits.open(),
    });
    let routes = snapshot.routes().iter().map(|route| RouteView {
        name: route.names.route.to_string(),
        pool: route.names.pool.to_string(),
        connections: route.live(),
    });
    let routes: Vec<RouteView> = routes.collect();
    let last = fleet.last_reload.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Json(Status {
        proxy: fleet.shared.proxy_id.to_string(),
        name: fleet.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: unix_millis(fleet.started),
        ready: fleet.is_ready(),
        workers: fleet.workers(),
        connections: snapshot.live(),
        registry: fleet.shared.registry.state().as_str(),
        listeners: listeners.collect(),
        routes,
        last_reload: last.map(|last| ReloadView { at: unix_millis(last.at), error: last.error }),
    })
}

/// Has the config file reloaded, and tells what has changed.
async fn reload(State(fleet): State<Arc<Fleet>>) -> Result<Json<Planned>, Problem> {
    Ok(Json(fleet.reload().await?))
}

/// Tells what a reload of the config in the body would change. Changes nothing.
async fn plan(
    State(fleet): State<Arc<Fleet>>,
    text: Result<String, StringRejection>,
) -> Result<Json<Planned>, Problem> {
    let text = text.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    Ok(Json(fleet.plan(text).await?))
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        let detail = error.to_string();
        match error {
            OrderError::NoFile => Self::new(StatusCode::CONFLICT, detail),
            OrderError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, detail),
            OrderError::Failed(ReloadError::Invalid(problems)) => {
                let detail = "the config is not valid; what is in force stays";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
                    .listing(problems.lines().collect())
            }
            OrderError::Failed(error) => {
                let detail = "the config can't be put in force; what is stays";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail).listing(vec![error.told()])
            }
        }
    }
}
