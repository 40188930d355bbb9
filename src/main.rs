//! The `steadfast` command: arguments in, exit code out. Everything else is the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tikv_jemallocator::Jemalloc;

/// An idle connection is three blocks aligned to 128 bytes and a few small ones, allocated amid the
/// buffers of handshakes. The system's allocator spends a fifth more memory on them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    match steadfast::cli::main(steadfast::cli::Cli::parse()) {
        Ok(exit) => exit,
        Err(error) => {
            // Where standard error is closed, nobody would read it anyway.
            let _ = writeln!(std::io::stderr(), "steadfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}
