//! The kernel's information about a TCP connection, and the options that hand one over. Only what rustix
//! lacks is here; everything else is called directly.
#![expect(unsafe_code, reason = "getsockopt, setsockopt and ioctl by number, each with its own size checked")]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use rustix::net::sockopt::set_socket_reuseaddr;
use socket2::{SockRef, TcpKeepalive};

// asm-generic/socket.h
const SO_BUF_LOCK: i32 = 72;
/// TCP keepalive: the silence before the first probe, the interval, and the number of probes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

// linux/tcp.h
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_ON: i32 = 1;
const TCP_REPAIR_OFF: i32 = 0;
const TCP_REPAIR_OFF_NO_WP: i32 = -1;
const TCP_REPAIR_OPTIONS: i32 = 22;
/// The option's kind (RFC 7323 §3.2).
const TCPOPT_TIMESTAMP: u32 = 8;

/// One of a socket's two queues, as `TCP_REPAIR_QUEUE` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The receive queue; its sequence number is `rcv_nxt`.
    Receive = 1,
    /// The send queue; its sequence number is `write_seq`, which equals `snd_nxt` if nothing is queued.
    Send = 2,
}

/// The part of `struct tcp_info` (linux/tcp.h) that is used here. Fields that this kernel does not fill are
/// 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// The state, as in `net/tcp_states.h`: 1 is ESTABLISHED, 8 is `CLOSE_WAIT`.
    pub state: u8,
    /// The negotiated options: [`TcpInfo::TIMESTAMPS`], [`TcpInfo::SACK`], [`TcpInfo::WINDOW_SCALE`],
    /// [`TcpInfo::ECN`].
    pub options: u8,
    /// The shift of the windows that the peer announces.
    pub send_scale: u8,
    /// The shift of the windows that are announced to the peer.
    pub receive_scale: u8,
    /// Octets that a segment to the peer carries at most.
    pub send_mss: u32,
    /// Octets that a segment of the peer is expected to carry.
    pub receive_mss: u32,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Segments sent again.
    pub retransmitted: u32,
    /// The path's MTU, in octets.
    pub path_mtu: u32,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The MSS that was announced to the peer.
    pub announced_mss: u32,
    /// Round-trip time by what was received, smoothed; 0 where too little was.
    pub receive_rtt: Duration,
    /// Octets that the peer acknowledged; the SYN counts as one when it was sent from here.
    pub bytes_acked: u64,
    /// Octets received in order; the FIN counts as one.
    pub bytes_received: u64,
    /// Segments sent, those without data too.
    pub segments_out: u32,
    /// Segments received, those without data too.
    pub segments_in: u32,
    /// Octets in the send queue that were not sent once.
    pub not_sent: u32,
    /// The shortest round-trip time of the last minutes (`net.ipv4.tcp_min_rtt_wlen`).
    pub shortest_rtt: Duration,
    /// Segments received that carried data.
    pub data_segments_in: u32,
}

impl TcpInfo {
    /// In [`TcpInfo::options`]: timestamps (RFC 7323).
    pub const TIMESTAMPS: u8 = 1;
    /// In [`TcpInfo::options`]: selective acknowledgements (RFC 2018).
    pub const SACK: u8 = 2;
    /// In [`TcpInfo::options`]: window scaling (RFC 7323).
    pub const WINDOW_SCALE: u8 = 4;
    /// In [`TcpInfo::options`]: explicit congestion notification (RFC 3168).
    pub const ECN: u8 = 8;
    /// A [`TcpInfo::state`].
    pub const ESTABLISHED: u8 = 1;
    /// A [`TcpInfo::state`]: the peer has sent its FIN.
    pub const CLOSE_WAIT: u8 = 8;
    /// A [`TcpInfo::state`].
    pub const CLOSED: u8 = 7;
    /// A [`TcpInfo::state`]: both have sent a FIN, the peer first.
    pub const LAST_ACK: u8 = 9;
    /// A [`TcpInfo::state`]: both have sent a FIN at once.
    pub const CLOSING: u8 = 11;
    /// A [`TcpInfo::state`]: both have sent a FIN, we first.
    pub const TIME_WAIT: u8 = 6;

