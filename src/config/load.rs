//! A config file from disk, with what this process knows of its machine.
//!
//! The shell around [`parse`]: it reads the file and the secrets that it names, looks up
//! variables and the host name, and counts cores. It decides nothing but what can't be read, and
//! trusts no size that the file system tells: what never ends is cut off, and refused.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    Config, Environment, LONGEST_FILE, Problems, ServerSettings, parse, refused, server, too_long,
};

/// The longest file with a secret or certificates: all authorities of a system are a quarter of it.
const LONGEST_SECRET: usize = 1024 * 1024;

/// Where a config comes from: its file, with what this process knows of its machine.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
}

/// A config as it was read, or what is wrong with it, and all that it was made of.
#[derive(Debug)]
pub struct Loaded {
    /// The config, or every problem of it.
    pub config: Result<Config, Problems>,
    /// The files that it was made of, the config file first: also those that could not be read.
    pub files: Vec<PathBuf>,
    /// Of the contents of all of them: equal where they are.
    pub digest: u64,
}

impl Source {
    /// The config file at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The config file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, and checks all of it. Blocks on the file system; reads not more than four
    /// megabytes, and one of each file that it names.
    pub fn load(&self) -> Loaded {
        let name = self.path.display().to_string();
        let mut seen = Seen::default();
        let bytes = read_at_most(&self.path, LONGEST_FILE);
        seen.note(&self.path, &bytes);
        let seen = RefCell::new(seen);
        let config = bytes
            .map_err(|error| refused(&name, unreadable(&error)))
            .and_then(|bytes| String::from_utf8(bytes).map_err(|error| not_text(&name, &error)))
            .and_then(|text| self.read(&text, &name, &seen));
        let Seen { files, digest } = seen.into_inner();
        Loaded { config, files, digest: digest.digest() }
    }

    /// Reads a text as if it stood in the file; problems call it `name`. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// As [`parse`].
    pub fn parse(&self, text: &str, name: &str) -> Result<Config, Problems> {
        self.read(text, name, &RefCell::default())
    }

    /// Reads what the file says of its server, as far as that is valid, whatever the rest of it is
    /// like: enough to find the proxy that runs by it. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is too long or no text.
    pub fn server(&self) -> io::Result<ServerSettings> {
        let text = as_text(read_at_most(&self.path, LONGEST_FILE)?)?;
        Ok(self.here(&RefCell::default(), |folder, here| server(&text, folder, here)))
    }

    fn read(&self, text: &str, name: &str, seen: &RefCell<Seen>) -> Result<Config, Problems> {
        self.here(seen, |folder, here| parse(text, name, folder, here))
    }

    /// Has something read with the file's folder and this process's machine.
    fn here<T>(&self, seen: &RefCell<Seen>, read: impl FnOnce(&Path, &Environment<'_>) -> T) -> T {
        let host_name = host_name();
        let environment = Environment {
            variable: &|name| std::env::var(name).ok(),
            file: &|path| {
                let bytes = read_at_most(path, LONGEST_SECRET);
                seen.borrow_mut().note(path, &bytes);
                as_text(bytes?)
            },
            host_name: &host_name,
            cores: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            now: SystemTime::now(),
            // What can't be read is as if it were not there: whether that leaves any, `parse` says.
            authorities: &|| rustls_native_certs::load_native_certs().certs,
        };
        let folder = self.path.parent().unwrap_or(Path::new(""));
        read(folder, &environment)
    }
}

/// Reads a config file, and checks all of it, with this process's environment.
///
/// Blocks on the file system. Not more than four megabytes are read.
///
/// # Errors
///
/// As [`parse`]; and a problem without a place where the file can't be read or is too long.
pub fn load(path: &Path) -> Result<Config, Problems> {
    Source::new(path).load().config
}

/// What was read on the way to a config.
#[derive(Default)]
struct Seen {
    files: Vec<PathBuf>,
    digest: Xxh3,
}

impl Seen {
    fn note(&mut self, path: &Path, content: &io::Result<Vec<u8>>) {
        // Where one ends and the next begins must not be told by their bytes.
        let part = |bytes: &[u8]| xxh3_64(bytes).to_le_bytes();
        self.digest.update(&part(path.as_os_str().as_encoded_bytes()));
        match content {
            Ok(bytes) => self.digest.update(&part(bytes)),
            Err(error) => self.digest.update(&part(error.kind().to_string().as_bytes())),
        }
        if !self.files.iter().any(|file| file == path) {
            self.files.push(path.to_owned());
        }
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::FileTooLarge => too_long(),
        io::ErrorKind::NotFound => {
            "there is no such file; name one with --config, or begin with config.example.toml"
                .to_owned()
        }
        _ => format!("can't be read ({error}); check what it is and who may read it"),
    }
}

/// Points to the first byte that is no UTF-8.
fn not_text(file_name: &str, error: &std::string::FromUtf8Error) -> Problems {
    let at = error.utf8_error().valid_up_to();
    let mut problems = Problems::new(file_name, &String::from_utf8_lossy(error.as_bytes()));
    problems.at(at..at + 1, "is no UTF-8 text from here on; save the file as UTF-8");
    problems
}

fn as_text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

/// Reads a file without trusting its size: it may be a device that never ends.
fn read_at_most(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The kernel's name for this machine; empty where it doesn't tell, and then a fixed name serves.
fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    name.trim().to_owned()
}
