//! Where things are kept that are fetched or built once; outside the repository, so that a fresh clone finds them again.
//!
//! Belongs to `xtask` and, by way of `bpf.rs` and `component.rs`, to build scripts and the test bed: standard library only.

use std::{env, path::PathBuf};

pub(crate) fn cache_dir() -> Option<PathBuf> {
    let var = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")))?;
    Some(cache.join("sidescope"))
}
