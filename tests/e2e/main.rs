//! The system from outside, story by story.

#![allow(
    clippy::unwrap_used,
    reason = "a story's helpers fail as the story does: by a panic"
)]

/// Paths to clusters.
mod routing;

/// The four kinds of RPC, large messages, flow control end to end.
mod kinds;

/// What happens to headers on the way there and back.
mod headers;

/// Every RPC is balanced, exactly.
mod balance;

/// Names, and name servers that fail.
mod discovery;

/// Health checks and what they do.
mod health;

/// Endpoints that fail in a row.
mod outliers;

/// Circuit limits of a cluster.
mod circuits;

/// Backends that fail under load: nothing lost, nothing done twice.
mod failures;

/// Attempts: repeated when it is safe, and never otherwise.
mod attempts;

/// Answers that the proxy gives itself.
mod answers;

/// Responses that break off after their headers.
mod broken_off;

/// Negative HTTP/2 behaviours of gRPC's interoperability tests.
mod negative;

/// Deadlines and cancels.
mod deadlines;

/// One client never hurts another.
mod isolation;

/// Connections: how many there may be, and what they may begin with.
mod connections;
/// Limits towards clients.
mod limits;

/// What happens when memory runs short.
mod overload;

/// Floods that end the connection that they come on.
mod floods;

/// What `attack` performs, in small.
#[macro_use]
mod stories;

/// Attacks on the program, beside a victim.
mod attacks;

/// Rollouts and failures around the program, under load.
mod rollouts;

/// HTTP/1.1, and HTTP that is not gRPC.
mod http;

/// The operator's pages, probes and metrics.
mod admin;

/// What is counted.
mod metrics;

/// The access log.
mod access_log;

/// Certificates that come, change, and are broken.
mod certificates;

/// Configurations that change.
mod reload;

/// How it ends.
mod drain;

/// The program: flags, messages, exit codes.
mod command_line;

/// The whole system with one command.
mod local_stack;

/// Load at a fixed rate.
mod load;

/// Images and manifests.
mod deploy;

/// What the README tells.
mod readme;
