//! The MSS announced to clients fits into the tunnels behind the listener.

use std::time::{Duration, Instant};

use lab::{
    Edged, Lab, Result,
    capture::Capture,
    ensure,
    require::{self, Need},
    wait::{self, SOON},
};

/// The MSS in a SYN-ACK of the edge's, as it is on the wire.
fn announced(lab: &Lab, capture: &Capture) -> Result<u16> {
    let seen = capture.packets()?.len();
    let client = lab.client.connect(lab.edge.at(443))?;
    let port = client.local_addr()?.port();
    // Thousands of connections are made here, and some get a port that another one had.
    let line = capture.wait_for_another(seen, &format!("443 > {}.{port}: Flags [S.]", lab.client.v4))?;
    let mss = line.split_once("mss ").and_then(|(_, rest)| rest.split([',', ' ', ']']).next()?.parse().ok());
    mss.ok_or_else(|| lab::Error::msg(format!("no MSS: {line}")))
}

/// The kernel's MSS for the edge's connections (`advmss` of ss).
fn noted(lab: &Lab) -> Result<Vec<String>> {
    let mut ss = std::process::Command::new("ss");
    ss.args(["-tinH", "sport", "=", ":443"]);
    let text = lab.edge.text_of(ss)?;
    Ok(text.split_whitespace().filter_map(|word| Some(word.strip_prefix("advmss:")?.to_owned())).collect())
}

#[test]
fn a_listener_announces_what_the_narrowest_tunnel_carries() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Tunnel, Need::Program("tcpdump", "tcpdump")]) {
        return Ok(());
    }
    Lab::plan().two_tunnels().case(|lab| {
        let [wide, narrow] = lab.tunnels()?;
        let body = |more: &str| {
            format!(
                "[[pool]]\nname = \"wide\"\n[[pool.backend]]\nto = \"{}\"\ndevice = \"{}\"\n\
                 [[route]]\nhost = \"a.example\"\nto = \"wide\"\n{more}",
                wide.home_address(),
                wide.edge_device(),
            )
        };
        let edged = Edged::start(lab, &body(""))?;
        let edgectl = edged.edgectl();
        let capture = Capture::start(&lab.client, "eth0", "tcp src port 443")?;
        let becomes = |mss: u16, why: &str| {
            wait::until_ok(&format!("an MSS of {mss}: {why}"), SOON, || {
                let found = announced(lab, &capture)?;
                ensure!(found == mss, "{found}");
                Ok(())
            })
        };
        becomes(1420 - 40, "the first tunnel's MTU")?;
        let live = lab.client.connect(lab.edge.at(443))?;
        // Twelve of them are timestamps.
        wait::until_ok("the MSS to be noted", SOON, || {
            let noted = noted(lab)?;
            ensure!(noted.contains(&"1368".to_owned()), "{noted:?}");
            Ok(())
        })?;
        drop(live);
        edgectl.until(&["status"], |status| {
            ensure!(status["listeners"][1]["mss"] == 1380, "{status}");
            Ok(())
        })?;

        edgectl.text(&["routes", "add", "b.example", &narrow.home_address().to_string()])?;
        becomes(1280 - 40, "a route into the second tunnel was added")?;
        edgectl.text(&["routes", "remove", "b.example"])?;
        becomes(1380, "it was removed")?;

        lab.edge.ip(&["link", "set", wide.edge_device(), "mtu", "1400"])?;
        becomes(1360, "the device's MTU fell")?;
        let route = format!("{}/32", wide.home_address());
        lab.edge.ip(&["route", "add", &route, "dev", wide.edge_device(), "mtu", "1300"])?;
        becomes(1260, "the route's MTU is smaller")?;
        lab.edge.ip(&["route", "del", &route, "dev", wide.edge_device()])?;
        becomes(1360, "the route is gone")?;

        let v6 = format!("[[route]]\nhost = \"c.example\"\nto = \"{}\"\n", narrow.home_address_v6());
        edged.rewrite(&body(&v6))?;
        edgectl.text(&["reload"])?;
        becomes(1280 - 60, "an IPv6 header is longer")?;

        // The tunnel dies: what it carried still counts, until it has come back.
        edged.rewrite(&body(""))?;
        edgectl.text(&["reload"])?;
        becomes(1360, "the first route alone")?;
        wide.edge().kill(&lab.edge)?;
        let died = Instant::now();
        while died.elapsed() < Duration::from_secs(1) {
            let found = announced(lab, &capture)?;
            ensure!(found == 1360, "{found} while the tunnel is gone");
        }
        wide.edge().bring_up(&lab.edge)?;
        becomes(1380, "the tunnel is back, with the MTU that it had first")
    })
}
