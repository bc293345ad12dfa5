//! The software bill of materials: the crates that are linked into the programs of a target, with versions,
//! licences and checksums, in the format of `CycloneDX` 1.5.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Release;
use crate::{
    command::{cargo, output},
    setup,
};

/// The package of the programs.
const PROGRAMS: &str = "edge-userspace";

pub(super) fn make(release: &Release, target: &str) -> Result<PathBuf> {
    let metadata =
        output(cargo().args(["metadata", "--format-version=1", "--locked", "--filter-platform", target]))?;
    let lock = fs::read_to_string(setup::root()?.join("Cargo.lock"))?;
    let time = output(
        Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"]).arg(format!("@{}", release.time)),
    )?;
    let bill = bill(&serde_json::from_str(&metadata)?, &checksums(&lock), time.trim())?;
    let file = release.directory.join(format!("edge-{}-{target}.cdx.json", release.version));
    fs::write(&file, serde_json::to_string_pretty(&bill)? + "\n")?;
    Ok(file)
}

/// The bill from what `cargo metadata` knows.
fn bill(metadata: &Value, checksums: &BTreeMap<(&str, &str), &str>, time: &str) -> Result<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let by_id: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let linked = list(&node["deps"]).into_iter().filter(|dependency| {
                list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
            });
            (text(&node["id"]), linked.map(|dependency| text(&dependency["pkg"])).collect())
        })
        .collect();
    let programs = by_id.iter().find(|(_, package)| package["name"] == PROGRAMS);
    let (root, package) = programs.with_context(|| format!("cargo knows no package {PROGRAMS}"))?;
    let mut linked = BTreeSet::new();
    let mut open = vec![root.clone()];
    while let Some(id) = open.pop() {
        if linked.insert(id.clone()) {
            open.extend(nodes.get(&id).into_iter().flatten().cloned());
        }
    }
    let reference = |id: &String| {
        let package = &by_id[id];
        format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
    };
    let component = |id: &String| {
        let package = &by_id[id];
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let mut component = json!({
            "type": "library",
            "bom-ref": reference(id),
            "name": name,
            "version": version,
            "purl": reference(id),
        });
        if let Some(licence) = package["license"].as_str() {
            // Old crates separate alternatives by a slash.
            component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        if let Some(sum) = checksums.get(&(name.as_str(), version.as_str())) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        component
    };
    let dependencies = linked.iter().map(|id| {
        let on: BTreeSet<String> = nodes.get(id).into_iter().flatten().map(reference).collect();
        json!({ "ref": reference(id), "dependsOn": on })
    });
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": {
                "type": "application",
                "bom-ref": reference(root),
                "name": "edge",
                "version": package["version"],
                "purl": reference(root),
                "licenses": [{ "expression": package["license"] }],
            },
        },
        "components": linked.iter().filter(|id| *id != root).map(component).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}

/// Names and versions in a `Cargo.lock`, with the checksums of what was downloaded.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let of = |package: &'_ str, key: &str| -> Option<(usize, usize)> {
        let start = package.find(&format!("\n{key} = \""))? + key.len() + 5;
        Some((start, start + package[start..].find('"')?))
    };
    lock.split("\n[[package]]")
        .filter_map(|package| {
            let value = |key| of(package, key).map(|(start, end)| &package[start..end]);
            Some(((value("name")?, value("version")?), value("checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_has_what_is_linked_and_nothing_else() {
        let node = |id: &str, on: &[(&str, Value)]| {
            let on: Vec<_> =
                on.iter().map(|(id, kind)| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] })).collect();
            json!({ "id": id, "deps": on })
        };
        let package =
            |name: &str, licence| json!({ "id": name, "name": name, "version": "1.0.0", "license": licence });
        let metadata = json!({
            "packages": [package(PROGRAMS, "MIT"), package("a", "MIT/Apache-2.0"), package("b", "MIT"), package("test", "MIT")],
            "resolve": { "nodes": [
                node(PROGRAMS, &[("a", Value::Null), ("test", json!("dev"))]),
                node("a", &[("b", Value::Null), ("test", json!("build"))]),
                node("b", &[]),
                node("test", &[]),
            ]},
        });
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"x\"\nchecksum = \"abc\"\n\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\n";
        let bill = bill(&metadata, &checksums(lock), "2026-01-01T00:00:00Z").unwrap();
        let names: Vec<_> =
            bill["components"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "abc");
        assert_eq!(bill["dependencies"][0]["dependsOn"], json!(["pkg:cargo/b@1.0.0"]));
    }
}
