//! One worker: a thread with a runtime of its own, and all that lives on it.
//!
//! A connection is accepted, served and relayed on one worker, both its sockets with it, so that
//! nothing of it needs a lock. Other threads reach a worker by its inbox, a bounded queue of
//! [`Message`]s; what they ask for is done between two turns of the runtime, one thing after the other.
//!
//! Long waits are the runtime's timers, one per HTTP connection; the time-outs of relayed
//! connections are looked after by one tick of the whole worker.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions, RuntimeMetrics};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{error, warn};

use super::inbox::Inbox;
use crate::fleet::{Door, Message, Passed, Query, Row};
use crate::http::{Accepted, Context, Shared};
use crate::listen::{Listener, Loads};
use crate::observe::metrics::ListenerCounts;
use crate::observe::rate::{Allowed, allowed};
use crate::publish::deliver::FanOut;
use crate::shutdown::{StopPlan, Tasks};
use crate::ws::clock::TICK_MILLIS;
use crate::ws::close::CloseReason;
use crate::ws::connection::{Connection, Serial, Undeliverable};
use crate::ws::mass_close::MassCloses;
use crate::ws::pace::MassClose;
use crate::ws::relay::Direction;
use crate::ws::table::Table;

/// So many connections are accepted in a row, then others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Turns of the runtime that cut connections get to write down how they ended. Each is enough for
/// some sixty of them.
const LAST_TURNS: usize = 4096;
/// How long nothing is accepted when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A worker as other threads see it.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    /// Reaches it.
    pub(super) inbox: mpsc::Sender<Message>,
    /// Tells how busy it is.
    pub(super) runtime: RuntimeMetrics,
    thread: JoinHandle<usize>,
}

impl WorkerHandle {
    /// Waits for its end, and tells how many connections were cut.
    pub(super) async fn ended(self) -> usize {
        let Self { inbox, thread, .. } = self;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        drop(inbox);
        match joined {
            Ok(Ok(cut)) => cut,
            Ok(Err(_)) | Err(_) => {
                error!("a worker panicked; its connections were cut");
                0
            }
        }
    }
}

/// What a worker is made of.
pub(super) struct Parts {
    /// Which it is.
    pub(super) index: u16,
    /// What all workers share.
    pub(super) shared: Arc<Shared>,
    /// Where clients connect.
    pub(super) doors: Vec<Door>,
    /// How loaded all workers are.
    pub(super) loads: Arc<Loads>,
    /// The inboxes of all workers.
    pub(super) inboxes: Vec<mpsc::Sender<Message>>,
    /// Its own.
    pub(super) inbox: mpsc::Receiver<Message>,
}

/// Starts a worker's thread.
///
/// # Errors
///
/// The system has no thread, no event queue or no descriptor left.
pub(super) fn start(parts: Parts) -> io::Result<WorkerHandle> {
    let inbox = parts.inboxes[usize::from(parts.index)].clone();
    let name = format!("worker-{}", parts.index);
    let (ready, started) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let runtime =
            match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return 0;
                }
            };
        let metrics = runtime.metrics();
        runtime.block_on(async move {
            match Worker::new(parts) {
                Ok((worker, inbox)) => {
                    let _ = ready.send(Ok(metrics));
                    worker.run(inbox).await
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    0
                }
            }
        })
    })?;
    let runtime = started.recv().map_err(io::Error::other)??;
    Ok(WorkerHandle { inbox, runtime, thread })
}

struct Worker {
    context: Rc<Context>,
    /// What it accepts from, each with the task that does.
    accepting: Vec<(Arc<Listener>, Tasks)>,
    index: usize,
    loads: Arc<Loads>,
    inboxes: Vec<mpsc::Sender<Message>>,
    mass_closes: MassCloses,
    /// What it is in the middle of sending.
    fan_out: Option<FanOut>,
}

