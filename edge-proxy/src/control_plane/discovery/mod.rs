//! Which addresses a cluster has: DNS answers ([`lookup`], asked of [`servers`]) and what they mean ([`membership`]).
//!
//! The proxy keeps no DNS cache; it keeps the last good *set*, for ever. A name server that is slow, broken or lying
//! must not take a working cluster down, and a pod that has left must not get new RPCs: those two pull in opposite
//! directions, and `membership.rs` is where they are weighed.

#[cfg(any(test, fuzzing))]
pub(super) mod exercise;
mod lookup;
mod membership;
#[cfg(test)]
pub(super) mod script;
mod servers;

pub(super) use self::{
    lookup::{Lookup, Resolver},
    membership::{Answer, Membership},
};
