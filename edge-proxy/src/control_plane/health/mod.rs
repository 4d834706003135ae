//! Which endpoints are fit to serve: `grpc.health.v1` checks ([`check`]) and what their outcomes mean ([`machine`]).

mod check;
mod machine;
#[cfg(test)]
pub(super) mod script;

pub(super) use self::{
    check::Checker,
    machine::{Machine, Outcome},
};