impl Worker {
    fn new(parts: Parts) -> io::Result<(Self, Inbox)> {
        let table = Rc::new(Table::new(parts.index, Arc::clone(&parts.shared.registry)));
        let context = Rc::new(Context::new(parts.shared, table, Tasks::default()));
        let mut worker = Self {
            context,
            accepting: Vec::new(),
            index: usize::from(parts.index),
            loads: parts.loads,
            inboxes: parts.inboxes,
            mass_closes: MassCloses::default(),
            fan_out: None,
        };
        for door in parts.doors {
            worker.listen(door)?;
        }
        Ok((worker, Inbox::new(parts.inbox)))
    }

    /// Begins to accept from a listener.
    fn listen(&mut self, door: Door) -> io::Result<()> {
        let Door { listener, socket } = door;
        let accepter = Accepter {
            socket: tokio::net::TcpListener::from_std(socket)?,
            counts: self.context.shared.metrics.of_listener(&listener.label),
            listener: Arc::clone(&listener),
            index: self.index,
            loads: Arc::clone(&self.loads),
            inboxes: self.inboxes.clone(),
            context: Rc::clone(&self.context),
        };
        let tasks = Tasks::default();
        let stopping = tasks.stopping();
        tasks.spawn(async move {
            tokio::select! {
                () = stopping => {}
                () = accepter.run() => {}
            }
        });
        self.accepting.push((listener, tasks));
        Ok(())
    }

    fn unlisten(&mut self, listener: &Arc<Listener>) {
        self.accepting.retain(|(one, tasks)| {
            let goes = Arc::ptr_eq(one, listener);
            if goes {
                tasks.stop();
            }
            !goes
        });
    }

