//! Ranges of ports: those that a listener binds, and those that are left for flows.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use super::{
    network::bind,
    problem::Refusal,
    value::{Value, quoted},
};

/// The most ports of one range. Every worker opens a socket for each port, and systemd keeps at most 1024 sockets
/// (`FileDescriptorStoreMax` of the unit).
const MOST_PORTS: usize = 128;

/// An address with a port, or with a range of them such as `[::]:25565-25575`.
pub(super) fn bind_all(value: &Value<'_>) -> Option<Vec<SocketAddr>> {
    let text = value.get().as_str().unwrap_or_default();
    let Some((ip, first, last)) = range(text) else { return bind(value).map(|address| vec![address]) };
    let Some((first, last)) = first.zip(last).filter(|(first, last)| *first != 0 && *last != 0) else {
        return value.expected("ports from 1 to 65535, such as \"[::]:25565-25575\"");
    };
    if first > last {
        return value.refuse(
            Refusal::new(format!("the range {} ends before it begins", quoted(text)))
                .hint(format!("write \"{}-{first}\"", SocketAddr::new(ip, last))),
        );
    }
    let ports = first..=last;
    if ports.len() > MOST_PORTS {
        return value.refuse(
            Refusal::new(format!(
                "{} has {} ports, a range may have {MOST_PORTS}",
                quoted(text),
                ports.len()
            ))
            .hint("name only the ports that you use: every worker opens a socket for each"),
        );
    }
    Some(ports.map(|port| SocketAddr::new(ip, port)).collect())
}

/// The parts of an address with a range of ports, `None` for ends that are no ports.
fn range(text: &str) -> Option<(IpAddr, Option<u16>, Option<u16>)> {
    let (host, ports) = text.rsplit_once(':')?;
    let (first, last) = ports.split_once('-')?;
    let ip = format!("{host}:0").parse::<SocketAddr>().ok()?.ip();
    Some((ip, first.parse().ok(), last.parse().ok()))
}

/// The longest part of `ports` in which nobody listens; all where no part has `fewest`.
pub(super) fn free_part(
    ports: RangeInclusive<u16>,
    taken: impl Iterator<Item = u16>,
    fewest: u16,
) -> RangeInclusive<u16> {
    let mut taken: Vec<u16> = taken.filter(|port| ports.contains(port)).collect();
    taken.sort_unstable();
    let mut longest = 0..0;
    let mut start = u32::from(*ports.start());
    let ends = taken.into_iter().map(u32::from).chain([u32::from(*ports.end()) + 1]);
    for end in ends {
        if end.saturating_sub(start) > longest.end - longest.start {
            longest = start..end;
        }
        start = end + 1;
    }
    match (u16::try_from(longest.start), u16::try_from(longest.end.saturating_sub(1))) {
        (Ok(first), Ok(last)) if longest.len() >= usize::from(fewest) => first..=last,
        _ => ports,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_get_the_longest_part_without_a_listener() {
        let part = |taken: &[u16]| free_part(10_240..=32_767, taken.iter().copied(), 64);
        assert_eq!(part(&[443, 80, 40_000]), 10_240..=32_767);
        assert_eq!(part(&[25_566, 25_565, 443, 25_565]), 10_240..=25_564);
        assert_eq!(part(&[10_240, 32_767]), 10_241..=32_766);
        assert_eq!(part(&[15_000]), 15_001..=32_767);
        assert_eq!(free_part(1000..=1002, [1001].into_iter(), 2), 1000..=1002, "none is long enough");
        assert_eq!(free_part(65_000..=65_535, [65_000].into_iter(), 64), 65_001..=65_535);
    }
}
