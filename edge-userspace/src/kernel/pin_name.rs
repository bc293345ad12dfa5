//! The names of link pins, by the number of the device: `device-7` and `device-7-ingress`.
//!
//! The name is not used. The BPF filesystem refuses names with a dot (`bpf_lookup`), as every VLAN has one;
//! two names may collide once they are escaped; and a link follows its device when that is renamed, while the
//! next device of that name needs a pin as well. An index has none of these problems. Only the kernel knows
//! which device a link is on ([`device_of`]), so pins of versions that used names, `link-eth0`, are found as
//! well.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::link_device::device_of;

/// Prefixes of link pins: the current one, and that of pins that contained the device's name.
const PREFIXES: [&str; 2] = ["device-", "link-"];

/// The pin of the link on this device; `hook` where there may be several.
pub(super) fn link(index: u32, hook: Option<&str>) -> String {
    let [prefix, _] = PREFIXES;
    match hook {
        Some(hook) => format!("{prefix}{index}-{hook}"),
        None => format!("{prefix}{index}"),
    }
}

/// A pinned link that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// The device that it is on; 0 where that is gone.
    pub(super) device: u32,
}

/// The links for `hook` that are pinned in a directory under either name; one that cannot be opened has no
/// device.
pub(super) fn links(directory: &Path, hook: Option<&str>) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_link(&name, hook) {
            let device = device_of(&path).unwrap_or(0);
            found.push(Found { path, device });
        }
    }
    Ok(found)
}

/// Removes the pins of links for `hook` whose device is gone, and renames those that an earlier version named
/// by the device.
pub(super) fn tidy(directory: &Path, hook: &str) -> io::Result<()> {
    for Found { path, device } in links(directory, Some(hook))? {
        let pin = directory.join(link(device, Some(hook)));
        if device == 0 {
            // Somebody may have removed it by hand.
            let _ = fs::remove_file(path);
        } else if path != pin {
            fs::rename(path, pin)?;
        }
    }
    Ok(())
}

fn is_link(name: &str, hook: Option<&str>) -> bool {
    let [now, before] = PREFIXES;
    match (name.strip_prefix(now), name.strip_prefix(before), hook) {
        (Some(_), _, None) | (_, Some(_), None) => true,
        (Some(rest), _, Some(hook)) => rest.strip_suffix(hook).is_some_and(|rest| rest.ends_with('-')),
        (_, Some(rest), Some(hook)) => rest.strip_prefix(hook).is_some_and(|rest| rest.starts_with('-')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_nothing_that_the_filesystem_refuses_and_differ() {
        let names = [link(7, None), link(7, Some("ingress")), link(7, Some("egress")), link(70, None)];
        assert_eq!(names, ["device-7", "device-7-ingress", "device-7-egress", "device-70"]);
    }

    #[test]
    fn links_of_a_hook_are_known_by_both_names() {
        for (name, hook, expected) in [
            ("device-7-ingress", Some("ingress"), true),
            ("device-7-egress", Some("ingress"), false),
            ("link-ingress-eth0", Some("ingress"), true),
            ("link-ingress-egress", Some("egress"), false),
            ("link-eth0", None, true),
            ("device-7", None, true),
            ("FLOWS", Some("ingress"), false),
            ("BLOCKS", None, false),
        ] {
            assert_eq!(is_link(name, hook), expected, "{name}");
        }
    }
}
