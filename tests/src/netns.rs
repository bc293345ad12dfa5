//! One network namespace: created, entered by the calling thread, and removed with every process in it.
//!
//! Namespaces are named (`ip netns`), so that a person can look into a running lab. Processes are not started
//! with `ip netns exec`, which hides `/sys/fs/bpf` and `/sys/fs/cgroup` from them. A thread enters the
//! namespace instead, and the processes that it spawns inherit it.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Where `ip netns` keeps its namespaces.
const DIRECTORY: &str = "/run/netns";

/// A named network namespace. Dropping the value does not remove it; see [`remove`].
#[derive(Debug)]
pub struct NetNs {
    name: String,
    file: File,
}

impl NetNs {
    /// Makes a namespace with its loopback device up.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        let file = File::open(path(name)).with_context(|| format!("opening namespace {name}"))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` with the calling thread inside the namespace. Sockets, threads and processes that it
    /// creates stay there; the thread itself returns.
    pub fn within<T>(&self, action: impl FnOnce() -> T) -> Result<T> {
        struct Return(File);
        impl Drop for Return {
            fn drop(&mut self) {
                // A thread that cannot return would run the rest of the case in the wrong place.
                if let Err(error) = enter(&self.0) {
                    eprintln!("lab: cannot return to the network namespace of the process: {error}");
                    std::process::abort();
                }
            }
        }
        let outside = File::open("/proc/thread-self/ns/net").context("opening the thread's own namespace")?;
        enter(&self.file).with_context(|| format!("entering namespace {}", self.name))?;
        let _return = Return(outside);
        Ok(action())
    }
}

fn enter(namespace: &File) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}

/// The names of all namespaces that begin with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Kills all processes in the namespace of that name and removes it. Does nothing if it does not exist.
pub fn remove(name: &str) {
    if !path(name).exists() {
        return;
    }
    for process in processes(name) {
        let _ = kill_process(process, Signal::KILL);
    }
    if let Err(error) = ip(&["netns", "del", name]) {
        eprintln!("lab: {error:#}");
    }
}

/// The processes in the namespace of that name, without the calling one.
pub fn processes(name: &str) -> Vec<Pid> {
    let Ok(namespace) = fs::metadata(path(name)) else { return Vec::new() };
    let identity = (namespace.dev(), namespace.ino());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = rustix::process::getpid();
    entries
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)?;
            let theirs = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            (pid != own && (theirs.dev(), theirs.ino()) == identity).then_some(pid)
        })
        .collect()
}

/// Runs `ip` with these arguments.
pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("running ip (package iproute2)")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), complaint.trim());
    Ok(())
}
