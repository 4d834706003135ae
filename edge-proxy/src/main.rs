//! flags -> config -> App.
fn main() {}