    /// Runs until it was told to stop and has; tells how many client connections were cut.
    async fn run(mut self, mut inbox: Inbox) -> usize {
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MILLIS.into()));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let plan = loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                message = inbox.recv(), if self.fan_out.is_none() => match message {
                    Some(Message::Stop(plan)) => break plan,
                    Some(message) => self.handle(message, &mut inbox),
                    None => break StopPlan::prompt(),
                },
                // In between, others get their turn.
                () = tokio::task::yield_now(), if self.fan_out.is_some() => self.send_on(),
            }
        };
        self.stop(plan, inbox, ticks).await
    }

    async fn stop(
        mut self,
        plan: StopPlan,
        mut inbox: Inbox,
        mut ticks: tokio::time::Interval,
    ) -> usize {
        for (_, accepting) in std::mem::take(&mut self.accepting) {
            accepting.stop();
            accepting.all_ended().await;
        }
        self.context.tasks.stop();
        self.context.upstreams.close();
        let started = Instant::now();
        let mut closes = Closes::new(self.context.table.len(), plan.spread);
        let ended = self.context.tasks.clone();
        let mut all_ended = Box::pin(async move { ended.all_ended().await });
        loop {
            closes.go_on(&self.context.table, started.elapsed());
            if started.elapsed() >= plan.grace {
                break;
            }
            tokio::select! {
                () = &mut all_ended => break,
                _ = ticks.tick() => self.tick(),
                Some(message) = inbox.recv(), if self.fan_out.is_none() => {
                    self.handle(message, &mut inbox);
                }
                () = tokio::task::yield_now(), if self.fan_out.is_some() => self.send_on(),
            }
        }
        self.cut().await
    }

    /// Ends what is left, and tells how many client connections that was.
    async fn cut(&self) -> usize {
        let left = self.loads.of(self.index);
        for connection in self.context.table.after(None, usize::MAX, |_| true) {
            connection.cut(CloseReason::Shutdown);
        }
        // One turn of the runtime for each to say how it ended; requests under way are dropped.
        for _ in 0..LAST_TURNS {
            if self.context.table.is_empty() {
                break;
            }
            tokio::task::yield_now().await;
        }
        left
    }

    fn tick(&self) {
        self.context.table.tick(Instant::now());
        self.context.upstreams.expire();
    }

    /// Serves the next few whom it is sending to.
    fn send_on(&mut self) {
        let Context { table, shared, .. } = &*self.context;
        let undeliverable = |reason: Undeliverable| shared.metrics.undeliverable(reason.label());
        self.fan_out.take_if(|fan_out| !fan_out.go_on(table, undeliverable));
    }

    fn handle(&mut self, message: Message, inbox: &mut Inbox) {
        let table = &self.context.table;
        match message {
            Message::Doors { opened, closed, done } => {
                for door in opened {
                    let label = Arc::clone(&door.listener.label);
                    if let Err(error) = self.listen(door) {
                        error!(listener = %label, %error, "a worker can't accept from a listener");
                    }
                }
                closed.iter().for_each(|listener| self.unlisten(listener));
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            Message::Serve(passed) => self.serve(passed),
            Message::Deliver { serial, frame, reply } => {
                let delivered = table.get(serial).map(|connection| connection.deliver(frame));
                if let Some(Err(reason)) = delivered {
                    self.context.shared.metrics.undeliverable(reason.label());
                }
                // Whoever asked may have stopped waiting.
                let _ = reply.send(delivered);
            }
            // Whoever asked may have stopped waiting, here and below.
            Message::Publish { publication, reply } => {
                self.fan_out = FanOut::begin(publication, table);
                let _ = reply.send(self.fan_out.is_some());
                self.fan_out.iter_mut().for_each(|fan_out| inbox.add_to(fan_out));
            }
            Message::Join { serial, room, reply } => {
                let _ = reply.send(table.get(serial).map(|one| table.join(&one, room)));
            }
            Message::Leave { serial, room, reply } => {
                let _ = reply.send(table.get(serial).map(|one| table.leave(&one, &room)).is_some());
            }
            Message::Close { serial, code, text, reply } => {
                // One that is not open yet is closed behind its 101.
                let closing = table.get(serial).map(|one| one.close_by_api(code, text));
                let _ = reply.send(closing.is_some());
            }
            Message::BackendLost { pool, backend } => {
                let of_backend = |connection: &Connection| {
                    connection.facts.names.pool == pool && connection.is_at(&backend)
                };
                for connection in table.after(None, usize::MAX, of_backend) {
                    connection.close(CloseReason::BackendLost);
                }
            }
            Message::KeyGaveWay { pool, key, backend } => {
                for connection in table.of_key_after(&pool, &key, None, usize::MAX) {
                    if connection.is_at(&backend) {
                        connection.close(CloseReason::PlacedElsewhere);
                    }
                }
            }
            Message::MassClose(number, order) => self.mass_closes.follow(number, order, table),
            Message::List { query, reply } => {
                let _ = reply.send(self.list(&query));
            }
            Message::Ping { reply } => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(());
            }
            // Told twice: the first plan goes on.
            Message::Stop(_) => {}
        }
    }

    fn serve(&self, passed: Passed) {
        match tokio::net::TcpStream::from_std(passed.stream) {
            Ok(stream) => self.context.serve(stream, passed.accepted),
            Err(error) => say_lost(&error),
        }
    }

    fn list(&self, query: &Query) -> Vec<Row> {
        let table = &self.context.table;
        let wants = |connection: &Connection| query.wants(connection, table);
        let found = match query.serial {
            Some(serial) => table.get(serial).filter(|one| wants(one)).into_iter().collect(),
            None => table.after(query.after, query.limit, wants),
        };
        let rows = found.iter().filter_map(|connection| {
            Some(Row {
                serial: connection.serial,
                route: Arc::clone(&connection.facts.names.route),
                pool: Arc::clone(&connection.facts.names.pool),
                backend: connection.backend()?,
                key: connection.facts.key.clone(),
                rooms: table.rooms_of(connection),
                client: connection.facts.client.ip(),
                since: connection.facts.since.time(),
                counts: Direction::ALL.map(|direction| connection.counts(direction)),
                // The table's clock is a tick late at most: never before the beginning.
                last_activity: table
                    .time_of(connection.last_activity())
                    .max(connection.facts.since.time()),
            })
        });
        rows.collect()
    }
}

