//! The lab itself works: peers start, a client fetches through HAProxy, all of it goes away.

use std::{env, fs, process::Command, time::Duration};

use lab::{
    Lab, Result, Signal,
    certificates::Authority,
    clients::Fetch,
    ensure, netns,
    peers::{Caddy, Haproxy, Nginx},
    process::Process,
    require::{self, Need},
    stream::Pattern,
    wait::SOON,
};

use crate::case;

#[test]
fn a_client_reaches_two_servers() -> Result<()> {
    case(|lab| {
        let authority = Authority::new(lab)?;
        let (web, go) = (lab.home_at(443), lab.home_at(8443));
        let nginx = Nginx::tls(&lab.home, web, &authority.issue(lab, &["web.example"])?)?;
        let caddy = Caddy::tls(&lab.home, go, "go.example", &authority.issue(lab, &["go.example"])?)?;
        let content = Pattern::new(1).bytes(1_000_000);
        std::fs::write(nginx.files.join("blob"), &content)?;
        std::fs::write(caddy.files.join("blob"), &content)?;
        let edge = lab.edge.at(443);
        let _haproxy = Haproxy::sni(&lab.edge, edge, &[("web.example", web), ("go.example", go)], "")?;
        for name in ["web.example", "go.example"] {
            let fetch = Fetch { from: &lab.client, edge, name, path: "/blob", authority: &authority };
            ensure!(fetch.curl(&[])? == content);
        }
        Ok(())
    })
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Tunnel]) {
        return Ok(());
    }
    let lab = Lab::plan().tunnel().build()?;
    let names = [&lab.client, &lab.edge, &lab.home].map(|host| host.namespace().name().to_owned());
    let directory = lab.directory().to_owned();
    drop(lab);
    for name in names {
        assert!(netns::with_prefix(&name).is_empty(), "{name} is still there");
    }
    assert!(!directory.exists());
    Ok(())
}

/// Set in the process that makes a lab and waits to be ended.
const HOLD: &str = "EDGE_LAB_HOLD";

#[test]
fn an_interrupted_lab_is_removed() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Tunnel]) {
        return Ok(());
    }
    if env::var_os(HOLD).is_some() {
        let lab = Lab::plan().tunnel().build()?;
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        lab.home.spawn("sleep", sleep)?.wait(Duration::from_mins(10))?;
        return Ok(());
    }
    // Ctrl-C is for the lab to clean up after.
    let (mut child, prefix) = holder()?;
    child.signal(Signal::TERM)?;
    child.wait(SOON)?;
    ensure!(netns::with_prefix(&prefix).is_empty(), "SIGTERM left {:?}", netns::with_prefix(&prefix));

    // SIGKILL leaves no time for that; the next lab of another process does it.
    let (mut killed, prefix) = holder()?;
    killed.signal(Signal::KILL)?;
    killed.wait(SOON)?;
    ensure!(!netns::with_prefix(&prefix).is_empty(), "nothing was left by SIGKILL: the case proves nothing");
    let (mut next, _) = holder()?;
    ensure!(netns::with_prefix(&prefix).is_empty(), "the next lab left {:?}", netns::with_prefix(&prefix));
    next.signal(Signal::TERM)?;
    next.wait(SOON)?;
    Ok(())
}

/// This very case in a process of its own, with a lab that is up, and what the names of the lab begin with.
fn holder() -> Result<(Process, String)> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--exact", "lab_itself::an_interrupted_lab_is_removed"]).env(HOLD, "1");
    let mut process = Process::spawn("a process with a lab", command, "/dev/null".into())?;
    let prefix = format!("edge-lab-{}-", process.pid());
    process.wait_ready(SOON, || {
        netns::with_prefix(&prefix)
            .iter()
            .filter(|name| name.ends_with("-home"))
            .any(|name| netns::processes(name).iter().any(|pid| is_sleep(*pid)))
    })?;
    Ok((process, prefix))
}

fn is_sleep(pid: lab::Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}
