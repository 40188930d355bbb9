//! What integration tests are made of: real proxies and backends as processes, scripted backends,
//! and clients that write and read bytes.
//!
//! Everything waits for a condition with a deadline, and stops what it started when it is dropped.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(missing_docs, unreachable_pub, reason = "the names say it; tests/ is no library")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in tests a panic is the report")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub mod http;
pub mod in_process;
pub mod limits;
pub mod manager;
pub mod named;
pub mod redis;
pub mod scripted;
pub mod tls;
pub mod ws;

/// How long anything may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something, and returns it; `what` is said when it does not.
#[track_caller]
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, condition)
}

/// As [`eventually`], within a time of its own.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends threads that look at this, also where a test fails.
pub struct SetWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A process whose output is collected, and that is killed when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: Arc<Mutex<String>>,
}

impl Process {
    pub fn start(name: &str, command: &mut Command) -> Self {
        Self::start_hearing(name, command, Stdio::null())
    }

    /// One that takes [`lines`](Self::say).
    pub fn start_listening(name: &str, command: &mut Command) -> Self {
        Self::start_hearing(name, command, Stdio::piped())
    }

    fn start_hearing(name: &str, command: &mut Command, input: Stdio) -> Self {
        let spawned = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawned.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let output = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        collect(stdout, Arc::clone(&output));
        collect(stderr, Arc::clone(&output));
        let input = child.stdin.take();
        Self { name: name.to_owned(), child, input, output }
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits for a line in which `find` finds something.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = self.output().lines().find_map(&find) {
                return found;
            }
            let exit = self.child.try_wait().unwrap();
            assert!(
                exit.is_none() && Instant::now() < until,
                "{}: no line with {what} (exit: {exit:?}):\n{}",
                self.name,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: TERM, INT, STOP, CONT, KILL.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap();
        assert!(sent.success(), "kill -{signal} {pid}");
    }

    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        self.wait_for_exit_within(DEADLINE)
    }

    #[track_caller]
    pub fn wait_for_exit_within(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        within(limit, "the process ends", || child.try_wait().unwrap())
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            eprintln!("--- {} said last:", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn collect(from: impl Read + Send + 'static, to: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut to = to.lock().unwrap();
            to.push_str(&line);
            to.push('\n');
        }
    });
}

/// The binary of this workspace with that name, beside the test's own.
pub fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_steadfast")).with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A running `steadfast run`.
pub struct Proxy {
    pub process: Process,
    pub address: SocketAddr,
    /// Where each listener is, in the order of the config.
    pub listeners: Vec<SocketAddr>,
    pub admin: SocketAddr,
    folder: tempfile::TempDir,
}

