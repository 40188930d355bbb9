//! Notices that the config file, or a file that it names, has changed.
//!
//! Files are replaced in many ways: written in place, renamed over, or by the swap of a symbolic
//! link some folders away, as a mounted `ConfigMap` does it. So what counts is what stands under
//! the paths now: a look at them (a `stat` of each) is compared with that of the last reading. The
//! system's own notices ([`notify`]) only say when to look; without them (too many watches, a file
//! system that gives none) there is a look every second all the same.
//!
//! A change is read once nothing has moved for 200 ms: whoever is still writing is not caught
//! in the middle. What then reads the same as before is no change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::{Loaded, Source};

/// How often there is a look without a notice.
const POLL: Duration = Duration::from_secs(1);
/// How long all must have been still before it is read.
const QUIET: Duration = Duration::from_millis(200);
/// What never comes to rest is read after this.
const RESTLESS: Duration = Duration::from_secs(5);

/// What stands under a path: device, inode, length, and when content and inode last changed, to
/// the nanosecond. `None`: nothing.
type Look = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// Watches the files of a config.
pub struct Watcher {
    source: Source,
    files: Vec<PathBuf>,
    seen: Vec<Look>,
    digest: u64,
    folders: Folders,
}

impl Watcher {
    /// Watches what `loaded`, just read from `source`, was made of.
    pub fn new(source: Source, loaded: &Loaded) -> Self {
        let mut watcher = Self {
            source,
            files: Vec::new(),
            // Older than anything: what was changed between the reading and now is noticed.
            seen: Vec::new(),
            digest: 0,
            folders: Folders::new(),
        };
        watcher.note(loaded);
        watcher
    }

    /// Takes note of a reading that was not its own: only what differs from it is a change.
    pub fn note(&mut self, loaded: &Loaded) {
        self.files.clone_from(&loaded.files);
        self.digest = loaded.digest;
        self.folders.follow(&self.files);
    }

    /// Waits until something has changed, and reads it. Cancel safe.
    pub async fn changed(&mut self) -> Loaded {
        loop {
            // Either way it is time to look.
            let _ = timeout(POLL, self.folders.noticed.notified()).await;
            self.folders.renew();
            if self.look().await == self.seen {
                continue;
            }
            let seen = self.at_rest().await;
            let source = self.source.clone();
            let Ok(loaded) = tokio::task::spawn_blocking(move || source.load()).await else {
                continue; // The runtime ends.
            };
            // As it was before the reading: what has changed during it is seen next time.
            self.seen = seen;
            let known = self.digest;
            self.note(&loaded);
            if loaded.digest != known {
                return loaded;
            }
        }
    }

    /// Waits until nothing moves, and tells how all stands then.
    async fn at_rest(&self) -> Vec<Look> {
        let since = Instant::now();
        let mut seen = self.look().await;
        loop {
            sleep(QUIET).await;
            let again = self.look().await;
            if again == seen || since.elapsed() > RESTLESS {
                return again;
            }
            seen = again;
        }
    }

    /// Off this thread: a file system may be away.
    async fn look(&self) -> Vec<Look> {
        let files = self.files.clone();
        let looked =
            tokio::task::spawn_blocking(move || files.iter().map(|file| look(file)).collect());
        looked.await.unwrap_or_default()
    }
}

fn look(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    let content = (found.mtime(), found.mtime_nsec());
    Some((found.dev(), found.ino(), found.len(), content, (found.ctime(), found.ctime_nsec())))
}

/// The folders whose changes the system tells of.
///
/// Not the files: a watch of one ends with the file that is replaced. A folder may be replaced
/// too, so each is known by its inode.
struct Folders {
    watcher: Option<RecommendedWatcher>,
    /// By path: device and inode of what is watched; `None`: nothing yet.
    watched: BTreeMap<PathBuf, Option<(u64, u64)>>,
    noticed: Arc<Notify>,
}

