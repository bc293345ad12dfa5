//! Decides when to copy and when to splice. Pure: its input is the bytes and the duration of each step.
//!
//! Copy is right for small reads. Once reads are large and sustained, splice is tried, and kept only if it
//! moves a byte in less time here and now: if packets arrive unaggregated (no GRO), every packet takes a pipe
//! slot of its own and copy wins. Measuring both on the live stream needs no assumption about the machine.
//! The measure is processor time: on a busy machine most of the wall-clock time of a step belongs to other
//! work.

use std::time::Duration;

/// A read of this many bytes is large.
const LARGE: usize = 32 * 1024;
/// Large reads in a row that make a stream bulk.
const SUSTAINED: u32 = 8;
/// Steps of splice that make a judgement.
const TRIAL: u32 = 32;
/// Small steps in a row, while splicing, after which the stream is bulk no longer.
const FADED: u32 = 16;
/// Bytes carried by copy after splice lost, before it is tried again: conditions change.
const RETRY_AFTER: u64 = 256 << 20;

/// The method that moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    Copy,
    Splice,
}

/// Time spent for bytes moved.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    bytes: u64,
    nanoseconds: u64,
    steps: u32,
}

impl Cost {
    fn add(&mut self, bytes: usize, took: Option<Duration>) {
        if let Some(took) = took {
            self.bytes += bytes as u64;
            self.nanoseconds += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.steps += u32::from(bytes > 0);
        }
    }

    /// Whether a byte costs more here than there.
    fn dearer_than(&self, other: &Self) -> bool {
        u128::from(self.nanoseconds) * u128::from(other.bytes)
            > u128::from(other.nanoseconds) * u128::from(self.bytes)
    }
}

/// The cost of moving bytes in the present run of large steps.
#[derive(Debug, Default)]
struct Costs {
    copy: Cost,
    splice: Cost,
}

/// The judgement over one direction.
#[derive(Debug)]
pub(super) struct Bulk {
    carrier: Carrier,
    splice_allowed: bool,
    /// Large steps in a row while copying; small steps in a row while splicing.
    streak: u32,
    /// Bytes to copy before splice may be tried.
    wait: u64,
    /// Boxed: what is not bulk has none.
    costs: Option<Box<Costs>>,
}

impl Bulk {
    pub(super) fn new(splice_allowed: bool) -> Self {
        Self { carrier: Carrier::Copy, splice_allowed, streak: 0, wait: 0, costs: None }
    }

    pub(super) fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Whether the next step should be timed.
    pub(super) fn wants_time(&self) -> bool {
        match self.carrier {
            Carrier::Copy => self.splice_allowed && self.streak > 0 && self.wait == 0,
            Carrier::Splice => self.costs.as_ref().is_some_and(|costs| costs.splice.steps < TRIAL),
        }
    }

    /// No pipe is to be had: copy, and try again later.
    pub(super) fn forbid_splice(&mut self) {
        self.fall_back();
    }

    /// Records a step. A step without bytes delivered what an earlier one had read: it counts as cost, but
    /// does not show the size of reads.
    pub(super) fn moved(&mut self, bytes: usize, took: Option<Duration>) {
        match self.carrier {
            Carrier::Copy if bytes == 0 => {
                if let Some(costs) = &mut self.costs {
                    costs.copy.add(0, took);
                }
            }
            Carrier::Copy => {
                self.wait = self.wait.saturating_sub(bytes as u64);
                if bytes < LARGE {
                    self.streak = 0;
                    self.costs = None;
                    return;
                }
                self.streak += 1;
                if took.is_some() {
                    let costs = self.costs.get_or_insert_default();
                    costs.copy.add(bytes, took);
                    if self.splice_allowed && self.wait == 0 && costs.copy.steps >= SUSTAINED {
                        self.carrier = Carrier::Splice;
                        self.streak = 0;
                    }
                }
            }
            Carrier::Splice => {
                self.streak = if bytes < LARGE { self.streak + 1 } else { 0 };
                let costs = self.costs.get_or_insert_default();
                let judged = costs.splice.steps >= TRIAL;
                costs.splice.add(bytes, took);
                if !judged && costs.splice.steps >= TRIAL && costs.splice.dearer_than(&costs.copy) {
                    self.fall_back();
                } else if self.streak >= FADED {
                    self.carrier = Carrier::Copy;
                    self.streak = 0;
                    self.costs = None;
                }
            }
        }
    }

