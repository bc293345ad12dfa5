//! `cargo xtask build-ebpf`: compiles `edge-ebpf` to the objects committed under `edge-userspace/bpf`.
//!
//! Everything that changes a byte of an object is pinned here, so that `--check` on any machine detects a
//! stale object. `edge::kernel` loads the objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use object::{
    Object as _, ObjectSection as _,
    build::elf::{Builder, SectionData},
    elf::{SHT_STRTAB, STV_HIDDEN},
};
use sha2::{Digest as _, Sha256};

/// The stable tool-chain whose `core` is rebuilt for the BPF target.
const TOOLCHAIN: &str = "1.95.0";
/// The last linker that carries its own LLVM of the tool-chain's version.
const BPF_LINKER: &str = "0.10.4";
const PACKAGE: &str = "edge-ebpf";
/// The binary that is built with the feature `trace` as well, for the tracing object of each program that has one.
const TRACED: [(&str, &str); 2] = [("flow-trace", "flow"), ("shield", "shield")];
const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: &str = "edge-userspace/bpf";
const SUMS: &str = "SHA256SUMS";

#[derive(Args)]
pub(crate) struct BuildEbpf {
    /// Write nothing; fail unless the committed objects equal a fresh build byte for byte.
    #[arg(long)]
    pub(crate) check: bool,
}

impl BuildEbpf {
    pub(crate) fn run(&self) -> Result<()> {
        let root = workspace_root()?;
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let rust_src = rust_src()?;
        let linker_path = linker_path(&target)?;
        let programs = programs(&root)?;
        let built = target.join("bpf");
        let ordinary: Vec<_> =
            programs.iter().map(|program| (&**program, format!("{program}.bpf.o"))).collect();
        let traced = TRACED.map(|(binary, program)| (binary, format!("{program}.trace.bpf.o")));

        let mut objects = BTreeMap::new();
        for (features, wanted) in [("programs", &*ordinary), ("programs,trace", &traced)] {
            let binaries: Vec<_> = wanted.iter().map(|(binary, _)| *binary).collect();
            compile(&root, &built, &rust_src, &linker_path, &binaries, features)?;
            for (binary, name) in wanted {
                let path = built.join(TARGET).join("release").join(binary);
                let linked = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                let object = strip(&linked, name.ends_with(".trace.bpf.o"))
                    .with_context(|| format!("stripping {}", path.display()))?;
                objects.insert(name.clone(), object);
            }
        }
        let directory = root.join(OBJECTS);
        if !self.check {
            return write(&directory, &objects);
        }
        let compared = compare(&directory, &objects);
        if compared.is_err() {
            // The next check builds them from nothing.
            fs::remove_dir_all(&built).with_context(|| format!("removing {}", built.display()))?;
        }
        compared
    }
}

fn workspace_root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?.to_owned())
}

/// The sources of `core`, installed with the pinned tool-chain if need be.
fn rust_src() -> Result<PathBuf> {
    let find = || -> Option<PathBuf> {
        let sysroot =
            output(Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "--print", "sysroot"])).ok()?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        source.join("library/core").exists().then_some(source)
    };
    if let Some(source) = find() {
        return Ok(source);
    }
    let mut install = Command::new("rustup");
    let has_toolchain = output(Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "--version"])).is_ok();
    if has_toolchain {
        // Installing it again would take it apart under everybody who is compiling with it.
        install.args(["component", "add", "rust-src", "--toolchain", TOOLCHAIN]);
    } else {
        install.args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal", "--component", "rust-src"]);
    }
    run(&mut install).context("installing rust-src; rustup is needed (https://rustup.rs)")?;
    find().with_context(|| format!("rustup installed {TOOLCHAIN}, but its rust-src is not there"))
}

/// `PATH` with the pinned bpf-linker first. A linker of another version is left alone, and ours is installed
/// below the target directory.
fn linker_path(target: &Path) -> Result<std::ffi::OsString> {
    let pinned = |program: &Path| {
        output(Command::new(program).arg("--version"))
            .is_ok_and(|version| version.split_whitespace().last() == Some(BPF_LINKER))
    };
    let path = env::var_os("PATH").unwrap_or_default();
    if pinned(Path::new("bpf-linker")) {
        return Ok(path);
    }
    let tools = target.join("tools");
    let bin = tools.join("bin");
    if !pinned(&bin.join("bpf-linker")) {
        let install = |more: &[&str]| {
            let mut install = Command::new("rustup");
            install.args(["run", TOOLCHAIN, "cargo", "install", "--locked", "--force", "--root"]).arg(&tools);
            install.args(more).arg(format!("bpf-linker@{BPF_LINKER}"));
            without_caller_settings(&mut install);
            run(&mut install)
        };
        // Without the registry, which may be out of reach, if this machine has installed it before.
        install(&["--offline"])
            .or_else(|_| install(&[]))
            .with_context(|| format!("installing bpf-linker {BPF_LINKER}"))?;
    }
    Ok(env::join_paths(std::iter::once(bin).chain(env::split_paths(&path)))?)
}

