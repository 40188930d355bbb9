//! Any text is a config or has problems; telling them never panics.
#![no_main]

use std::num::NonZeroUsize;
use std::path::Path;

use steadfast::config::{Environment, parse};

libfuzzer_sys::fuzz_target!(|source: &str| {
    let environment = Environment {
        variable: &|name| Some(name.to_owned()),
        file: &|_| Ok("hush\n".to_owned()),
        host_name: "edge1",
        cores: NonZeroUsize::MIN,
        now: std::time::SystemTime::now(),
        authorities: &Vec::new,
    };
    let _ = parse(source, "config.toml", Path::new(""), &environment)
        .map_err(|problems| problems.to_string());
});
