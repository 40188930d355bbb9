//! Real Redis servers on loopback, alone, with Sentinels, and as a Cluster; stopped by their pids.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::{Process, eventually};

/// A running `redis-server` that keeps nothing on disk but what it was told to.
pub struct Redis {
    process: Process,
    pub port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One with more options of the command line.
    pub fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<String> =
            arguments.iter().map(|&argument| argument.to_owned()).collect();
        // It can't take a free port by itself; another may be quicker to take the one found here.
        for _ in 0..10 {
            let port = free_port();
            if let Some(process) = serve(port, &arguments, folder.path()) {
                return Self { process, port, arguments, folder };
            }
        }
        panic!("no port for redis-server");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again where it was, with nothing in it.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = eventually("redis-server starts again", || {
            serve(self.port, &self.arguments, self.folder.path())
        });
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }
}

/// A port that nobody has at this moment.
pub fn free_port() -> u16 {
    loop {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        // A Cluster takes the port 10,000 above too.
        if port < 55_000 {
            return port;
        }
    }
}

/// `None`: it does not serve there.
fn serve(port: u16, arguments: &[String], folder: &std::path::Path) -> Option<Process> {
    let mut command = Command::new("redis-server");
    if let Some(config) = arguments.first().filter(|argument| argument.ends_with(".conf")) {
        command.arg(folder.join(config));
    }
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(folder);
    if !arguments.iter().any(|argument| argument == "--sentinel") {
        command.args(["--save", "", "--appendonly", "no"]);
    }
    command.args(arguments.iter().filter(|argument| !argument.ends_with(".conf")));
    let mut process = Process::start("redis-server", &mut command);
    let serves = eventually("redis-server serves or ends", || {
        if process.has_exited() {
            return Some(false);
        }
        // Whoever else took the port may say anything, or be a Redis too.
        let own = format!("process_id:{}\r", process.pid());
        match Client::try_connect(port).ok()?.try_ask(&[b"INFO", b"server"]).ok()? {
            Answer::Text(info) => info.contains(&own).then_some(true),
            Answer::Error(_) => Some(true),
            _ => None,
        }
    });
    serves.then_some(process)
}

/// Sentinels that watch one master by the name `fleet`, and fail it over within a second or two.
pub struct Sentinels(Vec<Redis>);

impl Sentinels {
    pub fn watching(master: u16, count: usize) -> Self {
        Self::watching_with(master, count, "")
    }

    /// With more lines in their config.
    pub fn watching_with(master: u16, count: usize, lines: &str) -> Self {
        let quorum = count / 2 + 1;
        Self((0..count).map(|_| sentinel(master, quorum, lines)).collect())
    }

    pub fn ports(&self) -> Vec<u16> {
        self.0.iter().map(|sentinel| sentinel.port).collect()
    }

    /// The URL of the master that they watch.
    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.0.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{}/fleet", hosts.join(","))
    }

    pub fn client(&self) -> Client {
        self.0[0].client()
    }
}

fn sentinel(master: u16, quorum: usize, lines: &str) -> Redis {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "sentinel monitor fleet 127.0.0.1 {master} {quorum}\n\
             sentinel down-after-milliseconds fleet 500\n\
             sentinel failover-timeout fleet 3000\n{lines}"
        );
        std::fs::write(folder.path().join("sentinel.conf"), config).unwrap();
        let arguments = vec!["sentinel.conf".to_owned(), "--sentinel".to_owned()];
        let port = free_port();
        if let Some(process) = serve(port, &arguments, folder.path()) {
            return Redis { process, port, arguments, folder };
        }
    }
    panic!("no port for a Sentinel");
}

/// Masters of a Cluster, with all slots among them in equal parts.
pub fn cluster(count: u16) -> Vec<Redis> {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
    let masters: Vec<Redis> = (0..count).map(|_| Redis::start_with(&options)).collect();
    for (index, master) in (0..count).zip(&masters) {
        let mut client = master.client();
        let part = 16_384 / count;
        let end = if index + 1 == count { 16_383 } else { (index + 1) * part - 1 };
        let (from, to) = ((index * part).to_string(), end.to_string());
        assert_eq!(client.ask(&["CLUSTER", "ADDSLOTSRANGE", &from, &to]), Answer::text("OK"));
        let first = masters[0].port.to_string();
        let epoch = (index + 1).to_string();
        assert_eq!(client.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]), Answer::text("OK"));
        assert_eq!(client.ask(&["CLUSTER", "MEET", "127.0.0.1", &first]), Answer::text("OK"));
    }
    for master in &masters {
        eventually("the Cluster is whole", || {
            let Answer::Text(info) = master.client().ask(&["CLUSTER", "INFO"]) else { return None };
            let known = format!("cluster_known_nodes:{count}");
            (info.contains("cluster_state:ok") && info.contains(&known)).then_some(())
        });
    }
    masters
}

