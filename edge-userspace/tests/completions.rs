//! Completions, tried with the shell itself where it is installed, and the manual pages.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{fs, path::Path, process::Command};

mod fake;
#[path = "fake/running.rs"]
mod running;

use running::Running;

const EDGECTL: &str = env!("CARGO_BIN_EXE_edgectl");

/// The words that bash offers for the last word of a line, by the installed script. The line names the daemon's socket first.
fn completed(line: &str) -> Vec<String> {
    let script = format!(
        "{}\nCOMP_LINE=$LINE COMP_POINT=${{#LINE}} COMP_TYPE=9\n\
         # As readline breaks words: at colons too.\n\
         spaced=${{LINE//:/ : }}; read -ra COMP_WORDS <<<\"$spaced\"\n\
         [[ $LINE == *' ' || $LINE == *: ]] && COMP_WORDS+=('')\n\
         COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))\n\
         function=$(complete -p edgectl | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
         $function edgectl \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script("bash", "edgectl")
    );
    let path = format!("{}:/usr/bin:/bin", Path::new(EDGECTL).parent().unwrap().display());
    let output =
        Command::new("bash").args(["-c", &script]).env("PATH", path).env("LINE", line).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn script(shell: &str, program: &str) -> String {
    let output = Command::new(EDGECTL).args(["completions", shell, program]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn edgectl(daemon: &Running, arguments: &[&str]) {
    let status =
        Command::new(EDGECTL).arg("--control").arg(daemon.socket()).args(arguments).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
}

#[test]
fn bash_completes_commands_and_what_the_daemon_has() {
    assert_eq!(completed("edgectl conn"), ["connections"]);
    assert_eq!(completed("edgectl routes add a.example 100.64.0.2 --proxy-protocol v"), ["v1", "v2"]);

    let daemon = Running::start();
    edgectl(&daemon, &["routes", "add", "cloud.example.com", "caddy"]);
    edgectl(&daemon, &["routes", "add", "*.example.org", "caddy"]);
    let live = |rest: &str| completed(&format!("edgectl --control {} {rest}", daemon.socket().display()));
    assert_eq!(live("routes remove cl"), ["cloud.example.com"]);
    assert_eq!(live("routes test ")[0], "cloud.example.com", "and the options behind it");
    assert!(!live("routes test ").contains(&"*.example.org".to_owned()), "nobody asks for a pattern");
    assert_eq!(live("routes remove *"), ["*.example.org"]);
    assert_eq!(live("backends drain 100"), ["100.64.0.2:443"]);
    assert_eq!(live("backends drain 100.64.0.2:443 --pool "), ["caddy"]);
    assert_eq!(live("routes add new.example cad"), ["caddy"]);
    assert_eq!(live("connections close ")[0], "7");
}

#[test]
fn bash_completes_the_port_behind_a_colon() {
    let daemon = Running::start();
    let line = format!("edgectl --control {} backends drain 100.64.0.2:", daemon.socket().display());
    assert_eq!(completed(&line), ["443"], "readline replaces what is behind the colon");
}

#[test]
fn without_a_daemon_there_is_nothing_to_offer_and_no_complaint() {
    assert_eq!(completed("edgectl --control /nowhere/control.sock backends drain 1"), [""; 1]);
}

#[test]
fn each_shell_has_a_script_for_each_program() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(script(shell, "edgectl").contains("EDGECTL_COMPLETE"), "{shell}");
        let edged = script(shell, "edged");
        assert!(edged.contains("uninstall") && edged.contains("config"), "{shell}: {edged}");
    }
}

#[test]
fn there_is_a_manual_page_for_each_command_that_man_can_show() {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(EDGECTL).arg("man").arg(folder.path()).status().unwrap();
    assert!(status.success());
    for page in ["edged.8", "edgectl.1", "edgectl-routes-add.1", "edgectl-completions.1"] {
        let text = fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    let page = fs::read_to_string(folder.path().join("edgectl-routes-remove.1")).unwrap();
    assert!(page.contains("End its live connections too"), "{page}");
}
