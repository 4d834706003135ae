//! Which endpoints are fit to serve: `grpc.health.v1` checks ([`check`], whose connections are read along by [`farewell`])
//! and what their outcomes mean ([`machine`]); and what the failures of RPCs mean ([`passive`]).

mod check;
mod farewell;
mod machine;
mod passive;
#[cfg(test)]
pub(super) mod script;

pub(super) use self::{
    check::Checker,
    machine::{Machine, Outcome},
    passive::{Passive, Return, may_eject},
};
