//! `install.sh` against a server on loopback that has a small release, a damaged one, or cuts what it sends.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use crate::{dist::digest, setup};

/// A folder of a test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("edge-install-{}-{number}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The files of a server, by name.
type Files = BTreeMap<String, Vec<u8>>;

fn archive_name() -> String {
    format!("edge-9.9.9-{}-unknown-linux-musl.tar.gz", env::consts::ARCH)
}

/// A release whose programs are scripts that say its name.
fn release(name: &str) -> Files {
    let folder = Folder::new();
    let tree = folder.0.join(archive_name().trim_end_matches(".tar.gz"));
    let write = |path: &str, text: &str| super::write(&tree.join(path), text.as_bytes(), 0o644).unwrap();
    write("edged", &format!("#!/bin/sh\necho edged {name}\n"));
    write("edgectl", &format!("#!/bin/sh\necho edgectl {name}\n"));
    write("man/edged.8", ".TH edged 8\n");
    write("man/edgectl.1", ".TH edgectl 1\n");
    write("completions/edgectl.bash", "complete edgectl\n");
    for file in ["edge.toml", "edge.sysusers", "edge.sysctl.conf", "edged.service"] {
        let packaged = setup::root().unwrap().join("packaging").join(file);
        write(&format!("packaging/{file}"), &fs::read_to_string(packaged).unwrap());
    }
    let archive = folder.0.join(archive_name());
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&folder.0).arg("-czf").arg(&archive).arg(tree.file_name().unwrap());
    assert!(tar.status().unwrap().success());
    let archive = fs::read(&archive).unwrap();
    let sums = format!("{}  {}\n{}  edge_9.9.9-1_mips.deb\n", digest(&archive), archive_name(), digest(b""));
    Files::from([(archive_name(), archive), ("SHA256SUMS".to_owned(), sums.into_bytes())])
}

/// Serves files over HTTP for the rest of the test's process. Sends half of the one named `cut`.
fn serve(files: Files, cut: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut request = String::new();
            stream.read_line(&mut request).unwrap();
            let mut line = String::from("x");
            while !line.trim().is_empty() {
                line.clear();
                stream.read_line(&mut line).unwrap();
            }
            let path = request.split(' ').nth(1).unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default();
            let mut stream = stream.into_inner();
            // A client that has seen enough closes; that is its right.
            let _ = match files.get(name) {
                None => stream.write_all(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
                Some(file) => {
                    let whole = cut.is_none_or(|cut| !name.ends_with(cut));
                    let sent = if whole { &file[..] } else { &file[..file.len() / 2] };
                    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", file.len())
                        .and_then(|()| stream.write_all(sent))
                }
            };
        }
    });
    address
}

struct Ran {
    good: bool,
    said: String,
}

