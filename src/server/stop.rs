//! How a proxy ends: not ready, no more clients, its connections by the plan, then the rest of it.

use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::Server;
use super::worker::WorkerHandle;
use crate::fleet::Message;
use crate::shutdown::StopPlan;

/// How long after the grace a worker may take to notice that it is over.
const LATEST: Duration = Duration::from_secs(1);
/// How long answers of the admin API may take that are under way when all else is over.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long it may take to sign off from the registry when all else is over, with the grace.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// And at least: those who were cut at its end are still to be taken out.
const FEWEST_WORDS: Duration = Duration::from_millis(500);

/// How long the last lines of the access log may take.
const FLUSH: Duration = Duration::from_secs(2);

impl Server {
    /// Stops as planned. Returns when all is over: how many connections were cut.
    pub async fn stop(mut self, plan: StopPlan) -> usize {
        self.fleet.set_ready(false);
        info!(delay = ?plan.delay, grace = ?plan.grace, "stopping");
        tokio::time::sleep(plan.delay).await;
        let over = Instant::now() + plan.grace;
        self.fleet.listeners.load().iter().for_each(|listener| listener.close());
        self.conductor.end();
        let stopped = stop_workers(std::mem::take(&mut self.workers), plan);
        let cut = tokio::time::timeout(plan.grace + LATEST, stopped).await.unwrap_or_else(|_| {
            error!("a worker does not stop; it is left behind");
            0
        });
        if let Some(registry) = self.registry.take() {
            let left = over.saturating_duration_since(Instant::now());
            registry.end(left.clamp(FEWEST_WORDS, LAST_WORDS)).await;
        }
        self.admin = None;
        self.watched.clear();
        self.watching_itself.send_replace(true);
        let left = over.saturating_duration_since(Instant::now()).min(LAST_ANSWERS);
        let watchers = async { while self.watchers.join_next().await.is_some() {} };
        // Who asks the admin API and then says or takes no more is not waited for.
        if tokio::time::timeout(left, watchers).await.is_err() {
            debug!("an answer of the admin API was cut");
        }
        let log = self.fleet.shared.access_log.clone();
        // An error here is a panic of the writer, which has been reported.
        let _ = tokio::task::spawn_blocking(move || log.flush(FLUSH)).await;
        if cut > 0 {
            warn!(connections = cut, "stopped; time was over, what was left was cut");
        } else {
            info!("stopped");
        }
        cut
    }
}

/// Tells all workers to stop and waits for them; tells how many connections were cut.
async fn stop_workers(workers: Vec<WorkerHandle>, plan: StopPlan) -> usize {
    for worker in &workers {
        if worker.inbox.send(Message::Stop(plan)).await.is_err() {
            error!("a worker had ended before it was told to");
        }
    }
    let mut cut = 0;
    for worker in workers {
        cut += worker.ended().await;
    }
    cut
}