    /// Reads the wire form of `struct tcp_info`, whose fields only ever grow at its end.
    fn parse(raw: &[u8; TCP_INFO_SIZE]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let long = |at: usize| {
            let (low, high) = (u64::from(word(at)), u64::from(word(at + 4)));
            if cfg!(target_endian = "little") { high << 32 | low } else { low << 32 | high }
        };
        // Two bit fields of four; C puts the first one into the low bits on little-endian machines.
        let (low, high) = (raw[6] & 15, raw[6] >> 4);
        let (send_scale, receive_scale) =
            if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        Self {
            state: raw[0],
            options: raw[5],
            send_scale,
            receive_scale,
            send_mss: word(16),
            receive_mss: word(20),
            unacked: word(24),
            path_mtu: word(60),
            rtt: Duration::from_micros(word(68).into()),
            announced_mss: word(84),
            receive_rtt: Duration::from_micros(word(92).into()),
            retransmitted: word(100),
            bytes_acked: long(120),
            bytes_received: long(128),
            segments_out: word(136),
            segments_in: word(140),
            not_sent: word(144),
            shortest_rtt: Duration::from_micros(word(148).into()),
            data_segments_in: word(152),
        }
    }
}

/// Up to and including `tcpi_data_segs_in`, which came with Linux 4.6.
const TCP_INFO_LENGTH: libc::socklen_t = 156;
const TCP_INFO_SIZE: usize = TCP_INFO_LENGTH as usize;

const INT: libc::socklen_t = 4;

/// `TCP_INFO`. Fails if the answer is too short for the fields of [`TcpInfo`]: emulators of Linux return a
/// few bytes.
pub fn info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut raw = [0_u8; TCP_INFO_SIZE];
    let mut length = TCP_INFO_LENGTH;
    // SAFETY: the kernel writes at most `length` octets, and says in it how many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if length < TCP_INFO_LENGTH {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(TcpInfo::parse(&raw))
}

/// Bytes in the send queue: not sent, or sent and not acknowledged (`SIOCOUTQ`). A FIN counts as one.
pub fn send_queue(socket: impl AsFd) -> io::Result<u32> {
    let mut octets = MaybeUninit::<libc::c_int>::uninit();
    // SIOCOUTQ has the number of TIOCOUTQ (linux/sockios.h).
    // SAFETY: the kernel writes one int where the call succeeds.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, octets.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: written by the successful call.
    Ok(unsafe { octets.assume_init() }.cast_unsigned())
}

/// Octets that can be read at once (`SIOCINQ`).
pub fn receive_queue(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Whether the next octet to be read is an urgent one (`SIOCATMARK`).
pub fn is_at_mark(socket: impl AsFd) -> io::Result<bool> {
    // asm-generic/sockios.h
    const SIOCATMARK: libc::c_ulong = 0x8905;
    let mut answer = MaybeUninit::<libc::c_int>::uninit();
    // SAFETY: the kernel writes one int where the call succeeds. The number is cast to the type that this libc takes.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCATMARK as _, answer.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: written by the successful call.
    Ok(unsafe { answer.assume_init() } != 0)
}

/// Keeps urgent bytes in the stream, where they would otherwise be skipped (`SO_OOBINLINE`). Only then do
/// [`receive_queue`] and [`read_so_far`] count the bytes behind one.
pub fn keep_urgent(socket: impl AsFd, keep: bool) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_oobinline(socket, keep)?)
}

/// The bytes that user space has read. The queue and the count need two queries, which are repeated until
/// nothing has arrived in between.
pub fn read_so_far(socket: impl AsFd) -> io::Result<u64> {
    loop {
        let before = info(&socket)?.bytes_received;
        let queued = receive_queue(&socket)?;
        if info(&socket)?.bytes_received == before {
            return Ok(before.saturating_sub(queued));
        }
    }
}

