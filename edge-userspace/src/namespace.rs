//! A network namespace for a test.

#![forbid(unsafe_code)]

use std::{
    fs::File,
    os::fd::AsFd,
    process::{Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs a test on a thread and a runtime of its own within a new namespace. Skips it, saying why, where the
/// machine does not let us make one or a program is missing.
pub(crate) fn in_namespace(name: &str, needs: &[&str], test: impl AsyncFnOnce() + Send) {
    let name = format!("edge-{name}-{}", std::process::id());
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: making a network namespace needs root");
    }
    for program in needs.iter().chain(&["ip"]) {
        if Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            return println!("skipped: there is no {program}");
        }
    }
    if !Command::new("ip").args(["netns", "add", &name]).status().unwrap().success() {
        return println!("skipped: no network namespaces here");
    }
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{name}")).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        });
        inside.join()
    });
    Command::new("ip").args(["netns", "del", &name]).status().unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command in the thread's namespace.
pub(crate) fn sh(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}