/// Moves a slot of a Cluster, with what is in it, as `redis-cli --cluster reshard` does.
pub fn move_slot(masters: &[Redis], from: usize, to: usize, slot: i64) {
    let done = |master: usize, words: &[&str]| {
        assert_eq!(masters[master].client().ask(words), Answer::text("OK"), "{words:?}");
    };
    let ids: Vec<String> = masters
        .iter()
        .map(|master| match master.client().ask(&["CLUSTER", "MYID"]) {
            Answer::Text(id) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    let slot = slot.to_string();
    done(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[from]]);
    done(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[to]]);
    let mut source = masters[from].client();
    let port = masters[to].port.to_string();
    while let Answer::List(keys) = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"])
        && !keys.is_empty()
    {
        for key in keys {
            let Answer::Text(key) = key else { panic!("{key:?}") };
            // It may have been removed meanwhile.
            let moved = source.ask(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
            assert!(
                matches!(&moved, Answer::Text(done) if done == "OK" || done == "NOKEY"),
                "{moved:?}"
            );
        }
    }
    for master in
        [to, from].into_iter().chain((0..masters.len()).filter(|one| ![to, from].contains(one)))
    {
        done(master, &["CLUSTER", "SETSLOT", &slot, "NODE", &ids[to]]);
    }
}

/// A replica of one of them, in step with it.
pub fn cluster_replica(masters: &[Redis], of: usize) -> Redis {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
    let replica = Redis::start_with(&options);
    let mut client = replica.client();
    let port = masters[of].port.to_string();
    assert_eq!(client.ask(&["CLUSTER", "MEET", "127.0.0.1", &port]), Answer::text("OK"));
    let Answer::Text(id) = masters[of].client().ask(&["CLUSTER", "MYID"]) else { panic!("no id") };
    eventually("it may be its replica", || {
        (client.ask(&["CLUSTER", "REPLICATE", &id]) == Answer::text("OK")).then_some(())
    });
    eventually("it is in step", || match client.ask(&["INFO", "replication"]) {
        Answer::Text(info) => info.contains("master_link_status:up").then_some(()),
        _ => None,
    });
    // All of them must know of it, or nobody votes for it.
    for master in masters {
        eventually("the masters know it", || match master.client().ask(&["CLUSTER", "NODES"]) {
            Answer::Text(nodes) => nodes.contains("slave").then_some(()),
            _ => None,
        });
    }
    replica
}

/// What a Redis answers (RESP2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nil,
    Text(String),
    Error(String),
    Number(i64),
    List(Vec<Answer>),
}

impl Answer {
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    #[track_caller]
    pub fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("no number: {other:?}"),
        }
    }
}

/// A connection that asks, and waits for each answer.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(port: u16) -> Self {
        Self::try_connect(port).unwrap()
    }

    fn try_connect(port: u16) -> std::io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn ask(&mut self, words: &[&str]) -> Answer {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.try_ask(&words).unwrap()
    }

    fn try_ask(&mut self, words: &[&[u8]]) -> std::io::Result<Answer> {
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend(format!("${}\r\n", word.len()).into_bytes());
            command.extend_from_slice(word);
            command.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&command)?;
        self.answer()
    }

    /// Publishes; tells how many subscribers have it.
    pub fn publish(&mut self, channel: &str, message: &str) -> i64 {
        self.ask(&["PUBLISH", channel, message]).number()
    }

    /// Publishes what need not be text.
    pub fn publish_bytes(&mut self, channel: &str, message: &[u8]) -> i64 {
        self.try_ask(&[b"PUBLISH", channel.as_bytes(), message]).unwrap().number()
    }

    /// How many have subscribed the channel.
    pub fn subscribers(&mut self, channel: &str) -> i64 {
        match self.ask(&["PUBSUB", "NUMSUB", channel]) {
            Answer::List(list) => list[1].number(),
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self) -> std::io::Result<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let rest = line.get(1..).unwrap_or_default().trim_end();
        let number = || rest.parse::<i64>().unwrap();
        Ok(match line.as_bytes().first() {
            Some(b'+') => Answer::text(rest),
            Some(b'-') => Answer::Error(rest.to_owned()),
            Some(b':') => Answer::Number(number()),
            Some(b'$') => {
                let Ok(length) = usize::try_from(number()) else { return Ok(Answer::Nil) };
                let mut text = vec![0; length + 2];
                self.0.read_exact(&mut text)?;
                text.truncate(length);
                Answer::Text(String::from_utf8_lossy(&text).into_owned())
            }
            Some(b'*') => {
                let Ok(count) = usize::try_from(number()) else { return Ok(Answer::Nil) };
                let all: std::io::Result<_> = (0..count).map(|_| self.answer()).collect();
                Answer::List(all?)
            }
            // It has ended, as one that starts up and can't have its port does.
            _ => Answer::Nil,
        })
    }
}
