//! Demo backends.
