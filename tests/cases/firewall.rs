//! The flow tier on an edge as people have it: behind a stateful firewall, with NAT on either leg, rules of policy
//! routing and IPsec. Connections are whole and end in order; conntrack keeps nothing of flows; what cannot be a flow
//! stays on its sockets, and the reason is counted.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use lab::{
    Context, Edged, Lab, Result, ensure,
    firewall::{nft, tracked, tracked_count, until_untracked},
    metrics::{ADMIN, Metrics},
    service::{self, Service},
    stream::{self, End, Pattern},
    topology::EDGE_INSIDE,
    wait::{self, SOON},
};

use crate::{
    behind_firewall,
    carrying::exchange,
    echo_once,
    flow::{NAME, hello, reset_is_seen, wait_for_flows},
    flow_abuse::source,
    rights::keeper_of,
};

const MIB: usize = 1 << 20;

/// Runs a case on an edge behind a firewall, or says why it cannot.
fn case(body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    behind_firewall(|| crate::case(body))
}

fn edged(lab: &Lab, datapath: &str, port: u16) -> Result<Edged> {
    let body = format!(
        "[[listener]]\nname = \"https\"\nbind = [\"0.0.0.0:{port}\"]\n\
         [[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n",
        lab.home_at(443)
    );
    Edged::plan(lab, &body).daemon(&format!("datapath = \"{datapath}\"")).daemon(ADMIN).start()
}

/// A connection whose hello has come back.
fn echoed(lab: &Lab, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = lab.client.connect(to)?;
    echo_once(&mut stream, &hello())?;
    Ok(stream)
}

/// Sends the stream through the echo and back at once.
pub(crate) fn echo_bulk(stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    thread::scope(|scope| {
        let sending = scope.spawn(|| (&mut &*stream).write_all(bytes));
        let mut back = vec![0; bytes.len()];
        (&mut &*stream).read_exact(&mut back).context("waiting for the echo")?;
        ensure!(back == bytes, "the echo differs");
        Ok(sending.join().unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))?)
    })
}

/// Conntrack entries of connections from or to port 443 of home or of the edge.
fn is_ours(entry: &str) -> bool {
    entry.contains("dport=443 ")
}

#[test]
fn closed_flows_leave_nothing_in_conntrack() -> Result<()> {
    const CONNECTIONS: usize = 200;
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "flow", 443)?;
        let mut streams =
            (0..CONNECTIONS).map(|_| echoed(lab, lab.edge.at(443))).collect::<Result<Vec<_>>>()?;
        wait_for_flows(&daemon, CONNECTIONS)?;
        until_untracked(&lab.edge, is_ours)?;
        // They go on without.
        for stream in &mut streams {
            echo_once(stream, b"still there")?;
        }
        for mut stream in streams {
            stream.shutdown(std::net::Shutdown::Write)?;
            ensure!(stream::read_to_end(&mut stream)?.1 == End::Fin);
        }
        for _ in 0..CONNECTIONS {
            service.outcome()?;
        }
        let is_finished = |record: &serde_json::Value| record["close"] == "finished";
        let records = daemon.access_log.wait_for_count(CONNECTIONS, "the connections", is_finished)?;
        ensure!(records.iter().all(|record| record["datapath"] == "flow"));
        let left: Vec<_> = tracked(&lab.edge)?.into_iter().filter(|entry| is_ours(entry)).collect();
        ensure!(left.is_empty(), "{} entries are left: {left:?}", left.len());
        let metrics = Metrics::read(&lab.edge)?;
        ensure!(metrics.get("edge_conntrack_limit") > 0, "no limit");
        let status = daemon.edgectl().json(&["status"])?;
        ensure!(status["conntrack"]["limit"].as_u64() > Some(0), "{}", status["conntrack"]);
        let doctor = daemon.edgectl().run(&["doctor", "-v"])?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(doctor.contains("conntrack"), "{doctor}");
        Ok(())
    })
}

