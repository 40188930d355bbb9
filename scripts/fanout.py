"""Messages to many, for scripts/bench: Steadfast beside Socket.IO with its Redis adapter.

Two proxies before one backend, or two Socket.IO instances; the same members in the same room, the
same Redis, the same messages. Processor time is that of the two proxies or instances alone, without
Redis, the load and the backend, of which Socket.IO has none. Beside them a program that does nothing
but write the message to each member shows what the kernel takes for that.
"""
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

STEADFAST, SOCKET_IO, BARE = "steadfast", "socketio", "bare"
DEADLINE = 120
# Members, the messages that they get, and how many of these are published at once.
CROWDS = [(1, 300, 1), (100, 100, 1), (10_000, 10, 1), (100, 500, 10), (10_000, 20, 10)]
QUICK = [(1, 10, 1), (100, 5, 1), (1000, 2, 1), (100, 10, 10), (1000, 10, 10)]
# Handshakes of which each is written down.
REGISTRATIONS, QUICK_REGISTRATIONS = 5000, 300


class Redis:
    """A server of its own, that keeps nothing."""

    def __init__(self, bench, core):
        self.port = bench.free_port()
        command = ["taskset", "-c", str(core), "redis-server", "--port", str(self.port), "--bind",
                   "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(bench.folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + DEADLINE
        while self.info("server") is None:
            if time.monotonic() > until:
                raise SystemExit("redis-server does not answer")
            time.sleep(0.05)

    def info(self, section):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as stream:
                stream.sendall(f"INFO {section}\r\nQUIT\r\n".encode())
                return b"".join(iter(lambda: stream.recv(65536), b"")).decode()
        except OSError:
            return None

    def commands(self):
        """Commands carried out, and the processor time of all of them in microseconds."""
        found = re.findall(r"cmdstat_([^:]+):calls=(\d+),usec=(\d+)", self.info("commandstats"))
        found = [(int(calls), int(micros)) for name, calls, micros in found if name not in ("info", "quit")]
        return sum(calls for calls, _ in found), sum(micros for _, micros in found)

    def memory(self):
        return int(re.search(r"used_memory:(\d+)", self.info("memory")).group(1))

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Instances:
    """Two of a kind, before the same Redis; of what has none, one."""

    def __init__(self, bench, kind, redis, core):
        self.bench, self.processes, self.ports = bench, [], []
        self.core = core
        try:
            for number in range(1 if kind == BARE else 2):
                getattr(self, kind)(number, redis)
        except BaseException:
            self.stop()
            raise

    def start(self, command, **more):
        command = ["taskset", "-c", str(self.core), *map(str, command)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, **more)
        self.processes.append(process)
        return process

    def steadfast(self, number, redis):
        port = self.bench.free_port()
        path = self.bench.folder / f"fanout-{number}.toml"
        registry = f'[registry]\nurl = "redis://127.0.0.1:{redis.port}"' if redis else ""
        path.write_text(f"""
[server]
name = "bench{number}"
workers = 1
log = {{ level = "warn" }}
shutdown_grace = "5s"
[[listener]]
bind = "127.0.0.1:{port}"
[[route]]
name = "members"
path = "/members"
pool = "echo"
rooms = ["room"]
[[route]]
path = "/*"
pool = "echo"
key = "query:room"
[pool.echo]
backends = [{{ id = "a", address = "127.0.0.1:{self.bench.echo_port}" }}]
{registry}
""")
        log = open(self.bench.folder / f"fanout-{number}.log", "w")
        process = self.start([self.bench.steadfast, "run", "--config", path], stdout=log, stderr=log)
        self.bench.wait_for_port(port, process, Path(log.name))
        self.ports.append(port)

    def socketio(self, _, redis):
        modules = self.bench.root / "backend-demo/node/node_modules"
        process = self.start(["node", self.bench.root / "benches/socketio.js", f"redis://127.0.0.1:{redis.port}"],
                             stdout=subprocess.PIPE, env={**os.environ, "NODE_PATH": str(modules)})
        self.ports.append(int(process.stdout.readline()))

    def bare(self, *_):
        process = self.start([self.bench.load_binary, "bare", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE)
        self.ports.append(int(process.stdout.readline().rsplit(":", 1)[1]))

    def cpu_seconds(self):
        total = 0
        for process in self.processes:
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def fan_out(bench, kind, crowd, cores):
    """Messages to a room of so many."""
    redis = Redis(bench, cores[1])
    try:
        instances = Instances(bench, kind, redis, cores[0])
        try:
            return _fan_out(bench, kind, redis, instances, *crowd)
        finally:
            instances.stop()
    finally:
        redis.stop()


def _fan_out(bench, kind, redis, instances, count, messages, at_once):
    to = [part for port in instances.ports for part in ("--to", f"127.0.0.1:{port}")]
    how = {
        STEADFAST: ["--path", "/members", "--redis", f"127.0.0.1:{redis.port}", "--channel", "steadfast:to:room:room"],
        SOCKET_IO: ["--path", "/socket.io/?EIO=4&transport=websocket", "--greeting", "40",
                    "--post", f"127.0.0.1:{instances.ports[0]}"],
        BARE: ["--path", "/", "--post", f"127.0.0.1:{instances.ports[0]}"],
    }
    load = bench.start_load("members", *to, *how[kind], "--count", count, "--messages", messages, "--at-once", at_once)
    try:
        bench.answer(load)
        # All are members, and what their coming has cost is over.
        time.sleep(1)
        before = instances.cpu_seconds()
        load.stdin.write("\n")
        load.stdin.flush()
        result = bench.answer(load)
        cpu = instances.cpu_seconds() - before
    finally:
        load.stdin.close()
        load.wait(DEADLINE)
    at = f"{count:,} member{'s'[:count > 1]}" + (f", {at_once} at once" if at_once > 1 else "")
    return {
        f"processor time per delivery, {at}, µs": cpu / result["deliveries"] * 1e6,
        f"published until received, p50, {at}, µs": result["p50_us"],
        f"published until received, p99, {at}, µs": result["p99_us"],
        f"published until the last has it, p50, {at}, µs": result["last_p50_us"],
    }


def registration(bench, count, cores):
    """Handshakes with a key of their own through two proxies, with a registry and without one."""
    figures = {}
    redis = Redis(bench, cores[1])
    try:
        for registry in (redis, None):
            instances = Instances(bench, STEADFAST, registry, cores[0])
            try:
                to = f"127.0.0.1:{instances.ports[0]}"
                bench.load("upgrades", "--to", to, "--count", 100)
                time.sleep(1)
                before, (calls, micros) = instances.cpu_seconds(), redis.commands()
                result = bench.load("upgrades", "--to", to, "--count", count)
                # Written in batches behind the handshakes.
                time.sleep(1)
                cpu = (instances.cpu_seconds() - before) / count * 1e6
                if registry is None:
                    figures["processor time per connection without a registry, µs"] = cpu
                    continue
                now, spent = redis.commands()
                figures["processor time per connection with a registry, µs"] = cpu
                figures["connections registered and removed a second"] = count / result["seconds"]
                figures["commands to Redis per connection"] = (now - calls) / count
                figures["time of Redis per connection, µs"] = (spent - micros) / count
                few = redis.memory()
                with bench.held_load("idle", "--to", to, "--connections", count // 2):
                    time.sleep(1)
                    figures["memory of Redis per connection with a key of its own, bytes"] = (
                        (redis.memory() - few) / (count // 2))
            finally:
                instances.stop()
    finally:
        redis.stop()
    return figures
