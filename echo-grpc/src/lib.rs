//! The echo service.
