//! From answers and health to the set of a cluster's endpoints. Pure.
//!
//! Each `host:port` of a cluster (a target) has its own last good answer. An address is a member while one of these
//! holds:
//!
//! ```text
//!             named by an answer
//!   (unknown) ──────────────────► Listed
//!                                 │    │
//!      a non-empty answer without it   │ an empty answer
//!                                 ▼    ▼
//!                           Leaving ◄─ Withdrawn    by a non-empty answer without it
//!                                 │    │
//!     a listed one is healthy, or │    │ its own check fails
//!     its own check fails         ▼    ▼
//!                                 (dropped)
//! ```
//!
//! Either is `Listed` again as soon as an answer names it.
//!
//! - A failed look-up changes nothing, however long it lasts.
//! - An empty answer (NXDOMAIN, no records) is believed only about endpoints whose checks fail too: `Withdrawn`. A
//!   cluster without checks keeps its last set then.
//! - A non-empty answer is believed, but not before one of those it names (or another that stays) is healthy:
//!   `Leaving`. That is a rollout: the old pod serves until the new one does, then gets nothing new.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use crate::control_plane::status::Standing;

/// The addresses of one cluster.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The cluster has health checks: "healthy" says something about an endpoint.
    checked: bool,
    targets: Vec<Named>,
    members: BTreeMap<SocketAddr, Standing>,
}

/// What a look-up says about a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// These, and no others.
    Addresses(BTreeSet<SocketAddr>),
    /// There are none.
    Empty,
    /// Nothing: it failed.
    Failed,
}

/// What [`Membership::settle`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// New members.
    pub(crate) added: Vec<SocketAddr>,
    /// No members any more.
    pub(crate) removed: Vec<SocketAddr>,
    /// Some member's standing is another.
    pub(crate) moved: bool,
}

/// One target's last good answer.
#[derive(Debug, Default)]
struct Named {
    listed: BTreeSet<SocketAddr>,
    /// Named by the last non-empty answer, before an empty one.
    withdrawn: BTreeSet<SocketAddr>,
}

impl Membership {
    /// Of a cluster with `targets` targets, no addresses yet.
    pub(crate) fn new(targets: usize, checked: bool) -> Self {
        Self {
            checked,
            targets: (0..targets).map(|_| Named::default()).collect(),
            members: BTreeMap::new(),
        }
    }

    /// Takes note of an answer; [`settle`](Self::settle) draws the consequences.
    pub(crate) fn answer(&mut self, target: usize, answer: Answer) {
        let Some(named) = self.targets.get_mut(target) else {
            return;
        };
        match answer {
            Answer::Addresses(addresses) => {
                named.listed = addresses;
                named.withdrawn.clear();
            }
            Answer::Empty if self.checked => {
                named.withdrawn.append(&mut named.listed);
            }
            Answer::Empty | Answer::Failed => {}
        }
    }

    /// Lets members in and drops those that may go, as the answers and `healthy` say now. Called after each answer
    /// and each change of health.
    pub(crate) fn settle(&mut self, healthy: impl Fn(SocketAddr) -> bool) -> Change {
        let mut change = Change::default();
        let listed: BTreeSet<SocketAddr> = self
            .targets
            .iter()
            .flat_map(|named| named.listed.iter().copied())
            .collect();
        for address in &listed {
            match self.members.insert(*address, Standing::Listed) {
                None => change.added.push(*address),
                Some(Standing::Listed) => {}
                Some(_) => change.moved = true,
            }
        }
        let replaced = listed.iter().any(|address| healthy(*address));
        let targets = &self.targets;
        self.members.retain(|address, standing| {
            let now = if listed.contains(address) {
                Standing::Listed
            } else if targets
                .iter()
                .any(|named| named.withdrawn.contains(address))
            {
                Standing::Withdrawn
            } else {
                Standing::Leaving
            };
            let stays = match now {
                Standing::Listed => true,
                Standing::Withdrawn => healthy(*address),
                Standing::Leaving => healthy(*address) && !replaced,
            };
            change.moved |= stays && *standing != now;
            *standing = now;
            if !stays {
                change.removed.push(*address);
            }
            stays
        });
        for named in &mut self.targets {
            // What was dropped is forgotten: should it pass a check later (on a connection that nobody owns any
            // more), it must not come back but by an answer.
            named
                .withdrawn
                .retain(|address| self.members.contains_key(address));
        }
        change
    }

    /// Why `address` is a member; `None`: it is none.
    pub(crate) fn standing(&self, address: SocketAddr) -> Option<Standing> {
        self.members.get(&address).copied()
    }

    /// All of them.
    #[cfg(any(test, fuzzing))]
    pub(super) fn members(&self) -> impl Iterator<Item = SocketAddr> {
        self.members.keys().copied()
    }

    /// What the last good answer for `target` names.
    pub(crate) fn listed(&self, target: usize) -> impl Iterator<Item = SocketAddr> {
        self.targets
            .get(target)
            .into_iter()
            .flat_map(|named| named.listed.iter().copied())
    }

    /// That, and what was withdrawn since and stays.
    pub(crate) fn named(&self, target: usize) -> impl Iterator<Item = SocketAddr> {
        let named = self.targets.get(target).into_iter();
        named.flat_map(|named| named.listed.union(&named.withdrawn).copied())
    }
}

