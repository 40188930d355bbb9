//! Mass closes from the beginning to the end: of a backend that is drained, of a route that is gone.
//!
//! A [`Conductor`] runs on the control runtime. For each mass close it asks the workers who is
//! there, puts all of it in one [line](Line) (keys, sessions, and connections that are alone), and
//! then, a few times a second, tells the workers whose turn has come. The line has no order, and its
//! turns come evenly over the span, so that reconnects are as spread as the closes; where proxies
//! share a registry, a key and a session have the same turn at each of them.
//!
//! A key is let go, in the pool's table, before its connections are told to close: so who joins it
//! before that is closed with it, and who comes after chooses anew, once the old ones have ended.
//! From the one to the other a mass close can't be stopped, or connections would stay where their
//! key is no longer. Where proxies share a registry, that is some time ([`LEAD`]): who was closed by one
//! of them, and comes back through another that is a moment behind, finds the key let go there too.
//!
//! At the end whoever is still there is closed without a turn: who came late, or has no key. A
//! drained backend stays drained after that; there is just nothing left to do.
//!
//! A single key that [gives way](Conductor::give_way) to other proxies is closed at once. Its workers
//! are told again as long as something of it is there: one whose handshake was just answered has no
//! backend yet when they look for it first.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use crate::fleet::Message;
use crate::pool::drain::Progress;
use crate::pool::turns::Line;
use crate::pool::{Backend, Clearing};
use crate::ws::close::CloseReason;
use crate::ws::connection::Serial;
use crate::ws::mass_close::{Number, Order, Units, Whose};

/// How long a step takes: closes within it are made at once.
const STEP: Duration = Duration::from_millis(50);
/// How long before its connections are closed a key is let go, where other proxies close it too: by so
/// much they may differ about when the drain began.
const LEAD: Duration = Duration::from_millis(200);
/// How often is looked whether the rest has ended.
const LOOK: Duration = Duration::from_millis(250);
/// How often a worker is told of a key that gives way. After that it has at least been told to close
/// whatever is left, which is cut in the end.
const TOLD_OF_KEY: usize = 20;

/// What is closed.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// All that a drained backend has.
    Backend(Clearing),
    /// All connections of the route of this name, also those that it gets from now on.
    Route(Arc<str>),
}

impl Target {
    fn whose(&self) -> Whose {
        match self {
            Self::Backend(Clearing { pool, backend, by_key, .. }) => Whose::Backend {
                pool: Arc::clone(pool),
                backend: backend.shared_id(),
                by_key: *by_key,
            },
            Self::Route(name) => Whose::Route(Arc::clone(name)),
        }
    }

    /// From when on turns come, in a drain whose turns all proxies take together.
    fn agreed_from(&self) -> Option<Instant> {
        match self {
            Self::Backend(Clearing { backend, is_shared: true, .. }) => {
                backend.drain().map(|drain| Instant::from_std(drain.turns_from()))
            }
            _ => None,
        }
    }

    /// Whether something may still come of what was under way before it began.
    fn awaits_more(&self) -> bool {
        match self {
            Self::Backend(clearing) => clearing.backend.slots() > 0,
            Self::Route(_) => false,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(Clearing { pool, backend, .. }) => {
                write!(formatter, "backend {pool}/{}", backend.id())
            }
            Self::Route(name) => write!(formatter, "route {name}"),
        }
    }
}

/// What is closed at once, in its turn.
#[derive(PartialEq, Eq, Hash)]
enum Unit {
    Key(Arc<str>),
    Session(Arc<str>),
    Connection(Serial),
}

impl Unit {
    /// What other proxies know it by too.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Key(name) | Self::Session(name) => Some(name),
            Self::Connection(_) => None,
        }
    }
}

/// One mass close as its owner sees it. Dropping this does not stop it.
#[derive(Debug)]
pub(crate) struct Closing {
    /// How far it has come.
    #[cfg_attr(not(test), expect(dead_code, reason = "that of a backend is read from it"))]
    pub(crate) progress: Arc<Progress>,
    stop: Arc<Notify>,
}

impl Closing {
    /// Stops it: what was closed stays closed, what was not stays.
    pub(crate) fn stop(&self) {
        // Kept until the task looks, which it does between two steps.
        self.stop.notify_one();
    }

