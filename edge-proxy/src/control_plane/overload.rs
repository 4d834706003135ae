//! The overload manager: looks at the cgroup's memory four times a second, and when it is three quarters full twenty
//! times, and tells the data plane what to do.
//!
//! What counts is what the kernel can't drop: usage less inactive file pages, as kubelet computes a pod's working set.
//! [`Machine`] decides, is pure, and has hysteresis: a level is entered at its threshold and left `HYSTERESIS` percent
//! below it, so that acting on a level doesn't make it flap. Without a limit there is nothing to manage.

use std::time::Duration;

use tokio::sync::watch;

use super::supervise::{Panics, caught};
use crate::{
    cgroup::Usage,
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
        let used = usage.used;
        let Some(limit) = usage.limit else {
            *self = Self::default();
            return Pressure {
                used,
                ..Pressure::default()
            };
        };
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

/// Publishes what follows from `usage`, for as long as anybody listens.
pub(super) async fn watch(
    mut usage: impl FnMut() -> Option<Usage>,
    publish: watch::Sender<Pressure>,
    panics: Panics,
) {
    let mut machine = Machine::default();
    while !publish.is_closed() {
        let looked = caught(async { look(usage(), &mut machine, &publish) });
        if looked.await.is_err() {
            panics.count("overload manager");
        }
        let pause = pause(*publish.borrow());
        tokio::time::sleep(pause).await;
    }
}

fn look(usage: Option<Usage>, machine: &mut Machine, publish: &watch::Sender<Pressure>) {
    // A file that can't be read now tells nothing new.
    let Some(usage) = usage else { return };
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

/// How soon to look again.
fn pause(Pressure { used, limit, .. }: Pressure) -> Duration {
    if limit > 0 && u128::from(used) * 100 >= u128::from(limit) * NEAR {
        SHORT
    } else {
        LONG
    }
}

/// Attacks were seen to fill 60 MB a second: of a limit of 256 MiB that is 6 % within this time, and this far from the
/// first level.
const LONG: Duration = Duration::from_millis(250);

/// In percent of the limit.
const NEAR: u128 = 75;

/// Within this, 1 %: no level is skipped, and what each frees is free before the next.
const SHORT: Duration = Duration::from_millis(50);

/// In percent of the limit.
const HYSTERESIS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::MemoryGroup;

    fn levels(percents: &[u64]) -> Vec<Level> {
        let mut machine = Machine::default();
        let decide = |percent: &u64| {
            let usage = Usage {
                used: percent * 1000,
                limit: Some(100_000),
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

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_counted_and_the_next_look_comes() {
        let panics = Panics::default();
        let (publish, mut published) = watch::channel(Pressure::default());
        let mut looks = 0;
        let usage = move || {
            looks += 1;
            assert!(looks > 1, "on purpose");
            Some(Usage {
                used: 99,
                limit: Some(100),
            })
        };
        tokio::spawn(watch(usage, publish, panics.clone()));
        published.changed().await.unwrap();
        assert_eq!(published.borrow().level, Level::Closed);
        assert_eq!(panics.total(), 1);
    }

    #[test]
    fn a_limit_that_was_lifted_is_as_far_as_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name, text| std::fs::write(directory.path().join(name), text).unwrap();
        write("memory.current", "1000");
        let group = MemoryGroup::at(directory.path().into());
        let mut machine = Machine::default();
        let (publish, published) = watch::channel(Pressure::default());
        for (limit, level) in [
            ("1000", Level::Closed),
            ("much", Level::Closed),
            ("max", Level::Calm),
            ("1000", Level::Closed),
        ] {
            write("memory.max", limit);
            look(group.usage(), &mut machine, &publish);
            assert_eq!(published.borrow().level, level, "{limit}");
        }
    }

    #[test]
    fn the_nearer_the_limit_the_sooner_it_looks_again() {
        let pressure = |used, limit| Pressure {
            used,
            limit,
            ..Pressure::default()
        };
        assert_eq!(pause(pressure(74, 100)), LONG);
        assert_eq!(pause(pressure(75, 100)), SHORT);
        assert_eq!(pause(pressure(0, 0)), LONG);
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
