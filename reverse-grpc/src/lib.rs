//! The reverse service.
