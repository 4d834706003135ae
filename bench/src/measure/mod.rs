//! CPU time and memory of a peer, as the kernel counts them.

/// A peer's processes.
mod process;

pub(crate) use process::Processes;