/// A VPS with a gigabyte tracks some 8,000 connections, one with less only 1,024.
#[test]
fn thousands_of_idle_connections_fit_beside_a_small_conntrack() -> Result<()> {
    const EACH: usize = 600;
    const SOURCES: u8 = 8;
    const LIMIT: usize = 1024;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "flow", 443)?;
        let sources = (1..=SOURCES).map(|network| source(lab, network)).collect::<Result<Vec<_>>>()?;
        let opening = AtomicBool::new(true);
        let (opened, most) = thread::scope(|scope| {
            let most = scope.spawn(|| {
                let mut most = 0;
                while opening.load(Ordering::Relaxed) {
                    most = most.max(tracked_count(&lab.edge)?);
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(most)
            });
            let open = |source| -> Result<Vec<_>> {
                let one = |_| {
                    let mut stream = lab.client.connect_from(source, lab.edge.at(443))?;
                    echo_once(&mut stream, &hello())?;
                    Ok(stream)
                };
                (0..EACH).map(one).collect()
            };
            let opened: Vec<_> =
                sources.into_iter().map(|source| scope.spawn(move || open(source))).collect();
            let opened = opened.into_iter().map(joined).collect::<Result<Vec<_>>>();
            opening.store(false, Ordering::Relaxed);
            Ok::<_, lab::Error>((opened?, joined(most)?))
        })?;
        ensure!(most < LIMIT, "{most} entries at the same time");
        wait_for_flows(&daemon, EACH * usize::from(SOURCES))?;
        until_untracked(&lab.edge, is_ours)?;
        for mut stream in opened.into_iter().flatten() {
            echo_once(&mut stream, b"still there")?;
        }
        Ok(())
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| lab::bail!("a thread panicked"))
}

/// Sends a segment of a connection with an IP option, which no flow carries: it goes to the stack.
const STRAY: &str = "
import socket, struct, sys
source, sport, destination, dport = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def total(octets):
    octets += b'\\0' * (len(octets) % 2)
    words = sum(struct.unpack('!%dH' % (len(octets) // 2), octets))
    while words >> 16:
        words = (words & 0xffff) + (words >> 16)
    return ~words & 0xffff
ends = socket.inet_aton(source) + socket.inet_aton(destination)
tcp = struct.pack('!HHIIBBHHH', sport, dport, 1, 1, 5 << 4, 16, 1000, 0, 0)
check = total(ends + struct.pack('!BBH', 0, 6, len(tcp)) + tcp)
tcp = tcp[:16] + struct.pack('!H', check) + tcp[18:]
header = struct.pack('!BBHHHBBH', 0x46, 0, 24 + len(tcp), 1, 0, 64, 6, 0) + ends + b'\\1\\1\\1\\0'
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(header + tcp, (destination, 0))
";

fn stray(lab: &Lab, stream: &TcpStream) -> Result<()> {
    let (from, to) = (stream.local_addr()?, lab.edge.at(443));
    let mut python = Command::new("python3");
    python.args(["-c", STRAY, &from.ip().to_string(), &from.port().to_string()]);
    python.args([&to.ip().to_string(), &to.port().to_string()]);
    lab.client.text_of(python)?;
    wait::until_true("the stray segment to be tracked", SOON, || {
        tracked(&lab.edge).is_ok_and(|all| all.iter().any(|entry| is_ours(entry)))
    })
}

#[test]
fn what_strays_from_a_flow_is_forgotten_at_its_end_and_by_the_next_daemon() -> Result<()> {
    case(|lab| {
        // The stack answers with a reset, and by that the entry ends. Here it does not come that far.
        let quiet =
            "table ip quiet { chain out { type filter hook output priority raw; tcp flags rst drop; }; }";
        nft(&lab.edge, quiet)?;
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "flow", 443)?;
        let mut stream = echoed(lab, lab.edge.at(443))?;
        wait_for_flows(&daemon, 1)?;
        until_untracked(&lab.edge, is_ours)?;
        // Of a flow that an earlier daemon left.
        daemon.kill()?;
        stray(lab, &stream)?;
        let daemon = edged(lab, "flow", 443)?;
        until_untracked(&lab.edge, is_ours)?;
        // Of one that ends.
        stray(lab, &stream)?;
        echo_once(&mut stream, b"still there")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(stream::read_to_end(&mut stream)?.1 == End::Fin);
        until_untracked(&lab.edge, is_ours)?;
        // Of one that the operator ends.
        nft(&lab.edge, "delete table ip quiet")?;
        let mut stream = echoed(lab, lab.edge.at(443))?;
        let list = wait_for_flows(&daemon, 1)?;
        until_untracked(&lab.edge, is_ours)?;
        daemon.edgectl().text(&["connections", "close", &list[0]["id"].to_string()])?;
        reset_is_seen(&mut stream)?;
        until_untracked(&lab.edge, is_ours)
    })
}

#[test]
fn the_operator_ends_a_flow_through_the_firewall() -> Result<()> {
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            stream.read_exact(&mut vec![0; hello().len()])?;
            stream.write_all(b"ready")?;
            Ok(stream::read_to_end(&mut stream)?.1)
        })?;
        let daemon = edged(lab, "flow", 443)?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&hello())?;
        crate::expect(&mut stream, "ready")?;
        let list = wait_for_flows(&daemon, 1)?;
        until_untracked(&lab.edge, is_ours)?;
        daemon.edgectl().text(&["connections", "close", &list[0]["id"].to_string()])?;
        reset_is_seen(&mut stream)?;
        ensure!(service.outcome()? == End::Reset);
        Ok(())
    })
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn process(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(pid.try_into()?).context("no process")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn streams_are_whole_while_the_keeper_stands_still() -> Result<()> {
    const CONNECTIONS: usize = 50;
    const LENGTH: u64 = 20 * MIB as u64;
    let (up, down) = (Pattern::new(31), Pattern::new(32));
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
            stream.read_exact(&mut vec![0; hello().len()])?;
            exchange(&stream, down, up, LENGTH)
        })?;
        let mut daemon = edged(lab, "auto", 443)?;
        let connect = || -> Result<TcpStream> {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.write_all(&hello())?;
            Ok(stream)
        };
        // Programs are attached to both devices.
        exchange(&connect()?, up, down, LENGTH)?;
        let keeper = Stopped::process(keeper_of(daemon.process().pid())?)?;
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CONNECTIONS)
                .map(|_| scope.spawn(|| exchange(&connect()?, up, down, LENGTH).context("at the client")))
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| lab::bail!("a client panicked")))
        })?;
        for _ in 0..=CONNECTIONS {
            service.outcome().context("at the backend")?;
        }
        drop(keeper);
        let records = daemon.access_log.wait_for_count(CONNECTIONS + 1, "the connections", |_| true)?;
        ensure!(records.iter().all(|record| record["close"] == "finished"), "{records:?}");
        Ok(())
    })
}

