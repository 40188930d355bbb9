//! What a reload would change, and whom it would touch.
//!
//! A connection is told of once, with the change that ends it first: one whose route and whose
//! backend both go is with the route, unless that lets it be and the backend doesn't. So it is
//! counted by route and backend together, as the gauge of live connections has them anyway; a
//! backend that has moved is one there, with what still ends at its old address.
//!
//! A listener that goes is beside that: what is counted there are clients' sockets, with a
//! WebSocket or without, and nothing happens to them.

use std::collections::HashMap;

use serde::Serialize;

use crate::config::diff::{Act, Change, Part};
use crate::observe::labels::ConnectionLabels;
use crate::route::OnRemoved;

/// What becomes of live connections; the later in this list, the sooner it is felt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// They go on as they are.
    Kept,
    /// They are closed one key at a time, spread over the pool's `drain_timeout`.
    Drained,
    /// They are closed at once.
    Closed,
}

impl From<OnRemoved> for Fate {
    fn from(of_route: OnRemoved) -> Self {
        match of_route {
            OnRemoved::Keep => Self::Kept,
            OnRemoved::Drain => Self::Drained,
            OnRemoved::Close => Self::Closed,
        }
    }
}

/// A change, and what it means to those who are connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedChange {
    /// What changes.
    #[serde(flatten)]
    pub change: Change,
    /// Live connections that are touched, but for those that another change touches sooner.
    pub connections: usize,
    /// What becomes of them; `None` where there can be none.
    pub fate: Option<Fate>,
}

/// What a reload changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// Part by part.
    pub changes: Vec<PlannedChange>,
    /// Keys that differ and take effect only when the process starts anew.
    pub needs_restart: Vec<&'static str>,
}

/// Whether a backend is drained for a change of it. One that moves with connections leaves its old
/// address.
pub(super) fn leaves(change: &Change) -> bool {
    match &change.act {
        Act::Added => false,
        Act::Removed => true,
        Act::Changed(keys) => keys.contains(&"address"),
    }
}

/// Counts live connections, of which there are so many by their labels, towards the change of a
/// route or a backend that each is touched by.
pub(super) fn count(changes: &mut [PlannedChange], live: &[(ConnectionLabels, usize)]) {
    let mut found: HashMap<(Part, &str), (usize, Fate)> = HashMap::new();
    for (index, PlannedChange { change, fate, .. }) in changes.iter().enumerate() {
        if let (Part::Route | Part::Backend, Some(fate)) = (change.part, *fate) {
            found.insert((change.part, &change.name), (index, fate));
        }
    }
    let touched = live.iter().filter_map(|(labels, connections)| {
        let ConnectionLabels { route, pool, backend } = labels;
        let backend = format!("{pool}/{backend}");
        let backend = found.get(&(Part::Backend, backend.as_str()));
        let route = found.get(&(Part::Route, route.as_str()));
        // Of two that are alike, the last.
        let soonest = backend.into_iter().chain(route).max_by_key(|(_, fate)| *fate);
        soonest.map(|(index, _)| (*index, *connections))
    });
    let touched: Vec<(usize, usize)> = touched.collect();
    for (index, connections) in touched {
        changes[index].connections += connections;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(part: Part, name: &str, fate: Fate) -> PlannedChange {
        let change = Change { part, name: name.to_owned(), act: Act::Removed };
        PlannedChange { change, connections: 0, fate: Some(fate) }
    }

    #[test]
    fn each_connection_counts_where_its_end_comes_first() {
        let live = [("chat", "a", 1), ("chat", "b", 10), ("news", "a", 100), ("news", "b", 1000)];
        let live = live.map(|(route, backend, connections)| {
            let (route, pool, backend) = (route.to_owned(), "rooms".to_owned(), backend.to_owned());
            (ConnectionLabels { route, pool, backend }, connections)
        });
        // The route `chat` with each fate, and the backend `a`.
        for (fate, at_route, at_backend) in
            [(Fate::Kept, 10, 101), (Fate::Drained, 11, 100), (Fate::Closed, 11, 100)]
        {
            let mut changes = [
                change(Part::Backend, "rooms/a", Fate::Drained),
                change(Part::Route, "chat", fate),
                change(Part::Backend, "others/b", Fate::Drained),
                change(Part::Route, "new", Fate::Closed),
            ];
            count(&mut changes, &live);
            let counts = changes.map(|change| change.connections);
            assert_eq!(counts, [at_backend, at_route, 0, 0], "{fate:?}");
        }
    }
}
