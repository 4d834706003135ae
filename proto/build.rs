//! Compiles `api/*.proto` with protox, which is written in Rust: no `protoc` has to be installed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=api");
    // The include path is the crate's folder, so a file's name in the descriptors is what users
    // write after `-proto proto/`: `api/echo.proto`.
    let files = protox::compile(["api/echo.proto", "api/reverse.proto"], ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("api.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