/// The closes of a shutdown, as far as they have gone.
struct Closes {
    pace: MassClose,
    last: Option<Serial>,
}

impl Closes {
    fn new(total: usize, span: Duration) -> Self {
        Self { pace: MassClose::new(total, span), last: None }
    }

    /// Closes those that are due. Whoever comes after the beginning has a higher serial, and is
    /// closed once all others are.
    fn go_on(&mut self, table: &Table, elapsed: Duration) {
        let due = self.pace.take_due(elapsed);
        let now = if self.pace.is_over() { usize::MAX } else { due };
        for connection in table.after(self.last, now, |_| true) {
            connection.close(CloseReason::Shutdown);
            self.last = Some(connection.serial);
        }
    }
}

/// Takes connections from one listener on one worker.
struct Accepter {
    socket: tokio::net::TcpListener,
    counts: ListenerCounts,
    listener: Arc<Listener>,
    index: usize,
    loads: Arc<Loads>,
    inboxes: Vec<mpsc::Sender<Message>>,
    context: Rc<Context>,
}

impl Accepter {
    /// Runs until it is dropped. Cancel safe: a connection is taken and passed on in one step.
    async fn run(self) {
        loop {
            for _ in 0..ACCEPTS_PER_TURN {
                match self.socket.accept().await {
                    Ok((stream, peer)) => self.take(stream, peer),
                    Err(error) => self.failed(&error).await,
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn failed(&self, error: &io::Error) {
        if is_of_one_connection(error) {
            return;
        }
        // The listening socket stays readable: without a pause this would spin.
        self.context.shared.metrics.refuse("", "accept_failed");
        crate::http::complain_of_accept(&self.listener.label, error);
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn take(&self, stream: tokio::net::TcpStream, peer: std::net::SocketAddr) {
        let metrics = &self.context.shared.metrics;
        let address = crate::listen::canonical(peer.ip());
        let awaits_header = crate::http::awaits_proxy_header(&self.listener.settings, address);
        let limits = &self.listener.limits;
        // A balancer's address says nothing of its clients: each counts once it is named.
        let admitted = if awaits_header { limits.admit_unnamed() } else { limits.admit(address) };
        let admission = match admitted {
            Ok(admission) => admission,
            Err(over) => return metrics.refuse("", over.label()),
        };
        let worker = self.loads.choose(self.index);
        let accepted = Accepted {
            peer: std::net::SocketAddr::new(address, peer.port()),
            listener: Arc::clone(&self.listener),
            load: self.loads.hold(worker),
            admission,
            gauge: self.counts.accepted(),
        };
        if worker == self.index {
            return self.context.serve(stream, accepted);
        }
        self.pass_on(stream, accepted, worker);
    }

    fn pass_on(&self, stream: tokio::net::TcpStream, accepted: Accepted, worker: usize) {
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return say_lost(&error),
        };
        // An inbox that is full belongs to a worker that has enough to do: keep it here.
        let passed = Message::Serve(Passed { stream, accepted });
        if let Err(refused) = self.inboxes[worker].try_send(passed)
            && let Message::Serve(passed) = refused.into_inner()
        {
            match tokio::net::TcpStream::from_std(passed.stream) {
                Ok(stream) => {
                    let load = self.loads.hold(self.index);
                    self.context.serve(stream, Accepted { load, ..passed.accepted });
                }
                Err(error) => say_lost(&error),
            }
        }
    }
}

/// Says that a connection was lost on its way from one worker to another.
fn say_lost(error: &io::Error) {
    if let Some(Allowed { suppressed }) = allowed!() {
        warn!(%error, suppressed, "a client connection was lost");
    }
}

/// Whether an error of accept is one connection's own: it was gone before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