    /// Whether it still runs.
    pub(crate) fn is_under_way(&self) -> bool {
        // The other one is its task's.
        Arc::strong_count(&self.stop) > 1
    }
}

/// Runs the mass closes of one proxy.
pub(crate) struct Conductor {
    inboxes: Vec<mpsc::Sender<Message>>,
    control: Handle,
    next: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
    /// Of backends, for as long as there is such a backend; never many.
    drains: Mutex<Vec<(Weak<Backend>, Closing)>>,
}

impl Conductor {
    /// One that reaches the workers of these inboxes, and runs on the runtime of its caller.
    pub(crate) fn new(inboxes: Vec<mpsc::Sender<Message>>) -> Arc<Self> {
        Arc::new(Self {
            inboxes,
            control: Handle::current(),
            next: AtomicU64::new(0),
            tasks: Mutex::default(),
            drains: Mutex::default(),
        })
    }

    /// Begins to close all of `target`, evenly over `span`, with `reason`. May be called on any
    /// thread.
    pub(crate) fn start(&self, target: Target, span: Duration, reason: CloseReason) -> Closing {
        let drain = match &target {
            Target::Backend(clearing) => clearing.backend.drain(),
            Target::Route(_) => None,
        };
        let begins = drain.as_ref().map(|drain| Instant::from_std(drain.turns_from()));
        let progress = drain.map(|drain| drain.progress).unwrap_or_default();
        let stop = Arc::<Notify>::default();
        let task = Task {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            inboxes: self.inboxes.clone(),
            begins,
            target,
            span,
            reason,
            progress: Arc::clone(&progress),
            stop: Arc::clone(&stop),
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task.run(), &self.control);
        Closing { progress, stop }
    }

    /// Has the mass close of a backend run if it is drained, and else not. To be called whenever
    /// that may have changed: calls that cross each other come to the same.
    pub(crate) fn follow(&self, clearing: &Clearing) {
        let backend = &clearing.backend;
        let mut drains = self.drains.lock().unwrap_or_else(PoisonError::into_inner);
        drains.retain(|(backend, _)| backend.strong_count() > 0);
        if !backend.is_draining() || backend.is_lost() {
            stop_of(&mut drains, backend);
        } else if !drains.iter().any(|(one, _)| is_of(one, backend)) {
            let target = Target::Backend(clearing.clone());
            let closing = self.start(target, clearing.span, CloseReason::Drained);
            drains.push((Arc::downgrade(backend), closing));
        }
    }

    /// Has the connections of a key closed that was let go at a backend. May be called on any thread.
    pub(crate) fn give_way(&self, key: Arc<str>, clearing: Clearing) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(close_key(self.inboxes.clone(), key, clearing), &self.control);
    }

    /// Stops the mass close of a backend that is lost: its connections end all the same.
    pub(crate) fn lost(&self, backend: &Arc<Backend>) {
        stop_of(&mut self.drains.lock().unwrap_or_else(PoisonError::into_inner), backend);
    }

    /// Ends all of them at once, because the proxy stops.
    pub(crate) fn end(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

async fn close_key(inboxes: Vec<mpsc::Sender<Message>>, key: Arc<str>, clearing: Clearing) {
    for _ in 0..TOLD_OF_KEY {
        for inbox in &inboxes {
            let (pool, key) = (Arc::clone(&clearing.pool), Arc::clone(&key));
            let message = Message::KeyGaveWay { pool, key, backend: clearing.backend.shared_id() };
            // A worker that has ended has no connections.
            let _ = inbox.send(message).await;
        }
        sleep(LOOK).await;
        if !clearing.is_leaving(&key) {
            return;
        }
    }
}

fn is_of(one: &Weak<Backend>, backend: &Arc<Backend>) -> bool {
    std::ptr::eq(one.as_ptr(), Arc::as_ptr(backend))
}

fn stop_of(drains: &mut Vec<(Weak<Backend>, Closing)>, backend: &Arc<Backend>) {
    drains.retain(|(one, closing)| {
        let goes = is_of(one, backend);
        if goes {
            closing.stop();
        }
        !goes
    });
}

impl fmt::Debug for Conductor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Conductor").finish_non_exhaustive()
    }
}

/// One mass close.
struct Task {
    number: Number,
    inboxes: Vec<mpsc::Sender<Message>>,
    /// Before that none is closed.
    begins: Option<Instant>,
    target: Target,
    span: Duration,
    reason: CloseReason,
    progress: Arc<Progress>,
    stop: Arc<Notify>,
}

