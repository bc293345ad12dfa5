//! The first configuration of a machine: what `edgectl init` writes, and what `edgectl import` translates.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use lab::{
    Context, Lab, Result,
    edged::{check, program},
    ensure,
    require::{self, Need},
    topology::TUNNEL_HOME,
};

use crate::case;

fn edgectl(lab: &Lab, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("edgectl")?);
    command.args(arguments);
    lab.edge.output(command)
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[test]
fn init_finds_home_behind_the_tunnel_and_replaces_nothing() -> Result<()> {
    if !require::all(&[Need::Namespaces]) {
        return Ok(());
    }
    Lab::plan().tunnel().case(|lab| {
        let file = lab.directory().join("first/edge.toml");
        let path = file.to_str().context("a path that is no text")?;
        let printed = edgectl(lab, &["init", "--yes", "--print", "--config", path])?;
        let said = String::from_utf8(printed.stdout)?;
        ensure!(printed.status.success(), "{said}{}", String::from_utf8_lossy(&printed.stderr));
        ensure!(said.contains("WireGuard") && said.contains(&format!("to = \"{TUNNEL_HOME}\"")), "{said}");
        ensure!(!file.exists(), "--print wrote a file");

        // The file of the package has only comments.
        fs::create_dir_all(file.parent().context("no directory")?)?;
        fs::write(&file, "# comments\n")?;
        let done = edgectl(lab, &["init", "--yes", "--host", ".init.example", "--config", path])?;
        let said = String::from_utf8(done.stdout)?;
        ensure!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
        let written = text(&file)?;
        ensure!(written.contains("host = [\"init.example\", \"*.init.example\"]"), "{written}");
        ensure!(written.contains(&format!("to = \"{TUNNEL_HOME}\"")), "{written}");
        for part in ["wrote", "edged --config", "*.init.example", "DNS records"] {
            ensure!(said.contains(part), "{part:?} is not in {said}");
        }
        let checked = check(&lab.edge, &written)?;
        ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

        let again = edgectl(lab, &["init", "--yes", "--to", "192.0.2.9", "--config", path])?;
        let complaint = String::from_utf8(again.stderr)?;
        ensure!(again.status.code() == Some(1) && complaint.contains("--force"), "{complaint}");
        ensure!(text(&file)? == written, "a file with settings was replaced");
        let forced = edgectl(lab, &["init", "--yes", "--force", "--to", "192.0.2.9", "--config", path])?;
        ensure!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
        ensure!(text(&file)?.contains("192.0.2.9"), "--force replaced nothing");
        ensure!(text(&file.with_extension("toml.old"))? == written, "the old file is not beside it");
        Ok(())
    })
}

#[test]
fn init_names_who_has_the_ports_and_asks_for_home_where_no_tunnel_is() -> Result<()> {
    case(|lab| {
        let _taken = lab.edge.listen(lab.edge.at(80))?;
        let file = lab.directory().join("second.toml");
        let path = file.to_str().context("a path that is no text")?;
        let refused = edgectl(lab, &["init", "--yes", "--config", path])?;
        let complaint = String::from_utf8(refused.stderr)?;
        ensure!(refused.status.code() == Some(2) && complaint.contains("--to"), "{complaint}");
        let found = String::from_utf8(refused.stdout)?;
        ensure!(found.contains("port 80") && found.contains("taken by"), "{found}");
        ensure!(!file.exists(), "a file was written without an answer");
        let json = edgectl(lab, &["init", "--json", "--to", "192.0.2.9", "--config", path])?;
        let report: serde_json::Value = serde_json::from_slice(&json.stdout)?;
        ensure!(report["written"] == true && report["found"]["taken"][0]["port"] == 80, "{report}");
        Ok(())
    })
}

#[test]
fn edged_accepts_what_import_makes() -> Result<()> {
    case(|lab| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edge-userspace/tests/import");
        for (folder, file) in [
            ("haproxy-sni", "haproxy.cfg"),
            ("nginx-stream", "stream.conf"),
            ("sniproxy-tables", "sniproxy.conf"),
            ("traefik-compose", "compose.yaml"),
        ] {
            let path = fixtures.join(folder).join(file);
            let imported = edgectl(lab, &["import", path.to_str().context("a path that is no text")?])?;
            let lost = String::from_utf8(imported.stderr)?;
            ensure!(imported.status.success(), "{folder}: {lost}");
            ensure!(lost.contains(&format!("{file}:")), "{folder}: nothing is said to be lost: {lost}");
            let checked = check(&lab.edge, std::str::from_utf8(&imported.stdout)?)?;
            ensure!(checked.status.success(), "{folder}: {}", String::from_utf8_lossy(&checked.stderr));
        }
        Ok(())
    })
}