/// The bytes ever queued for sending (including the SYN, if it was sent from here), and the `TcpInfo` they
/// come from.
pub fn written(socket: impl AsFd) -> io::Result<(u64, TcpInfo)> {
    loop {
        let before = info(&socket)?;
        let queued = u64::from(send_queue(&socket)?);
        if info(&socket)?.bytes_acked == before.bytes_acked {
            return Ok((before.bytes_acked + queued, before));
        }
    }
}

/// `SO_RCVLOWAT`: how many bytes make a socket readable. Setting it also runs `tcp_data_ready`, which makes a
/// verdict program look at data that is already queued.
pub fn set_receive_low_water(socket: impl AsFd, octets: i32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, octets)
}

/// `SO_BUF_LOCK`: lets the kernel grow both buffers again by itself. Linux 5.14.
pub fn unlock_buffers(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, SO_BUF_LOCK, 0)
}

/// `TCP_NOTSENT_LOWAT`: the number of unsent bytes at which a send buffer counts as full; 0 is the system's
/// default.
pub fn set_unsent_low_water(socket: impl AsFd, octets: i32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, octets)
}

/// Makes the close of this socket a reset: `SO_LINGER` of no time.
pub fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?)
}

/// Takes [`reset_on_close`] back.
pub fn finish_on_close(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(socket, None)?)
}

/// Turns on TCP keepalive, which detects a vanished peer and keeps NATs on the path from dropping the
/// connection. It takes four calls, so it is only for connections that turn out to be long.
pub fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_keepalive(&KEEPALIVE)
}

/// `TCP_WINDOW_CLAMP`: bounds the window, and with it the scale that is offered, before connecting.
pub fn set_window_clamp(socket: impl AsFd, octets: i32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, octets)
}

/// `SO_BINDTOIFINDEX`: packets of this socket leave and arrive by the device with this index alone.
pub fn bind_to_index(socket: impl AsFd, index: u32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index.cast_signed())
}

/// The index of the device that the socket is bound to, 0 for none.
pub fn bound_index(socket: impl AsFd) -> io::Result<u32> {
    get(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX).map(i32::cast_unsigned)
}

/// `TCP_TIMESTAMP`: the current value of this socket's timestamp clock (milliseconds and a random offset). It
/// may be one behind the last value sent.
pub fn timestamp(socket: impl AsFd) -> io::Result<u32> {
    get(socket, libc::IPPROTO_TCP, TCP_TIMESTAMP).map(i32::cast_unsigned)
}

/// Freezes a connection (`TCP_REPAIR`, needs `CAP_NET_ADMIN`): it sends nothing any more, not even when it is
/// closed.
pub fn enter_repair(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON)
}

/// Thaws a frozen connection without the window probe that would notify the peer.
///
/// The kernel clears `SO_REUSEADDR` on the way out (`do_tcp_setsockopt`); it is set again here.
pub fn leave_repair(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    set(socket, libc::IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    Ok(set_socket_reuseaddr(socket, true)?)
}

/// Thaws a frozen connection with a window probe, which the peer answers (`tcp_send_window_probe`).
pub fn leave_repair_asking(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF)
}

/// Sends a keepalive probe (RFC 9293 §3.8.4) on a live connection at once, which the peer must answer. Needs
/// `CAP_NET_ADMIN`.
pub fn ask(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    enter_repair(socket)?;
    leave_repair_asking(socket)?;
    Ok(set_socket_reuseaddr(socket, true)?)
}

/// Enables timestamps on a frozen connection. Its clock then shows `now`, or one less: the kernel reserves
/// the lowest bit.
pub fn show_timestamp(socket: impl AsFd, now: u32) -> io::Result<()> {
    let socket = socket.as_fd();
    let option = [TCPOPT_TIMESTAMP, 0];
    // SAFETY: one `struct tcp_repair_opt` (`linux/tcp.h`), two words.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_REPAIR_OPTIONS,
            option.as_ptr().cast(),
            2 * INT,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    set(socket, libc::IPPROTO_TCP, TCP_TIMESTAMP, (now & !1).cast_signed())
}

