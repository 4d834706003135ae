//! Which endpoints are fit to serve: `grpc.health.v1` checks ([`check`], whose connections are read along by [`farewell`])
//! what their outcomes mean ([`machine`]) and how many are under way at a time ([`room`]); and what the failures of RPCs
//! mean ([`passive`]).

mod check;
mod farewell;
mod machine;
mod passive;
mod room;
#[cfg(test)]
pub(super) mod script;

pub(super) use self::{
    check::Checker,
    machine::{Machine, Outcome},
    passive::{Passive, Return, may_eject},
    room::{AT_A_TIME, Place, Room},
};
