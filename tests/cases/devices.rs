//! Devices as machines have them: names with a dot, bridges, devices without a link header, and such as come
//! later, are renamed, or are deleted and made anew. Flows are carried on them, and a block holds on every one.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
};

use lab::{
    Context, Edged, Host, Lab, Result,
    edged::Edgectl,
    ensure,
    hello::ClientHello,
    metrics::{ADMIN, Metrics},
    require::{self, Need},
    service, stream,
    topology::{TUNNEL_EDGE, TUNNEL_HOME},
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{
    case, echo_once,
    flow::{NAME, echoed, edged, hello, reset_is_seen, wait_for_flows},
    tunnel_case,
};

/// Gives the addresses of a host on one device to another one.
pub(crate) fn move_addresses(host: &Host, from: &str, to: &str) -> Result<()> {
    host.ip(&["address", "flush", "dev", from])?;
    host.ip(&["address", "add", &format!("{}/24", host.v4), "dev", to])?;
    host.ip(&["-6", "address", "add", &format!("{}/64", host.v6), "dev", to, "nodad"])?;
    host.ip(&["link", "set", to, "up"])
}

/// Renames a device that is up. Before Linux 6.2 it has to go down for that.
fn rename(host: &Host, from: &str, to: &str) -> Result<()> {
    if host.ip(&["link", "set", from, "name", to]).is_ok() {
        return Ok(());
    }
    host.ip(&["link", "set", from, "down"])?;
    host.ip(&["link", "set", from, "name", to])?;
    host.ip(&["link", "set", to, "up"])
}

/// The mechanism that keeps blocked sources out on a device, from the status.
fn guard(status: &Value, device: &str) -> Option<String> {
    let guards = status["shield"].as_array()?;
    let guard = guards.iter().find(|guard| guard["device"] == device)?;
    Some(guard["by"].as_str()?.to_owned())
}

/// Waits until packets of blocked sources are dropped on a device.
fn wait_for_guard(edgectl: &Edgectl, device: &str) -> Result<()> {
    let dropped = |status: &Value| {
        let by = guard(status, device);
        ensure!(matches!(by.as_deref(), Some("xdp" | "tc")), "{device}: {by:?} in {}", status["shield"]);
        Ok(())
    };
    edgectl.until(&["status"], dropped).map(drop)
}

/// Packets dropped for a prefix.
fn packets(edgectl: &Edgectl, cidr: &str) -> Result<u64> {
    let blocks = edgectl.list("block")?;
    let block = blocks.iter().find(|block| block["cidr"] == cidr).context("it is listed")?;
    block["packets"].as_u64().context("a number of packets")
}

/// That a flow is carried where clients come in by `device`, that a block ends it and keeps its source out with packets
/// dropped there, and that it can come back.
pub(crate) fn flows_and_blocks(lab: &Lab, device: &str) -> Result<()> {
    let _echo = service::echo(&lab.home, lab.home_at(443))?;
    let daemon = edged(lab, "")?;
    let mut stream = echoed(lab, &daemon)?;
    echo_once(&mut stream, b"as a flow")?;
    let client = lab.client.v4.to_string();
    let cidr = format!("{client}/32");
    let answer = daemon.edgectl().json(&["block", "add", &client])?;
    daemon.access_log.wait_for("the block", |record| record["close"] == "blocked")?;
    reset_is_seen(&mut stream)?;
    ensure!(!lab.client.accepts(lab.edge.at(443)), "the source connects");
    ensure!(packets(daemon.edgectl(), &cidr)? > 0, "no packet is dropped: it was the check at accept");
    let guards = answer["devices"].as_array().context("the answer names devices")?;
    let guard = guards.iter().find(|guard| guard["device"] == device).context("this device among them")?;
    ensure!(guard["by"] == "xdp" && guard["reason"].is_null(), "{guard}");
    daemon.edgectl().text(&["block", "remove", &client])?;
    let mut stream = echoed(lab, &daemon)?;
    echo_once(&mut stream, b"again")
}

#[test]
fn a_name_with_a_dot() -> Result<()> {
    case(|lab| {
        lab.edge.ip(&["link", "set", "front", "down"])?;
        lab.edge.ip(&["link", "set", "front", "name", "eth0.10"])?;
        lab.edge.ip(&["link", "set", "eth0.10", "up"])?;
        lab.edge.ip(&[
            "-6",
            "address",
            "replace",
            &format!("{}/64", lab.edge.v6),
            "dev",
            "eth0.10",
            "nodad",
        ])?;
        flows_and_blocks(lab, "eth0.10")
    })
}

#[test]
fn a_bridge() -> Result<()> {
    if !require::all(&[Need::Device("bridge")]) {
        return Ok(());
    }
    case(|lab| {
        lab.edge.ip(&["link", "add", "br0", "type", "bridge"])?;
        lab.edge.ip(&["link", "set", "front", "master", "br0"])?;
        move_addresses(&lab.edge, "front", "br0")?;
        flows_and_blocks(lab, "br0")
    })
}

#[test]
fn a_bond() -> Result<()> {
    if !require::all(&[Need::Device("bond")]) {
        return Ok(());
    }
    case(|lab| {
        lab.edge.ip(&["link", "add", "bond0", "type", "bond", "mode", "active-backup", "miimon", "100"])?;
        lab.edge.ip(&["link", "set", "front", "down"])?;
        lab.edge.ip(&["link", "set", "front", "master", "bond0"])?;
        move_addresses(&lab.edge, "front", "bond0")?;
        flows_and_blocks(lab, "bond0")
    })
}

#[test]
fn a_macvlan() -> Result<()> {
    if !require::all(&[Need::Device("macvlan")]) {
        return Ok(());
    }
    case(|lab| {
        lab.edge
            .ip(&["link", "add", "link", "front", "name", "mv0", "type", "macvlan", "mode", "private"])?;
        // Or both devices answer who has the address, and packets come by one and leave by the other.
        lab.edge.sysctl(&[("net.ipv4.conf.all.arp_ignore", "1")])?;
        move_addresses(&lab.edge, "front", "mv0")?;
        flows_and_blocks(lab, "mv0")
    })
}

/// The address of a device on its link.
fn link_address(host: &Host, device: &str) -> Result<String> {
    let mut ip = Command::new("ip");
    ip.args(["-j", "link", "show", "dev", device]);
    let links: Value = serde_json::from_str(&host.text_of(ip)?)?;
    Ok(links[0]["address"].as_str().context("no address")?.to_owned())
}

/// The first packets of a connection come by a device that was right until a moment ago: the client still has its address.
#[test]
fn a_client_that_has_an_older_address_of_its_neighbour() -> Result<()> {
    if !require::all(&[Need::Device("macvlan")]) {
        return Ok(());
    }
    case(|lab| {
        lab.edge
            .ip(&["link", "add", "link", "front", "name", "mv0", "type", "macvlan", "mode", "private"])?;
        lab.edge.sysctl(&[("net.ipv4.conf.all.arp_ignore", "1")])?;
        move_addresses(&lab.edge, "front", "mv0")?;
        let believe = |device: &str| -> Result<()> {
            let (edge, address) = (lab.edge.v4.to_string(), link_address(&lab.edge, device)?);
            lab.client.ip(&["neigh", "replace", &edge, "lladdr", &address, "dev", "eth0", "nud", "permanent"])
        };
        believe("front")?;
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
        let daemon = Edged::plan(lab, &route).daemon("datapath = \"flow\"").daemon(ADMIN).start()?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut stream, &hello())?;
        Metrics::until(&lab.edge, "the connection to stay", |now| {
            ensure!(now.stays("asymmetric_route") > 0, "it does not");
            Ok(())
        })?;
        believe("mv0")?;
        echo_once(&mut stream, b"by the other device")?;
        wait_for_flows(&daemon, 1)?;
        echo_once(&mut stream, b"as a flow")
    })
}

