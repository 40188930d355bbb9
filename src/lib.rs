//! Steadfast, an edge reverse proxy and WebSocket load balancer.
//!
//! The path of the bytes: [`listen`] accepts a socket, [`http`] reads a request from it,
//! [`route`] tells its route and its key, [`pool`] its backend, and after both sides have said
//! 101 [`ws`] relays frames between them until one ends; [`publish`] puts messages of others in
//! between. [`config`] says how, [`server`] builds
//! and owns it all, [`shutdown`] ends it, [`admin`] and [`observe`] show it; [`explain`] tells
//! where a request would go.

pub mod admin;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod explain;
mod fields;
mod fleet;
pub mod http;
pub mod listen;
pub mod observe;
pub mod pool;
pub mod publish;
pub mod random;
pub mod registry;
pub mod route;
pub mod server;
pub mod shutdown;
mod tcp;
pub mod tls;
pub mod ws;