/// The expected outcome for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// They become flows.
    Flow,
    /// They stay on their sockets for this reason.
    Stays(&'static str),
}

/// Some connections grow old and are quiet, then carry 8 MB each way; another carries that at once. All are whole, as
/// the daemon chooses by itself and where it insists on flows.
fn whole(
    port: u16,
    to: impl Fn(&Lab) -> SocketAddr,
    fate: Fate,
    prepare: impl Fn(&Lab) -> Result<()>,
) -> Result<()> {
    for datapath in ["auto", "flow"] {
        case(|lab| {
            let _echo = service::echo(&lab.home, lab.home_at(443))?;
            prepare(lab)?;
            let daemon = edged(lab, datapath, port)?;
            let mut quiet = (0..4).map(|_| echoed(lab, to(lab))).collect::<Result<Vec<_>>>()?;
            // The reason is found once: others do not have to find out again, and stay as well.
            decided(lab, &daemon, fate, quiet.len())?;
            let bytes = Pattern::new(17).bytes(8 * MIB);
            quiet.push(echoed(lab, to(lab))?);
            for stream in &mut quiet {
                echo_once(stream, b"still there")?;
                echo_bulk(stream, &bytes)?;
            }
            decided(lab, &daemon, fate, quiet.len())?;
            for mut stream in quiet {
                stream.shutdown(std::net::Shutdown::Write)?;
                ensure!(stream::read_to_end(&mut stream)?.1 == End::Fin);
            }
            daemon
                .access_log
                .wait_for_count(5, "the connections", |record| record["close"] == "finished")
                .map(drop)
        })?;
    }
    Ok(())
}

/// Waits until so many connections have met their fate.
fn decided(lab: &Lab, daemon: &Edged, fate: Fate, count: usize) -> Result<()> {
    match fate {
        Fate::Flow => wait_for_flows(daemon, count).map(drop),
        Fate::Stays(reason) => {
            Metrics::until(&lab.edge, &format!("{reason} to be counted"), |now| {
                ensure!(now.stays(reason) >= count as u64, "{reason}: {}", now.stays(reason));
                Ok(())
            })?;
            wait_for_flows(daemon, 0)?;
            let doctor = daemon.edgectl().run(&["doctor", "-v"])?;
            let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
            ensure!(doctor.contains(reason), "the doctor does not name {reason}: {doctor}");
            Ok(())
        }
    }
}

fn at_443(lab: &Lab) -> SocketAddr {
    lab.edge.at(443)
}

#[test]
fn behind_a_stateful_firewall() -> Result<()> {
    whole(443, at_443, Fate::Flow, |_| Ok(()))
}

