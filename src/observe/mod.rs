//! What an operator sees: metrics, log events and the access log.

pub mod access_log;
pub mod labels;
pub mod lines;
pub mod metrics;
pub mod rate;
pub mod series;
pub mod stderr;