/// A client at the far end of the tunnel, whose packets have no link header, and a backend that is reached without it.
#[test]
fn a_device_without_a_link_header() -> Result<()> {
    tunnel_case(|lab| {
        let backend = lab.home.at(443);
        let _echo = service::echo(&lab.home, backend)?;
        let body = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home.v4);
        let daemon = Edged::plan(lab, &body).daemon("datapath = \"flow\"").start()?;
        let device = lab.tunnel.as_ref().context("a tunnel")?.edge_device();
        let connect = || -> Result<TcpStream> {
            let to = SocketAddr::from((TUNNEL_EDGE, 443));
            let mut stream = lab.home.connect_from(IpAddr::from(TUNNEL_HOME), to)?;
            echo_once(&mut stream, &hello())?;
            Ok(stream)
        };
        let mut stream = connect()?;
        wait_for_flows(&daemon, 1)?;
        echo_once(&mut stream, b"as a flow")?;
        let source = TUNNEL_HOME.to_string();
        let answer = daemon.edgectl().json(&["block", "add", &source])?;
        daemon.access_log.wait_for("the block", |record| record["close"] == "blocked")?;
        ensure!(!lab.home.accepts((TUNNEL_EDGE, 443).into()), "the source connects");
        ensure!(packets(daemon.edgectl(), &format!("{source}/32"))? > 0, "no packet is dropped");
        let guards = answer["devices"].as_array().context("the answer names devices")?;
        let guard = guards.iter().find(|guard| guard["device"] == device).context("the tunnel among them")?;
        ensure!(guard["by"] == "xdp", "{guard}");
        daemon.edgectl().text(&["block", "remove", &source])?;
        connect().map(drop)
    })
}

