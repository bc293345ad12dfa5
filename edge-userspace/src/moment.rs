//! Times to be shown to people, kept so that they stay right when the clock is set: a board without a battery
//! starts in 1970, and NTP sets its clock long after edged has started.

#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use crate::kernel::boot_time;

/// The difference from which the clock counts as set. Smaller ones are slewing, and would only change times
/// that were already shown.
const SET: Duration = Duration::from_secs(2);

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    wall: SystemTime,
    /// Nanoseconds of `CLOCK_BOOTTIME`, which nobody sets and which counts suspended time.
    boot: u64,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), boot: boot_time() }
    }

    /// When it was, by the clock on the wall as it is set now.
    pub fn wall(self) -> SystemTime {
        self.seen_from(Self::now())
    }

    /// How long ago it was.
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(boot_time().saturating_sub(self.boot))
    }

    /// By how much the clock was set forward, or back, between this moment and a later one.
    pub fn set_by(self, later: Self) -> Option<Change> {
        let expected = self.wall + Duration::from_nanos(later.boot.saturating_sub(self.boot));
        let (by, change) = match later.wall.duration_since(expected) {
            Ok(forward) => (forward, Change::Forward(forward)),
            Err(error) => (error.duration(), Change::Back(error.duration())),
        };
        (by > SET).then_some(change)
    }

    fn seen_from(self, now: Self) -> SystemTime {
        if self.set_by(now).is_none() {
            return self.wall;
        }
        let ago = Duration::from_nanos(now.boot.saturating_sub(self.boot));
        now.wall.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// How the clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It shows a later time.
    Forward(Duration),
    /// It shows an earlier time.
    Back(Duration),
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Forward(by) | Self::Back(by)) = self;
        let by = humantime::format_duration(Duration::from_secs(by.as_secs()));
        match self {
            Self::Forward(_) => write!(f, "forward by {by}"),
            Self::Back(_) => write!(f, "back by {by}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(wall: u64, boot: u64) -> Moment {
        Moment { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall), boot: boot * 1_000_000_000 }
    }

    #[test]
    fn a_clock_that_is_set_moves_what_was_noted_before() {
        let started = moment(10, 10);
        assert_eq!(started.set_by(moment(70, 70)), None);
        assert_eq!(started.set_by(moment(71, 70)), None, "slewing");
        let now = moment(1_800_000_000, 70);
        assert_eq!(started.set_by(now), Some(Change::Forward(Duration::from_secs(1_799_999_930))));
        assert_eq!(started.seen_from(now), now.wall - Duration::from_mins(1), "a minute ago, not 57 years");
        assert_eq!(started.seen_from(moment(70, 70)), started.wall);
        let back = moment(5, 130);
        assert_eq!(now.set_by(back), Some(Change::Back(Duration::from_secs(1_800_000_055))));
        assert_eq!(now.seen_from(back), SystemTime::UNIX_EPOCH - Duration::from_secs(55));
    }

    #[test]
    fn now_is_now() {
        let moment = Moment::now();
        assert!(moment.elapsed() < Duration::from_mins(1));
        assert!(moment.wall() <= SystemTime::now());
    }
}