impl Folders {
    fn new() -> Self {
        let noticed = Arc::new(Notify::new());
        let notice = Arc::clone(&noticed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too, but no change. An error may hide one.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                notice.notify_one();
            }
        });
        let watcher = watcher
            .inspect_err(|error| {
                warn!(%error, "the system can't tell of changed files; they are looked at every second");
            })
            .ok();
        Self { watcher, watched: BTreeMap::new(), noticed }
    }

    /// Watches the folders of `files` from now on, and no others.
    fn follow(&mut self, files: &[PathBuf]) {
        let mut wanted: BTreeMap<PathBuf, Option<(u64, u64)>> = BTreeMap::new();
        for file in files {
            // Where it is called so, and where it really is.
            let real = fs::canonicalize(file).ok();
            for path in std::iter::once(file.as_path()).chain(real.as_deref()) {
                let folder = path.parent().filter(|folder| *folder != Path::new(""));
                wanted.insert(folder.unwrap_or(Path::new(".")).to_owned(), None);
            }
        }
        for (folder, known) in std::mem::take(&mut self.watched) {
            match wanted.get_mut(&folder) {
                Some(wanted) => *wanted = known,
                None => self.unwatch(&folder),
            }
        }
        self.watched = wanted;
        self.renew();
    }

    /// Watches anew what has been replaced, or was not there.
    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for (folder, watched) in &mut self.watched {
            let now = fs::metadata(folder).ok().map(|found| (found.dev(), found.ino()));
            if *watched == now {
                continue;
            }
            // What is watched no longer exists; where that ended the watch, so much the better.
            let _ = watcher.unwatch(folder);
            *watched = now.filter(|_| {
                let done = watcher.watch(folder, RecursiveMode::NonRecursive);
                done.inspect_err(
                    |error| debug!(folder = %folder.display(), %error, "can't watch a folder"),
                )
                .is_ok()
            });
        }
    }

    fn unwatch(&mut self, folder: &Path) {
        if let Some(watcher) = &mut self.watcher {
            // Gone already where the folder is.
            let _ = watcher.unwatch(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A config with a limit by which its versions are told apart.
    fn text(headers: usize) -> String {
        format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\nlimits.headers = {headers}\n\
             [[route]]\npath = \"/*\"\npool = \"p\"\n\
             [pool.p]\nbackends = [{{ id = \"a\", address = \"127.0.0.1:9\" }}]\n"
        )
    }

    fn watch(path: &Path) -> Watcher {
        let source = Source::new(path);
        let loaded = source.load();
        Watcher::new(source, &loaded)
    }

    /// The next version that is noticed; 0 for one that is broken.
    async fn next(watcher: &mut Watcher) -> usize {
        let loaded = timeout(Duration::from_secs(10), watcher.changed()).await.unwrap();
        loaded.config.map_or(0, |config| config.listeners[0].headers)
    }

    async fn nothing(watcher: &mut Watcher) {
        let changed = timeout(POLL * 2, watcher.changed()).await;
        assert!(changed.is_err(), "{changed:?}");
    }

    #[tokio::test]
    async fn a_file_is_written_in_place_or_renamed_over() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text(10)).unwrap();
        let mut watcher = watch(&path);
        fs::write(&path, text(11)).unwrap();
        assert_eq!(next(&mut watcher).await, 11);
        let new = folder.path().join("new");
        fs::write(&new, text(12)).unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(next(&mut watcher).await, 12);
        // Once more: a watch of the file would have ended with the first.
        fs::write(&new, text(13)).unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(next(&mut watcher).await, 13);
        fs::write(&path, text(13)).unwrap();
        nothing(&mut watcher).await;
    }

    #[tokio::test]
    async fn links_are_swapped_as_a_mounted_config_map_does_it() {
        let folder = TempDir::new().unwrap();
        let of = |name: &str| folder.path().join(name);
        for (version, headers) in [("..1", 10), ("..2", 11), ("..3", 12)] {
            fs::create_dir(of(version)).unwrap();
            fs::write(of(version).join("config.toml"), text(headers)).unwrap();
        }
        symlink("..1", of("..data")).unwrap();
        symlink("..data/config.toml", of("config.toml")).unwrap();
        let mut watcher = watch(&of("config.toml"));
        for (version, headers) in [("..2", 11), ("..3", 12)] {
            symlink(version, of("..tmp")).unwrap();
            fs::rename(of("..tmp"), of("..data")).unwrap();
            assert_eq!(next(&mut watcher).await, headers);
        }
    }

    #[tokio::test]
    async fn who_still_writes_is_not_caught_in_the_middle() {
        use std::io::Write as _;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text(10)).unwrap();
        let mut watcher = watch(&path);
        let writing = async {
            let mut file = fs::File::create(&path).unwrap();
            for line in text(11).lines() {
                writeln!(file, "{line}").unwrap();
                // Slower than a program, faster than the time of rest.
                sleep(QUIET / 4).await;
            }
        };
        let (headers, ()) = tokio::join!(next(&mut watcher), writing);
        assert_eq!(headers, 11);
    }

    #[tokio::test]
    async fn a_folder_that_vanishes_may_return() {
        let parent = TempDir::new().unwrap();
        let folder = parent.path().join("etc");
        let path = folder.join("config.toml");
        fs::create_dir(&folder).unwrap();
        fs::write(&path, text(10)).unwrap();
        let mut watcher = watch(&path);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(next(&mut watcher).await, 0);
        fs::create_dir(&folder).unwrap();
        fs::write(&path, text(11)).unwrap();
        assert_eq!(next(&mut watcher).await, 11);
        fs::write(&path, text(12)).unwrap();
        assert_eq!(next(&mut watcher).await, 12);
    }

    #[tokio::test]
    async fn files_that_the_config_names_count_too() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("config.toml");
        let token = folder.path().join("secrets").join("token");
        fs::create_dir(folder.path().join("secrets")).unwrap();
        fs::write(&token, "first").unwrap();
        let server = "[server]\nadmin_token = \"file:secrets/token\"\n";
        fs::write(&path, format!("{server}{}", text(10))).unwrap();
        let mut watcher = watch(&path);
        fs::write(&token, "second").unwrap();
        let loaded = timeout(Duration::from_secs(10), watcher.changed()).await.unwrap();
        assert_eq!(loaded.files, [path, token.clone()]);
        assert_eq!(loaded.config.unwrap().server.admin_token.unwrap().expose(), "second");
        fs::remove_file(&token).unwrap();
        assert_eq!(next(&mut watcher).await, 0, "a problem");
        fs::write(&token, "third").unwrap();
        assert_eq!(next(&mut watcher).await, 10);
    }

    #[tokio::test]
    async fn what_was_read_otherwise_is_no_change() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text(10)).unwrap();
        let mut watcher = watch(&path);
        fs::write(&path, text(11)).unwrap();
        let loaded = Source::new(&path).load();
        watcher.note(&loaded);
        nothing(&mut watcher).await;
    }
}
