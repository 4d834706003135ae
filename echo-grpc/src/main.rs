//! The echo service.
fn main() {}
