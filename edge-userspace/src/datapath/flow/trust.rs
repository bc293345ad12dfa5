//! Whom flows are not tried with for a while, because they have failed.
//!
//! A flow that fails tells nothing of whose fault it is: of the client, its line, or the way to the backend. So it
//! keeps the connections of its own source on sockets, and only several sources together keep everybody's there:
//! no client alone, broken or hostile, takes the tier from others.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::source::source_of;

/// How long a failure is remembered, and who has failed left alone.
pub(super) const MEMORY: Duration = Duration::from_mins(10);
/// Different sources whose flows to one backend have to fail before it is the backend's fault.
const WITNESSES: usize = 3;

/// Failures of the last [`MEMORY`], by backend.
#[derive(Debug, Default)]
pub(super) struct Trust(HashMap<IpAddr, Doubts>);

#[derive(Debug, Default)]
struct Doubts {
    /// Sources whose flows failed, and when last: fewer than [`WITNESSES`].
    sources: Vec<(IpAddr, Instant)>,
    /// When there were that many.
    confirmed: Option<Instant>,
}

/// Whose flows are not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distrusted {
    /// Those of one source to one backend.
    Source,
    /// All to one backend.
    Backend,
}

impl Trust {
    /// A flow of this client to this backend has failed: who is distrusted for it and was not before.
    pub(super) fn failed(&mut self, client: IpAddr, backend: IpAddr, now: Instant) -> Option<Distrusted> {
        self.forget(now);
        let source = source_of(client);
        let doubts = self.0.entry(backend.to_canonical()).or_default();
        if let Some((_, last)) = doubts.sources.iter_mut().find(|(known, _)| *known == source) {
            *last = now;
            return None;
        }
        doubts.sources.push((source, now));
        let was_confirmed = doubts.confirmed.is_some();
        if doubts.sources.len() < WITNESSES {
            return (!was_confirmed).then_some(Distrusted::Source);
        }
        doubts.sources.clear();
        doubts.confirmed = Some(now);
        (!was_confirmed).then_some(Distrusted::Backend)
    }

    /// Who is distrusted, if anybody, where this client wants a flow to this backend.
    pub(super) fn doubt(&mut self, client: IpAddr, backend: IpAddr, now: Instant) -> Option<Distrusted> {
        if self.0.is_empty() {
            return None;
        }
        self.forget(now);
        let doubts = self.0.get(&backend.to_canonical())?;
        if doubts.confirmed.is_some() {
            return Some(Distrusted::Backend);
        }
        let source = source_of(client);
        doubts.sources.iter().any(|(known, _)| *known == source).then_some(Distrusted::Source)
    }

    fn forget(&mut self, now: Instant) {
        let is_fresh = |then: Instant| now.saturating_duration_since(then) < MEMORY;
        self.0.retain(|_, doubts| {
            doubts.sources.retain(|(_, last)| is_fresh(*last));
            doubts.confirmed = doubts.confirmed.filter(|then| is_fresh(*then));
            doubts.confirmed.is_some() || !doubts.sources.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn client(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn one_source_is_distrusted_alone_however_often_it_fails() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        let phone: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(trust.failed(phone, HOME, now), Some(Distrusted::Source));
        for address in ["2001:db8::2", "2001:db8::3", "2001:db8::4"] {
            assert_eq!(trust.failed(address.parse().unwrap(), HOME, now), None, "of the same /64");
        }
        assert_eq!(trust.doubt("2001:db8::5".parse().unwrap(), HOME, now), Some(Distrusted::Source));
        assert_eq!(trust.doubt(client(1), HOME, now), None);
        assert_eq!(trust.doubt(phone, OTHER, now), None);
        assert_eq!(trust.doubt(phone, HOME, now + MEMORY), None);
        assert!(trust.0.is_empty());
    }

    #[test]
    fn three_sources_within_the_time_tell_of_the_backend() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        let later = now + MEMORY / 2;
        assert_eq!(trust.failed(client(1), HOME, now), Some(Distrusted::Source));
        assert_eq!(trust.failed(client(2), HOME, now), Some(Distrusted::Source));
        assert_eq!(trust.failed(client(3), OTHER, now), Some(Distrusted::Source));
        assert_eq!(trust.doubt(client(9), HOME, now), None);
        assert_eq!(trust.failed(client(3), HOME, later), Some(Distrusted::Backend));
        assert_eq!(trust.doubt(client(9), HOME, later), Some(Distrusted::Backend));
        assert_eq!(trust.doubt(client(9), OTHER, later), None);
        assert_eq!(trust.doubt(client(9), HOME, later + MEMORY), None);
    }

    #[test]
    fn failures_far_apart_do_not_add_up() {
        let (mut trust, mut now) = (Trust::default(), Instant::now());
        for last in 1..=20 {
            assert_eq!(trust.failed(client(last), HOME, now), Some(Distrusted::Source));
            now += MEMORY * 2 / 3;
        }
    }

    #[test]
    fn whoever_fails_on_an_ipv4_mapped_address_is_the_same() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        let mapped = |address: &str| address.parse::<IpAddr>().unwrap();
        trust.failed(mapped("::ffff:192.0.2.1"), mapped("::ffff:10.0.0.1"), now);
        assert_eq!(trust.doubt(client(1), HOME, now), Some(Distrusted::Source));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        for last in 0..=255 {
            trust.failed(client(last), HOME, now);
            assert!(trust.0.len() == 1 && trust.0[&HOME].sources.len() < WITNESSES);
        }
    }
}
