//! Generated types of `api/*.proto`.
