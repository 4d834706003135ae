//! Panics where a test wants them: whatever the code does all the same, one must end an RPC or a connection and no more.

use std::cell::RefCell;

thread_local! {
    /// Where the next panic is to be: part of the place's name, and how often it is passed before.
    static TRAP: RefCell<Option<(&'static str, usize)>> = const { RefCell::new(None) };
}

/// The code that passes `place` panics, once, when it was passed `before` times.
pub(crate) fn arm(place: &'static str, before: usize) {
    TRAP.with_borrow_mut(|trap| *trap = Some((place, before)));
}

/// Where a panic may be armed.
pub(crate) fn trip(place: &str) {
    let trips = TRAP.with_borrow_mut(|trap| match trap {
        Some((armed, 0)) if place.contains(*armed) => trap.take().is_some(),
        Some((armed, before)) if place.contains(*armed) => {
            *before -= 1;
            false
        }
        _ => false,
    });
    assert!(!trips, "a test's panic at {place}");
}