/// The tunnel by which backends are reached takes no program, since a list may name what home has; a blocked source
/// behind it is refused at accept, and the answer says so.
#[test]
fn the_tunnel_home_is_left_to_the_check_at_accept() -> Result<()> {
    tunnel_case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let device = lab.tunnel.as_ref().context("a tunnel")?.edge_device();
        let edge = SocketAddr::from((TUNNEL_EDGE, 443));
        let mut stream = lab.home.connect(edge)?;
        echo_once(&mut stream, &hello())?;
        let output = daemon.edgectl().text(&["block", "add", &TUNNEL_HOME.to_string(), "--force"])?;
        ensure!(output.contains("dropped on") && output.contains("front (xdp)"), "{output}");
        ensure!(output.contains(&format!("refused at accept alone on {device}")), "{output}");
        stream::read_to_end(&mut stream)?;
        let again = lab.home.connect(edge).and_then(|mut stream| echo_once(&mut stream, &hello()));
        ensure!(again.is_err(), "the source is served");
        let status = daemon.edgectl().json(&["status"])?;
        ensure!(status["rejected"]["blocked"].as_u64() > Some(0), "{}", status["rejected"]);
        let doctor = String::from_utf8(daemon.edgectl().run(&["doctor", "-v"])?.stdout)?;
        ensure!(doctor.contains(&format!("shield on {device}")), "{doctor}");
        // Packets from home are not dropped.
        let mut other = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut other, &hello())
    })
}

/// Without the rights to load programs a block still holds, and the answer says how.
#[test]
fn a_block_holds_where_no_program_can_be_loaded() -> Result<()> {
    if !require::all(&[Need::Program("setpriv", "util-linux")]) {
        return Ok(());
    }
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = Edged::plan(lab, &crate::flow::body(lab, ""))
            .by(&["setpriv", "--bounding-set=-bpf,-sys_admin"])
            .start()?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut stream, &hello())?;
        let client = lab.client.v4.to_string();
        let output = daemon.edgectl().text(&["block", "add", &client])?;
        ensure!(output.contains("refused at accept alone on") && !output.contains("dropped"), "{output}");
        reset_is_seen(&mut stream)?;
        let refused = || {
            let again = lab.client.connect(lab.edge.at(443));
            let again = again.and_then(|mut stream| echo_once(&mut stream, &hello()));
            ensure!(again.is_err(), "the source is served");
            Ok(())
        };
        refused()?;
        let mut other = lab.client.connect(lab.edge.at_v6(443))?;
        echo_once(&mut other, &hello())?;
        // It is on disk, and in force before the next daemon accepts.
        daemon.kill()?;
        let daemon = Edged::plan(lab, &crate::flow::body(lab, ""))
            .by(&["setpriv", "--bounding-set=-bpf,-sys_admin"])
            .start()?;
        refused()?;
        daemon.edgectl().text(&["block", "remove", &client])?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut stream, &hello())
    })
}

