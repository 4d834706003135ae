//! An edge proxy for gRPC.
pub mod app;
pub mod snapshot;
pub mod telemetry;
pub mod data_plane;
pub mod control_plane;
