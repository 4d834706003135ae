//! Compiles the tests' own service with protox, as the crate `proto` does for the real ones.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/test.proto"], ["."])?;
    tonic_prost_build::configure()
        .bytes(".e2e.Message.data")
        .compile_fds(files)?;
    Ok(())
}