/// The sequence number at the end of a queue, of a frozen connection.
pub fn sequence(socket: impl AsFd, queue: Queue) -> io::Result<u32> {
    let socket = socket.as_fd();
    set(socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue as i32)?;
    get(socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ).map(i32::cast_unsigned)
}

/// Sets the sequence number of a queue; the kernel allows it on a closed socket in repair mode only.
pub fn set_sequence(socket: impl AsFd, queue: Queue, sequence: u32) -> io::Result<()> {
    let socket = socket.as_fd();
    set(socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue as i32)?;
    set(socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, sequence.cast_signed())
}

pub(super) fn set(socket: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: every option set here reads an int.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), INT)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(socket: impl AsFd, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut length = INT;
    // SAFETY: the kernel writes at most `length` octets.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn the_account_of_a_connection_agrees_with_what_was_sent() {
        let (mut near, mut far) = pair();
        near.write_all(b"twelve bytes").unwrap();
        let mut received = [0; 4];
        far.read_exact(&mut received).unwrap();
        assert_eq!(receive_queue(&far).unwrap(), 8);
        let (there, back) = (info(&near).unwrap(), info(&far).unwrap());
        assert_eq!((there.state, back.state), (TcpInfo::ESTABLISHED, TcpInfo::ESTABLISHED));
        assert_eq!(back.bytes_received, 12);
        assert_eq!((back.data_segments_in, there.data_segments_in), (1, 0));
        // Loopback acknowledges at once; the SYN was acknowledged too.
        assert_eq!(there.bytes_acked + u64::from(send_queue(&near).unwrap()), 13);
        assert!(there.rtt > Duration::ZERO && there.send_mss > 500, "{there:?}");
        assert_eq!((there.send_scale, there.receive_scale), (back.receive_scale, back.send_scale));
        drop(near);
        far.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(info(&far).unwrap().state, TcpInfo::CLOSE_WAIT);
        assert_eq!(info(&far).unwrap().bytes_received, 13, "the FIN counts as one");
    }

    #[test]
    fn keepalive_is_set() {
        let (near, _far) = pair();
        keep_alive(&near).unwrap();
        let socket = SockRef::from(&near);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_mins(1));
    }

    #[test]
    fn a_reset_is_sent_on_close() {
        let (near, mut far) = pair();
        reset_on_close(&near).unwrap();
        drop(near);
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_frozen_connection_tells_its_sequence_numbers_and_goes_on() {
        let (mut near, mut far) = pair();
        match enter_repair(&near) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: TCP_REPAIR needs CAP_NET_ADMIN here");
                return;
            }
            result => result.unwrap(),
        }
        enter_repair(&far).unwrap();
        let numbers = |socket: &TcpStream| {
            (sequence(socket, Queue::Send).unwrap(), sequence(socket, Queue::Receive).unwrap())
        };
        let (send, receive) = numbers(&near);
        assert_eq!((receive, send), numbers(&far));
        assert!(timestamp(&near).unwrap() != 0);
        assert!(set_sequence(&near, Queue::Send, send).is_err(), "only on a closed socket");
        leave_repair(&near).unwrap();
        leave_repair(&far).unwrap();
        near.write_all(b"on").unwrap();
        let mut received = [0; 2];
        far.read_exact(&mut received).unwrap();
        enter_repair(&near).unwrap();
        assert_eq!(sequence(&near, Queue::Send).unwrap(), send.wrapping_add(2));
    }

    #[test]
    fn options_before_connecting_show_in_the_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        crate::kernel::segment::set_limit(&socket, 1000).unwrap();
        set_window_clamp(&socket, 1 << 17).unwrap();
        set_receive_low_water(&socket, 1).unwrap();
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let seen = info(&accepted).unwrap();
        assert!(seen.send_mss <= 1000, "{seen:?}");
        assert_eq!(seen.send_scale, 2, "a window of 128 KiB takes two bits more than 16: {seen:?}");
    }
}