#[test]
fn a_list_ends_the_connections_of_whom_it_names() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let list = lab.file("blocked.txt", "192.0.2.0/24\n")?;
        let daemon = edged(lab, &format!("[shield]\nlists = [\"{}\"]\n", list.display()))?;
        let mut stream = echoed(lab, &daemon)?;
        lab.file("blocked.txt", format!("192.0.2.0/24\n{}\n", lab.client.v4))?;
        daemon.access_log.wait_for("the block", |record| record["close"] == "blocked")?;
        lab.file("blocked.txt", "192.0.2.0/24\n")?;
        reset_is_seen(&mut stream)
    })
}

#[test]
fn a_block_follows_devices_that_are_renamed_and_made_anew() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let edgectl = daemon.edgectl();
        let client = lab.client.v4.to_string();
        let cidr = format!("{client}/32");
        edgectl.text(&["block", "add", &client])?;
        wait_for_guard(edgectl, "front")?;
        // Whether packets are dropped, not connections refused.
        let mut dropped = 0;
        let mut drops = |what: &str| -> Result<()> {
            ensure!(!lab.client.accepts(lab.edge.at(443)), "{what}: the source connects");
            let before = std::mem::replace(&mut dropped, packets(edgectl, &cidr)?);
            ensure!(dropped > before, "{what}: no packet is dropped");
            Ok(())
        };
        drops("as it was")?;

        rename(&lab.edge, "front", "eth0.7")?;
        wait_for_guard(edgectl, "eth0.7")?;
        drops("renamed")?;

        lab.edge.ip(&["link", "set", "eth0.7", "down"])?;
        lab.edge.ip(&["link", "set", "eth0.7", "up"])?;
        wait_for_guard(edgectl, "eth0.7")?;
        drops("down and up")?;

        lab.edge.ip(&["link", "del", "eth0.7"])?;
        let gone = |status: &Value| {
            ensure!(guard(status, "eth0.7").is_none(), "{}", status["shield"]);
            Ok(())
        };
        edgectl.until(&["status"], gone)?;
        let (edge, far) = (lab.edge.namespace().name(), lab.client.namespace().name());
        let pair = |near: &str, away: &str| {
            let veth =
                ["link", "add", near, "netns", edge, "type", "veth", "peer", "name", away, "netns", far];
            lab.edge.ip(&veth)
        };
        pair("eth0.7", "eth0")?;
        for (host, device) in [(&lab.edge, "eth0.7"), (&lab.client, "eth0")] {
            host.ip(&["address", "add", &format!("{}/24", host.v4), "dev", device])?;
            host.ip(&["link", "set", device, "up"])?;
        }
        wait_for_guard(edgectl, "eth0.7")?;
        drops("made anew")?;

        // One more, which is up before it has its address.
        pair("late", "late")?;
        for (host, address) in [(&lab.edge, "198.18.9.1/24"), (&lab.client, "198.18.9.2/24")] {
            host.sysctl(&[("net.ipv6.conf.late.disable_ipv6", "1")])?;
            host.ip(&["link", "set", "late", "up"])?;
            host.ip(&["address", "add", address, "dev", "late"])?;
        }
        wait_for_guard(edgectl, "late")?;
        edgectl.text(&["block", "remove", &client])?;
        edgectl.text(&["block", "add", "198.18.9.2"])?;
        let late = SocketAddr::from(([198, 18, 9, 1], 443));
        ensure!(!lab.client.accepts(late), "the source connects by the new device");
        ensure!(packets(edgectl, "198.18.9.2/32")? > 0);
        edgectl.text(&["block", "remove", "198.18.9.2"])?;
        // Flows are carried on the new devices as well.
        for to in [lab.edge.at(443), late] {
            let mut stream = lab.client.connect(to)?;
            echo_once(&mut stream, &ClientHello::new(NAME).records())?;
            wait_for_flows(&daemon, 1)?;
            echo_once(&mut stream, b"as a flow")?;
            stream::reset(stream)?;
            wait_for_flows(&daemon, 0)?;
        }
        Ok(())
    })
}