#[test]
fn behind_a_redirected_port() -> Result<()> {
    whole(8443, at_443, Fate::Stays("translated"), |lab| {
        nft(
            &lab.edge,
            "table ip port { chain in { type nat hook prerouting priority dstnat; tcp dport 443 redirect to :8443; }; }",
        )
    })
}

#[test]
fn behind_another_address() -> Result<()> {
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    let to = |_: &Lab| SocketAddr::from((OUTSIDE, 443));
    whole(443, to, Fate::Stays("translated"), |lab| {
        let rule = format!("ip daddr {OUTSIDE} tcp dport 443 dnat to {}", lab.edge.v4);
        nft(
            &lab.edge,
            &format!(
                "table ip address {{ chain in {{ type nat hook prerouting priority dstnat; {rule}; }}; }}"
            ),
        )
    })
}

#[test]
fn masqueraded_towards_home() -> Result<()> {
    let masquerade = |how: &'static str| {
        move |lab: &Lab| {
            let rule = format!("oifname back masquerade {how}");
            nft(
                &lab.edge,
                &format!(
                    "table ip home {{ chain out {{ type nat hook postrouting priority srcnat; {rule}; }}; }}"
                ),
            )
        }
    };
    // Without that word the port stays what it is.
    whole(443, at_443, Fate::Flow, masquerade(""))?;
    whole(443, at_443, Fate::Stays("translated"), masquerade("fully-random"))
}

#[test]
fn with_syn_cookies_always() -> Result<()> {
    whole(443, at_443, Fate::Flow, |lab| lab.edge.sysctl(&[("net.ipv4.tcp_syncookies", "2")]))
}

#[test]
fn behind_a_syn_proxy() -> Result<()> {
    whole(443, at_443, Fate::Stays("translated"), |lab| {
        lab.edge.sysctl(&[
            ("net.netfilter.nf_conntrack_tcp_loose", "0"),
            ("net.ipv4.tcp_syncookies", "1"),
            ("net.ipv4.tcp_timestamps", "1"),
        ])?;
        nft(
            &lab.edge,
            "flush ruleset
            table ip proxy {
                chain raw {
                    type filter hook prerouting priority raw;
                    iifname front tcp dport 443 tcp flags syn notrack
                }
                chain in {
                    type filter hook input priority filter;
                    iifname front tcp dport 443 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
                    ct state invalid drop
                }
            }",
        )
    })
}

/// Another way to the same neighbour: through itself as a router.
fn second_table(lab: &Lab) -> Result<()> {
    let (home, client) = (lab.home.v4.to_string(), lab.client.v4.to_string());
    lab.edge.ip(&["route", "add", "198.18.2.0/24", "via", &home, "dev", "back", "onlink", "table", "100"])?;
    lab.edge.ip(&["route", "add", "198.18.1.0/24", "via", &client, "dev", "front", "onlink", "table", "100"])
}

#[test]
fn led_by_a_rule_about_ports() -> Result<()> {
    for port in ["dport", "sport"] {
        whole(443, at_443, Fate::Stays("policy_route"), |lab| {
            second_table(lab)?;
            lab.edge.ip(&["rule", "add", "ipproto", "tcp", port, "443", "lookup", "100"])
        })?;
    }
    Ok(())
}

#[test]
fn led_by_a_mark() -> Result<()> {
    whole(443, at_443, Fate::Stays("policy_route"), |lab| {
        second_table(lab)?;
        lab.edge.ip(&["rule", "add", "fwmark", "7", "lookup", "100"])?;
        nft(
            &lab.edge,
            "table ip marks { chain out { type route hook output priority mangle; oifname back meta mark set 7; }; }",
        )
    })
}

#[test]
fn led_by_its_source() -> Result<()> {
    // A flow's packets have it as well.
    whole(443, at_443, Fate::Flow, |lab| {
        second_table(lab)?;
        lab.edge.ip(&["rule", "add", "from", &EDGE_INSIDE.to_string(), "lookup", "100"])
    })
}

#[test]
fn meant_for_ipsec() -> Result<()> {
    whole(443, at_443, Fate::Stays("ipsec"), |lab| {
        let (edge, home) = (EDGE_INSIDE.to_string(), lab.home.v4.to_string());
        // Without a state and without having to: it goes as it is, until a peer negotiates one.
        let policy = ["xfrm", "policy", "add", "src", &edge, "dst", &home, "dir", "out"];
        let template = ["tmpl", "proto", "esp", "mode", "transport", "level", "use"];
        lab.edge.ip(&[&policy[..], &template].concat())
    })
}
