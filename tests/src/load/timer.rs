//! A timer that is exact to some ten microseconds. Tokio's own counts milliseconds: at 2000 RPCs a second, every second
//! RPC would wait for its neighbour, and half a millisecond of waiting would be in every latency.

use std::io;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{net::unix::pipe::Receiver, time::Instant};

/// One wait at a time. A timerfd is read as a pipe is, and this is Tokio's only type for such files that needs no unsafe
/// code.
#[derive(Debug)]
pub(super) struct Timer(Receiver);

impl Timer {
    /// # Errors
    /// When the process has no file left to open.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// Returns when `at` has come. Cancel-safe.
    ///
    /// # Errors
    /// Whatever the kernel says; timerfd_create(2) knows no reason.
    pub(super) async fn until(&self, at: Instant) -> io::Result<()> {
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let once = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec::try_from(left).map_err(io::Error::other)?,
            };
            // Starts anew, also what a wait that was given up has left.
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
            self.0.readable().await?;
            match self.0.try_read(&mut [0; 8]) {
                Ok(_) => {}
                // It was ready for an earlier wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_is_never_early_and_can_be_given_up() {
        let timer = Timer::new().unwrap();
        for _ in 0..10 {
            let far = Instant::now() + Duration::from_secs(3600);
            let given_up = tokio::time::timeout(Duration::from_millis(1), timer.until(far)).await;
            assert!(given_up.is_err());
            let at = Instant::now() + Duration::from_micros(300);
            timer.until(at).await.unwrap();
            assert!(Instant::now() >= at);
        }
        timer
            .until(Instant::now() - Duration::from_secs(1))
            .await
            .unwrap();
    }
}
