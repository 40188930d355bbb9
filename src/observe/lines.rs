//! Lines behind a queue: what logs write through, so that nobody waits for a disk or a terminal.
//!
//! A thread of its own writes them, in order. The queue has a bound in lines and one in bytes; what
//! comes when it is full is dropped and counted, and how much that was is told once there is room
//! again. Whoever ends a process waits for what is queued, for a bounded time: a writer that is
//! stuck in a write can't be helped, and ends with the process.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// Lines that may wait for the writer.
const QUEUE: usize = 8192;
/// Bytes of lines that may wait for the writer. One of any length fits into an empty queue.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// Where a writer writes to.
pub trait Output: Write + Send + 'static {
    /// Makes sure that what is written arrives where it should. Called before each batch of lines,
    /// and with `now` when it is known that something has changed.
    fn follow_its_name(&mut self, now: bool) {
        let _ = now;
    }

    /// Says that so many lines were dropped since this was last said.
    fn tell_dropped(&self, lines: u64);

    /// Says that lines can't be written. Once per outage; short ones, that fit into the writer's own
    /// buffer, are tried again.
    fn tell_failed(&self, error: &io::Error) {
        let _ = error;
    }
}

/// What the writer gets.
#[derive(Debug)]
enum Entry {
    Line {
        text: String,
        /// Counts it if it can't be written.
        dropped: Counter,
    },
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
    /// What comes next goes into a file that is opened anew.
    Reopen,
}

/// What those who queue lines and who writes them both know.
#[derive(Debug, Default)]
struct Account {
    queued_bytes: AtomicUsize,
    /// Dropped, and not yet told of.
    untold: AtomicU64,
}

/// The way to one writer; cheap to share. The writer ends when the last of these is gone and all
/// is written.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: SyncSender<Entry>,
    account: Arc<Account>,
    dropped: Counter,
}

impl Lines {
    /// Starts a writer on a thread of this name. `dropped` counts the lines of this way that it was
    /// too slow for or couldn't write.
    ///
    /// # Errors
    ///
    /// There is no thread left.
    pub fn start(thread: &str, output: impl Output, dropped: Counter) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE);
        let account = Arc::<Account>::default();
        let writer = Writer {
            output: BufWriter::new(output),
            account: Arc::clone(&account),
            failing: false,
        };
        let thread = std::thread::Builder::new().name(thread.to_owned());
        thread.spawn(move || writer.write_all_of(&entries))?;
        Ok(Self { queue, account, dropped })
    }

    /// Another way to the same writer, for lines that are counted elsewhere if they are dropped.
    #[must_use]
    pub fn counting(&self, dropped: Counter) -> Self {
        Self { dropped, ..self.clone() }
    }

    /// Queues a line, which has its end in it; never waits.
    pub fn send(&self, line: String) {
        let bytes = line.len();
        let queued = self.account.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = queued == 0 || queued + bytes <= QUEUE_BYTES;
        let entry = || Entry::Line { text: line, dropped: self.dropped.clone() };
        if !has_room || self.queue.try_send(entry()).is_err() {
            self.account.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.drop_one();
        }
    }

    /// Counts a line that could not be made.
    pub fn drop_one(&self) {
        self.dropped.inc();
        self.account.untold.fetch_add(1, Ordering::Relaxed);
    }

    /// Has a file opened anew under its name, since it may have been renamed.
    pub fn reopen(&self) {
        // A queue that is full has a writer that is stuck; it looks by itself later.
        let _ = self.queue.try_send(Entry::Reopen);
    }

    /// Waits until all that was queued is written, for at most `limit`. Blocks.
    pub fn flush(&self, limit: Duration) {
        let (done, written) = sync_channel(1);
        // A queue that is full has a writer that is stuck: nothing to wait for.
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            let _ = written.recv_timeout(limit);
        }
    }
}

struct Writer<O: Output> {
    output: BufWriter<O>,
    account: Arc<Account>,
    failing: bool,
}