/// A flow goes on through a rename and the next daemon, and the device that gets the name gets programs of its own.
#[test]
fn flows_go_on_when_their_device_is_renamed() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let mut stream = echoed(lab, &daemon)?;
        rename(&lab.edge, "front", "wan.0")?;
        echo_once(&mut stream, b"renamed")?;
        daemon.kill()?;
        let daemon = edged(lab, "")?;
        wait_for_flows(&daemon, 1)?;
        echo_once(&mut stream, b"adopted")?;
        let mut links: Vec<_> =
            std::fs::read_dir(lab.pins().join(format!("v{}", layout(lab)?)).join("flow"))?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| name.starts_with("device-") || name.starts_with("link-"))
                .collect();
        links.sort();
        ensure!(links.len() == 4, "one link for each hook of both devices: {links:?}");
        Ok(())
    })
}

/// A link that is pinned stays in the kernel when its device is gone, unless somebody removes the pin.
#[test]
fn nothing_stays_pinned_of_a_device_that_is_gone() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let directory = lab.pins().join(format!("v{}", layout(lab)?)).join("flow");
        let links = || -> Result<usize> {
            let names =
                std::fs::read_dir(&directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            Ok(names.filter(|name| name.starts_with("device-")).count())
        };
        for _ in 0..2 {
            let far = ["peer", "name", "far", "netns", lab.client.namespace().name()];
            lab.edge.ip(&[&["link", "add", "near", "type", "veth"][..], &far].concat())?;
            for (host, device, address) in
                [(&lab.edge, "near", "198.18.9.1/24"), (&lab.client, "far", "198.18.9.2/24")]
            {
                host.ip(&["address", "add", address, "dev", device])?;
                host.ip(&["link", "set", device, "up"])?;
            }
            let mut stream = lab.client.connect(SocketAddr::from(([198, 18, 9, 1], 443)))?;
            echo_once(&mut stream, &ClientHello::new(NAME).records())?;
            wait_for_flows(&daemon, 1)?;
            ensure!(links()? == 4, "{} links are pinned for two devices", links()?);
            stream::reset(stream)?;
            wait_for_flows(&daemon, 0)?;
            lab.edge.ip(&["link", "del", "near"])?;
            wait::until_ok("the pins of the device to go", SOON, || {
                ensure!(links()? == 2, "{} links are pinned for one device", links()?);
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// The version of the layout, by the directory that the daemon made.
fn layout(lab: &Lab) -> Result<String> {
    let names = std::fs::read_dir(lab.pins())?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let version = names.filter_map(|name| name.strip_prefix('v').map(str::to_owned)).max();
    version.context("a directory of pins")
}

#[test]
fn a_change_of_blocks_that_cannot_be_saved_changes_nothing() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let edgectl = daemon.edgectl();
        let client = lab.client.v4.to_string();
        edgectl.text(&["block", "add", &client])?;
        let away = daemon.state().with_extension("away");
        std::fs::rename(daemon.state(), &away)?;
        edgectl.refused(1, &["block", "add", &client, "--for", "1h"])?;
        edgectl.refused(1, &["block", "add", "192.0.2.1"])?;
        edgectl.refused(1, &["block", "remove", &client])?;
        std::fs::rename(&away, daemon.state())?;
        let blocks = edgectl.list("block")?;
        ensure!(blocks.len() == 1 && blocks[0]["until"].is_null(), "{blocks:?}");
        ensure!(!lab.client.accepts(lab.edge.at(443)), "the older block is lifted");
        edgectl.text(&["block", "remove", &client])?;
        wait::until_true("the source to be let in", SOON, || lab.client.accepts(lab.edge.at(443)))
    })
}
