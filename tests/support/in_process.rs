//! A proxy within the test's own process.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use steadfast::config::{self, Environment};
use steadfast::server::Server;
use steadfast::shutdown::StopPlan;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A proxy on a thread with a runtime of its own, stopped when this is dropped.
pub struct InProcess {
    server: Option<Arc<Server>>,
    stop: Option<oneshot::Sender<()>>,
    control: Option<JoinHandle<()>>,
}

impl InProcess {
    pub fn start(source: &str) -> Self {
        let environment = Environment {
            variable: &|_| None,
            file: &|_| Err(std::io::ErrorKind::NotFound.into()),
            host_name: "test",
            cores: NonZeroUsize::MIN,
            now: std::time::SystemTime::now(),
            authorities: &Vec::new,
        };
        let config = config::parse(source, "test", Path::new("."), &environment).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (started, server) = std::sync::mpsc::channel();
        let control = std::thread::spawn(move || {
            runtime().block_on(async {
                let server = Arc::new(Server::start(config).await.unwrap());
                started.send(Arc::clone(&server)).unwrap();
                let _ = stopped.await;
                let plan = StopPlan { grace: Duration::ZERO, ..StopPlan::prompt() };
                Arc::into_inner(server).unwrap().stop(plan).await;
            });
        });
        let server = Some(server.recv().unwrap());
        Self { server, stop: Some(stop), control: Some(control) }
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        drop(self.server.take());
        drop(self.stop.take());
        let ended = self.control.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the proxy panicked");
    }
}

/// A runtime for one call.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
