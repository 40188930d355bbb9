//! What series are called by: the names of the config, and closed sets; and which of these names
//! still mean something.
//!
//! A name that left the config is wanted as long as a connection bears it, and no longer: a fleet
//! whose backends are called after their build must not grow the page with each of them. Which
//! names these are is told by who owns the config; whether a label set is among them is decided
//! here, for all metrics alike.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;

/// What a label set names of the config; `None`: nothing of that kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'l> {
    listener: Option<&'l str>,
    /// Empty where no route was found.
    route: Option<&'l str>,
    pool: Option<&'l str>,
    /// Only with a pool.
    backend: Option<&'l str>,
}

/// Labels that name something of the config.
pub trait Named {
    /// What.
    fn names(&self) -> Names<'_>;
}

/// The names that are in the config in force, or on a connection.
#[derive(Clone, Debug, Default)]
pub struct LiveNames {
    /// Labels of listeners.
    pub listeners: HashSet<Arc<str>>,
    /// Names of routes.
    pub routes: HashSet<Arc<str>>,
    /// Ids of backends, by the name of their pool.
    pub backends: HashMap<Arc<str>, HashSet<Arc<str>>>,
}

impl LiveNames {
    /// Whether all that labels name is still there.
    pub fn have(&self, labels: &impl Named) -> bool {
        let Names { listener, route, pool, backend } = labels.names();
        let has_backend = |ids: &HashSet<Arc<str>>| backend.is_none_or(|id| ids.contains(id));
        listener.is_none_or(|label| self.listeners.contains(label))
            && route.is_none_or(|name| name.is_empty() || self.routes.contains(name))
            && pool.is_none_or(|name| self.backends.get(name).is_some_and(has_backend))
    }
}

/// The label of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// Its name, or its address where it has none.
    pub listener: String,
}

/// The labels of drains.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DrainLabels {
    /// The pool's name.
    pub pool: String,
    /// For what the backend is drained.
    pub reason: &'static str,
}

/// The label of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabel {
    /// Its name.
    pub route: String,
}

/// The labels of live connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// The route's name.
    pub route: String,
    /// The pool's name.
    pub pool: String,
    /// The backend's id.
    pub backend: String,
}

/// The labels of what goes through a route one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabels {
    /// The route's name.
    pub route: String,
    /// `from_client` or `from_backend`.
    pub direction: &'static str,
}

/// The labels of answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's name; empty where none matched.
    pub route: String,
    /// The status.
    pub code: u16,
}

/// The labels of refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabels {
    /// The route's name; empty where none matched.
    pub route: String,
    /// Why: a closed set, see the operator's guide.
    pub reason: &'static str,
}

/// The labels of closes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CloseLabels {
    /// The route's name.
    pub route: String,
    /// `client`, `backend` or `proxy`.
    pub by: &'static str,
    /// The close reason's label.
    pub reason: &'static str,
    /// The close code, or the class of one that an application chose.
    pub code: &'static str,
}

/// The labels of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BackendLabels {
    /// The pool's name.
    pub pool: String,
    /// The backend's id.
    pub backend: String,
}

/// The labels of a backend's changes of state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    /// The pool's name.
    pub pool: String,
    /// The backend's id.
    pub backend: String,
    /// The state that it came to.
    pub outcome: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// The label of what went well or did not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// `success` or `failure`.
    pub outcome: &'static str,
}

/// The label of messages that did not reach their connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Why.
    pub reason: &'static str,
}

/// The label of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabel {
    /// Its name.
    pub pool: String,
}

impl Named for ListenerLabel {
    fn names(&self) -> Names<'_> {
        Names { listener: Some(&self.listener), ..Names::default() }
    }
}

impl Named for RouteLabel {
    fn names(&self) -> Names<'_> {
        Names { route: Some(&self.route), ..Names::default() }
    }
}

impl Named for DirectionLabels {
    fn names(&self) -> Names<'_> {
        Names { route: Some(&self.route), ..Names::default() }
    }
}

impl Named for RequestLabels {
    fn names(&self) -> Names<'_> {
        Names { route: Some(&self.route), ..Names::default() }
    }
}

impl Named for RefusedLabels {
    fn names(&self) -> Names<'_> {
        Names { route: Some(&self.route), ..Names::default() }
    }
}

impl Named for CloseLabels {
    fn names(&self) -> Names<'_> {
        Names { route: Some(&self.route), ..Names::default() }
    }
}

impl Named for DrainLabels {
    fn names(&self) -> Names<'_> {
        Names { pool: Some(&self.pool), ..Names::default() }
    }
}

impl Named for PoolLabel {
    fn names(&self) -> Names<'_> {
        Names { pool: Some(&self.pool), ..Names::default() }
    }
}

impl Named for StateLabels {
    fn names(&self) -> Names<'_> {
        Names { pool: Some(&self.pool), backend: Some(&self.backend), ..Names::default() }
    }
}

impl Named for ConnectionLabels {
    fn names(&self) -> Names<'_> {
        Names {
            route: Some(&self.route),
            pool: Some(&self.pool),
            backend: Some(&self.backend),
            ..Names::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_wanted_while_all_that_they_name_is_there() {
        let set = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        let live = LiveNames {
            listeners: set(&["main"]),
            routes: set(&["chat"]),
            backends: HashMap::from([("rooms".into(), set(&["a"])), ("empty".into(), set(&[]))]),
        };
        let listener = |name: &str| live.have(&ListenerLabel { listener: name.to_owned() });
        assert!(listener("main") && !listener("other") && !listener(""));
        let route = |name: &str| live.have(&RefusedLabels { route: name.to_owned(), reason: "r" });
        assert!(route("chat") && !route("gone"));
        assert!(route(""), "of no route");
        let pool = |name: &str| live.have(&DrainLabels { pool: name.to_owned(), reason: "r" });
        assert!(pool("rooms") && pool("empty") && !pool("gone"));
        let connection = |route: &str, pool: &str, backend: &str| {
            let [route, pool, backend] = [route, pool, backend].map(str::to_owned);
            live.have(&ConnectionLabels { route, pool, backend })
        };
        assert!(connection("chat", "rooms", "a"));
        assert!(!connection("chat", "rooms", "b") && !connection("chat", "empty", "a"));
        assert!(!connection("gone", "rooms", "a") && !connection("chat", "gone", "a"));
    }
}
