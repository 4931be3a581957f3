//! The name under which programs and maps are pinned: who finds it can tell whether to go on with them. Pure.

use sidescope_common::LAYOUT_VERSION;

use super::Settings;

/// Versions of [`LAYOUT_VERSION`] whose edges, records and counters this build can read.
const READABLE: [u32; 1] = [LAYOUT_VERSION];

/// The name of what this build would make with these settings, of programs with these bytes. Equal names mean equal programs and
/// equal maps. The BPF file system takes no names with a dot.
pub(super) fn name(settings: &Settings, object: &[u8]) -> String {
    let Settings { edges, ring_bytes, .. } = settings;
    format!("v{LAYOUT_VERSION}-e{edges}-r{ring_bytes}-{:016x}", hash(object))
}

/// What a folder is called until all is pinned in it.
pub(super) fn unfinished(name: &str) -> String {
    format!("{name}-new")
}

/// What a folder is called that stands in the way of a new one; there may be several.
pub(super) fn left(name: &str, number: u32) -> String {
    format!("{name}-left{number}")
}

/// Whether the maps in a folder of this name mean what they mean in this build.
pub(super) fn is_readable(name: &str) -> bool {
    let version = name.strip_prefix('v').and_then(|rest| rest.split('-').next());
    version.and_then(|version| version.parse().ok()).is_some_and(|version| READABLE.contains(&version))
}

/// FNV-1a: it need not withstand anyone, only tell builds apart.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_size_or_program_is_another_layout() {
        let defaults = Settings::default();
        let names = [
            name(&defaults, b"a"),
            name(&defaults, b"b"),
            name(&Settings { edges: 5, ..defaults.clone() }, b"a"),
            name(&Settings { ring_bytes: 4096, ..defaults.clone() }, b"a"),
        ];
        for (at, one) in names.iter().enumerate() {
            assert!(!names[at + 1..].contains(one), "{names:?}");
            assert!(!one.contains('.'), "the BPF file system takes no dots: {one}");
        }
        // Whom the proxy runs as is told to programs that run.
        assert_eq!(names[0], name(&Settings { proxy_uids: vec![5], ..defaults }, b"a"));
    }

    #[test]
    fn only_versions_that_this_build_knows_are_readable() {
        let own = name(&Settings::default(), b"a");
        for name in [&own, &unfinished(&own), &left(&unfinished(&own), 7)] {
            assert!(is_readable(name), "{name}");
        }
        for name in ["", "v", "v0-e1-r4096-0", "v999-e1-r4096-0", "other", "v1e"] {
            assert!(!is_readable(name), "{name}");
        }
    }
}
