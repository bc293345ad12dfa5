//! The group whose members use `edgectl` and read the access log without being root.

#![forbid(unsafe_code)]

use std::fs;

/// Its name.
pub const NAME: &str = "edge";

/// Its number; `None` where this machine has no such group.
pub fn edge() -> Option<u32> {
    number(&fs::read_to_string("/etc/group").ok()?, NAME)
}

/// How a user comes to use `edgectl`, where the group has this number or is not there.
pub fn how_to_join(group: Option<u32>) -> String {
    let join = format!("`usermod -aG {NAME} $USER`, then log in again");
    match group {
        Some(_) => format!("join the group `{NAME}` ({join})"),
        None => {
            format!(
                "make the group that may use it, which this machine lacks (`groupadd --system {NAME}`, restart edged, {join})"
            )
        }
    }
}

/// The number of a group in the text of group(5). The C library's lookup would need `unsafe` and, if linked
/// statically, would read no more than this file.
fn number(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_in_is_by_a_group_that_exists() {
        assert!(how_to_join(Some(998)).starts_with("join the group `edge`"));
        assert!(how_to_join(None).contains("groupadd --system edge"));
    }

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\nedgers:x:7:\nedge:x:998:alice,bob\nbroken\n";
        assert_eq!(number(groups, "edge"), Some(998));
        assert_eq!(number(groups, "broken"), None);
        assert_eq!(number(groups, "nobody"), None);
    }
}
