//! How the uids of a user namespace are those of the machine: `/proc/PID/uid_map`, as the initial user namespace shows it. Pure.

use serde::{Deserialize, Serialize};

/// Most extents that the kernel takes of one namespace.
pub const MAX_EXTENTS: usize = 340;
/// Kubernetes gives pods with user namespaces of their own uids from here on; those below are the node's and the other pods'.
/// Whoever makes a namespace chooses its map, so one that leads below is not believed: it would hide what others do.
pub const FIRST_OF_PODS: u32 = 1 << 16;

/// The kubelet gives each pod at least so many uids. To map so many takes rights that a pod does not have; to map one of its own takes
/// none.
pub const COUNT_OF_POD: u64 = 1 << 16;

/// A run of uids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The first of them inside the namespace.
    pub inside: u32,
    /// The same outside, on the machine.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl Extent {
    fn is_valid(&self) -> bool {
        // The last number of all is no uid: the kernel shows it for what the reader's own namespace does not map.
        let fits = |first: u32| first.checked_add(self.count).is_some();
        self.count > 0 && fits(self.inside) && fits(self.outside)
    }
}

/// The uids of one user namespace; none where nobody has said yet which they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Extent>")]
pub struct UidMap(Vec<Extent>);

/// What is no map of uids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the map of uids makes no sense: it holds at most {MAX_EXTENTS} lines of three numbers")]
pub struct Malformed;

impl TryFrom<Vec<Extent>> for UidMap {
    type Error = Malformed;

    fn try_from(extents: Vec<Extent>) -> Result<Self, Malformed> {
        let valid = extents.len() <= MAX_EXTENTS && extents.iter().all(Extent::is_valid);
        if valid { Ok(Self(extents)) } else { Err(Malformed) }
    }
}

impl UidMap {
    /// Reads what the kernel shows.
    ///
    /// # Errors
    /// When it is not what the kernel writes there.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let extent = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let extent = Extent {
                inside: numbers.next()?.ok()?,
                outside: numbers.next()?.ok()?,
                count: numbers.next()?.ok()?,
            };
            numbers.next().is_none().then_some(extent)
        };
        let lines = text.lines().take(MAX_EXTENTS + 1);
        lines.map(extent).collect::<Option<Vec<_>>>().ok_or(Malformed)?.try_into()
    }

    /// Whether it maps nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What these uids inside are on the machine, as far as they are mapped and Kubernetes can have given them to a pod.
    pub fn of_pod(&self, inside: &[u32]) -> Vec<u32> {
        let outside = inside.iter().filter_map(|uid| self.outside(*uid));
        outside.filter(|uid| *uid >= FIRST_OF_PODS).collect()
    }

    /// The same, where they would be left out in all network namespaces: only if this is as much as the kubelet gives to a pod, or
    /// every program could hide in this way what its user does elsewhere.
    pub fn of_pod_everywhere(&self, inside: &[u32]) -> Vec<u32> {
        let count: u64 = self.0.iter().map(|extent| u64::from(extent.count)).sum();
        if count < COUNT_OF_POD { Vec::new() } else { self.of_pod(inside) }
    }

    fn outside(&self, uid: u32) -> Option<u32> {
        self.0.iter().find_map(|extent| {
            let offset = uid.checked_sub(extent.inside).filter(|offset| *offset < extent.count)?;
            Some(extent.outside + offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_uid_is_found_in_the_extent_that_holds_it() {
        let whole = "         0    2000000      65536\n";
        let pieces = "0 100000 1000\n1337 300000 1\n1338 200000 100\n";
        let identity = "         0          0 4294967295\n";
        for (text, inside, outside) in [
            (whole, 0, Some(2_000_000)),
            (whole, 1337, Some(2_001_337)),
            (whole, 65_535, Some(2_065_535)),
            (whole, 65_536, None),
            (pieces, 999, Some(100_999)),
            (pieces, 1000, None),
            (pieces, 1337, Some(300_000)),
            (pieces, 1338, Some(200_000)),
            (pieces, 1438, None),
            (identity, u32::MAX - 1, Some(u32::MAX - 1)),
            (identity, u32::MAX, None),
            ("1000 1337 1\n", 0, None),
            ("", 1337, None),
        ] {
            let map = UidMap::parse(text).unwrap();
            assert_eq!(map.outside(inside), outside, "{inside} in {text:?}");
            assert_eq!(map.is_empty(), text.is_empty());
        }
    }

    #[test]
    fn uids_that_are_not_a_pods_are_not_believed() {
        for (text, uids) in [
            ("0 65536 65536\n", vec![66_873, 65_636]),
            ("0 0 4294967295\n", vec![]),
            ("1337 1000 1\n", vec![]),
            ("1337 65535 1\n", vec![]),
            ("1337 65536 1\n", vec![65_536]),
        ] {
            assert_eq!(UidMap::parse(text).unwrap().of_pod(&[1337, 100]), uids, "{text:?}");
        }
    }

    #[test]
    fn where_uids_are_left_out_everywhere_only_what_the_kubelet_makes_is_believed() {
        for (text, uids) in [
            ("0 2000000 65536\n", vec![2_001_337]),
            ("0 2000000 131072\n", vec![2_001_337]),
            ("0 2000000 65535\n", vec![]),
            ("0 2000000 1338\n1338 3000000 64198\n", vec![2_001_337]),
            // What a program makes for itself, and calls itself in it.
            ("1337 2000000 1\n", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(UidMap::parse(text).unwrap().of_pod_everywhere(&[1337]), uids, "{text:?}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_write_is_refused() {
        let long = "1 2 3\n".repeat(MAX_EXTENTS + 1);
        for text in [
            "\n",
            "0 0",
            "0 1000 1 1",
            "0 1000 -1",
            "0 1000 0",
            "0 1000 4294967296",
            "a b c",
            // Not mapped in the namespace of the reader.
            "0 4294967295 1",
            "0 4294967290 6",
            "4294967290 0 6",
            &long,
        ] {
            assert_eq!(UidMap::parse(text), Err(Malformed), "{text:?}");
        }
        assert!(UidMap::parse(&long[6..]).is_ok());
    }

    #[test]
    fn a_map_from_elsewhere_is_checked_like_one_of_the_kernel() {
        let json = |map: &UidMap| serde_json::to_string(map).unwrap();
        let map = UidMap::parse("0 2000000 65536\n").unwrap();
        assert_eq!(serde_json::from_str::<UidMap>(&json(&map)).unwrap(), map);
        let beyond = UidMap(vec![Extent { inside: 0, outside: 1, count: u32::MAX }]);
        let many = UidMap(vec![Extent { inside: 0, outside: 1, count: 1 }; MAX_EXTENTS + 1]);
        for wrong in [beyond, many] {
            assert!(serde_json::from_str::<UidMap>(&json(&wrong)).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_text_and_no_uid_panics(text in "[0-9 \n-]{0,64}", uid: u32) {
            if let Ok(map) = UidMap::parse(&text) {
                map.of_pod(&[uid, 0, u32::MAX]);
            }
        }
    }
}