impl Task {
    async fn run(self) {
        if let Some(begins) = self.begins.filter(|begins| *begins > Instant::now())
            && self.is_stopped_before(begins).await
        {
            return;
        }
        let began = Instant::now();
        let is_done = self.close_in_turn(began).await && self.close_rest().await;
        self.tell(|| Order::End).await;
        if is_done {
            let (closed, took) = (self.progress.total(), began.elapsed());
            info!(of = %self.target, closed, ?took, "drain done");
        }
    }

    /// Closes all that was there when it began. `false`: it was stopped.
    async fn close_in_turn(&self, began: Instant) -> bool {
        let units = self.line_up().await;
        let agreed = self.target.agreed_from();
        // Those who agree count from the same moment.
        let (from, lead) = agreed.map_or((began, Duration::ZERO), |from| (from, LEAD));
        let mut line = match agreed {
            Some(_) => Line::agreed(units, Unit::name, self.span, began - from),
            None => Line::even(units.into_iter().collect(), self.span),
        };
        let ends = (from + self.span.max(line.end()) + lead).saturating_duration_since(began);
        self.progress.begin(line.left(), SystemTime::now() + ends);
        let mut let_go = VecDeque::new();
        loop {
            let step = step_at(from, Instant::now());
            let due = line.take_due(step - from);
            if !due.is_empty() {
                let_go.push_back((step + lead, self.let_go(due)));
            }
            while let Some((_, units)) = let_go.pop_front_if(|(at, _)| *at <= step) {
                self.close(units).await;
            }
            self.progress.set_left(line.left());
            if line.left() == 0 && let_go.is_empty() {
                // What has come from others since then has its turn as well.
                return agreed.is_none() || !self.is_stopped_before(from + self.span).await;
            }
            if self.is_stopped_before(step + STEP).await {
                for (_, units) in let_go {
                    self.close(units).await;
                }
                return false;
            }
        }
    }

    /// Closes whoever else is there, until nobody is. `false`: it was stopped.
    async fn close_rest(&self) -> bool {
        loop {
            if let Target::Backend(clearing) = &self.target {
                clearing.let_go(&clearing.keys());
                clearing.forget(&clearing.sessions());
            }
            let left = self.ask(|reply| Order::CloseRest(self.reason, reply)).await;
            if left.iter().sum::<usize>() == 0 && !self.target.awaits_more() {
                return true;
            }
            if self.is_stopped_within(LOOK).await {
                return false;
            }
        }
    }

    /// All that is there, in an order that means nothing.
    async fn line_up(&self) -> HashSet<Unit> {
        let mut line = HashSet::new();
        // First who lives there: who joins a key meanwhile is noted by its worker.
        loop {
            let whose = self.target.whose();
            let seen = self.ask(|reply| Order::Look(whose.clone(), reply)).await;
            let more = seen.iter().any(|seen| seen.more);
            for units in seen.into_iter().map(|seen| seen.units) {
                line.extend(units.keys.into_iter().map(Unit::Key));
                line.extend(units.connections.into_iter().map(Unit::Connection));
            }
            if !more {
                break;
            }
        }
        if let Target::Backend(clearing) = &self.target {
            line.extend(clearing.keys().into_iter().map(Unit::Key));
            line.extend(clearing.sessions().into_iter().map(Unit::Session));
        }
        line
    }

    /// Has what is due be there no longer; gives whose connections are to be closed for that.
    fn let_go(&self, due: Vec<Unit>) -> Units {
        let (mut units, mut sessions) = (Units::default(), Vec::new());
        for unit in due {
            match unit {
                Unit::Key(key) => units.keys.push(key),
                Unit::Session(id) => sessions.push(id),
                Unit::Connection(serial) => units.connections.push(serial),
            }
        }
        if let Target::Backend(clearing) = &self.target {
            clearing.let_go(&units.keys);
            clearing.forget(&sessions);
        }
        units
    }

    async fn close(&self, units: Units) {
        let units = Arc::new(units);
        self.tell(|| Order::Close(Arc::clone(&units), self.reason)).await;
    }

