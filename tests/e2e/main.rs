//! Stories.

mod deploy;
