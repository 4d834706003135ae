//! The engine against scripted peers, against itself, and against the crate `h2`.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod support;

mod connection_rules;

mod stream_rules;

mod windows;

mod sending;

mod endings;

mod cancels;

mod floods;

mod owners;

mod random;

mod differential;

mod garbage;