/// Runs the script with `root` as the machine.
fn install(script: &Path, server: Option<SocketAddr>, root: &Path) -> Ran {
    let mut command = Command::new("sh");
    command.arg(script).env("EDGE_ROOT", root).env_remove("EDGE_URL");
    if let Some(server) = server {
        command.env("EDGE_URL", format!("http://{server}/releases/9.9.9"));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ran { good: output.status.success(), said }
}

fn script() -> PathBuf {
    setup::root().unwrap().join("packaging/install.sh")
}

/// Everything below a folder.
fn content(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_release_is_installed_and_upgraded_and_the_configuration_stays() {
    let root = Folder::new();
    let at = |path: &str| root.0.join(path);
    let ran = install(&script(), Some(serve(release("first"), None)), &root.0);
    assert!(ran.good, "{}", ran.said);
    assert!(ran.said.contains("write a route to /etc/edge/edge.toml"), "{}", ran.said);
    for file in [
        "etc/systemd/system/edged.service",
        "etc/sysusers.d/edge.conf",
        "etc/sysctl.d/edge.conf",
        "usr/local/bin/edgectl",
        "usr/local/share/man/man8/edged.8",
        "usr/local/share/man/man1/edgectl.1",
        "usr/local/share/bash-completion/completions/edgectl",
    ] {
        assert!(at(file).is_file(), "{file} is missing");
    }

    fs::write(at("etc/edge/edge.toml"), "# mine\n").unwrap();
    for name in ["second", "second"] {
        let ran = install(&script(), Some(serve(release(name), None)), &root.0);
        assert!(ran.good, "{}", ran.said);
        let said = Command::new(at("usr/local/bin/edged")).output().unwrap().stdout;
        assert_eq!(String::from_utf8(said).unwrap(), format!("edged {name}\n"));
        assert_eq!(fs::read_to_string(at("etc/edge/edge.toml")).unwrap(), "# mine\n");
    }
}

#[test]
fn on_debian_apt_gets_the_package_and_keeps_the_configuration() {
    let folder = Folder::new();
    // In place of the machine's own, which would install it.
    let fake = |name: &str, script: &str| {
        super::write(&folder.0.join(name), format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755).unwrap();
    };
    let asked = folder.0.join("asked");
    fake("apt-get", &format!("echo \"$*\" >{0}; for last; do :; done; cat \"$last\" >>{0}", asked.display()));
    fake("dpkg", "exit 1");
    fake("id", "echo 0");
    let architecture = if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let package = format!("edge_9.9.9-1_{architecture}.deb");
    let install = |content: &str, sum: &str| {
        let files = Files::from([
            (package.clone(), content.as_bytes().to_owned()),
            ("SHA256SUMS".to_owned(), format!("{sum}  {package}\n").into_bytes()),
        ]);
        let path = format!("{}:{}", folder.0.display(), env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.arg(script()).env("PATH", path).env_remove("EDGE_ROOT");
        command.env("EDGE_URL", format!("http://{}", serve(files, None))).output().unwrap()
    };
    let output = install("another package", &digest(b"the package"));
    assert!(!output.status.success() && !asked.exists(), "{output:?}");
    let output = install("the package", &digest(b"the package"));
    assert!(output.status.success(), "{output:?}");
    let asked = fs::read_to_string(&asked).unwrap();
    assert!(asked.starts_with("install --yes") && asked.contains("--force-confold"), "{asked}");
    assert!(asked.ends_with("the package"), "apt was given {asked}");
}

#[test]
fn what_is_damaged_on_its_way_is_refused_and_changes_nothing() {
    let mut damaged = release("damaged");
    damaged.get_mut(&archive_name()).unwrap()[100] ^= 1;
    let mut without_sums = release("without sums");
    without_sums.remove("SHA256SUMS");
    let mut foreign = release("foreign");
    foreign.insert("SHA256SUMS".to_owned(), format!("{}  edge.zip\n", digest(b"")).into_bytes());
    let faults = [
        ("a wrong checksum", serve(damaged, None), "the checksum of edge-9.9.9"),
        ("a cut archive", serve(release("cut"), Some(".tar.gz")), "downloading http"),
        ("cut checksums", serve(release("cut"), Some("SHA256SUMS")), "downloading http"),
        ("no checksums", serve(without_sums, None), "SHA256SUMS failed"),
        ("another project", serve(foreign, None), "names no file"),
    ];
    for (fault, server, says) in faults {
        let root = Folder::new();
        let ran = install(&script(), Some(server), &root.0);
        assert!(!ran.good && ran.said.contains(says), "{fault}: {}", ran.said);
        assert!(content(&root.0).is_empty(), "{fault}: {:?}", content(&root.0));
    }
}

#[test]
fn a_copy_without_an_address_asks_for_one_and_a_cut_copy_does_nothing() {
    let root = Folder::new();
    let ran = install(&script(), None, &root.0);
    assert!(!ran.good && ran.said.contains("set EDGE_URL"), "{}", ran.said);

    let whole = fs::read_to_string(script()).unwrap();
    let server = serve(release("first"), None);
    for share in [3, 2] {
        let cut = root.0.join("cut.sh");
        fs::write(&cut, &whole[..whole.len() - whole.len() / share]).unwrap();
        install(&cut, Some(server), &root.0.join("machine"));
        assert!(!root.0.join("machine").exists());
    }
}

#[test]
fn shellcheck_finds_nothing() {
    let packaging = setup::root().unwrap().join("packaging");
    let scripts = ["install.sh", "deb/postinst", "deb/prerm", "deb/postrm"];
    match Command::new("shellcheck").args(scripts.map(|script| packaging.join(script))).output() {
        Ok(found) => assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout)),
        Err(error) => eprintln!("skipped: shellcheck: {error}"),
    }
}
