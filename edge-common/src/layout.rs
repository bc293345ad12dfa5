//! The layout of the pinned maps. A daemon takes over maps that were pinned with the same layout and meaning, and lets
//! others work on beside its own.

/// The version of the layout of all pinned maps. Raise it with any change of a type or its meaning, once a release has
/// had this layout, and teach `kernel/older` in `edge-userspace` to read the layout before.
pub const LAYOUT: u32 = 3;

/// The meaning of the pinned maps as one number: a fingerprint, computed at compile time, of the code that describes
/// them. Together with [`LAYOUT`] it names the directory of pins. A development build therefore does not take over the
/// maps of a different one, even if all sizes are equal and nobody has raised [`LAYOUT`] yet.
pub const MEANING: u32 = fingerprint(&[
    include_bytes!("flow.rs"),
    include_bytes!("flow/entry.rs"),
    include_bytes!("flow/event.rs"),
    include_bytes!("flow/handover.rs"),
    include_bytes!("flow/key.rs"),
    include_bytes!("flow/label.rs"),
    include_bytes!("shield.rs"),
]);

/// FNV-1a of the code in these files, folded to 32 bits. Comments, blanks and commas do not count, nor does anything
/// from the first `#[cfg(` on: promises to aya, and tests.
const fn fingerprint(files: &[&[u8]]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut file = 0;
    while file < files.len() {
        let code = files[file];
        let mut at = 0;
        while at < code.len() && !starts(code, at, b"#[cfg(") {
            if starts(code, at, b"//") {
                while at < code.len() && code[at] != b'\n' {
                    at += 1;
                }
                continue;
            }
            if !matches!(code[at], b' ' | b'\t' | b'\n' | b'\r' | b',') {
                hash = (hash ^ code[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            }
            at += 1;
        }
        file += 1;
    }
    #[expect(clippy::cast_possible_truncation, reason = "both halves count")]
    let folded = (hash ^ (hash >> 32)) as u32;
    folded
}

const fn starts(code: &[u8], at: usize, with: &[u8]) -> bool {
    let mut step = 0;
    while step < with.len() {
        if at + step >= code.len() || code[at + step] != with[step] {
            return false;
        }
        step += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    /// [`MEANING`] of this [`LAYOUT`].
    const RECORDED: u32 = 0xf34d_b186;

    #[test]
    fn a_change_of_meaning_raises_the_layout() {
        assert_eq!(
            format!("{MEANING:#010x}"),
            format!("{RECORDED:#010x}"),
            "the code that describes the pinned maps has changed. If a release has had layout {LAYOUT}, raise LAYOUT in \
             edge-common/src/layout.rs and add a module for the layout before to edge-userspace/src/kernel/older/, so \
             that its flows go on; empty ALIKE in edge-userspace/src/kernel/shield.rs if shield.rs has changed. Then \
             set RECORDED to the left one"
        );
    }

    #[test]
    fn words_and_form_do_not_count_and_code_does() {
        let plain = fingerprint(&[b"pub struct A { a: u32, b: u8 }"]);
        let other = b"// What it is.\npub struct A {\n    /// First.\n    a: u32,\n    b: u8,\n}\n#[cfg(test)]\nmod tests {}";
        assert_eq!(plain, fingerprint(&[other]));
        for changed in [&b"pub struct A { b: u8, a: u32 }"[..], b"pub struct A { a: u32, b: u16 }"] {
            assert_ne!(plain, fingerprint(&[changed]));
        }
    }
}