impl Change {
    /// Nothing changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && !self.moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 8081))
    }

    fn addresses(last: &[u8]) -> Answer {
        Answer::Addresses(last.iter().copied().map(address).collect())
    }

    fn members(membership: &Membership) -> Vec<(u8, Standing)> {
        let last = |address: &SocketAddr| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        membership
            .members
            .iter()
            .map(|(address, standing)| (last(address), *standing))
            .collect()
    }

    /// A cluster with one target that names 1 and 2.
    fn two(checked: bool) -> Membership {
        let mut membership = Membership::new(1, checked);
        membership.answer(0, addresses(&[1, 2]));
        let change = membership.settle(|_| true);
        assert_eq!(change.added, [address(1), address(2)]);
        membership
    }

    use Standing::{Leaving, Listed, Withdrawn};

    #[test]
    fn an_answer_is_the_set_and_the_same_answer_changes_nothing() {
        let mut membership = two(true);
        membership.answer(0, addresses(&[2, 1]));
        assert!(membership.settle(|_| false).is_empty());
        assert_eq!(members(&membership), [(1, Listed), (2, Listed)]);
    }

    #[test]
    fn a_failed_look_up_changes_nothing_for_ever() {
        for checked in [true, false] {
            let mut membership = two(checked);
            for _ in 0..1000 {
                membership.answer(0, Answer::Failed);
                assert!(membership.settle(|_| false).is_empty());
            }
        }
    }

    #[test]
    fn an_empty_answer_keeps_what_still_passes_until_it_fails() {
        let mut membership = two(true);
        membership.answer(0, Answer::Empty);
        let change = membership.settle(|a| a == address(1));
        assert_eq!(change.removed, [address(2)]);
        assert_eq!(members(&membership), [(1, Withdrawn)]);
        membership.answer(0, Answer::Empty);
        assert!(membership.settle(|_| true).is_empty());
        assert_eq!(membership.settle(|_| false).removed, [address(1)]);
        assert!(
            membership.settle(|_| true).is_empty(),
            "what was dropped doesn't come back"
        );
    }

    #[test]
    fn an_empty_answer_without_health_checks_keeps_the_last_set() {
        let mut membership = two(false);
        membership.answer(0, Answer::Empty);
        assert!(membership.settle(|_| true).is_empty());
        assert_eq!(members(&membership), [(1, Listed), (2, Listed)]);
    }

    #[test]
    fn a_withdrawn_endpoint_that_is_named_again_is_listed_again() {
        let mut membership = two(true);
        membership.answer(0, Answer::Empty);
        membership.settle(|_| true);
        membership.answer(0, addresses(&[1, 2]));
        let change = membership.settle(|_| true);
        assert!(change.moved && change.added.is_empty() && change.removed.is_empty());
        assert_eq!(members(&membership), [(1, Listed), (2, Listed)]);
    }

    #[test]
    fn a_withdrawn_endpoint_that_the_next_answer_does_not_name_leaves() {
        let mut membership = two(true);
        membership.answer(0, Answer::Empty);
        membership.settle(|_| true);
        membership.answer(0, addresses(&[1]));
        assert_eq!(membership.settle(|_| true).removed, [address(2)]);
    }

    #[test]
    fn who_left_the_answer_goes_as_soon_as_a_remaining_one_is_healthy() {
        let mut membership = two(true);
        membership.answer(0, addresses(&[2]));
        assert_eq!(membership.settle(|_| true).removed, [address(1)]);
        assert_eq!(members(&membership), [(2, Listed)]);
    }

    #[test]
    fn who_left_the_answer_serves_until_a_new_one_is_healthy() {
        let mut membership = two(true);
        membership.answer(0, addresses(&[3, 4]));
        let change = membership.settle(|a| a == address(1) || a == address(2));
        assert_eq!(change.added, [address(3), address(4)]);
        assert!(change.removed.is_empty());
        assert_eq!(
            members(&membership),
            [(1, Leaving), (2, Leaving), (3, Listed), (4, Listed)]
        );
        // One of the old ones fails: it goes alone.
        assert_eq!(membership.settle(|a| a == address(2)).removed, [address(1)]);
        // A new one is healthy: the rest goes.
        assert_eq!(
            membership
                .settle(|a| a == address(2) || a == address(4))
                .removed,
            [address(2)]
        );
    }

    #[test]
    fn who_left_the_answer_of_an_unchecked_cluster_goes_at_once() {
        let mut membership = two(false);
        membership.answer(0, addresses(&[3]));
        let change = membership.settle(|_| true);
        assert_eq!(change.added, [address(3)]);
        assert_eq!(change.removed, [address(1), address(2)]);
    }

    #[test]
    fn who_was_leaving_and_is_named_again_never_left() {
        let mut membership = two(true);
        membership.answer(0, addresses(&[3]));
        membership.settle(|a| a != address(3));
        membership.answer(0, addresses(&[1, 3]));
        let change = membership.settle(|a| a != address(3));
        assert!(change.added.is_empty());
        assert_eq!(change.removed, [address(2)], "1 is listed and healthy");
        assert_eq!(members(&membership), [(1, Listed), (3, Listed)]);
    }

    #[test]
    fn targets_have_their_own_answers() {
        let mut membership = Membership::new(2, true);
        membership.answer(0, addresses(&[1, 2]));
        membership.answer(1, addresses(&[2, 3]));
        membership.settle(|_| true);
        // 2 is still named by the second.
        membership.answer(0, addresses(&[1]));
        assert!(membership.settle(|_| true).is_empty());
        // An empty answer of one is no answer of the other.
        membership.answer(1, Answer::Empty);
        membership.settle(|_| true);
        assert_eq!(
            members(&membership),
            [(1, Listed), (2, Withdrawn), (3, Withdrawn)]
        );
        assert_eq!(membership.listed(0).collect::<Vec<_>>(), [address(1)]);
        assert_eq!(membership.listed(1).count(), 0);
    }

    #[test]
    fn an_empty_set_of_addresses_at_the_start_is_no_member() {
        let mut membership = Membership::new(1, true);
        membership.answer(0, Answer::Empty);
        assert!(membership.settle(|_| true).is_empty());
        assert_eq!(membership.standing(address(1)), None);
    }
}
