//! The container image: the static programs and nothing else, as an OCI archive that podman and Docker load.
//!
//! The layout is that of the OCI image specification 1.1. `manifest.json` beside it is for a Docker that
//! predates it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{PROGRAMS, Parts, Release, debian_name, digest, gzip, place, write};
use crate::{command::output, setup};

/// The user that the programs run as by default: an id that no user of the host has.
const USER: u32 = 65532;
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nedge:x:65532:65532:edge:/var/lib/edge:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nedge:x:65532:\n";
/// Folders that are this user's.
const FOLDERS: &[&str] = &["var/lib/edge", "run/edge"];

pub(super) fn make(release: &Release, parts: &Parts) -> Result<PathBuf> {
    let layout = release.folder(&format!("image-{}", parts.target))?;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (unpacked, layer) = layer(release, parts, &blobs)?;
    let config = configuration(release, parts, &unpacked)?;
    let config = blob(&blobs, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let manifest = blob(&blobs, &manifest, "application/vnd.oci.image.manifest.v1+json")?;
    // As compose.yaml names it: podman would add the host by itself, Docker would not.
    let tag = format!("localhost/edge:{}", release.version);
    let mut named = manifest;
    named["annotations"] = json!({
        "org.opencontainers.image.ref.name": release.version,
        "io.containerd.image.name": tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    });
    let path = |descriptor: &Value| {
        format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
    };
    let older = json!([{ "Config": path(&config), "RepoTags": [tag], "Layers": [path(&layer)] }]);
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("manifest.json"), older.to_string())?;
    fs::write(layout.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    let archive =
        release.directory.join(format!("edge-{}-{}.oci.tar", release.version, debian_name(parts.target)?));
    let _ = fs::remove_file(&archive);
    release.tar(&archive, &layout, 0, &["oci-layout", "index.json", "manifest.json", "blobs"])?;
    fs::remove_dir_all(&layout)?;
    Ok(archive)
}

/// The root file system: the digest of the layer before it is compressed, and the layer's descriptor.
fn layer(release: &Release, parts: &Parts, blobs: &Path) -> Result<(String, Value)> {
    let root = release.folder(&format!("image-{}-root", parts.target))?;
    for program in PROGRAMS {
        place(&parts.programs.join(program), &root.join("usr/bin").join(program), 0o755)?;
    }
    write(&root.join("etc/passwd"), PASSWD.as_bytes(), 0o644)?;
    write(&root.join("etc/group"), GROUP.as_bytes(), 0o644)?;
    let packaging = setup::root()?.join("packaging");
    place(&packaging.join("edge.toml"), &root.join("etc/edge/edge.toml"), 0o644)?;
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        place(&setup::root()?.join(licence), &root.join("usr/share/doc/edge").join(licence), 0o644)?;
    }
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    let tar = blobs.join("layer");
    release.tar(&tar, &root, 0, &["etc", "usr"])?;
    release.tar(&tar, &root, USER, FOLDERS)?;
    let unpacked = digest(&fs::read(&tar)?);
    let packed = gzip(&tar)?;
    let bytes = fs::read(&packed)?;
    let sum = digest(&bytes);
    fs::rename(&packed, blobs.join(&sum))?;
    fs::remove_dir_all(&root)?;
    Ok((unpacked, descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &sum, bytes.len())))
}

fn configuration(release: &Release, parts: &Parts, unpacked: &str) -> Result<Value> {
    let created = output(
        Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"]).arg(format!("@{}", release.time)),
    )?;
    let created = created.trim();
    Ok(json!({
        "created": created,
        "architecture": debian_name(parts.target)?,
        "os": "linux",
        "config": {
            "User": "edge",
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["edged"],
            "ExposedPorts": { "80/tcp": {}, "443/tcp": {} },
            "Volumes": { "/var/lib/edge": {} },
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "edge",
                "org.opencontainers.image.description": "SNI edge for a VPS in front of home",
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
                "org.opencontainers.image.version": release.version,
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{unpacked}")] },
        "history": [{ "created": created, "created_by": "cargo xtask dist" }],
    }))
}

/// Stores a JSON document under its digest and returns its descriptor.
fn blob(blobs: &Path, content: &Value, kind: &str) -> Result<Value> {
    let bytes = content.to_string();
    let sum = digest(bytes.as_bytes());
    fs::write(blobs.join(&sum), &bytes)?;
    Ok(descriptor(kind, &sum, bytes.len()))
}

fn descriptor(kind: &str, sum: &str, size: usize) -> Value {
    json!({ "mediaType": kind, "digest": format!("sha256:{sum}"), "size": size })
}