    async fn tell(&self, order: impl Fn() -> Order) {
        for inbox in &self.inboxes {
            // A worker that has ended has no connections.
            let _ = inbox.send(Message::MassClose(self.number, order())).await;
        }
    }

    /// Asks all workers, and waits for those that have not ended.
    async fn ask<T>(&self, order: impl Fn(oneshot::Sender<T>) -> Order) -> Vec<T> {
        let mut asked = Vec::with_capacity(self.inboxes.len());
        for inbox in &self.inboxes {
            let (reply, answer) = oneshot::channel();
            let _ = inbox.send(Message::MassClose(self.number, order(reply))).await;
            asked.push(answer);
        }
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            answers.extend(answer.await);
        }
        answers
    }

    async fn is_stopped_within(&self, time: Duration) -> bool {
        self.is_stopped_before(Instant::now() + time).await
    }

    async fn is_stopped_before(&self, time: Instant) -> bool {
        tokio::select! {
            () = self.stop.notified() => true,
            () = sleep_until(time) => false,
        }
    }
}

/// The last step up to now, in steps from a moment on: who agrees about that takes each at the same time.
fn step_at(from: Instant, now: Instant) -> Instant {
    let steps = (now - from).as_nanos() / STEP.as_nanos();
    from + STEP * u32::try_from(steps).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::ws::mass_close::Seen;

    const SPAN: Duration = Duration::from_secs(10);

    /// Two workers that have `keys` each, and tell what is closed when.
    struct World {
        conductor: Arc<Conductor>,
        closed: Receiver<(Duration, Units)>,
    }

    impl World {
        fn new(keys: [&[&str]; 2]) -> Self {
            let (inboxes, receivers) = crate::fleet::inboxes(2);
            let conductor = Conductor::new(inboxes);
            let (sender, closed) = mpsc::channel(1000);
            let began = Instant::now();
            let mut workers = JoinSet::new();
            for (inbox, keys) in receivers.into_iter().zip(keys) {
                let keys = keys.iter().map(|key| Arc::from(*key)).collect();
                workers.spawn(work(inbox, keys, began, sender.clone()));
            }
            workers.detach_all();
            Self { conductor, closed }
        }

        fn start(&self) -> Closing {
            let target = Target::Route("gone".into());
            self.conductor.start(target, SPAN, CloseReason::RouteRemoved)
        }
    }

    async fn work(
        mut inbox: Receiver<Message>,
        mut keys: Vec<Arc<str>>,
        began: Instant,
        closed: mpsc::Sender<(Duration, Units)>,
    ) {
        while let Some(Message::MassClose(_, order)) = inbox.recv().await {
            match order {
                Order::Look(whose, reply) => {
                    assert_eq!(whose, Whose::Route("gone".into()));
                    let one = keys.pop().into_iter().collect();
                    let units = Units { keys: one, connections: Vec::new() };
                    reply.send(Seen { units, more: !keys.is_empty() }).unwrap();
                }
                Order::Close(units, reason) => {
                    assert_eq!(reason, CloseReason::RouteRemoved);
                    closed.send((began.elapsed(), (*units).clone())).await.unwrap();
                }
                Order::CloseRest(_, reply) => reply.send(0).unwrap(),
                Order::End => return,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_closed_one_by_one_on_all_workers_at_once() {
        let mut world = World::new([&["a", "b", "c", "d"], &["c", "d", "e"]]);
        let closing = world.start();
        let mut seen = HashSet::new();
        for turn in 0..5 {
            let (at, units) = world.closed.recv().await.unwrap();
            let (_, other) = world.closed.recv().await.unwrap();
            assert_eq!(units, other);
            assert_eq!(units.keys.len(), 1);
            assert!(at.abs_diff(SPAN / 5 * turn) <= STEP, "{at:?}");
            seen.extend(units.keys);
            assert_eq!(closing.progress.total(), 5);
        }
        assert_eq!(seen.len(), 5);
        assert!(world.closed.recv().await.is_none(), "the workers were told that it is over");
        assert_eq!(closing.progress.left(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_stopped_closes_no_more() {
        let mut world = World::new([&["a", "b", "c", "d"], &[]]);
        let closing = world.start();
        for _ in 0..4 {
            world.closed.recv().await.unwrap();
        }
        closing.stop();
        assert!(world.closed.recv().await.is_none());
        assert_eq!((closing.progress.total(), closing.progress.left()), (4, 2));
    }
}
