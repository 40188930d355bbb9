//! How a proxy stops: in one order, within a time that is known beforehand.
//!
//! Not ready; accept no more; tell HTTP connections to end and WebSockets to close, spread over
//! time; wait; cut off what is left and say how many. [`StopPlan`] is the times of it, [`Tasks`]
//! counts a worker's tasks, so that the end is known when it has come.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;

/// The times of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPlan {
    /// Not ready, but still accepting, for so long.
    pub delay: Duration,
    /// After that, WebSockets are closed evenly over this time.
    pub spread: Duration,
    /// Counted from the end of `delay`: what is left then is cut.
    pub grace: Duration,
}

impl StopPlan {
    /// What SIGTERM asks for: the closes take three quarters of the grace, the rest is for answers.
    pub fn graceful(delay: Duration, grace: Duration) -> Self {
        Self { delay, spread: grace / 4 * 3, grace }
    }

    /// What SIGINT asks for: no delay, all closes at once. All is over within 5 s, of which the
    /// last is for what is written at the very end.
    pub fn prompt() -> Self {
        Self { delay: Duration::ZERO, spread: Duration::ZERO, grace: Duration::from_secs(4) }
    }
}

/// The tasks of one worker's thread: all are spawned here, and counted.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    running: Cell<usize>,
    ended: Notify,
    stopping: Cell<bool>,
    stop: Notify,
}

impl Tasks {
    /// Runs a task on this thread until it ends, or the thread does.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(Counted { task, _running: Running::new(self) });
    }

    /// Tells all that listen to [`Tasks::stopping`] to come to an end.
    pub fn stop(&self) {
        self.0.stopping.set(true);
        self.0.stop.notify_waiters();
    }

    /// Whether they were told.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.get()
    }

    /// Resolves when they are told. Cancel safe.
    pub fn stopping(&self) -> impl Future<Output = ()> + 'static {
        let counts = Rc::clone(&self.0);
        async move {
            // Made before the look, so that nothing is missed between the two.
            let told = counts.stop.notified();
            if !counts.stopping.get() {
                told.await;
            }
        }
    }

    /// Resolves when no task runs. Cancel safe.
    pub async fn all_ended(&self) {
        while self.0.running.get() > 0 {
            self.0.ended.notified().await;
        }
    }
}

pin_project! {
    /// A task that counts. No async block: that would hold its task twice, once as it was given
    /// and once as it is awaited.
    struct Counted<T> {
        #[pin]
        task: T,
        _running: Running,
    }
}

impl<T: Future<Output = ()>> Future for Counted<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(context)
    }
}

struct Running(Rc<Counts>);

impl Running {
    fn new(tasks: &Tasks) -> Self {
        let counts = Rc::clone(&tasks.0);
        counts.running.set(counts.running.get() + 1);
        Self(counts)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let left = self.0.running.get() - 1;
        self.0.running.set(left);
        if left == 0 {
            // Stored if nobody waits yet, so that it can't be missed.
            self.0.ended.notify_one();
        }
    }
}
