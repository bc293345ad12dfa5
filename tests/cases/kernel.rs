//! The daemon without the kernel's help, and the state that it leaves in the kernel when it is killed.

use std::{net::TcpStream, path::Path, process::Command};

use lab::{
    Context, Edged, Lab, Result, ensure,
    hello::ClientHello,
    require::{self, Need, find},
    service, stream,
};

use crate::{case, echo_once, greeting};

const NAME: &str = "kernel.example";

fn body(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address())
}

#[test]
fn without_the_rights_for_bpf_it_serves_on_sockets() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let no_bpf = ["/usr/bin/setpriv", "--bounding-set=-bpf,-perfmon,-net_admin,-sys_admin"];
        let mut edged = Edged::plan(lab, &body(lab)).by(&no_bpf).start()?;
        ensure!(greeting(lab, NAME)? == "reached");
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["datapath"] == "copy" || record["datapath"] == "splice", "{record}");
        let log = edged.process().whole_log()?;
        ensure!(log.contains("CAP_BPF"), "the log does not say what is missing: {log}");
        Ok(())
    })
}

#[test]
fn bpftool_loads_every_object() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Program("bpftool", "bpftool")]) {
        return Ok(());
    }
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edge-userspace/bpf");
    let pins = format!("/sys/fs/bpf/edge-lab-{}", std::process::id());
    let bpftool = find("bpftool").context("no bpftool")?;
    let mut loaded = 0;
    for object in std::fs::read_dir(&objects)? {
        let object = object?.path();
        if object.extension().is_none_or(|extension| extension != "o") {
            continue;
        }
        let mut command = Command::new(&bpftool);
        let output = command.args(["prog", "loadall"]).arg(&object).arg(&pins).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Err(error) = std::fs::remove_dir_all(&pins)
            && output.status.success()
        {
            return Err(error).context(pins);
        }
        ensure!(output.status.success(), "{}: {said}", object.display());
        loaded += 1;
    }
    ensure!(loaded == 5, "{loaded} objects");
    Ok(())
}

#[test]
fn a_kill_leaves_nothing_of_the_connections_in_the_kernel() -> Result<()> {
    const CONNECTIONS: usize = 20;
    let connect = |lab: &Lab| -> Result<Vec<TcpStream>> {
        (0..CONNECTIONS)
            .map(|_| {
                let mut stream = lab.client.connect(lab.edge.at(443))?;
                echo_once(&mut stream, &ClientHello::new(NAME).records())?;
                Ok(stream)
            })
            .collect()
    };
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let start = || Edged::plan(lab, &body(lab)).daemon("datapath = \"sockmap\"").start();
        for _ in 0..2 {
            let edged = start()?;
            let mut streams = connect(lab)?;
            edged.edgectl().until(&["connections", "list"], |list| {
                let all = list.as_array().map_or(&[][..], Vec::as_slice);
                ensure!(all.len() == CONNECTIONS, "{} connections", all.len());
                ensure!(all.iter().all(|connection| connection["datapath"] == "sockmap"), "{list}");
                Ok(())
            })?;
            for stream in &mut streams {
                echo_once(stream, b"carried in the kernel")?;
            }
            edged.kill()?;
            // The sockets end with the daemon, and with them what was redirected.
            for stream in &mut streams {
                let (rest, _) = stream::read_to_end(stream)?;
                ensure!(rest.is_empty(), "{rest:?} came from a daemon that is dead");
            }
        }
        Ok(())
    })
}
