//! The chat page: one file without a build, carried in the binary.
//!
//! It is the same from every backend; which one serves a room it learns from that room's welcome.
//! Its policy allows what it needs and no more: its own inline style and script, connections to
//! where it came from, and the coloured icon that it draws itself. Text of other people is only
//! ever put in as text.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use axum::response::{Html, IntoResponse};

const PAGE: &str = include_str!("page.html");

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'";

/// Answers with the page.
pub(crate) fn page() -> impl IntoResponse {
    ([(CACHE_CONTROL, "no-cache"), (CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))
}
