//! The admin pages and the probes through real listeners, asked as a browser, curl and the kubelet ask.

#![allow(clippy::unwrap_used, reason = "a test: it may panic")]

#[path = "../support/mod.rs"]
mod support;

mod server;

mod metrics;

mod pages;

mod probes;
