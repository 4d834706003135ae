//! The overload manager: looks at the cgroup's memory four times a second and tells the data plane what to do.
//!
//! What counts is what the kernel can't drop: usage less inactive file pages, as kubelet computes a pod's working set.
//! [`Machine`] decides, is pure, and has hysteresis: a level is entered at its threshold and left `HYSTERESIS` percent
//! below it, so that acting on a level doesn't make it flap. Without a limit there is nothing to manage.

use std::time::Duration;

use tokio::sync::watch;

use super::supervise::caught;
use crate::{
    cgroup::{MemoryGroup, Usage},
    snapshot::pressure::{Level, Pressure},
};

/// Decides the level.
#[derive(Debug, Default)]
pub struct Machine {
    level: Level,
}

impl Machine {
    /// What follows from this reading and those before it.
    pub fn decide(&mut self, usage: Usage) -> Pressure {
        let Usage { used, limit } = usage;
        let above =
            |percent: u64| u128::from(used) * 100 >= u128::from(limit) * u128::from(percent);
        let holds = |level: &Level| {
            let entered = above(level.percent());
            entered || (*level <= self.level && above(level.percent().saturating_sub(HYSTERESIS)))
        };
        // `Calm` holds at 0 %.
        self.level = Level::ALL.into_iter().rfind(holds).unwrap_or_default();
        Pressure {
            level: self.level,
            used,
            limit,
        }
    }
}

/// Publishes what follows from `group`'s memory, for as long as anybody listens.
pub async fn watch(group: MemoryGroup, publish: watch::Sender<Pressure>) {
    let mut machine = Machine::default();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !publish.is_closed() {
        ticks.tick().await;
        let looked = caught(async { look(&group, &mut machine, &publish) });
        if looked.await.is_err() {
            tracing::error!("a panic in the overload manager");
        }
    }
}

fn look(group: &MemoryGroup, machine: &mut Machine, publish: &watch::Sender<Pressure>) {
    // A file that can't be read now tells nothing new.
    let Some(usage) = group.usage() else { return };
    let before = publish.borrow().level;
    let pressure = machine.decide(usage);
    let Pressure { level, used, limit } = pressure;
    if level != before {
        let (level, before) = (level.as_str(), before.as_str());
        if pressure.level == Level::Calm {
            tracing::info!(used, limit, before, "memory: enough again");
        } else {
            tracing::warn!(used, limit, level, before, "memory: near its limit");
        }
    }
    publish.send_if_modified(|published| {
        *published = pressure;
        // While something is to be shed, each look asks for it again.
        level != before || level > Level::Calm
    });
}

/// Faster than an attack fills what is left between two levels.
const INTERVAL: Duration = Duration::from_millis(250);

/// In percent of the limit.
const HYSTERESIS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(percents: &[u64]) -> Vec<Level> {
        let mut machine = Machine::default();
        let decide = |percent: &u64| {
            let usage = Usage {
                used: percent * 1000,
                limit: 100_000,
            };
            machine.decide(usage).level
        };
        percents.iter().map(decide).collect()
    }

    #[test]
    fn each_level_has_its_threshold() {
        use Level::{Calm, Closed, Parting, Refusing, Shedding};
        assert_eq!(
            levels(&[0, 84, 85, 91, 92, 94, 95, 97, 98, 200]),
            [
                Calm, Calm, Shedding, Shedding, Parting, Parting, Refusing, Refusing, Closed,
                Closed
            ]
        );
    }

    #[test]
    fn a_level_is_left_a_little_below_where_it_was_entered() {
        use Level::{Calm, Closed, Parting, Refusing, Shedding};
        assert_eq!(
            levels(&[98, 96, 95, 94, 92, 91, 89, 88, 82, 81, 84]),
            [
                Closed, Closed, Closed, Refusing, Refusing, Parting, Parting, Shedding, Shedding,
                Calm, Calm
            ]
        );
    }

    #[test]
    fn levels_are_skipped_both_ways() {
        assert_eq!(
            levels(&[10, 99, 10]),
            [Level::Calm, Level::Closed, Level::Calm]
        );
    }

    #[test]
    fn what_is_too_much_is_counted_from_the_first_threshold() {
        let pressure = |used| Pressure {
            used,
            limit: 1000,
            ..Pressure::default()
        };
        assert_eq!(
            [800, 850, 900].map(|used| pressure(used).excess()),
            [0, 0, 50]
        );
        let huge = Pressure {
            used: u64::MAX,
            limit: u64::MAX,
            ..Pressure::default()
        };
        assert!(huge.excess() > 0);
    }
}
