//! How many files this process may have open, and so how many connections it can relay.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is kept for everything that is no client connection: listeners, logs, checks, idle
/// connections to backends.
const RESERVE: u64 = 256;
/// A relayed connection has a socket to its client and one to its backend.
const PER_CONNECTION: u64 = 2;

/// Raises the limit of open files as far as this process may. An error leaves it as it was.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Allowed to everybody; where it fails all the same, `limit` tells what is left.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// The most open files, and how many relayed connections that allows.
pub fn limit() -> (u64, u64) {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (files, connections(files))
}

/// How many relayed connections so many open files allow.
fn connections(files: u64) -> u64 {
    files.saturating_sub(RESERVE) / PER_CONNECTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_connection_needs_two_files_beside_the_reserve() {
        assert_eq!(connections(20_000), 9_872);
        assert_eq!(connections(100), 0);
    }
}
