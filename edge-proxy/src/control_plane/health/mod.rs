//! Which endpoints are fit to serve: `grpc.health.v1` checks ([`check`], whose connections are read along by [`farewell`])
//! and what their outcomes mean ([`machine`]).

mod check;
mod farewell;
mod machine;
#[cfg(test)]
pub(super) mod script;

pub(super) use self::{
    check::Checker,
    machine::{Machine, Outcome},
};