/// The binaries of `edge-ebpf`: one a program, without those that only the tracing objects need.
fn programs(root: &Path) -> Result<Vec<String>> {
    let metadata = output(
        Command::new("cargo").args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(root),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let programs: Vec<String> = list(&metadata["packages"])
        .iter()
        .filter(|package| package["name"] == PACKAGE)
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| target["kind"][0] == "bin")
        .filter(|target| !list(&target["required-features"]).iter().any(|feature| feature == "trace"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    ensure!(!programs.is_empty(), "{PACKAGE} has no programs");
    Ok(programs)
}

fn compile(
    root: &Path,
    built: &Path,
    rust_src: &Path,
    linker_path: &std::ffi::OsStr,
    programs: &[&str],
    features: &str,
) -> Result<()> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo")
        }
    };
    // Paths end up in the line information beside the BTF: name them the same on every machine.
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        // Programs here read no registers of another architecture: one object serves every host.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        remap(root, "/edge"),
        remap(&cargo_home.join("registry/src"), "/cargo"),
        remap(rust_src, "/rust"),
    ];
    let mut cargo = Command::new("rustup");
    cargo
        .args(["run", TOOLCHAIN, "cargo", "build", "--locked", "--release", "--package", PACKAGE])
        .args(["--target", TARGET, "-Zbuild-std=core", "--features", features, "--target-dir"])
        .arg(built)
        .current_dir(root);
    for program in programs {
        cargo.args(["--bin", program]);
    }
    without_caller_settings(&mut cargo);
    // build-std is the one unstable option needed; the permission ends with this child.
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("PATH", linker_path);
    run(&mut cargo)
}

/// Settings of the calling cargo or shell must not reach the bytes of an object.
fn without_caller_settings(command: &mut Command) {
    let foreign = ["RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"];
    for name in
        foreign.into_iter().chain(["CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"])
    {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            command.env_remove(name);
        }
    }
}

/// Removes DWARF and keeps `.BTF` and `.BTF.ext`, as `llvm-strip -g` does; refuses objects that libbpf would
/// refuse.
fn strip(linked: &[u8], is_traced: bool) -> Result<Vec<u8>> {
    let mut elf = Builder::read(linked)?;
    let mut has_btf = false;
    let mut dead = Vec::new();
    for section in &mut elf.sections {
        let name = section.name.as_slice();
        has_btf |= name == b".BTF";
        ensure!(name != b"maps", "a legacy `maps` section: declare maps with #[btf_map]");
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            section.delete = true;
            dead.push(section.id());
        }
    }
    ensure!(has_btf, "no .BTF section");
    for symbol in &mut elf.symbols {
        // The kernel verifies a global function by its type and refuses one that returns a pointer. libbpf makes hidden
        // functions static; aya does so with these names. The ordinary programs do not call them.
        if is_traced && [b"memset", b"memcpy"].iter().any(|name| symbol.name.as_slice() == *name) {
            symbol.st_other = STV_HIDDEN;
        }
        if symbol.section.is_some_and(|section| dead.contains(&section)) {
            symbol.delete = true;
        }
    }
    // LLVM's BPF backend shares one .strtab for sections and symbols; the writer wants one of each.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    elf.delete_orphans();
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}

/// In the format that `sha256sum --check` reads.
fn sums(objects: &BTreeMap<String, Vec<u8>>) -> String {
    let line = |(name, object): (&String, &Vec<u8>)| format!("{:x}  {name}\n", Sha256::digest(object));
    objects.iter().map(line).collect()
}

fn write(directory: &Path, objects: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    fs::create_dir_all(directory)?;
    for (name, object) in objects {
        fs::write(directory.join(name), object)?;
    }
    for stray in committed(directory)?.iter().filter(|name| !objects.contains_key(*name)) {
        fs::remove_file(directory.join(stray))?;
    }
    fs::write(directory.join(SUMS), sums(objects))?;
    for (name, object) in objects {
        eprintln!("{OBJECTS}/{name}: {} bytes", object.len());
    }
    Ok(())
}

fn compare(directory: &Path, objects: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, object) in objects {
        match fs::read(directory.join(name)) {
            Ok(found) if found == *object => {}
            Ok(found) => wrong.push(format!("{name} is stale in {}", differences(&found, object))),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    for stray in committed(directory)?.iter().filter(|name| !objects.contains_key(*name)) {
        wrong.push(format!("{stray} belongs to no program"));
    }
    if fs::read_to_string(directory.join(SUMS)).ok() != Some(sums(objects)) {
        wrong.push(format!("{SUMS} does not match"));
    }
    if wrong.is_empty() {
        eprintln!("{} objects in {OBJECTS} equal a fresh build", objects.len());
        return Ok(());
    }
    bail!("{OBJECTS}: {}; run `cargo xtask build-ebpf` and commit the result", wrong.join(", "))
}

/// The sections in which two objects differ, or that only one of them has.
fn differences(committed: &[u8], built: &[u8]) -> String {
    let sections = |bytes: &[u8]| -> Option<BTreeMap<String, Vec<u8>>> {
        let elf = object::File::parse(bytes).ok()?;
        let section = |section: object::Section<'_, '_>| {
            Some((section.name().ok()?.to_owned(), section.data().ok()?.to_vec()))
        };
        Some(elf.sections().filter_map(section).collect())
    };
    let (Some(committed), Some(built)) = (sections(committed), sections(built)) else {
        return "all of it: it is no object".into();
    };
    let names: BTreeSet<_> = committed.keys().chain(built.keys()).collect();
    let other: Vec<_> = names
        .into_iter()
        .filter(|name| committed.get(*name) != built.get(*name))
        .map(String::as_str)
        .collect();
    if other.is_empty() { "its headers".into() } else { other.join(" ") }
}

/// The names of the objects that are there.
fn committed(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".bpf.o") {
            names.push(name);
        }
    }
    Ok(names)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let status = output.status;
    ensure!(status.success(), "{command:?} ended with {status}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
