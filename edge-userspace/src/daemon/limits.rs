//! How many connections there may be, where the configuration sets no limit.

/// Descriptors that are reserved for other uses than connections: listeners, epoll, logs, the control API,
/// health checks, pipes.
const RESERVED_DESCRIPTORS: u64 = 256;
/// Descriptors that a connection holds: its two sockets.
const DESCRIPTORS_A_CONNECTION: u64 = 2;
/// The estimated memory of a connection, in bytes: two idle kernel sockets, the task, and as much again for
/// buffers now and then.
const MEMORY_A_CONNECTION: u64 = 16 << 10;
/// One source may have one in so many connections ...
const SHARE_OF_A_SOURCE: usize = 8;
/// ... or so many, where there are few.
const LEAST_SHARE: usize = 128;

/// How many connections there may be: as configured, or what descriptors and memory allow.
pub(super) fn connection_limit(configured: usize) -> usize {
    if configured != 0 {
        return configured;
    }
    let descriptors =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let reserved = RESERVED_DESCRIPTORS.min(descriptors / 4);
    let system = rustix::system::sysinfo();
    let memory = u64::from(system.mem_unit).saturating_mul(system.totalram as u64) / MEMORY_A_CONNECTION;
    let limit = ((descriptors - reserved) / DESCRIPTORS_A_CONNECTION).min(memory);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many of `connections` one source may have by default: enough for the many customers behind a
/// provider's NAT, and few enough that a few sources cannot have them all.
pub(super) fn share_of_a_source(connections: usize) -> usize {
    (connections / SHARE_OF_A_SOURCE).max(LEAST_SHARE)
}
