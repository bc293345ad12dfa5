//! No block cuts off home, a tunnel or an operator by accident.

use lab::{
    Context, Edged, Result, ensure,
    peers::Sshd,
    require::{self, Need},
    service,
};

use crate::{
    case, echo_once,
    flow::{NAME, edged},
    tunnel_case,
};

#[test]
fn an_operator_who_is_logged_in_by_ssh_is_not_blocked() -> Result<()> {
    case(|lab| {
        let _sshd = service::echo(&lab.edge, lab.edge.at(22))?;
        let _sshd6 = service::echo(&lab.edge, lab.edge.at_v6(22))?;
        let daemon = edged(lab, "")?;
        let edgectl = daemon.edgectl();
        let (v4, v6) = (lab.client.v4, lab.client.v6);
        let mut sessions = [lab.client.connect(lab.edge.at(22))?, lab.client.connect(lab.edge.at_v6(22))?];
        for session in &mut sessions {
            echo_once(session, b"uptime")?;
        }
        for cidr in
            [v4.to_string(), format!("{v4}/24"), format!("::ffff:{v4}"), v6.to_string(), format!("{v6}/64")]
        {
            let complaint = edgectl.refused(1, &["block", "add", &cidr])?;
            ensure!(complaint.contains("an SSH session (port 22)"), "{cidr}: {complaint}");
            ensure!(complaint.contains("--force"), "how to go on: {complaint}");
        }
        ensure!(edgectl.list("block")?.is_empty(), "something is blocked");
        edgectl.text(&["block", "add", &v4.to_string(), "--force"])?;
        edgectl.text(&["block", "remove", &v4.to_string()])?;
        Ok(())
    })
}

#[test]
fn an_sshd_with_a_file_of_its_own_is_found_by_its_command_line() -> Result<()> {
    if !require::all(&[Need::Program("sshd", "openssh-server")]) {
        return Ok(());
    }
    case(|lab| {
        let _sshd = Sshd::start(&lab.edge, lab.edge.at(2022))?;
        let daemon = edged(lab, "")?;
        let _session = lab.client.connect(lab.edge.at(2022))?;
        let complaint = daemon.edgectl().refused(1, &["block", "add", &lab.client.v4.to_string()])?;
        ensure!(complaint.contains("an SSH session (port 2022)"), "{complaint}");
        Ok(())
    })
}

#[test]
fn wide_prefixes_take_force() -> Result<()> {
    case(|lab| {
        let daemon = edged(lab, "")?;
        let edgectl = daemon.edgectl();
        for cidr in ["224.0.0.0/3", "::ffff:240.0.0.0/100", "4000::/3"] {
            let complaint = edgectl.refused(1, &["block", "add", cidr])?;
            ensure!(complaint.contains("is wide") && complaint.contains("--force"), "{complaint}");
            edgectl.text(&["block", "add", cidr, "--force"])?;
        }
        edgectl.text(&["block", "remove", "::ffff:240.0.0.0/100"])?;
        Ok(())
    })
}

#[test]
fn what_this_machine_needs_is_not_blocked() -> Result<()> {
    case(|lab| {
        lab.edge.ip(&["route", "add", "default", "via", &lab.client.v4.to_string()])?;
        let body = "[[listener]]\nname = \"proxied\"\nbind = [\"[::]:8443\"]\nprotocol = \"tls\"\n\
                    accept_proxy = [\"192.0.2.0/25\"]\n[resolver]\nservers = [\"192.0.2.200\"]\n";
        let daemon = edged(lab, body)?;
        let edgectl = daemon.edgectl();
        for (cidr, why) in [
            (lab.home.v4.to_string(), "the backend"),
            (lab.client.v4.to_string(), "the router on"),
            (lab.edge.v4.to_string(), "this machine's own"),
            (lab.edge.v6.to_string(), "this machine's own"),
            ("192.0.2.200".to_owned(), "a name server"),
            ("192.0.2.0/24".to_owned(), "a name server"),
            ("192.0.2.0/25".to_owned(), "the proxies in front of the listener proxied"),
        ] {
            let complaint = edgectl.refused(1, &["block", "add", &cidr])?;
            ensure!(complaint.contains(why), "{cidr}, {why}: {complaint}");
        }
        edgectl.text(&["block", "add", "192.0.2.7"])?;
        Ok(())
    })
}

/// The way home is found by the routes: the configuration names no device.
#[test]
fn the_other_end_of_a_tunnel_is_found_by_route() -> Result<()> {
    tunnel_case(|lab| {
        let to = lab.tunnel.as_ref().context("a tunnel")?.home_address();
        let daemon = Edged::start(lab, &format!("[[route]]\nhost = \"{NAME}\"\nto = \"{to}\"\n"))?;
        let outside = lab.home.v4.to_string();
        let complaint = daemon.edgectl().refused(1, &["block", "add", &format!("{outside}/30")])?;
        ensure!(complaint.contains("the other end of the tunnel"), "{complaint}");
        Ok(())
    })
}

#[test]
fn a_block_that_would_lock_out_is_not_restored() -> Result<()> {
    const MOVED: &str = "192.0.2.77";
    case(|lab| {
        let body = |to: &str| format!("[[route]]\nhost = \"{NAME}\"\nto = \"{to}\"\n");
        let daemon = Edged::start(lab, &body("192.0.2.1"))?;
        daemon.edgectl().text(&["block", "add", MOVED])?;
        daemon.edgectl().text(&["block", "add", "192.0.2.78"])?;
        daemon.kill()?;

        let daemon = Edged::start(lab, &body(MOVED))?;
        let blocked = |daemon: &Edged| -> Result<Vec<String>> {
            let blocks = daemon.edgectl().list("block")?;
            Ok(blocks.iter().filter_map(|block| Some(block["cidr"].as_str()?.to_owned())).collect())
        };
        ensure!(blocked(&daemon)? == ["192.0.2.78/32"], "{:?}", blocked(&daemon)?);
        let doctor = || -> Result<String> {
            let output = daemon.edgectl().run(&["doctor"])?.stdout;
            Ok(String::from_utf8(output)?.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let said = doctor()?;
        ensure!(said.contains("block 192.0.2.77/32 is not in force"), "{said}");
        daemon.edgectl().text(&["block", "add", MOVED, "--force"])?;
        let said = doctor()?;
        ensure!(said.contains("block 192.0.2.77/32 cuts off 192.0.2.77: the backend"), "{said}");
        daemon.kill()?;

        let daemon = Edged::start(lab, &body(MOVED))?;
        ensure!(blocked(&daemon)?.len() == 2, "what was forced stays: {:?}", blocked(&daemon)?);
        daemon.edgectl().text(&["block", "remove", MOVED])?;
        Ok(())
    })
}
