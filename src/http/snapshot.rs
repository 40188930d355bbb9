//! The routes and pools in force, seen together.
//!
//! A [`Snapshot`] is built whole from a config and never changed; a reload builds another, which
//! shares with the one before what is the same, and whatever counts. A request looks it up once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::observe::metrics::{HandshakeCounts, Metrics};
use crate::pool::Pool;
use crate::route::{RouteSettings, Router};
use crate::ws::clock::Ticks;
use crate::ws::connection::Names;
use crate::ws::driver::RelayCounts;
use crate::ws::frame::ReservedBits;
use crate::ws::pace;
use crate::ws::relay::RelayLimits;

/// A route with what it needs while it runs.
#[derive(Debug)]
pub struct Route {
    /// What the config says of it.
    pub settings: RouteSettings,
    /// Its name, and its pool's.
    pub names: Arc<Names>,
    /// Where its requests go.
    pub pool: Arc<Pool>,
    /// What its relays count.
    pub counts: Arc<RelayCounts>,
    pub(super) handshakes: HandshakeCounts,
    /// Shared by all that have had its name: a reload changes no count.
    live: Arc<AtomicUsize>,
}

impl Route {
    /// Its live WebSockets, handshakes under way included.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// `random` decides on the age that the connection may reach.
    pub(super) fn relay_limits(&self, reserved: ReservedBits, random: u16) -> RelayLimits {
        let policy = &self.settings.relay;
        RelayLimits {
            idle: Ticks::of_limit(policy.idle_timeout),
            ping: Ticks::of_limit(policy.ping_interval),
            age: Ticks::of_limit(pace::age(policy.max_age, random)),
            max_message_bytes: policy.max_message,
            reserved,
        }
    }
}

/// A WebSocket of a route, from before its handshake; counts towards `max_connections`. It does not
/// hold the route: that would keep the ring of a config of long ago.
#[derive(Debug)]
pub(super) struct Live(Arc<AtomicUsize>);

impl Live {
    /// `None` if the route is full.
    pub(super) fn of(route: &Arc<Route>) -> Option<Self> {
        let limit = route.settings.max_connections;
        // In one step: who is refused never stands in the way of another for a moment.
        let more = |live| (limit == 0 || live < limit).then_some(live + 1);
        let taken = route.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(Arc::clone(&route.live)))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The routes and pools of one config, seen together.
#[derive(Debug)]
pub struct Snapshot {
    router: Router,
    routes: Vec<Arc<Route>>,
    pools: Vec<Arc<Pool>>,
    /// Those that left the config with connections: they are drained, and are the same if they
    /// return.
    gone: Vec<Arc<Pool>>,
    /// Of routes that left the config with connections: they count on if the route returns.
    departed: Vec<(Arc<str>, Arc<AtomicUsize>)>,
}

impl Snapshot {
    /// Puts routes to their pools. A route whose pool is missing is left out; a valid config has
    /// none.
    ///
    /// A route that is as it was `before`, in a pool that is, stays the very same.
    pub fn new(
        settings: &[RouteSettings],
        pools: Vec<Arc<Pool>>,
        metrics: &Metrics,
        before: Option<&Self>,
    ) -> Self {
        let with_pool = settings.iter().filter_map(|settings| {
            let pool = pools.iter().find(|pool| pool.name() == settings.pool)?;
            let known = before.into_iter().flat_map(|before| &before.routes);
            let known = known.into_iter().find(|known| known.settings.name == settings.name);
            let departed = before.into_iter().flat_map(|before| &before.departed);
            let departed = departed.into_iter().find(|(name, _)| **name == *settings.name);
            if let Some(known) = known
                && known.settings == *settings
                && Arc::ptr_eq(&known.pool, pool)
            {
                return Some(Arc::clone(known));
            }
            Some(Arc::new(Route {
                names: Arc::new(Names {
                    route: settings.name.as_str().into(),
                    pool: settings.pool.as_str().into(),
                }),
                pool: Arc::clone(pool),
                counts: metrics.relay_counts(&settings.name),
                handshakes: metrics.handshake_counts(&settings.name),
                live: known
                    .map(|known| &known.live)
                    .or(departed.map(|(_, live)| live))
                    .map(Arc::clone)
                    .unwrap_or_default(),
                settings: settings.clone(),
            }))
        });
        let routes: Vec<Arc<Route>> = with_pool.collect();
        let router = Router::new(routes.iter().map(|route| &route.settings));
        let departed = before.map_or_else(Vec::new, |before| before.departed_but(&routes));
        let is_gone = |one: &&Arc<Pool>| !pools.iter().any(|pool| pool.name() == one.name());
        let gone = before.into_iter().flat_map(Self::pools_with_gone).filter(is_gone);
        let gone = gone.cloned().collect();
        Self { router, routes, pools, gone, departed }
    }

    /// The counts of routes that are here, or have been, and are none of `routes`, as far as there
    /// is anything to count.
    fn departed_but(&self, routes: &[Arc<Route>]) -> Vec<(Arc<str>, Arc<AtomicUsize>)> {
        let here = self.routes.iter().map(|route| (&route.names.route, &route.live));
        let all = here.chain(self.departed.iter().map(|(name, live)| (name, live)));
        all.filter(|(name, live)| {
            live.load(Ordering::Relaxed) > 0
                && !routes.iter().any(|route| route.names.route == **name)
        })
        .map(|(name, live)| (Arc::clone(name), Arc::clone(live)))
        .collect()
    }

    /// All live WebSockets, also those of routes that left the config.
    pub fn live(&self) -> usize {
        let departed = self.departed.iter().map(|(_, live)| live.load(Ordering::Relaxed));
        self.routes.iter().map(|route| route.live()).chain(departed).sum()
    }

    /// The route of a request; `None` if no route is for it.
    pub fn route(
        &self,
        listener: Option<&str>,
        host: Option<&str>,
        path: &str,
    ) -> Option<&Arc<Route>> {
        self.routes.get(self.router.find(listener, host, path)?)
    }

    /// All routes.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The names of all routes, then of those that left the config and still have connections.
    pub fn route_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let departed = self.departed.iter().filter(|(_, live)| live.load(Ordering::Relaxed) > 0);
        let departed = departed.map(|(name, _)| name);
        self.routes.iter().map(|route| &route.names.route).chain(departed)
    }

    /// All pools.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// All pools, then those that left the config and still have connections.
    pub fn pools_with_gone(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter().chain(self.gone.iter().filter(|pool| pool.has_connections()))
    }
}
