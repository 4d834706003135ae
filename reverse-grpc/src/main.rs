//! The reverse service.
fn main() {}