    fn fall_back(&mut self) {
        self.carrier = Carrier::Copy;
        self.streak = 0;
        self.costs = None;
        self.wait = RETRY_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Option<Duration> = Some(Duration::from_micros(10));
    const SLOW: Option<Duration> = Some(Duration::from_micros(20));

    fn bulk_until_splice() -> Bulk {
        let mut bulk = Bulk::new(true);
        for _ in 0..=SUSTAINED {
            assert_eq!(bulk.carrier(), Carrier::Copy);
            let took = bulk.wants_time().then_some(SLOW).flatten();
            bulk.moved(1 << 16, took);
        }
        assert_eq!(bulk.carrier(), Carrier::Splice);
        bulk
    }

    #[test]
    fn small_reads_are_copied_forever() {
        let mut bulk = Bulk::new(true);
        for _ in 0..10_000 {
            assert!(!bulk.wants_time());
            bulk.moved(1000, None);
        }
        assert_eq!(bulk.carrier(), Carrier::Copy);
    }

    #[test]
    fn one_small_read_starts_the_count_again() {
        let mut bulk = Bulk::new(true);
        for step in 0..1000 {
            bulk.moved(if step % 5 == 0 { 100 } else { 1 << 16 }, FAST);
        }
        assert_eq!(bulk.carrier(), Carrier::Copy);
    }

    #[test]
    fn a_delivery_of_what_was_kept_is_no_small_read() {
        let mut bulk = Bulk::new(true);
        for _ in 0..SUSTAINED {
            assert_eq!(bulk.carrier(), Carrier::Copy);
            bulk.moved(1 << 16, bulk.wants_time().then_some(FAST).flatten());
            bulk.moved(0, bulk.wants_time().then_some(FAST).flatten());
        }
        bulk.moved(1 << 16, FAST);
        assert_eq!(bulk.carrier(), Carrier::Splice);
        // Each read and its delivery took twenty microseconds.
        for _ in 0..TRIAL {
            bulk.moved(1 << 16, Some(Duration::from_micros(15)));
        }
        assert_eq!(bulk.carrier(), Carrier::Splice);
    }

    #[test]
    fn splice_stays_where_it_is_cheaper() {
        let mut bulk = bulk_until_splice();
        for _ in 0..10 * TRIAL {
            bulk.moved(1 << 16, FAST);
        }
        assert_eq!(bulk.carrier(), Carrier::Splice);
    }

    #[test]
    fn splice_that_costs_more_gives_way_and_is_tried_again_later() {
        let mut bulk = bulk_until_splice();
        for _ in 0..TRIAL {
            bulk.moved(1 << 15, SLOW);
        }
        assert_eq!(bulk.carrier(), Carrier::Copy);
        for _ in 0..RETRY_AFTER >> 16 {
            assert_eq!(bulk.carrier(), Carrier::Copy);
            bulk.moved(1 << 16, None);
        }
        for _ in 0..=SUSTAINED {
            bulk.moved(1 << 16, SLOW);
        }
        assert_eq!(bulk.carrier(), Carrier::Splice);
    }

    #[test]
    fn a_stream_that_fades_is_copied_again() {
        let mut bulk = bulk_until_splice();
        for _ in 0..FADED {
            bulk.moved(100, FAST);
        }
        assert_eq!(bulk.carrier(), Carrier::Copy);
    }

    #[test]
    fn splice_is_never_tried_where_it_is_not_allowed() {
        let mut bulk = Bulk::new(false);
        for _ in 0..1000 {
            assert!(!bulk.wants_time());
            bulk.moved(1 << 16, FAST);
        }
        assert_eq!(bulk.carrier(), Carrier::Copy);
    }
}
