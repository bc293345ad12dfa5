//! The dashboard at the admin address: its changes by the token, on a daemon that has dropped its rights.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    metrics::ADMIN,
    require::{self, Need},
    service,
    wait::{self, SOON},
};

use crate::{case, echo_once};

const NAME: &str = "shown.example";
const TOKEN: &str = "a-token-of-the-lab-0123456789";

fn routes(lab: &Lab) -> String {
    let home = lab.home_address();
    format!(
        "[[pool]]\nname = \"home\"\nhealth = {{ kind = \"tcp\", interval = \"1s\" }}\n\
         [[pool.backend]]\nto = \"{home}:443\"\n[[pool.backend]]\nto = \"{home}:9\"\n\
         [[route]]\nhost = \"{NAME}\"\nto = \"home\"\n"
    )
}

/// A request to the admin address by curl, with these arguments: the status and the body.
fn curl(lab: &Lab, arguments: &[&str], path: &str) -> Result<(String, String)> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"]).args(arguments);
    command.arg(format!("http://127.0.0.1:9464{path}"));
    let answer = lab.edge.text_of(command)?;
    let (body, status) = answer.rsplit_once('\n').unwrap_or_default();
    Ok((status.to_owned(), body.to_owned()))
}

#[test]
fn the_token_of_the_file_closes_and_drains_and_nothing_else_does() -> Result<()> {
    if !require::all(&[Need::Program("curl", "curl")]) {
        return Ok(());
    }
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let file = lab.file("admin-token", format!("{TOKEN}\n"))?;
        // Root's alone: edged reads it before it becomes another user.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let key = format!("admin_token_file = \"{}\"", file.display());
        let edged = Edged::plan(lab, &routes(lab)).daemon(ADMIN).daemon(&key).start()?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut stream, &ClientHello::new(NAME).records())?;
        let id = edged.wait_for_connections(1)?[0]["id"].to_string();
        let path = format!("/connections/{id}");
        let bearer = format!("Authorization: Bearer {TOKEN}");
        for (arguments, expected) in [
            (&[][..], "401"),
            (&["-H", "Authorization: Bearer another-token-of-the-lab"], "401"),
            (&["-H", &bearer, "-H", "Origin: http://evil.example"], "403"),
            (&["-H", &bearer, "-H", "Host: evil.example"], "421"),
        ] {
            let arguments: Vec<_> = ["-X", "DELETE"].iter().chain(arguments).copied().collect();
            let (status, body) = curl(lab, &arguments, &path)?;
            ensure!(status == expected, "{arguments:?}: {status} {body}");
        }
        ensure!(edged.edgectl().list("connections")?.len() == 1);
        let (status, body) = curl(lab, &["-H", &bearer], "/connections.json")?;
        ensure!(status == "200" && body.contains(NAME), "{status} {body}");
        let (status, body) = curl(lab, &["-H", &bearer, "-X", "DELETE"], &path)?;
        ensure!(status == "200", "{status} {body}");
        wait::until_ok("the connection closed", SOON, || {
            ensure!(edged.edgectl().list("connections")?.is_empty());
            Ok(())
        })?;
        let drain = format!("/backends/drain?to={}", lab.home_at(443));
        let (status, body) = curl(lab, &["-H", &bearer, "-X", "POST"], &drain)?;
        ensure!(status == "200" && body.contains("drained"), "{status} {body}");
        ensure!(edged.edgectl().text(&["backends", "list"])?.contains("drained"));
        Ok(())
    })
}