/// A proxy with one route, `/*`, and `key`, in front of backends `(id, address)`; `more` is put
/// into the sections that it names: `[server]`, `[listener]`, `[route]`, `[pool]`, `[health]`.
pub fn config(backends: &[(&str, SocketAddr)], more: &[(&str, &str)]) -> String {
    let section = |name: &str| {
        let lines = more.iter().filter(|(section, _)| *section == name);
        lines.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    let list = backends.iter();
    let list: String = list
        .map(|(id, address)| format!("{{ id = \"{id}\", address = \"{address}\" }},\n"))
        .collect();
    let health = if section("health").is_empty() {
        "kind = \"off\"\n".to_owned()
    } else {
        section("health")
    };
    format!(
        "[server]\nname = \"edge\"\nadmin = \"127.0.0.1:0\"\nlog = {{ level = \"debug\" }}\n{}\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\n{}\n\
         [[route]]\nname = \"all\"\npath = \"/*\"\npool = \"pool\"\nkey = \"query:room\"\n{}\n\
         [pool.pool]\n{}backends = [\n{list}]\n\n\
         [pool.pool.health]\n{health}",
        section("server"),
        section("listener"),
        section("route"),
        section("pool"),
    )
}

impl Proxy {
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    pub fn start_with(config: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, config).unwrap();
        Self::run(&path, folder, environment)
    }

    /// With a config file of the caller's.
    pub fn start_at(path: &Path) -> Self {
        Self::run(path, tempfile::tempdir().unwrap(), &[])
    }

    fn run(path: &Path, folder: tempfile::TempDir, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.arg("run").arg("--config").arg(path).envs(environment.iter().copied());
        let mut process = Process::start("proxy", &mut command);
        process.wait_for("ready", |line| line.contains(" ready ").then_some(()));
        let output = process.output();
        let listeners: Vec<SocketAddr> = output
            .lines()
            .filter(|line| line.contains(" listening "))
            .filter_map(|line| field(line, "address")?.parse().ok())
            .collect();
        let admin = output
            .lines()
            .find(|line| line.contains(" admin API "))
            .and_then(|line| field(line, "address")?.parse().ok())
            .unwrap_or(listeners[0]);
        Self { process, address: listeners[0], listeners, admin, folder }
    }

    /// In front of backends, with one route by `query:room`.
    pub fn before(backends: &[(&str, SocketAddr)]) -> Self {
        Self::start(&config(backends, &[]))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Saves another config under its name, as most editors do.
    pub fn save(&self, config: &str) {
        let new = self.folder.path().join("config.toml.new");
        std::fs::write(&new, config).unwrap();
        std::fs::rename(&new, self.config_file()).unwrap();
    }

    /// How many reloads have gone this way: `success` or `failure`.
    pub fn reloads(&self, outcome: &str) -> f64 {
        self.metric("steadfast_config_reloads_total", &[("outcome", outcome)])
    }

    /// Asks the admin API to do something; the answer as JSON, with its status.
    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> (u16, serde_json::Value) {
        let answer = http::request(self.admin, "POST", path, &[], body.as_bytes());
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    /// An answer of the admin API, as JSON.
    #[track_caller]
    pub fn json(&self, path: &str) -> serde_json::Value {
        let answer = http::get(self.admin, path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Memory in KiB as the kernel counts it: `VmRSS` now, `VmHWM` at the most so far.
    #[track_caller]
    pub fn memory_kib(&self, field: &str) -> usize {
        let status = format!("/proc/{}/status", self.process.pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The sum of a metric over all its samples that have all of these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = http::get(self.admin, "/metrics").text();
        let samples = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        let wanted = samples.filter(|line| {
            labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        });
        wanted.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric has this value.
    #[track_caller]
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = f64::NAN;
        let until = Instant::now() + DEADLINE;
        while last != value {
            assert!(Instant::now() < until, "{name}{labels:?} is {last}, not {value}");
            std::thread::sleep(Duration::from_millis(10));
            last = self.metric(name, labels);
        }
    }

    /// The state of a backend as the admin API tells it.
    pub fn state(&self, backend: &str) -> String {
        let pools = self.json("/v1/pools");
        let all = pools["pools"].as_array().unwrap().iter();
        let mut backends = all.flat_map(|pool| pool["backends"].as_array().unwrap());
        let found = backends.find(|one| one["id"] == backend).unwrap();
        found["state"].as_str().unwrap().to_owned()
    }

    /// Waits until a backend is in this state.
    #[track_caller]
    pub fn wait_for_state(&self, backend: &str, state: &str) {
        let is_there = || (self.state(backend) == state).then_some(());
        eventually(&format!("{backend} is {state}"), is_there);
    }
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("{name}="))?;
    rest.split(' ').next()
}

/// A running `backend-demo`.
pub struct Backend {
    pub process: Process,
    pub id: String,
    pub address: SocketAddr,
}

impl Backend {
    pub fn start(id: &str) -> Self {
        Self::start_at(id, "127.0.0.1:0".parse().unwrap())
    }

    /// At an address of its own, to come back where it was.
    pub fn start_at(id: &str, address: SocketAddr) -> Self {
        Self::run(id, address, |command| command)
    }

    /// One that publishes what is said in its rooms, as these arguments and this environment say.
    pub fn publishing(id: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::run(id, "127.0.0.1:0".parse().unwrap(), |command| {
            command.args(arguments).envs(environment.iter().copied())
        })
    }

    fn run(id: &str, address: SocketAddr, more: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(binary("backend-demo"));
        more(command.args(["--listen", &address.to_string(), "--id", id]));
        let mut process = Process::start(id, &mut command);
        let address = process.wait_for("listening", |line| {
            line.split_once("listening on ")?.1.split(' ').next()?.parse().ok()
        });
        Self { process, id: id.to_owned(), address }
    }

    pub fn fleet(ids: &[&str]) -> Vec<Self> {
        ids.iter().map(|id| Self::start(id)).collect()
    }
}

/// `(id, address)` of each, for [`config`].
pub fn addresses(backends: &[Backend]) -> Vec<(&str, SocketAddr)> {
    backends.iter().map(|backend| (backend.id.as_str(), backend.address)).collect()
}

/// A running `backend-demo/node/server.js`.
pub struct NodeServer {
    pub process: Process,
    pub address: SocketAddr,
}

impl NodeServer {
    pub fn start(environment: &[(&str, &str)]) -> Self {
        let folder = root().join("backend-demo/node");
        assert!(folder.join("node_modules").exists(), "run scripts/test once: it installs ws");
        let mut command = Command::new("node");
        command.current_dir(folder).args(["server.js", "0"]).envs(environment.iter().copied());
        let mut process = Process::start("node", &mut command);
        let port: u16 = process
            .wait_for("listening", |line| line.split_once("listening on ")?.1.trim().parse().ok());
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

/// A running `redis-server` that keeps nothing.
pub struct RedisServer {
    pub process: Process,
    pub port: u16,
}

impl RedisServer {
    pub fn start() -> Self {
        // It can't take a free port by itself; another may be quicker to take the one found here.
        for _ in 0..10 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            if let Some(process) = Self::serve(port) {
                return Self { process, port };
            }
        }
        panic!("no port for redis-server");
    }

    /// `None`: it can't have the port.
    fn serve(port: u16) -> Option<Process> {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no"]);
        let mut process = Process::start("redis-server", &mut command);
        let serves = eventually("redis-server serves or ends", || {
            if process.output().contains("Ready to accept connections") {
                return Some(true);
            }
            process.has_exited().then_some(false)
        });
        serves.then_some(process)
    }

    /// Starts it where it was, with nothing in it; it was killed before.
    pub fn restart(&mut self) {
        self.process = eventually("redis-server starts again", || Self::serve(self.port));
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What it says to a command, as `redis-cli` prints it.
    pub fn ask(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let answer = Command::new("redis-cli").args(["-p", &port]).args(command).output().unwrap();
        String::from_utf8(answer.stdout).unwrap().trim().to_owned()
    }
}

/// A running `backend-demo/node/app.js`.
pub struct ChatServer {
    pub process: Process,
    pub address: SocketAddr,
}

impl ChatServer {
    /// At a free port where that is 0.
    pub fn start(instance: &str, port: u16, redis: &RedisServer) -> Self {
        let folder = root().join("backend-demo/node");
        let installed = folder.join("node_modules/socket.io").exists();
        assert!(installed, "run scripts/test once: it installs socket.io");
        let mut command = Command::new("node");
        command.current_dir(folder).arg("app.js").env("PORT", port.to_string());
        command.env("INSTANCE", instance).env("REDIS_URL", redis.url());
        let mut process = Process::start(instance, &mut command);
        let port: u16 = process
            .wait_for("listening", |line| line.split_once("listening on ")?.1.trim().parse().ok());
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// The requests that it has refused, by what it said.
    #[track_caller]
    pub fn errors(&self) -> serde_json::Value {
        let stats = http::get(self.address, "/stats").body;
        serde_json::from_slice::<serde_json::Value>(&stats).unwrap()["errors"].clone()
    }
}

/// A running `tests/peers/ws_server.py`.
pub struct PythonServer {
    pub process: Process,
    pub address: SocketAddr,
}

impl PythonServer {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(python());
        command.arg(root().join("tests/peers/ws_server.py")).args(arguments);
        let mut process = Process::start("python", &mut command);
        let port: u16 = process
            .wait_for("listening", |line| line.split_once("listening on ")?.1.trim().parse().ok());
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

/// The Python that has the peers' packages.
pub fn python() -> PathBuf {
    let path = root().join(".test-tools/venv/bin/python");
    assert!(path.exists(), "run scripts/test once: it installs {}", path.display());
    path
}

/// The browser, by any of its names.
pub fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut all =
        std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    all.find(|path| path.is_file()).expect("no Chromium: run scripts/test once, it installs one")
}

/// Runs `tests/peers/ws_client.mjs`; all that it checks must hold.
#[track_caller]
pub fn node_client(command: &str, url: &str, arguments: &[&str]) -> String {
    let folder = root().join("tests/peers");
    assert!(folder.join("node_modules").exists(), "run scripts/test once: it installs ws");
    run_peer(Path::new("node"), &[&["ws_client.mjs", command, url], arguments].concat())
}

/// Runs `tests/peers/ws_client.py`; all that it checks must hold.
#[track_caller]
pub fn python_client(command: &str, url: &str, arguments: &[&str]) -> String {
    run_peer(&python(), &[&["ws_client.py", command, url], arguments].concat())
}

/// Runs a peer's script to its end; it must succeed.
#[track_caller]
pub fn run_peer(program: &Path, arguments: &[&str]) -> String {
    run_peer_with(program, arguments, &[])
}

/// The same, with more in its environment.
#[track_caller]
pub fn run_peer_with(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new(program)
        .current_dir(root().join("tests/peers"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{} {arguments:?} failed:\n{text}{}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A TCP connection with time-outs, so that no test hangs.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Writes all of `bytes`.
pub fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

/// Reads until the peer ends; a reset counts as an end.
pub fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the peer did not end; it said {:?}", String::from_utf8_lossy(&bytes))
            }
            Err(_) => return bytes,
        }
    }
}
