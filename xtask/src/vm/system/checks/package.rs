//! The Debian package on a machine that runs systemd: installed over the configuration that is there, upgraded
//! and rolled back with live connections, removed and purged.

use anyhow::{Result, ensure};

use super::{LIVING, Visit, all_live};

/// Where the packages are in the machine; both are of this tree, with different versions.
const FIRST: &str = "/root/parcel/first.deb";
const NEXT: &str = "/root/parcel/next.deb";
/// What was installed by hand before.
const BY_HAND: &str = "/etc/systemd/system/edged.service /usr/local/bin/edged /usr/local/bin/edgectl \
                       /etc/sysusers.d/edge.conf /etc/sysctl.d/edge.conf";
const ROUTE: &str = "added.example.com";

pub(super) fn check(visit: &mut Visit) -> Result<String> {
    if visit.run(&format!("test -f {FIRST} || echo none"))? == "none" {
        return Ok(String::new());
    }
    // A machine without edge, but with a configuration.
    visit.run(&format!(
        "systemctl disable --now edged\nedged --uninstall\nrm -rf {BY_HAND} /var/lib/edge\nsystemctl daemon-reload\n\
         cp /root/readme.toml /etc/edge/edge.toml"
    ))?;
    install(visit, FIRST)?;
    visit.lives()?;
    visit.run("systemctl is-enabled edged\nsystemctl show -P ExecStart edged | grep -q /usr/bin/edged")?;
    visit.run(&format!("edgectl routes add {ROUTE} 100.64.0.2"))?;

    let mut living = visit.living()?;
    all_live(&mut living)?;
    visit.until_flows()?;
    for package in [NEXT, FIRST] {
        let before = visit.run("systemctl show -P MainPID edged")?;
        install(visit, package)?;
        all_live(&mut living)?;
        visit.lives()?;
        let after = visit.run("systemctl show -P MainPID edged")?;
        ensure!(before != after, "the process before still runs after {package}");
        visit.run(&format!("edgectl routes list | grep -q {ROUTE}"))?;
    }

    // A configuration that the new version does not accept leaves the old process alone.
    let before = visit.run("systemctl show -P MainPID edged")?;
    visit.run("echo 'hots = 1' >>/etc/edge/edge.toml")?;
    let said = install(visit, NEXT)?;
    ensure!(said.contains("the previous version keeps running"), "{said}");
    ensure!(
        before == visit.run("systemctl show -P MainPID edged")?,
        "edged was restarted into a broken file"
    );
    all_live(&mut living)?;
    visit.run("cp /root/readme.toml /etc/edge/edge.toml\nsystemctl restart edged")?;
    visit.lives()?;
    all_live(&mut living)?;

    // A disabled unit that was stopped stays so.
    visit.run("systemctl disable --now edged")?;
    install(visit, FIRST)?;
    visit.run(
        "! systemctl is-active --quiet edged || exit 1\n! systemctl is-enabled --quiet edged || exit 1",
    )?;
    visit.run("systemctl enable --now edged")?;
    visit.lives()?;

    visit.run("apt-get remove --yes edge\ntest -s /etc/edge/edge.toml\ntest -d /var/lib/edge")?;
    visit.run("! ss -tln | grep -q ':443 ' || exit 1\ntest ! -e /sys/fs/bpf/edge")?;
    install(visit, FIRST)?;
    visit.lives()?;
    visit.run(&format!("edgectl routes list | grep -q {ROUTE}"))?;
    visit.run("apt-get purge --yes edge\nfor path in /etc/edge /var/lib/edge /var/log/edge /run/edge /sys/fs/bpf/edge; do test ! -e $path; done")?;
    let failed = visit.run("systemctl list-units --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "failed units: {failed}");
    Ok(format!(
        "{LIVING} flows lived through an upgrade, the way back and a file that the new version refused"
    ))
}

fn install(visit: &mut Visit, package: &str) -> Result<String> {
    visit.run(&format!(
        "DEBIAN_FRONTEND=noninteractive apt-get install --yes --allow-downgrades --reinstall \
         -o Dpkg::Options::=--force-confold {package}"
    ))
}
