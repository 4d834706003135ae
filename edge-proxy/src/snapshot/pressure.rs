//! How near the process is to its memory's limit, as the control plane sees it and the data plane acts on it.
//!
//! ```text
//!   Calm ──85 %──▶ Shedding ──92 %──▶ Parting ──95 %──▶ Refusing ──98 %──▶ Closed
//! ```
//!
//! Each level does what those before it do. The control plane decides and publishes; every worker keeps its own copy, so
//! that an RPC asks no more than a cell of its thread.

use std::time::Duration;

/// What is to be done, from nothing to everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    Calm,
    /// Idle connections are given up sooner; streams that stand still are reset.
    Shedding,
    /// Connections without an RPC get their GOAWAY.
    Parting,
    /// New RPCs are answered RESOURCE_EXHAUSTED.
    Refusing,
    /// New connections are closed.
    Closed,
}

/// One look at the memory, and what follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// What is to be done.
    pub level: Level,
    /// Bytes that count against the limit and can't be dropped.
    pub used: u64,
    /// The limit in bytes; 0: none is known.
    pub limit: u64,
}

impl Level {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::Calm,
        Self::Shedding,
        Self::Parting,
        Self::Refusing,
        Self::Closed,
    ];

    /// From how many percent of the limit.
    pub fn percent(self) -> u64 {
        match self {
            Self::Calm => 0,
            Self::Shedding => 85,
            Self::Parting => 92,
            Self::Refusing => 95,
            Self::Closed => 98,
        }
    }

    /// For logs and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Shedding => "shedding",
            Self::Parting => "parting",
            Self::Refusing => "refusing",
            Self::Closed => "closed",
        }
    }

    /// How long a connection may be idle for which `configured` is set.
    pub fn idle(self, configured: Duration) -> Duration {
        match self {
            Self::Calm => configured,
            Self::Shedding => configured / 10,
            // Who has only just come is about to ask for something.
            Self::Parting | Self::Refusing | Self::Closed => configured.min(Duration::from_secs(1)),
        }
    }
}

impl Pressure {
    /// Bytes above the first level's threshold.
    pub fn excess(&self) -> u64 {
        let threshold = u128::from(self.limit) * u128::from(Level::Shedding.percent()) / 100;
        // No more than the limit, which fits.
        self.used
            .saturating_sub(u64::try_from(threshold).unwrap_or(u64::MAX))
    }
}
