//! A config file from disk, with what this process knows of its machine.
//!
//! The shell around [`parse`]: it reads the file and the secrets that it names, looks up
//! variables and the host name, and counts cores. It decides nothing but what can't be read, and
//! trusts no size that the file system tells: what never ends is cut off, and refused.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::SystemTime;

use super::{Config, Environment, LONGEST_FILE, Problems, parse, refused, too_long};

/// The longest file with a secret or certificates: all authorities of a system are a quarter of it.
const LONGEST_SECRET: usize = 1024 * 1024;

/// Reads a config file, and checks all of it, with this process's environment.
///
/// Blocks on the file system. Not more than four megabytes are read.
///
/// # Errors
///
/// As [`parse`]; and a problem without a place where the file can't be read or is too long.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let name = path.display().to_string();
    let bytes =
        read_at_most(path, LONGEST_FILE).map_err(|error| refused(&name, unreadable(&error)))?;
    let source = String::from_utf8(bytes).map_err(|error| not_text(&name, &error))?;
    let host_name = host_name();
    let environment = Environment {
        variable: &|name| std::env::var(name).ok(),
        file: &secret_file,
        host_name: &host_name,
        cores: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        now: SystemTime::now(),
        // What can't be read is as if it were not there: whether that leaves any, `parse` says.
        authorities: &|| rustls_native_certs::load_native_certs().certs,
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&source, &name, folder, &environment)
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

fn secret_file(path: &Path) -> io::Result<String> {
    let bytes = read_at_most(path, LONGEST_SECRET)?;
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