impl<O: Output> Writer<O> {
    /// Writes until the last sender is gone; what is queued then is still written.
    fn write_all_of(mut self, entries: &Receiver<Entry>) {
        while let Ok(first) = entries.recv() {
            // All that waits, at most a queue full, and the queue has room before the first write.
            let mut batch = vec![first];
            batch.extend(entries.try_iter().take(QUEUE));
            let untold = self.account.untold.swap(0, Ordering::Relaxed);
            if untold > 0 {
                self.output.get_ref().tell_dropped(untold);
            }
            self.output.get_mut().follow_its_name(false);
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Vec<Entry>) {
        let mut written = Ok(());
        let mut flushes = Vec::new();
        let mut has_lines = !self.output.buffer().is_empty();
        for entry in batch {
            match entry {
                Entry::Line { text, dropped } => {
                    has_lines = true;
                    self.account.queued_bytes.fetch_sub(text.len(), Ordering::Relaxed);
                    written = written.and_then(|()| self.output.write_all(text.as_bytes()));
                    dropped.inc_by(u64::from(written.is_err()));
                }
                Entry::Flush(done) => flushes.push(done),
                Entry::Reopen => {
                    written = written.and_then(|()| self.output.flush());
                    self.output.get_mut().follow_its_name(true);
                }
            }
        }
        written = written.and_then(|()| self.output.flush());
        match written {
            // Nothing to write goes well whatever is broken.
            Ok(()) => self.failing &= !has_lines,
            // The next lines try again.
            Err(error) if !self.failing => {
                self.failing = true;
                self.output.get_ref().tell_failed(&error);
            }
            Err(_) => {}
        }
        // Last, when all is told. Whoever waited may have given up.
        for done in flushes {
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Where lines go when the test lets them.
    #[derive(Debug, Default)]
    struct Gate {
        state: Mutex<(bool, Vec<u8>)>,
        changed: Condvar,
    }

    impl Gate {
        fn open(&self) {
            self.state.lock().unwrap().0 = true;
            self.changed.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.state.lock().unwrap().1.clone()).unwrap()
        }
    }

    struct Gated {
        gate: Arc<Gate>,
        told: Sender<u64>,
        entered: Sender<()>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.entered.send(()).unwrap();
            let state = self.gate.state.lock().unwrap();
            let mut state = self.gate.changed.wait_while(state, |(open, _)| !*open).unwrap();
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Gated {
        fn tell_dropped(&self, lines: u64) {
            self.told.send(lines).unwrap();
        }
    }

    #[test]
    fn a_writer_that_is_stuck_costs_lines_and_no_time_and_tells_how_many() {
        let gate = Arc::<Gate>::default();
        let ((told, dropped_told), (entered, writes)) = (channel(), channel());
        let dropped = Counter::default();
        let output = Gated { gate: Arc::clone(&gate), told, entered };
        let lines = Lines::start("test", output, dropped.clone()).unwrap();
        lines.send("first\n".to_owned());
        writes.recv().unwrap();
        // The writer is in a write: a queue full waits, and no more.
        for number in 0..QUEUE + 5 {
            lines.send(format!("{number}\n"));
        }
        assert_eq!(dropped.get(), 5);
        lines.flush(Duration::from_secs(60)); // does not wait for who is stuck
        gate.open();
        assert_eq!(dropped_told.recv().unwrap(), 5);
        lines.flush(Duration::from_secs(60));
        let mut expected = "first\n".to_owned();
        (0..QUEUE).for_each(|number| expected.push_str(&format!("{number}\n")));
        assert_eq!(gate.text(), expected);
        assert_eq!(lines.account.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn long_lines_fill_the_queue_sooner() {
        let gate = Arc::<Gate>::default();
        let ((told, _told), (entered, writes)) = (channel(), channel());
        let dropped = Counter::default();
        let lines = Lines::start("test", Gated { gate, told, entered }, dropped.clone()).unwrap();
        lines.send("first\n".to_owned());
        writes.recv().unwrap();
        for _ in 0..5 {
            lines.send("x".repeat(QUEUE_BYTES / 4));
        }
        assert_eq!(dropped.get(), 1);
    }

    struct Failing(Arc<Mutex<(bool, u32)>>);

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.lock().unwrap().0 {
                Ok(bytes.len())
            } else {
                Err(io::ErrorKind::StorageFull.into())
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Failing {
        fn tell_dropped(&self, _: u64) {}

        fn tell_failed(&self, _: &io::Error) {
            self.0.lock().unwrap().1 += 1;
        }
    }

    #[test]
    fn an_outage_is_told_once_and_what_it_cost_is_counted() {
        let state = Arc::<Mutex<(bool, u32)>>::default();
        let dropped = Counter::default();
        let lines = Lines::start("test", Failing(Arc::clone(&state)), dropped.clone()).unwrap();
        let elsewhere = Counter::default();
        let others = lines.counting(elsewhere.clone());
        let text = || "x".repeat(9000); // longer than the writer's own buffer
        let long = || lines.send(text());
        for _ in 0..3 {
            long();
            lines.flush(Duration::from_secs(60));
        }
        assert_eq!((dropped.get(), state.lock().unwrap().1), (3, 1));
        // Each kind of lines counts its own.
        (0..2).for_each(|_| others.send(text()));
        lines.flush(Duration::from_secs(60));
        assert_eq!((dropped.get(), elsewhere.get(), state.lock().unwrap().1), (3, 2, 1));
        state.lock().unwrap().0 = true;
        long();
        lines.flush(Duration::from_secs(60));
        state.lock().unwrap().0 = false;
        long();
        lines.flush(Duration::from_secs(60));
        assert_eq!((dropped.get(), elsewhere.get(), state.lock().unwrap().1), (4, 2, 2));
    }
}
