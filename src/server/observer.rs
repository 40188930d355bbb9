//! Who is told of what happens to the pools: the log, the metrics, the workers and the closes.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::drain::Conductor;
use crate::fleet::Message;
use crate::observe::labels::{DrainLabels, PoolLabel, StateLabels};
use crate::observe::metrics::Metrics;
use crate::observe::rate::{Allowed, allowed};
use crate::pool::{self, BackendEvent, Clearing, DrainChange, PanicEvent, State};

/// So many changes of backends' states are told in a second.
const CHANGES_TOLD: u32 = 100;

/// Who is told of the changes of all backends: the log, the metrics, and the workers whose
/// connections end with a backend that is lost.
pub(super) fn observer(
    metrics: &Arc<Metrics>,
    inboxes: &[mpsc::Sender<Message>],
    conductor: &Arc<Conductor>,
) -> pool::Observer {
    let metrics = Arc::clone(metrics);
    let inboxes = inboxes.to_vec();
    let control = Handle::current();
    let conductor = Arc::clone(conductor);
    Arc::new(move |event: &pool::Event| match event {
        pool::Event::Backend(event) => {
            note_change(event, &metrics);
            if event.transition.to == State::Lost {
                end_connections(event, &inboxes, &control);
                conductor.lost(&event.backend);
            }
        }
        pool::Event::Panic(event) => note_panic(event),
        pool::Event::Drain(change, clearing) => {
            note_drain(*change, clearing, &metrics);
            conductor.follow(clearing);
        }
        pool::Event::GaveWay { key, clearing } => {
            if let Some(Allowed { suppressed }) = allowed!() {
                let (pool, backend) = (&clearing.pool, clearing.backend.id());
                info!(%pool, backend, %key, suppressed, "a key gives way to where another proxy has it");
            }
            conductor.give_way(Arc::clone(key), clearing.clone());
        }
        pool::Event::Disputed { pool, key, backend } => {
            let label = PoolLabel { pool: pool.clone() };
            metrics.placement_conflicts.of(label).inc();
            if let Some(Allowed { suppressed }) = allowed!() {
                let backend = backend.id();
                warn!(pool, backend, %key, suppressed, "a key stays here although another proxy has it elsewhere");
            }
        }
    })
}

/// Says once that a backend's state has changed, and counts it.
fn note_change(event: &BackendEvent, metrics: &Metrics) {
    let BackendEvent { pool, backend, transition, detail } = event;
    let (from, to) = (transition.from.as_str(), transition.to.as_str());
    let cause = transition.cause.as_str();
    let id = backend.id();
    // A whole fleet may go at once and shall be told of by name; one that flaps must not fill a disk.
    if let Some(Allowed { suppressed }) = allowed!(CHANGES_TOLD) {
        if transition.to == State::InService {
            info!(pool, backend = id, from, to, cause, suppressed, "backend in service");
        } else {
            warn!(
                pool,
                backend = id,
                from,
                to,
                cause,
                detail,
                connections = backend.connections(),
                suppressed,
                "backend {to}"
            );
        }
    }
    let labels =
        StateLabels { pool: pool.clone(), backend: id.to_owned(), outcome: to, reason: cause };
    metrics.backend_changes.of(labels).inc();
}

/// Says once that a backend is drained, or no longer, and counts it.
fn note_drain(change: DrainChange, clearing: &Clearing, metrics: &Metrics) {
    let Clearing { pool, backend, span, .. } = clearing;
    let id = backend.id();
    let (keys, connections) = (backend.keys(), backend.connections());
    match change {
        DrainChange::Begun(by) => {
            info!(%pool, backend = id, %by, keys, connections, over = ?span, "drain begins");
        }
        DrainChange::Joined(by) => info!(%pool, backend = id, %by, "drain has another cause"),
        DrainChange::Left(by) => info!(%pool, backend = id, %by, "drain goes on for another cause"),
        DrainChange::Ended(by) => info!(%pool, backend = id, %by, keys, connections, "drain ends"),
    }
    if let DrainChange::Begun(by) | DrainChange::Joined(by) = change {
        let labels = DrainLabels { pool: pool.to_string(), reason: by.as_str() };
        metrics.drains.of(labels).inc();
    }
}

/// Says that a pool goes by health no more, or again.
fn note_panic(event: &PanicEvent) {
    let PanicEvent { pool, panicking, in_service, backends } = event;
    if *panicking {
        warn!(pool, in_service, backends, "too few backends in service: health is ignored");
    } else {
        info!(pool, in_service, backends, "enough backends in service: health counts again");
    }
}

/// Has every worker end its connections to a backend that is lost. Whoever found out must not
/// wait, and no worker may miss it: so the control runtime waits for a place in each inbox.
fn end_connections(event: &BackendEvent, inboxes: &[mpsc::Sender<Message>], control: &Handle) {
    let pool: Arc<str> = event.pool.as_str().into();
    let backend = event.backend.shared_id();
    for inbox in inboxes {
        let inbox = inbox.clone();
        let message =
            Message::BackendLost { pool: Arc::clone(&pool), backend: Arc::clone(&backend) };
        control.spawn(async move {
            // A worker that has ended has no connections.
            let _ = inbox.send(message).await;
        });
    }
}
