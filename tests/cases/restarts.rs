//! The daemon is killed, starts again, and finds its state whole, torn or broken.

use std::{fs, path::PathBuf};

use lab::{Edged, Lab, Result, ensure, service, wait::SOON};

use crate::{case, greeting};

fn body(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"file.example\"\nto = \"{}\"\n", lab.home_address())
}

/// A daemon that had routes added and was killed with SIGKILL; gives the files of its state.
fn killed_with_routes(lab: &Lab, count: usize) -> Result<Vec<PathBuf>> {
    let edged = Edged::start(lab, &body(lab))?;
    let to = lab.home_at(1001).to_string();
    for index in 0..count {
        edged.edgectl().text(&["routes", "add", &format!("r{index}.example"), &to])?;
    }
    let state = edged.state().to_owned();
    edged.kill()?;
    let mut files: Vec<PathBuf> = fs::read_dir(state)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("state.toml"))
        .collect();
    files.sort();
    Ok(files)
}

#[test]
fn routes_survive_a_kill_at_once_after_the_answer() -> Result<()> {
    case(|lab| {
        let _added = service::named(&lab.home, lab.home_at(1001), "added")?;
        for round in 1..=3 {
            killed_with_routes(lab, round)?;
            let edged = Edged::start(lab, &body(lab))?;
            for index in 0..round {
                ensure!(greeting(lab, &format!("r{index}.example"))? == "added", "r{index} in round {round}");
            }
            for index in 0..round {
                edged.edgectl().text(&["routes", "remove", &format!("r{index}.example")])?;
            }
            edged.kill()?;
            let edged = Edged::start(lab, &body(lab))?;
            ensure!(edged.edgectl().list("routes")?.len() == 1, "a removed route came back");
        }
        Ok(())
    })
}

#[test]
fn drained_backends_survive_too() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "x")?;
        let edged = Edged::start(lab, &body(lab))?;
        let to = lab.home_address().to_string();
        edged.edgectl().text(&["backends", "drain", &to])?;
        edged.kill()?;
        let edged = Edged::start(lab, &body(lab))?;
        let backends = edged.edgectl().list("backends")?;
        ensure!(backends.iter().any(|backend| backend["state"] == "drained"), "{backends:?}");
        Ok(())
    })
}

#[test]
fn a_torn_state_file_loses_nothing() -> Result<()> {
    case(|lab| {
        let _added = service::named(&lab.home, lab.home_at(1001), "added")?;
        let files = killed_with_routes(lab, 2)?;
        let file = files.first().ok_or_else(|| lab::Error::msg("no state file"))?;
        let whole = fs::read(file)?;
        fs::write(file, &whole[..whole.len() / 2])?;
        let mut edged = Edged::start(lab, &body(lab))?;
        ensure!(greeting(lab, "r0.example")? == "added" && greeting(lab, "r1.example")? == "added");
        let log = edged.process().whole_log()?;
        ensure!(log.contains("was damaged"), "the log does not tell of the damage: {log}");
        let kept = fs::read_dir(edged.state())?
            .filter_map(|entry| fs::read(entry.ok()?.path()).ok())
            .any(|content| content == whole[..whole.len() / 2]);
        ensure!(kept, "the damaged file was not kept");
        Ok(())
    })
}

#[test]
fn a_state_that_is_broken_by_hand_stops_the_start_and_stays() -> Result<()> {
    case(|lab| {
        let files = killed_with_routes(lab, 2)?;
        for file in &files {
            fs::write(file, "[[route]]\nhost = \"half\n")?;
        }
        let mut process = Edged::plan(lab, &body(lab)).spawn()?;
        let status = process.wait(SOON)?;
        let log = process.whole_log()?;
        ensure!(!status.success(), "it started with a broken state: {log}");
        ensure!(log.contains("state.toml") && log.contains("mend"), "{log}");
        for file in &files {
            ensure!(fs::read_to_string(file)?.contains("half"), "{} was changed", file.display());
        }
        Ok(())
    })
}

#[test]
fn two_daemons_do_not_share_a_state() -> Result<()> {
    case(|lab| {
        let edged = Edged::start(lab, &body(lab))?;
        let mut second = Edged::plan(lab, &body(lab)).spawn()?;
        let status = second.wait(SOON)?;
        let log = second.whole_log()?;
        ensure!(!status.success(), "a second daemon runs: {log}");
        // The first one is untouched, its control socket included.
        edged.edgectl().json(&["status"])?;
        Ok(())
    })
}
