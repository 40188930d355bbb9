//! Demo backend.
fn main() {}
